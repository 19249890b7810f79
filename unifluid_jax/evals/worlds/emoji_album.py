"""All true pictures of the emoji world's data, and the nearest of them.

Two baselines look a picture up among those that were trained on: by the words
of a prompt, or by the pixels of an image. Neither understands anything; a
model that learns its training set by heart does no better on held-out pairs.
"""

import collections
import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from unifluid_jax.data import transforms
from unifluid_jax.data.records import Record
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.worlds import emoji
from unifluid_jax.data.worlds.emoji import Picture
from unifluid_jax.evals.bench import Bench

SIZE = 64  # pixels a side at which pictures are kept, compared and judged
_BLURRED = 16  # pixels a side of what is compared by pixels
_MOST = 20_000  # training records; .25 GB


class Entry(NamedTuple):
  """A true picture with its texts."""

  picture: Picture
  image: UInt8[np.ndarray, "S S 3"]
  prompt: str
  caption: str
  questions: tuple[tuple[str, str], ...]
  kinds: tuple[str, ...]  # of the questions
  trained: bool  # a training record, else of an evaluation split

  @property
  def identity(self) -> tuple[str, str | None]:
    """What it shows, whoever drew it: concept and tone."""
    return identity(self.picture)


def identity(picture: Picture) -> tuple[str, str | None]:
  """What a picture shows, whoever drew it: concept and tone."""
  return picture.concept, picture.tone


def picture_of(record: Record, metric: str) -> Picture:
  """What a record shows.

  Args:
    record: of an evaluation split, or of training.
    metric: that asks, for the error.

  Raises:
    ValueError: the data are not of the emoji world.
  """
  try:
    return emoji.picture_from_json(record.scene)
  except ValueError as error:
    raise ValueError(
      f"{metric} is defined on the emoji world, and record {record.id} is not "
      "of it: leave it out of config.eval.metrics"
    ) from error


@functools.lru_cache(maxsize=1)
def album_of(bench: Bench) -> "Album":
  """The true pictures of a configuration's data, read once.

  Those of `bench.trained_on` come first, then those that evaluation
  splits alone have. Evaluation splits are read whole, whatever
  config.eval.examples says: retrieval is among all concepts.
  """
  data = bench.config.data
  of = [(bench.trained_on, True)]
  of += [(data.eval[split], False) for split in bench.splits]
  entries, seen = [], set()
  for config, trained in of:
    source = sources.open_source(config, data.root, data.caption_prefix)
    for i in range(min(len(source), _MOST)):
      try:
        record = source[i]
        picture = picture_of(record, "this metric")
        key = picture, record.image
        if key not in seen:
          entries.append(_entry(bench, record, picture, trained))
          seen.add(key)
      except sources.BadRecord:
        continue  # training and `bench.records` count and name them
  return Album(entries)


def _entry(
  bench: Bench, record: Record, picture: Picture, trained: bool
) -> Entry:
  return Entry(
    picture,
    sized(bench.decode(record.image)),
    next(iter(record.prompts), ""),
    next(iter(record.captions), ""),
    record.questions,
    record.kinds,
    trained,
  )


def sized(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "S S 3"]:
  """An image at the size at which all are compared."""
  return transforms.centre_crop_resize(image, SIZE)


class Album:
  """True pictures, to look one up in."""

  def __init__(self, entries: Sequence[Entry]):
    """Training pictures among them are those that look-ups find.

    Raises:
      ValueError: none was trained on.
    """
    self.entries = tuple(entries)
    self.trained = tuple(e for e in entries if e.trained)
    if not self.trained:
      raise ValueError("no training record of the emoji world can be read")
    self.blurred = np.stack([_blurred(e.image) for e in self.trained])
    self.index = _WordIndex([e.prompt for e in self.trained])

  def by_words(self, prompt: str) -> Entry:
    """The training picture whose prompt shares the most telling words."""
    return self.trained[self.index.nearest(prompt)]

  def by_pixels(
    self,
    image: UInt8[np.ndarray, "H W 3"],
    style: str | None = None,
    other_than: Picture | None = None,
  ) -> Entry:
    """The training picture that looks most alike, blurred to 16 x 16 pixels.

    Args:
      image: of any size.
      style: only pictures of this style.
      other_than: not this picture.

    Raises:
      ValueError: no training picture is left to choose from.
    """
    gaps = np.square(self.blurred - _blurred(sized(image))).mean(axis=1)
    left = [
      i
      for i, e in enumerate(self.trained)
      if style in (None, e.picture.style) and e.picture != other_than
    ]
    if not left:
      raise ValueError(f"no other training picture is of the style {style!r}")
    return self.trained[min(left, key=lambda i: gaps[i])]


def _blurred(image: UInt8[np.ndarray, "S S 3"]) -> Float[np.ndarray, " P"]:
  """Means of square blocks, in [0, 1], flat."""
  block = SIZE // _BLURRED
  blocks = image.reshape(_BLURRED, block, _BLURRED, block, 3)
  return (blocks.mean(axis=(1, 3), dtype=np.float32) / 255).reshape(-1)


def words(text: str) -> tuple[str, ...]:
  """Words in lower case, without punctuation; keycaps keep their # and *."""
  return tuple(re.findall(r"[^\W_]+|[#*]", text.lower()))


class _WordIndex:
  """Texts by their words, weighted by rarity (tf-idf with tf of 0 or 1)."""

  def __init__(self, texts: Sequence[str]):
    postings = collections.defaultdict(list)
    for i, text in enumerate(texts):
      for word in set(words(text)):
        postings[word].append(i)
    self._count = len(texts)
    self._postings = {w: np.asarray(rows) for w, rows in postings.items()}
    squares = np.zeros(len(texts))
    for word, rows in self._postings.items():
      squares[rows] += self._weight(word) ** 2
    self._norms = np.sqrt(np.maximum(squares, 1e-12))

  def _weight(self, word: str) -> float:
    return math.log((1 + self._count) / len(self._postings[word]))

  def nearest(self, text: str) -> int:
    """The text of the largest cosine; the first of equals."""
    scores = np.zeros(self._count)
    for word in sorted(set(words(text)) & set(self._postings)):
      scores[self._postings[word]] += self._weight(word) ** 2
    return int(np.argmax(scores / self._norms))


class ConceptReader:
  """Which concept, and which style, a text names.

  The longest known name whose words stand in the text counts, so that "cat
  face" is not "cat"; the first of equally long ones.
  """

  def __init__(self, concepts: Sequence[str], styles: Sequence[str]):
    self._concepts = {words(c): c for c in sorted(set(concepts))}
    self._styles = {words(s): s for s in sorted(set(styles))}

  def concept(self, text: str) -> str | None:
    """The concept that a text names; None: none that is known."""
    found = _phrases(words(text), self._concepts)
    return max(found, key=lambda f: len(f[0]), default=((), None))[1]

  def style(self, text: str) -> str | None:
    """The style that a text names; None: none, or several."""
    found = {name for _, name in _phrases(words(text), self._styles)}
    return found.pop() if len(found) == 1 else None


def _phrases(
  said: tuple[str, ...], known: dict[tuple[str, ...], str]
) -> list[tuple[tuple[str, ...], str]]:
  """Known names that stand in a text, from left to right."""
  longest = max(map(len, known), default=0)
  return [
    (said[i:j], known[said[i:j]])
    for i in range(len(said))
    for j in range(i + 1, min(len(said), i + longest) + 1)
    if said[i:j] in known
  ]
