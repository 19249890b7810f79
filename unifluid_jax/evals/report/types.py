"""What the report pages show, as plain values."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from unifluid_jax.evals.report.scales import Scale


@dataclasses.dataclass(frozen=True)
class ScoreRow:
  """One metric over the report's checkpoints."""

  name: str
  values: tuple[float | None, ...]  # one per checkpoint; None or NaN: missing
  group: str = ""  # rows of a group stand together under its name
  digits: int = 3  # decimals
  lower_is_better: bool = False
  constant: bool = False  # training cannot change it: it has no better way
  floor: float | None = None  # score of a model that ignores its input
  bar: float | None = None  # score this run is meant to reach


@dataclasses.dataclass(frozen=True)
class Tile:
  """A headline score and its verdict; all numbers in the printed unit."""

  name: str
  value: float
  unit: str = ""  # printed after the value, e.g. "of 10"
  digits: int = 2  # decimals
  lower_is_better: bool = False
  end: float | None = None  # of a scale from 0; None: no scale is drawn
  floor: float | None = None
  bar: float | None = None
  remark: str = ""  # e.g. the step, where it is not the page's


@dataclasses.dataclass(frozen=True)
class Curve:
  """One number over training steps; see `curve_from_rows`."""

  title: str
  steps: tuple[int, ...]
  values: tuple[float, ...]
  series: int | None = None  # its colour; None: its place in the chart


@dataclasses.dataclass(frozen=True)
class Chart:
  """Scores on one axis: a line a run, points at the checkpoints."""

  title: str
  curves: tuple[Curve, ...]
  floor: float | None = None  # a dashed line
  floor_name: str = "floor"


@dataclasses.dataclass(frozen=True)
class TaskBar:
  """One task of GenEval, or its overall score."""

  name: str
  score: float | None  # in [0, 1]
  floor: float | None = None
  overall: bool = False
  group: str = ""  # bars of a group share a card under its name
  curve: Curve | None = None  # the score over steps


@dataclasses.dataclass(frozen=True)
class Generation:
  """A generated image and what was asked for."""

  prompt: str
  image: Any  # u8[H, W, 3]
  correct: bool | None = None  # None: not judged
  task: str = ""  # images of a task stand together under its name
  reason: str = ""  # why it is not correct
  truth: Any = None  # u8[H, W, 3] of the true picture, where there is one


@dataclasses.dataclass(frozen=True)
class SampleRow:
  """One prompt drawn several times from one seed, a column each."""

  prompt: str
  drawn: tuple[Generation | None, ...]  # None: not drawn there


@dataclasses.dataclass(frozen=True)
class Caption:
  """An image with what the model says it shows."""

  image: Any  # u8[H, W, 3]
  text: str
  references: tuple[str, ...] = ()
  score: float | None = None  # CIDEr-D of this image, 0 to 10
  correct: bool | None = None
  group: str = ""  # captions of a group stand together, lowest score first


@dataclasses.dataclass(frozen=True)
class Answer:
  """A question about an image, the model's answer and the true one."""

  image: Any  # u8[H, W, 3]
  question: str
  answer: str
  truth: str = ""
  correct: bool | None = None
  task: str = ""  # questions of a kind stand together under its name


@dataclasses.dataclass(frozen=True)
class EditSample:
  """An edited image between its source and, if known, its target."""

  instruction: str
  source: Any  # u8[H, W, 3]
  result: Any  # u8[H, W, 3]
  target: Any = None  # u8[H, W, 3]
  correct: bool | None = None
  task: str = ""  # edits of one kind stand together under its name


@dataclasses.dataclass(frozen=True)
class Start:
  """One command that worked on the run, as it is to be printed."""

  command: str
  when: str
  facts: Mapping[str, str]  # e.g. commit, versions, hardware


@dataclasses.dataclass(frozen=True)
class ReportData:
  """Everything a report shows; empty parts are left out of the page."""

  name: str
  step: int
  date: str  # as it is to be printed
  config: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tiles: tuple[Tile, ...] = ()
  checkpoints: tuple[int, ...] = ()  # columns of `scores`, ascending
  scores: tuple[ScoreRow, ...] = ()
  curves: tuple[Curve, ...] = ()  # losses
  rewards: tuple[Curve, ...] = ()
  progress: tuple[Chart, ...] = ()
  geneval: tuple[TaskBar, ...] = ()
  floor_name: str = "chance: images that ignore the prompt"
  sample_steps: tuple[int, ...] = ()  # columns of `samples`, ascending
  samples: tuple[SampleRow, ...] = ()
  generations: tuple[Generation, ...] = ()
  captions: tuple[Caption, ...] = ()
  answers: tuple[Answer, ...] = ()
  edits: tuple[EditSample, ...] = ()
  notes: tuple[str, ...] = ()  # caveats: tokenizer, rank-deficient distances
  times: Mapping[str, str] = dataclasses.field(default_factory=dict)
  starts: tuple[Start, ...] = ()  # the newest last
  attribution: str = ""  # of the data, as its file has it
  digest: str = ""  # of the results that the page shows


@dataclasses.dataclass(frozen=True)
class RunGroup:
  """Runs that differ in their seed alone, or one run."""

  name: str
  runs: tuple[str, ...]  # names, one for each value of a score
  step: int  # of the checkpoint that is compared


@dataclasses.dataclass(frozen=True)
class ComparedRow:
  """One metric of several groups of runs."""

  name: str
  # By group, then by run; None where a run has no score.
  values: tuple[tuple[float | None, ...], ...]
  group: str = ""  # of metrics
  digits: int = 3
  lower_is_better: bool = False
  constant: bool = False  # no run can be better at it
  floor: float | None = None
  # By group: why it cannot be compared with the first; empty: it can.
  objections: tuple[str, ...] = ()
  headline: Scale | None = None  # how its tile prints it; None: it has none


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Several runs on one page; empty parts are left out of it."""

  groups: tuple[RunGroup, ...]  # the first is what others are compared with
  date: str
  # Key, then its value in each group.
  config: tuple[tuple[str, ...], ...] = ()
  scores: tuple[ComparedRow, ...] = ()
  training: tuple[Chart, ...] = ()  # losses
  progress: tuple[Chart, ...] = ()  # scores
  samples: tuple[SampleRow, ...] = ()  # a column for each run
  notes: tuple[str, ...] = ()  # about the scores
  unpaired: str = ""  # which samples have no counterpart, in a sentence
  starts: tuple[tuple[str, Start], ...] = ()  # of a run, its last training
  attribution: str = ""


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
