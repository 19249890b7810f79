"""The formats of tokenizer files behind one interface.

SentencePiece's `.model` and Hugging Face's `tokenizer.json`. The content says
which it is, not the name: a run's own copy has the same name for both.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import sentencepiece

from unifluid_jax.data import vocabulary

_SPACE = "\u2581"  # how SentencePiece spells a space


@runtime_checkable
class TokenizerFile(Protocol):
  """Pieces and their ids; knows nothing of rows.

  Attributes:
    vocab_size: one more than the largest id.
    special: ids of the tokens whose roles the file tells; -1: it has none.
    words: that it was trained on; empty where it does not list them.
  """

  vocab_size: int
  special: Mapping[str, int]
  words: frozenset[str]

  def id_of(self, piece: str) -> int | None:
    """The id of a piece, spelt as in the file; None if it has none."""

  def encode(self, text: str) -> list[int]:
    """Ids of valid Unicode, no control token among them.

    Pieces that users defined are words like others, whatever text.special
    calls them.
    """

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids below `vocab_size`."""

  def normalise(self, text: str) -> str:
    """The text as its pieces spell it, with plain spaces."""


def parse(data: bytes, name: str) -> TokenizerFile:
  """Reads the content of a tokenizer file.

  Args:
    data: all of it.
    name: how error messages call it.

  Raises:
    ValueError: neither format, or a `tokenizer.json` without the package that
      reads it.
  """
  # A SentencePiece model begins with the tag of its first field, a newline.
  kind = _TokenizerJson if data.startswith(b"{") else _SentencePiece
  return kind(data, name)


class _SentencePiece:
  """A SentencePiece model; see `TokenizerFile`."""

  def __init__(self, data: bytes, name: str):
    """Reads a serialized model.

    Raises:
      ValueError: it is none.
    """
    self._model = sentencepiece.SentencePieceProcessor()
    try:
      self._model.LoadFromSerializedProto(data)
    except RuntimeError as error:
      raise ValueError(
        f"{name} is not a SentencePiece model; text.tokenizer must name a "
        ".model or tokenizer.json file"
      ) from error
    model = self._model
    self.special = {"pad": model.pad_id(), "eos": model.eos_id(),
                    "bos": model.bos_id(), "unk": model.unk_id()}  # fmt: skip
    self.vocab_size = model.vocab_size()
    self.words = vocabulary.words_of(data)

  def id_of(self, piece: str) -> int | None:
    found = self._model.piece_to_id(piece)  # UNK where there is no such piece
    return found if self._model.id_to_piece(found) == piece else None

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode(list(ids))

  def normalise(self, text: str) -> str:
    return self._model.normalize(text).replace(_SPACE, " ").strip()


class _TokenizerJson:
  """A `tokenizer.json`, read by the package `tokenizers`.

  The file tells no role but that of the unknown token: `text.special` names
  the others.
  """

  words: frozenset[str] = frozenset()

  def __init__(self, data: bytes, name: str):
    """Reads the JSON.

    Raises:
      ValueError: it is no tokenizer, or the package is not installed.
    """
    try:
      import tokenizers
    except ImportError as error:
      raise ValueError(
        f"{name} is a tokenizer.json, which the package tokenizers reads: "
        "pip install 'unifluid_jax[hf]', or set text.tokenizer to a "
        "SentencePiece .model file"
      ) from error
    try:
      self._model = tokenizers.Tokenizer.from_buffer(data)
    except ValueError as error:
      raise ValueError(
        f"{name} is not a tokenizer.json: {' '.join(str(error).split())}"
      ) from error
    self._model.no_truncation()  # rows decide that
    self._model.no_padding()
    # A text that spells "<eos>" is a text and must not end an answer.
    self._model.encode_special_tokens = True
    self.vocab_size = 1 + max(self._model.get_vocab().values(), default=-1)
    unknown = getattr(self._model.model, "unk_token", None)
    found = None if unknown is None else self.id_of(unknown)
    self.special = {} if found is None else {"unk": found}

  def id_of(self, piece: str) -> int | None:
    return self._model.token_to_id(piece)

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode(list(ids), skip_special_tokens=True)

  def normalise(self, text: str) -> str:
    normaliser = self._model.normalizer
    text = text if normaliser is None else normaliser.normalize_str(text)
    return text.replace(_SPACE, " ").strip()
