"""The words that a tokenizer was trained on, kept inside its `.model` file.

Pieces cannot tell a new word from a rare one: both are spelt out of parts.
The list is a field of the file's protocol buffer from the range that
sentencepiece_model.proto leaves to extensions; SentencePiece ignores it.
"""

import collections
import unicodedata
from collections.abc import Iterable

_FIELD = 1000  # of ModelProto; 200 and above are free
_MOST = 50_000  # words, the most frequent
_BYTES = 2  # the wire type of strings, bytes and messages
_FIXED = {1: 8, 5: 4}  # wire type → bytes


def words(text: str) -> list[str]:
  """The words of a text, in its order.

  Letters, with their marks, make words; every other visible character is a
  word of its own, as are letters of scripts without case, since several of
  those (Chinese, Thai) put no space between words.

  Args:
    text: as the tokenizer normalises it.
  """
  found, open_word = [], False
  for character in text:
    category = unicodedata.category(character)
    joins = category in ("Ll", "Lu", "Lt", "Lm", "Mn", "Mc")
    if joins and open_word:
      found[-1] += character
    elif not character.isspace() and category != "Cc":
      found.append(character)
    open_word = joins
  return found


def with_words(proto: bytes, corpus: Iterable[str]) -> bytes:
  """A serialized model, with the words of its training corpus.

  Args:
    proto: content of a `.model` file.
    corpus: the sentences, normalised.
  """
  # White space ends words: few distinct stretches between it are split.
  stretches = collections.Counter(s for text in corpus for s in text.split())
  counts: collections.Counter[str] = collections.Counter()
  for stretch, count in stretches.items():
    for word in words(stretch):
      counts[word] += count
  # Ties are broken by the word, so that the bytes are the same every time.
  frequent = sorted(counts, key=lambda w: (-counts[w], w))[:_MOST]
  data = "\n".join(sorted(frequent)).encode()
  return proto + _varint(_FIELD << 3 | _BYTES) + _varint(len(data)) + data


def words_of(proto: bytes) -> frozenset[str]:
  """What `with_words` stored; empty for a model made elsewhere.

  Args:
    proto: content of a `.model` file that SentencePiece accepts.
  """
  stored, at = b"", 0
  while at < len(proto):
    key, at = _read_varint(proto, at)
    kind = key & 7
    if kind == _BYTES:
      length, at = _read_varint(proto, at)
      if key >> 3 == _FIELD:
        stored = proto[at : at + length]
      at += length
    elif kind in _FIXED:
      at += _FIXED[kind]
    else:
      _, at = _read_varint(proto, at)
  return frozenset(stored.decode().split("\n")) - {""}


def _varint(value: int) -> bytes:
  """Seven bits a byte, the lowest first; the last byte has no top bit."""
  out = []
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
  """The number that begins at a place, and the place after it."""
  value = shift = 0
  while data[at] & 128:
    value |= (data[at] & 127) << shift
    at, shift = at + 1, shift + 7
  return value | data[at] << shift, at + 1
