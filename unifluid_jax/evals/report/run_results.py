"""What the evaluation of a run has found: the rows of metrics_eval.jsonl.

A value is {"step", "metric": "captions/cider_d", "value", "floor",
"settings"}; rows of `python -m unifluid_jax.evaluate --metrics=...` name that
command in "by". Each metric of the evaluation job leaves one row more:
{"step", "metric": "captions", "seconds"} when it has ended, or {"step",
"metric", "error"} when it has failed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unifluid_jax.core import files, jsonl
from unifluid_jax.core.config import Config
from unifluid_jax.evals.bench import Outcome

FILE = "metrics_eval.jsonl"
Row = Mapping[str, Any]


def read(workdir: str) -> list[dict[str, Any]]:
  """All rows of a run, the oldest first."""
  return jsonl.read(files.path(workdir) / FILE)


def exist(workdir: str) -> bool:
  """Whether a run has been evaluated."""
  return jsonl.exists(files.path(workdir) / FILE)


def append(workdir: str, rows: Iterable[Row]) -> None:
  """Adds rows to a run's."""
  jsonl.append(files.path(workdir) / FILE, rows)


def as_rows(
  step: int, outcome: Outcome, config: Config
) -> list[dict[str, Any]]:
  """What a metric found at a step, a row for each value.

  Args:
    step: of the checkpoint.
    outcome: what was found.
    config: by which it was scored; weights that are not averaged are named,
      and other seeds of drawings than usual.
  """
  raw = config.optim.ema and not config.eval.use_ema
  seed = config.eval.seed
  settings = {
    **outcome.settings,
    **({"ema": False} if raw else {}),
    **({"seed": seed} if seed else {}),
  }
  return [
    {
      "step": step,
      "metric": name,
      "value": value,
      "floor": outcome.floors.get(name),
      "settings": settings,
    }
    for name, value in outcome.values.items()
  ]


def failures(rows: Iterable[Row]) -> dict[int, dict[str, str]]:
  """Errors that no later success of the same metric has superseded.

  Returns:
    step → metric → error.
  """
  found: dict[int, dict[str, str]] = {}
  for row in rows:
    if "error" in row:
      found.setdefault(row["step"], {})[row["metric"]] = row["error"]
    elif "seconds" in row:
      found.get(row["step"], {}).pop(row["metric"], None)
  return {step: errors for step, errors in found.items() if errors}


def to_run(
  rows: Sequence[Row], metrics: Sequence[str]
) -> dict[int, tuple[str, ...]]:
  """What is left to do of the steps that the evaluation job has been at.

  Of a step that it has scored these are the metrics that failed. Metrics
  that were not asked for then are not made up for.

  Args:
    rows: of the run.
    metrics: that the job is to run.

  Returns:
    step → metrics, none where all is done. A step that is missing has not
    been scored at all.
  """
  failed = failures(rows)
  return {
    step: tuple(name for name in metrics if name in failed.get(step, {}))
    for step in sorted({row["step"] for row in rows if "by" not in row})
  }
