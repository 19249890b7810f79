"""Several runs side by side, from the files that they and their scores left.

Only what was measured alike is subtracted: what a run was scored on shows in
the settings of a result and in its floor, which no weights enter.
"""

import dataclasses
import datetime
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from unifluid_jax.core import checkpoint, freeze, provenance, telemetry
from unifluid_jax.evals.report import (
  attribution,
  comparison_page,
  run_facts,
  run_groups,
  run_results,
  scales,
)
from unifluid_jax.evals.report import (
  data as report_data,
)
from unifluid_jax.evals.report.data import Row
from unifluid_jax.evals.report.run_groups import Run
from unifluid_jax.evals.report.types import (
  Chart,
  ComparedRow,
  Comparison,
  RunGroup,
  SampleRow,
  Start,
  curve_from_rows,
)

MOST = 6  # runs on a page
# How a run was made to answer, beside its sampling options: another choice is
# what one wants to compare.
_HOW = ("decode", "ema")
Groups = Sequence[Sequence[Run]]


def write(
  path: str | epath.PathLike,
  workdirs: Sequence[str],
  step: int | None,
  losses: Mapping[str, str],
  options: Collection[str],
) -> None:
  """Writes the page of several runs.

  Args:
    path: the .html to write.
    workdirs: of 2 to 6 runs that have been evaluated; the others are compared
      with the first.
    step: the checkpoint of all; None: the newest evaluated one of each.
    losses: see `compare`.
    options: see `compare`.

  Raises:
    FileNotFoundError: a workdir without results.
    ValueError: too few or too many workdirs, one twice, or one without
      results of that step.
  """
  if not 2 <= len(workdirs) <= MOST:
    raise ValueError(
      f"--compare takes 2 to {MOST} workdirs, RUN_A,RUN_B,..., not "
      f"{len(workdirs)}"
    )
  same = [w for w in workdirs if workdirs.count(w) > 1]
  if same:
    raise ValueError(f"--compare names {same[0]} twice: name each run once")
  runs = [read(workdir, step) for workdir in workdirs]
  comparison_page.write(path, compare(runs, losses, options))


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
    config = freeze.leaves(checkpoint.read_config(workdir, left[-1]))
  return Run(
    workdir,
    steps[-1] if step is None else step,
    telemetry.read_metrics(f"{workdir}/{telemetry.METRICS}"),
    found,
    config,
  )


def compare(
  runs: Sequence[Run], losses: Mapping[str, str], options: Collection[str]
) -> Comparison:
  """Everything the page shows.

  Args:
    runs: two or more; others are compared with the first and its seeds.
    losses: key in metrics.jsonl → title of its curve.
    options: names of sampling options, in which runs may differ and their
      scores still be subtracted.
  """
  groups = run_groups.grouped(runs)
  runs = [run for group in groups for run in group]
  names = run_groups.run_names([run.workdir for run in runs])
  rows, unpaired = _samples(runs)
  scores, notes = _scores(groups, {*options, *_HOW})
  unknown = [
    f"{name}: no checkpoint is left, so its configuration is not known"
    for name, run in zip(names, runs, strict=True)
    if not run.config
  ]
  training, progress = _charts(groups, names, losses)
  return Comparison(
    groups=_named(groups, names),
    date=datetime.date.today().isoformat(),
    config=() if unknown else _config(groups),
    scores=scores,
    training=training,
    progress=progress,
    samples=rows,
    notes=(*unknown, *notes),
    unpaired=unpaired,
    starts=_starts(runs, names),
    attribution=_attribution(runs),
  )


def _named(groups: Groups, names: Sequence[str]) -> tuple[RunGroup, ...]:
  """The groups as the page names them; `names` are of all runs in order."""
  rest = iter(names)
  own = [[next(rest) for _ in group] for group in groups]
  return tuple(
    RunGroup(name, tuple(runs), group[0].step)
    for name, runs, group in zip(
      run_groups.group_names(own), own, groups, strict=True
    )
  )


def _config(groups: Groups) -> tuple[tuple[str, ...], ...]:
  """Leaves in which the configurations of the groups differ."""
  configs = []
  for group in groups:
    leaves = {key: str(value) for key, value in group[0].config.items()}
    if len(group) > 1:
      leaves["seed"] = ", ".join(str(run.config["seed"]) for run in group)
    configs.append(leaves)
  keys = sorted({key for leaves in configs for key in leaves})
  rows = ((key, *(leaves.get(key, "") for leaves in configs)) for key in keys)
  return tuple(row for row in rows if len(set(row[1:])) > 1)


