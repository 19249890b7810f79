"""Text to token ids and back, in the static rows that models read.

The layout is PaliGemma's (big_vision configs/proj/paligemma): BOS + prefix +
newline, then suffix + EOS. Ids follow Gemma's SentencePiece model.

How a text is normalised is the tokenizer's own business and stands in its
file: Gemma's take texts as they are, those of `train` fold case, Unicode's
compatibility forms (NFKC) and runs of white space.
"""

import functools
import io
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import sentencepiece
from absl import logging
from etils import epath

from unifluid_jax.core import files
from unifluid_jax.core.types import BOS, EOS, UNK
from unifluid_jax.data import vocabulary

_NEWLINE = "\n"
_PAD = 0  # the piece that SentencePiece pads with; rows never hold it
_SPACE = "\u2581"  # SentencePiece's space
_CACHE = 1 << 16  # texts whose ids are remembered


class Tokenizer:
  """A SentencePiece model whose special ids are those of types.py.

  Attributes:
    truncated: texts that did not fit their row so far.
  """

  def __init__(self, proto: bytes, name: str = "tokenizer"):
    """Reads a serialized model.

    Args:
      proto: content of a `.model` file.
      name: how error messages call it.

    Raises:
      ValueError: not a SentencePiece model, other special ids, or no piece
        for the newline.
    """
    self._proto, self._name = proto, name
    self._model = sentencepiece.SentencePieceProcessor()
    try:
      self._model.LoadFromSerializedProto(proto)
    except RuntimeError as error:
      raise ValueError(
        f"{name} is not a SentencePiece model; text.tokenizer must name a "
        ".model file"
      ) from error
    model = self._model
    ids = (model.pad_id(), model.eos_id(), model.bos_id(), model.unk_id())
    if ids != (_PAD, EOS, BOS, UNK):
      raise ValueError(
        f"{name} has pad, eos, bos, unk = {ids}, need {(_PAD, EOS, BOS, UNK)}: "
        "use a Gemma tokenizer or one that text.train made"
      )
    self._newline = model.piece_to_id(_NEWLINE)
    if self._newline == UNK:
      raise ValueError(
        f"{name} has no piece for the newline that ends a question: train it "
        'with user_defined_symbols=["\\n"]'
      )
    self._words = vocabulary.words_of(proto)
    self.truncated = 0
    self._encode = functools.lru_cache(_CACHE)(self._encode_uncached)

  def __reduce__(self) -> tuple[Callable, tuple]:
    return Tokenizer, (self._proto, self._name)

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
    """Reads a `.model` file, local or remote.

    Raises:
      ValueError: the file is missing or unusable.
    """
    file = epath.Path(path)
    if not os.fspath(path) or not file.is_file():
      raise ValueError(
        f"no tokenizer at {os.fspath(path)!r}: set text.tokenizer to a "
        "SentencePiece .model file"
      )
    files.check_regular(file)
    return cls(file.read_bytes(), os.fspath(path))

  @property
  def vocab_size(self) -> int:
    """Pieces, special ones included; the model's V may be larger."""
    return self._model.vocab_size()

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
    return [
      word
      for word in dict.fromkeys(found)
      if (self._words and word not in self._words)
      or UNK in self._model.encode(word)
    ]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text before the first EOS; pads, BOS and ids beyond V drop out."""
    kept = []
    for i in map(int, ids):
      if i == EOS:
        break
      if i not in (_PAD, BOS) and 0 <= i < self.vocab_size:
        kept.append(i)
    return self._model.decode(kept)

  @property
  def special(self) -> dict[str, int]:
    """Ids of the tokens that stand around texts, by name."""
    return {"bos": BOS, "eos": EOS, "newline": self._newline}

  def fit(self, ids: Sequence[int], room: int) -> Sequence[int]:
    """The first `room` ids; the first loss is logged, all are counted."""
    if len(ids) > room:
      if not self.truncated:
        logging.warning(
          "a text of %d tokens was cut to %d; raise text.prompt, text.prefix "
          "or text.suffix if that is not rare (logged once)",
          len(ids),
          room,
        )
      self.truncated += 1
    return ids[:room]

  def _encode_uncached(self, text: str) -> tuple[int, ...]:
    return tuple(self._model.encode(_valid(text)))

  def normalise(self, text: str) -> str:
    """The text as its pieces spell it, with plain spaces."""
    return self._model.normalize(_valid(text)).replace(_SPACE, " ").strip()


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
      pad_id=_PAD,
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
