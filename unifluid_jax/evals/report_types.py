"""What an evaluation report shows, as plain values."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ScoreRow:
  """One metric over the report's checkpoints."""

  name: str
  values: tuple[float | None, ...]  # one per checkpoint; None or NaN: missing
  group: str = ""  # rows of a group stand together under its name
  digits: int = 3  # decimals
  lower_is_better: bool = False
  floor: float | None = None  # score of a model that ignores its input
  bar: float | None = None  # score this run is meant to reach
  headline: bool = False  # shown large at the top


@dataclasses.dataclass(frozen=True)
class Curve:
  """One training loss; see `curve_from_rows`."""

  title: str
  steps: tuple[int, ...]
  values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class TaskBar:
  """One task of GenEval, or its overall score."""

  name: str
  score: float | None  # in [0, 1]
  floor: float | None = None
  overall: bool = False


@dataclasses.dataclass(frozen=True)
class Generation:
  """A generated image and what was asked for."""

  prompt: str
  image: Any  # u8[H, W, 3]
  correct: bool | None = None  # None: not judged
  task: str = ""  # images of a task stand together under its name


@dataclasses.dataclass(frozen=True)
class Answer:
  """A question about an image, the model's answer and the true one."""

  question: str
  answer: str
  truth: str = ""
  correct: bool | None = None


@dataclasses.dataclass(frozen=True)
class Understanding:
  """An image with what the model says about it."""

  image: Any  # u8[H, W, 3]
  caption: str | None = None
  references: tuple[str, ...] = ()
  correct: bool | None = None  # of the caption
  answers: tuple[Answer, ...] = ()


@dataclasses.dataclass(frozen=True)
class EditSample:
  """An edited image between its source and, if known, its target."""

  instruction: str
  source: Any  # u8[H, W, 3]
  result: Any  # u8[H, W, 3]
  target: Any = None  # u8[H, W, 3]
  correct: bool | None = None


@dataclasses.dataclass(frozen=True)
class ReportData:
  """Everything a report shows; empty parts are left out of the page."""

  name: str
  step: int
  date: str  # as it is to be printed
  config: Mapping[str, str] = dataclasses.field(default_factory=dict)
  checkpoints: tuple[int, ...] = ()  # columns of `scores`, ascending
  scores: tuple[ScoreRow, ...] = ()
  curves: tuple[Curve, ...] = ()
  geneval: tuple[TaskBar, ...] = ()
  floor_name: str = "floor: images that ignore the prompt"
  generations: tuple[Generation, ...] = ()
  understanding: tuple[Understanding, ...] = ()
  edits: tuple[EditSample, ...] = ()
  notes: tuple[str, ...] = ()  # caveats: tokenizer, rank-deficient distances


def curve_from_rows(
  rows: Iterable[Mapping[str, Any]], key: str, title: str
) -> Curve:
  """The curve of one metric from logged rows; rows without it are skipped.

  Args:
    rows: mappings with "step" and metrics, in order.
    key: the metric.
    title: its name on the page.

  Returns:
    The curve, empty if no row has the metric.
  """
  kept = [(int(r["step"]), float(r[key])) for r in rows if key in r]
  return Curve(title, tuple(s for s, _ in kept), tuple(v for _, v in kept))
