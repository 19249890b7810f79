"""Text to token ids and back, in the static rows that models read.

The layout is PaliGemma's (big_vision configs/proj/paligemma): BOS + prefix +
newline, then suffix + EOS. Special ids are those of core/types.py unless the
configuration names others (`text.special`).

How a text is normalised is the tokenizer's own business and stands in its
file: Gemma's take texts as they are, those of `train` fold case, Unicode's
compatibility forms (NFKC) and runs of white space.
"""

import functools
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
from absl import logging
from etils import epath

from unifluid_jax.core import files
from unifluid_jax.core.types import BOS, EOS, PAD, UNK
from unifluid_jax.data import tokenizer_files, vocabulary

# Ids that networks read, unless `text.special` names others.
_IDS = {"eos": EOS, "bos": BOS, "unk": UNK}
_NEWLINE = "\n"
_CACHE = 1 << 16  # texts whose ids are remembered


class Tokenizer:
  """Texts to ids and back, whatever the format of the tokenizer's file.

  Attributes:
    special: ids of special and extra tokens by name: bos, eos, newline, unk
      where the file has one, and what `text.special` names.
    truncated: texts that did not fit their row so far.
  """

  def __init__(
    self,
    data: bytes,
    name: str = "tokenizer",
    special: Mapping[str, Any] | None = None,
  ):
    """Reads the content of a file.

    Args:
      data: of a `.model` or `tokenizer.json` file.
      name: how error messages call it.
      special: name → a piece of the file, or an id, which may lie beyond the
        file's; as config.text.special.

    Raises:
      ValueError: neither format, special ids that are neither the usual ones
        nor named, or no piece for the newline.
    """
    self._source = data, name, dict(special or {})
    self._file = tokenizer_files.parse(data, name)
    self.special = _special(self._file, *self._source[1:])
    self.truncated = 0
    self._encode = functools.lru_cache(_CACHE)(self._encode_uncached)

  def __reduce__(self) -> tuple[Callable, tuple]:
    return Tokenizer, self._source

  @classmethod
  def load(
    cls,
    path: str | os.PathLike[str],
    special: Mapping[str, Any] | None = None,
  ) -> "Tokenizer":
    """Reads a `.model` or `tokenizer.json` file, local or remote.

    Args:
      path: of the file.
      special: see `__init__`.

    Raises:
      ValueError: the file is missing or unusable.
    """
    file = epath.Path(path)
    if not os.fspath(path) or not file.is_file():
      raise ValueError(
        f"no tokenizer at {os.fspath(path)!r}: set text.tokenizer to a "
        "SentencePiece .model or a tokenizer.json file"
      )
    files.check_regular(file)
    return cls(file.read_bytes(), os.fspath(path), special)

  @property
  def vocab_size(self) -> int:
    """Pieces, special ones included; the model's V may be larger."""
    return self._file.vocab_size

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without BOS and EOS.

    A lone surrogate, which is no character, is read as U+FFFD; tokenizers of
    `train` treat that as white space.
    """
    return list(self._encode(text))

  def unknown_words(self, text: str) -> list[str]:
    """Words that nobody taught this tokenizer, in the order of the text.

    A word is unknown if the corpus of `train` held it nowhere, or if one of
    its characters has no piece. A tokenizer made elsewhere, Gemma's for one,
    lists no words: there only the second counts.

    Args:
      text: a prompt, question or instruction.

    Returns:
      Each word once, normalised.
    """
    found = vocabulary.words(self.normalise(text))
    taught, unk = self._file.words, self.special.get("unk")
    return [
      word
      for word in dict.fromkeys(found)
      if (taught and word not in taught) or unk in self._file.encode(word)
    ]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text before the first EOS.

    Pads, named tokens that are no text and ids beyond the file's drop out.
    """
    written = {"unk", "newline"}
    silent = {i for name, i in self.special.items() if name not in written}
    kept = []
    for i in map(int, ids):
      if i == self.special["eos"]:
        break
      if i != PAD and i not in silent and 0 <= i < self.vocab_size:
        kept.append(i)
    return self._file.decode(kept)

  def fit(self, ids: Sequence[int], room: int) -> Sequence[int]:
    """The first `room` ids; the first loss is logged, all are counted."""
    if len(ids) > room:
      if not self.truncated:
        logging.warning(
          "a text of %d tokens was cut to %d, before %r; raise text.prompt, "
          "text.prefix or text.suffix if that is not rare (logged once)",
          len(ids),
          room,
          self.decode(ids[room:]),
        )
      self.truncated += 1
    return ids[:room]

  def _encode_uncached(self, text: str) -> tuple[int, ...]:
    return tuple(self._file.encode(_valid(text)))

  def normalise(self, text: str) -> str:
    """The text as its pieces spell it, with plain spaces."""
    return self._file.normalise(_valid(text))


