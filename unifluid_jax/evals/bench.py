"""What metrics are given and give back: a subject, data, an outcome.

A subject is a loaded model seen from outside: it draws prompts, edits images
and answers questions.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import logging

from unifluid_jax.core.config import Config, SourceConfig
from unifluid_jax.data import transforms
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.sources import source as sources

_SEEDS_APART = 1_000_000  # a metric draws fewer images


@runtime_checkable
class Subject(Protocol):
  """What a metric needs of a model."""

  def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> Any:
    """uint8 [n, H, W, 3]."""

  def answers(self, images: Any, questions: Sequence[str]) -> list[str]:
    """One decoded answer an image and question."""

  def edits(
    self, images: Any, instructions: Sequence[str], seeds: Sequence[int]
  ) -> Any:
    """uint8 [n, H, W, 3]: the images, changed as told."""

  def look(self, record: sources.Record) -> Any:
    """What it sees of a record, uint8 [*F, S, S, 3]."""

  def reconstruct(self, images: Any) -> Any:
    """uint8 [n, H, W, 3] through the tokenizer and back."""


@runtime_checkable
class Redrawing(Protocol):
  """What a metric needs of a model that draws parts of images again."""

  def generate(
    self, prompt: Sequence[str], seed: int, *, given: Any, redraw: Any
  ) -> list[Any]:
    """PIL images: the given ones with a box drawn again; see `api.Model`."""


@runtime_checkable
class TextScorer(Protocol):
  """What a metric needs of a model that says how likely texts are."""

  def log_likelihoods(
    self, questions: Sequence[str | None], texts: Sequence[str]
  ) -> Any:
    """f32[n]: of each text after its question (None: after nothing)."""


@runtime_checkable
class LossTeller(Protocol):
  """What a metric needs of a model that tells its loss on data."""

  def losses(
    self, task: str, records: Sequence[sources.Record]
  ) -> tuple[Mapping[str, float], int]:
    """Loss and metrics over the records' examples; how many there were."""


class Shown(NamedTuple):
  """One example for the report."""

  kind: str  # "generated", "caption", "answer" or "edit"
  image: Any  # u8[H, W, 3]; of an edit the result
  prompt: str
  output: str = ""
  truth: str = ""
  correct: bool | None = None
  source: Any = None  # u8[H, W, 3] of an edit
  # u8[H, W, 3] of an edit, or of a drawing: the true picture, where it exists.
  target: Any = None
  references: tuple[str, ...] = ()  # of a caption
  score: float | None = None  # of a caption: CIDEr-D of this image
  task: str = ""  # examples of a task stand together under its name
  seed: int | None = None  # of a generated image


class Outcome(NamedTuple):
  """What a metric found."""

  values: Mapping[str, float]
  floors: Mapping[str, float]  # what no understanding at all would score
  settings: Mapping[str, Any]
  shown: Sequence[Shown] = ()


def sampling_options(sampling: Any, *kinds: str) -> dict[str, Any]:
  """The options that bear on something that is drawn or said.

  Args:
    sampling: a system's options, a dataclass whose fields name what they bear
      on in their metadata, under "of".
    kinds: "images", "edits", "text".

  Returns:
    Name → value, in the order of the fields.
  """
  return {
    f.name: getattr(sampling, f.name)
    for f in dataclasses.fields(sampling)
    if f.metadata.get("of") in kinds
  }


class Bench:
  """The evaluation data of a configuration, read once."""

  def __init__(
    self,
    config: Config,
    workdir: str,
    say: Callable[[str], None] = lambda line: None,
  ):
    """Reads nothing yet; `say` takes progress lines of metrics."""
    self.config = config
    self.workdir = workdir
    self.say = say
    first = config.eval.split
    taking_part = {k for k, s in config.data.eval.items() if s.weight}
    others = sorted(taking_part - {first})
    self.splits = (first, *others)
    self.bad: dict[str, list[str]] = {}  # records left out, by split
    self.records = functools.cache(self._records)
    self.pixels = functools.cache(self._pixels)

  def _records(self, split: str) -> list[sources.Record]:
    """The readable ones of a split's first `config.eval.examples` records.

    Those whose images cannot be decoded are left out, named in the log and in
    `bad`.

    Raises:
      ValueError: none can be read.
    """
    key = f"data.eval.{split}"
    source = sources.open_source(
      self.config.data.eval[split],
      self.config.data.root,
      self.config.data.caption_prefix,
      key,
    )
    found, bad = [], []
    for i in range(min(len(source), self.config.eval.examples)):
      try:
        record = source[i]
        for file in (record.image, *(record.edit or ())[1:]):
          if file:  # text alone has none
            self.decode(file)
        found.append(record)
      except sources.BadRecord as error:
        logging.warning("left out of the scores: %s[%d]: %s", key, i, error)
        bad.append(f"{key}[{i}]: {error}")
    if not found:
      raise ValueError(
        f"{key} has no record that can be read"
        + (f"; the first of {len(bad)} bad ones: {bad[0]}" if bad else "")
      )
    self.bad[split] = bad
    return found

  def seeds(self, count: int) -> range:
    """Seeds of so many drawings; those of another `eval.seed` are others."""
    first = self.config.eval.seed * _SEEDS_APART
    return range(first, first + count)

  def decode(self, data: bytes) -> np.ndarray:
    """u8[H, W, 3] of an encoded image, see `images.decode_image`."""
    return decode_image(data, self.config.data.max_pixels)

  def skipped(self, *splits: str) -> dict[str, int]:
    """How many of the splits' records scores leave out, as a setting."""
    count = sum(len(self.bad.get(split, ())) for split in splits)
    return {"skipped": count} if count else {}

  def sampled(self, *kinds: str) -> dict[str, Any]:
    """Sampling options as a setting, without those at their defaults."""
    sampling = self.config.sampling
    defaults = {f.name: f.default for f in dataclasses.fields(sampling)}
    found = sampling_options(sampling, *kinds)
    return {k: v for k, v in found.items() if v != defaults[k]}

  def answered(self) -> dict[str, str]:
    """How answers were decoded, as a setting; all systems share the options."""
    sampling = self.config.sampling
    beams = f" {sampling.beams}" if sampling.text == "beam" else ""
    return {"decode": sampling.text + beams}

  def _pixels(self, split: str) -> np.ndarray:
    """Their images at the generated size, uint8 [n, H, W, 3]."""
    size = self.config.model.image_size
    return np.stack(
      [
        transforms.centre_crop_resize(self.decode(r.image), size)
        for r in self.records(split)
      ]
    )

  @property
  def trained_on(self) -> SourceConfig:
    """The training source of the first split's data set, else the first one.

    Others may hold images alone, or words that no question of the split has.
    """
    data = self.config.data
    same = data.eval[self.splits[0]].path
    found = [s for s in data.train.values() if s.path == same]
    return (found or list(data.train.values()))[0]

  def train_records(self, count: int) -> Iterator[sources.Record]:
    """The first records of `trained_on` that can be read."""
    source = sources.open_source(
      self.trained_on, self.config.data.root, self.config.data.caption_prefix
    )
    for i in range(min(count, len(source))):
      try:
        yield source[i]
      except sources.BadRecord:
        continue  # training counts and names them

  def name(self, metric: str, split: str) -> str:
    """The first split is the metric's plain name; others are appended."""
    return metric if split == self.splits[0] else f"{metric}_{split}"