def _charts(
  groups: Groups, names: Sequence[str], losses: Mapping[str, str]
) -> tuple[tuple[Chart, ...], tuple[Chart, ...]]:
  """Losses and scores over steps; the runs of a group share its colour."""
  drawn = [(i, run) for i, group in enumerate(groups) for run in group]
  drawn = [(i, run, name) for (i, run), name in zip(drawn, names, strict=True)]
  training = [
    Chart(
      title,
      tuple(
        dataclasses.replace(curve_from_rows(run.train, key, name), series=i)
        for i, run, name in drawn
      ),
    )
    for key, title in losses.items()
  ]
  progress = [
    Chart(
      title,
      tuple(
        dataclasses.replace(report_data.curve(run.found, key, name), series=i)
        for i, run, name in drawn
      ),
    )
    for key, title in scales.CHARTS.items()
  ]
  return tuple(training), tuple(progress)


def _scores(
  groups: Groups, how_keys: Collection[str]
) -> tuple[tuple[ComparedRow, ...], list[str]]:
  """One row for each metric of any run, and what differs in the settings."""
  out, notes = [], {}
  runs = [run for group in groups for run in group]
  for name in dict.fromkeys(name for run in runs for name in run.found):
    results = [[_result(run, name) for run in group] for group in groups]
    measured = [[r for r in rows if r is not None] for rows in results]
    if not any(measured):
      continue
    objections = []
    for rows in measured:
      what, how = _unlike(name, [*measured[0][:1], *rows], how_keys)
      objections.append("; ".join(what))
      part = name.partition("/")[0]
      if what:
        notes[
          f"{part}: not measured alike, so no difference: {objections[-1]}"
        ] = None
      if how:
        notes[f"{part}: {'; '.join(how)}"] = None
    group, title = scales.titled(name)
    floors = {row["floor"] for rows in measured for row in rows}
    out.append(
      ComparedRow(
        name=title,
        values=tuple(
          tuple(None if row is None else row["value"] for row in rows)
          for rows in results
        ),
        group=group,
        lower_is_better=scales.lower_is_better(name),
        constant=scales.is_constant(name),
        floor=floors.pop() if len(floors) == 1 else None,
        objections=tuple(objections),
        headline=scales.HEADLINES.get(name),
      )
    )
  return tuple(out), list(notes)


def _result(run: Run, name: str) -> Row | None:
  """What a metric found at the step that is compared; None: no number."""
  row = run.found.get(name, {}).get(run.step)
  return row if row is not None and math.isfinite(row["value"]) else None


def _unlike(
  name: str, rows: Sequence[Row], how_keys: Collection[str]
) -> tuple[list[str], list[str]]:
  """In what results differ from the first of them; see `_differences`."""
  what, how = {}, {}
  for row in rows[1:]:
    for found, kept in zip(
      _differences(name, rows[0], row, how_keys), (what, how), strict=True
    ):
      kept.update(dict.fromkeys(found))
  return list(what), list(how)


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


def _samples(runs: Sequence[Run]) -> tuple[tuple[SampleRow, ...], str]:
  """Images of the same prompt and seed, and a sentence about the others."""
  drawn = [report_data.drawn(run.workdir, run.step) for run in runs]
  some = [each for each in drawn if each]  # a run may have none
  shared = [
    key
    for key in (some[0] if len(some) > 1 else ())
    if all(key in each for each in some)
  ]
  rows = tuple(
    SampleRow(
      key[0], tuple(report_data.generation(each.get(key)) for each in drawn)
    )
    for key in shared
  )
  parts = [
    f"{run.workdir} has no samples of step {run.step}"
    for run, each in zip(runs, drawn, strict=True)
    if not each
  ]
  alone = [str(len(each) - len(rows)) for each in some]
  if len(some) > 1 and any(count != "0" for count in alone):
    where = "both runs" if len(some) == 2 else f"{len(some)} runs"
    listed = f"{', '.join(alone[:-1])} and {alone[-1]}"
    parts.append(
      f"{len(rows)} samples have the same prompt and seed in {where}; {listed} "
      "have no counterpart and are not shown"
    )
  return rows, "; ".join(parts)


def _starts(
  runs: Sequence[Run], names: Sequence[str]
) -> tuple[tuple[str, Start], ...]:
  """The last training of each run that has recorded it."""
  found = []
  for run, name in zip(runs, names, strict=True):
    rows = provenance.read(run.workdir)
    trained = [r for r in rows if r["work"] == provenance.TRAINING]
    found += [(name, run_facts.start(row)) for row in trained[-1:]]
  return tuple(found)


def _attribution(runs: Sequence[Run]) -> str:
  """The attributions of all data that the runs were trained on."""
  roots = dict.fromkeys(run.config.get("data.root") or "" for run in runs)
  texts = dict.fromkeys(attribution.read(root) for root in roots)
  return "\n\n".join(text for text in texts if text)