def _special(
  file: tokenizer_files.TokenizerFile, name: str, named: Mapping[str, Any]
) -> dict[str, int]:
  """Ids of special and extra tokens: those that are named, else the usual.

  Raises:
    ValueError: see `Tokenizer`.
  """
  ids = dict(file.special)
  for role, piece in named.items():
    found = file.id_of(piece) if isinstance(piece, str) else piece
    if type(found) is not int or found < 0:
      raise ValueError(
        f"text.special.{role}={piece!r} is no piece of {name} and no id: "
        "spell it as the file does"
      )
    ids[role] = found
  usual = {
    r: i for r, i in _IDS.items() if r in file.special and r not in named
  }
  own = {role: ids[role] for role in usual}
  if own != usual:
    raise ValueError(
      f"{name} has {', '.join(own)} = {(*own.values(),)}, need "
      f"{(*usual.values(),)}: use a Gemma tokenizer or one that text.train "
      "made, or name its own by text.special"
    )
  lacking = [role for role in ("bos", "eos") if role not in ids]
  if lacking:
    raise ValueError(
      f"{name} does not tell which pieces are {' and '.join(lacking)}: set "
      + " and ".join(f"text.special.{role}" for role in lacking)
    )
  if "newline" not in ids:
    ids["newline"] = _newline(file, name)
  return {role: i for role, i in ids.items() if i >= 0}


def _newline(file: tokenizer_files.TokenizerFile, name: str) -> int:
  """The piece that is a newline, whatever it is called in the file.

  Raises:
    ValueError: there is none.
  """
  found = file.id_of(_NEWLINE)
  if found is not None:
    return found
  written = file.encode(_NEWLINE)
  if len(written) == 1 and file.decode(written) == _NEWLINE:
    return written[0]
  raise ValueError(
    f"{name} has no piece for the newline that ends a question: train it "
    'with user_defined_symbols=["\\n"], or name one by text.special.newline'
  )


def train(
  sentences: Iterable[str], path: str | os.PathLike[str], vocab_size: int
) -> Tokenizer:
  """Trains a SentencePiece model and writes it.

  BPE with a dummy leading space: a word is the same piece at the start and
  inside of a text, and on the narrow language of captions frequent words
  become one piece. The same sentences give the same bytes.

  Texts are normalised: NFKC, lower case, single spaces. "A RED  CIRCLE" and
  "a red circle" have the same ids, and what a model writes is lower case.

  Differs: Gemma's model normalises nothing, has no dummy space and falls back
  to bytes; a small vocabulary cannot spare 256 pieces, so unseen characters
  become UNK.

  Args:
    sentences: the corpus, read once; what it raises is passed on.
    path: the `.model` file to write; replaced atomically.
    vocab_size: pieces at most; fewer when the corpus has no more.

  Returns:
    The tokenizer, loaded.

  Raises:
    ValueError: an empty corpus, or fewer pieces than characters.
  """
  corpus = [_valid(s) for s in sentences if s.strip()]
  if not corpus:
    raise ValueError(
      "cannot train a tokenizer: the corpus is empty, no sentence holds text"
    )
  writer = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(corpus),
      model_writer=writer,
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      model_type="bpe",
      normalization_rule_name="nmt_nfkc_cf",
      remove_extra_whitespaces=True,
      add_dummy_prefix=True,
      split_digits=True,
      byte_fallback=False,
      character_coverage=1.0,
      user_defined_symbols=[_NEWLINE],
      pad_id=0,  # a piece of the file; rows are padded with PAD
      eos_id=EOS,
      bos_id=BOS,
      unk_id=UNK,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f"cannot train a tokenizer of {vocab_size} pieces on {len(corpus)} "
      f"sentences: {_cause(error)}"
    ) from error
  name = os.fspath(path)
  plain = Tokenizer(writer.getvalue(), name)
  proto = vocabulary.with_words(writer.getvalue(), map(plain.normalise, corpus))
  files.write(path, proto)
  return Tokenizer(proto, name)


def _valid(text: str) -> str:
  """The text with U+FFFD for surrogates that UTF-8 cannot hold."""
  if text.isascii():
    return text
  data = text.encode("utf-16-le", "surrogatepass")
  return data.decode("utf-16-le", "replace")


def _cause(error: RuntimeError) -> str:
  """What SentencePiece says, in one line and without its source's address."""
  whole = " ".join(str(error).split())
  said = whole.rpartition("] ")[2]
  if "Vocabulary size is smaller" in said:
    said = said.partition(". Increase")[0]
    return f"{said}; raise vocab_size (config.text.train_vocab)"
  if "sentences_.empty()" in whole:
    return "none is usable; each is longer than 4192 bytes"
  return said or whole
