"""Two runs side by side, from the files that they and their evaluation left.

Only what was measured alike is subtracted: what a run was scored on shows in
the settings of a result and in its floor, which no weights enter.
"""

import datetime
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from unifluid_jax.core import checkpoint, freeze, telemetry
from unifluid_jax.evals.report import (
  comparison_page,
  run_results,
)
from unifluid_jax.evals.report import (
  data as report_data,
)
from unifluid_jax.evals.report.data import Found, Row
from unifluid_jax.evals.report.types import (
  Chart,
  Comparison,
  PairRow,
  SampleRow,
  curve_from_rows,
)

# How a run was made to answer, beside its sampling options: another choice is
# what one wants to compare.
_HOW = ("decode", "ema")


class Run(NamedTuple):
  """What is on disk of one run."""

  workdir: str
  step: int  # that is compared
  train: Sequence[Row]
  found: Found
  config: Mapping[str, Any]  # leaves by path; empty if no checkpoint is left


def write(
  path: str | epath.PathLike,
  workdirs: Sequence[str],
  step: int | None,
  losses: Mapping[str, str],
  options: Collection[str],
) -> None:
  """Writes the page of two runs.

  Args:
    path: the .html to write.
    workdirs: of two runs that have been evaluated.
    step: the checkpoint of both; None: the newest evaluated one of each.
    losses: see `compare`.
    options: see `compare`.

  Raises:
    FileNotFoundError: a workdir without results.
    ValueError: not two workdirs, or one without results of that step.
  """
  if len(workdirs) != 2:
    raise ValueError(
      f"--compare takes two workdirs, RUN_A,RUN_B, not {len(workdirs)}"
    )
  a, b = (read(workdir, step) for workdir in workdirs)
  comparison_page.write(path, compare(a, b, losses, options))


def read(workdir: str, step: int | None) -> Run:
  """What `compare` needs of a run.

  Raises:
    FileNotFoundError, ValueError: as `write`.
  """
  path = f"{workdir}/{run_results.FILE}"
  if not run_results.exist(workdir):
    raise FileNotFoundError(
      f"no {path}: evaluate this run first (python -m unifluid_jax.evaluate "
      f"--config=CONFIG --workdir={workdir} --once)"
    )
  found = report_data.by_metric(run_results.read(workdir))
  steps = sorted({s for each in found.values() for s in each})
  if not steps:
    raise ValueError(f"{path} has no results: every metric failed")
  if step not in (None, *steps):
    raise ValueError(f"{path} has no results of step {step}; there are {steps}")
  config = {}
  if left := checkpoint.steps(workdir):
    meta = checkpoint.read_meta(workdir, left[-1])
    config = freeze.leaves(meta["config"])
  return Run(
    workdir,
    steps[-1] if step is None else step,
    telemetry.read_metrics(f"{workdir}/{telemetry.METRICS}"),
    found,
    config,
  )


def compare(
  a: Run, b: Run, losses: Mapping[str, str], options: Collection[str]
) -> Comparison:
  """Everything the page shows.

  Args:
    a: one run.
    b: the other.
    losses: key in metrics.jsonl → title of its curve.
    options: names of sampling options, in which two runs may differ and their
      scores still be subtracted.
  """
  names = _names(a.workdir, b.workdir)
  runs = list(zip(names, (a, b), strict=True))
  rows, unpaired = _samples(a, b)
  scores, notes = _scores(a, b, {*options, *_HOW})
  unknown = [
    f"{name}: no checkpoint is left, so its configuration is not known"
    for name, run in runs
    if not run.config
  ]
  training = [
    Chart(title, tuple(curve_from_rows(r.train, key, n) for n, r in runs))
    for key, title in losses.items()
  ]
  progress = [
    Chart(title, tuple(report_data.curve(r.found, key, n) for n, r in runs))
    for key, title in report_data.HEADLINES.items()
  ]
  return Comparison(
    names=names,
    steps=(a.step, b.step),
    date=datetime.date.today().isoformat(),
    config=() if unknown else _config(a.config, b.config),
    scores=scores,
    training=tuple(training),
    progress=tuple(progress),
    samples=rows,
    notes=(*unknown, *notes),
    unpaired=unpaired,
  )


