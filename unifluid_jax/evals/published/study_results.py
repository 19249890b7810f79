"""Scores of a study's runs: read, averaged over seeds, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from unifluid_jax.evals.published.paper_tables import Arm, Study, number
from unifluid_jax.evals.report import run_results

_LEVEL = 0.95


def scores(workdir: str, study: Study, arm: Arm) -> dict[int, dict[str, float]]:
  """Step → column → value, of one run; later rows replace earlier ones.

  Args:
    workdir: of the run.
    study: whose columns are read.
    arm: rows of other settings than its `where` are left out; what a setting
      does not touch does not name it.
  """
  columns = {metric: column for column, metric in study.columns.items()}
  found: dict[int, dict[str, float]] = {}
  for row in run_results.read(workdir):
    settings = row.get("settings") or {}
    if not _found_with(settings, arm.where):
      continue
    if "value" in row and row["metric"] in columns:
      column = columns[row["metric"]]
      found.setdefault(row["step"], {})[column] = row["value"]
  return found


def _found_with(settings: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
  """Whether a row is of these settings; one that names none is of all.

  A row that names some leaves others out at their defaults, which are 0.
  """
  if not set(settings) & set(where):
    return True
  return all(settings.get(k, 0) == v for k, v in where.items())


def wanted(study: Study, arm: Arm) -> set[str]:
  """Columns that an arm's metrics fill."""
  return {
    column
    for column, metric in study.columns.items()
    if _scored(metric, arm.metrics) and _trained(arm, metric)
  }


def _scored(metric: str, by: Sequence[str]) -> bool:
  """Whether a metric is one that is named, of the first split or held out."""
  return metric.split("/")[0].removesuffix("_held_out") in by


def _trained(arm: Arm, metric: str) -> bool:
  """Whether a validation loss is of a task that the arm trains."""
  parts = metric.split("/")
  if parts[0] != "validation_loss":
    return True
  return f"--config.batch.{parts[1]}=0" not in arm.flags


def mean(values: Sequence[float]) -> tuple[float, float | None]:
  """Mean, and half the width of its 95 % interval (Student's t).

  Args:
    values: of the seeds, at least one; of one alone no interval is known.
  """
  x = np.asarray(values, np.float64)
  if x.size < 2:
    return float(x.mean()), None
  error = x.std(ddof=1) / np.sqrt(x.size)
  quantile = stats.t.ppf((1 + _LEVEL) / 2, x.size - 1)
  return float(x.mean()), float(error * quantile)


def cell(values: Sequence[float], seeds: int = 0) -> str:
  """Mean and interval as tables print them; says where seeds are missing."""
  if not values:
    return "–"
  middle, half = mean(values)
  missing = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
  return (
    number(middle) + ("" if half is None else f" ± {number(half)}") + missing
  )


def render(
  study: Study,
  results: Sequence[Sequence[Mapping[str, float]]],
  notes: Sequence[str] = (),
) -> str:
  """The table in Markdown: ours over seeds, the paper's number in brackets.

  Args:
    study: what was run.
    results: of each arm, in order, the scores of its seeds.
    notes: lines below it.
  """
  head = [study.title, *study.columns]
  lines = [" | ".join(head), " | ".join(["---"] * len(head))]
  for arm, found in zip(study.arms, results, strict=True):
    if not arm.metrics:
      continue  # the first of two stages
    cells = [
      f"{cell([r[c] for r in found if c in r], len(found))} "
      f"[{number(arm.published.get(c))}]"
      for c in study.columns
    ]
    lines.append(" | ".join([arm.title, *cells]))
  lines = [f"| {line} |" for line in lines]
  note = f"In brackets the paper's, on its own data ({study.sizes})."
  return "\n".join([*lines, "", note, *notes, ""])