def _names(a: str, b: str) -> tuple[str, str]:
  """What is different of two paths: the last folders, or all of them."""
  short = tuple(os.path.basename(os.path.normpath(path)) for path in (a, b))
  return short if short[0] != short[1] else (a, b)


def _config(
  a: Mapping[str, Any], b: Mapping[str, Any]
) -> tuple[tuple[str, str, str], ...]:
  """Leaves in which two configurations differ."""
  return tuple(
    (key, *(str(c[key]) if key in c else "" for c in (a, b)))
    for key in sorted({*a, *b})
    if a.get(key) != b.get(key)
  )


def _scores(
  a: Run, b: Run, how_keys: Collection[str]
) -> tuple[tuple[PairRow, ...], list[str]]:
  """A row a metric that either run has, and what differs in the settings."""
  out, notes = [], {}
  for name in dict.fromkeys([*a.found, *b.found]):
    one, two = (r.found.get(name, {}).get(r.step) for r in (a, b))
    if one is None and two is None:
      continue
    objection = ""
    if one is not None and two is not None:
      what, how = _differences(name, one, two, how_keys)
      objection = "; ".join(what)
      group = name.partition("/")[0]
      if what:
        notes[f"{group}: not measured alike, so no difference: {objection}"] = 1
      if how:
        notes[f"{group}: {'; '.join(how)}"] = 1
    group, title = report_data.titled(name)
    floors = {r["floor"] for r in (one, two) if r is not None}
    out.append(
      PairRow(
        name=title,
        values=tuple(None if r is None else r["value"] for r in (one, two)),
        group=group,
        lower_is_better=report_data.lower_is_better(name),
        floor=floors.pop() if len(floors) == 1 else None,
        objection=objection,
      )
    )
  return tuple(out), list(notes)


def _differences(
  name: str, a: Row, b: Row, how_keys: Collection[str]
) -> tuple[list[str], list[str]]:
  """In what two results differ beside the model: what was asked, and how."""
  one, two = (_settings(name, row) for row in (a, b))
  what, how = [], []
  for key in sorted({*one, *two}):
    if one.get(key) != two.get(key):
      text = f"{key} {one.get(key)} against {two.get(key)}"
      (how if key in how_keys else what).append(text)
  floors = (a["floor"], b["floor"])
  if None not in floors and not math.isclose(*floors, rel_tol=1e-9):
    what.append("other data, since the floors differ")
  return what, how


def _settings(name: str, row: Row) -> Mapping[str, Any]:
  """A result's settings; transfers keep those of each task apart."""
  parts = name.split("/")
  own = row["settings"].get(parts[1]) if len(parts) > 1 else None
  return own if isinstance(own, Mapping) else row["settings"]


def _samples(a: Run, b: Run) -> tuple[tuple[SampleRow, ...], str]:
  """Images of the same prompt and seed, and a sentence about the others."""
  one, two = (report_data.drawn(r.workdir, r.step) for r in (a, b))
  shared = [key for key in one if key in two]
  rows = tuple(
    SampleRow(
      key[0],
      (report_data.generation(one[key]), report_data.generation(two[key])),
    )
    for key in shared
  )
  parts = [
    f"{run.workdir} has no samples of step {run.step}"
    for run, drawn in ((a, one), (b, two))
    if not drawn
  ]
  alone = (len(one) - len(rows), len(two) - len(rows))
  if not parts and any(alone):
    parts.append(
      f"{len(rows)} samples have the same prompt and seed in both runs; "
      f"{alone[0]} and {alone[1]} have no counterpart and are not shown"
    )
  return rows, "; ".join(parts)
