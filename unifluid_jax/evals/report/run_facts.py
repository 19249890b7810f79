"""What ran, how long and on what, from the files of a workdir, as text."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from unifluid_jax.core import provenance, telemetry
from unifluid_jax.evals.report.types import Start

Row = Mapping[str, Any]
Targets = Mapping[str, float]  # metric → what it is to reach
_STARTS = 5  # that a page lists


def targets(began: Sequence[Row]) -> Targets:
  """What the configuration file of the last training asks of the run."""
  trained = [row for row in began if row["work"] == provenance.TRAINING]
  asked = trained[-1]["targets"] if trained else {}
  return {name: bound for name, (_, bound) in asked.items()}


def starts(began: Sequence[Row]) -> tuple[Start, ...]:
  """The newest commands, the oldest of them first."""
  return tuple(map(start, began[-_STARTS:]))


def start(row: Row) -> Start:
  """One row of starts.jsonl as it is printed."""
  when = datetime.datetime.fromtimestamp(row["time"], datetime.UTC)
  versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
  facts = {
    "commit": row["commit"] or "not known",
    "hardware": row["hardware"],
    "versions": versions,
  }
  return Start(
    command=row["command"] or "(called from Python)",
    when=f"{row['work']} from step {row['step']:,} · {when:%Y-%m-%d %H:%M} UTC",
    facts=facts,
  )


def times(train: Sequence[Row], evaluated: Sequence[Row]) -> dict[str, str]:
  """How long the run has taken, as far as its files tell.

  Args:
    train: rows of metrics.jsonl.
    evaluated: rows of metrics_eval.jsonl.
  """
  found = {}
  timed = [r for r in train if r.get("goodput")]
  if timed:
    last = timed[-1]
    wall = last["step_seconds"] / last["goodput"]
    found["training time"] = (
      f"{telemetry.clock(wall)}, {100 * last['goodput']:.0f} % of it in steps"
    )
  if train and "seconds_per_step" in train[-1]:
    speed = f"{train[-1]['seconds_per_step']:.3g} s per step"
    if "tokens_per_second" in train[-1]:
      speed += f", {train[-1]['tokens_per_second']:,.0f} tokens/s"
    found["speed"] = speed
  scored = {r["metric"]: r for r in evaluated if "seconds" in r}
  if scored:
    total = sum(r["seconds"] for r in scored.values())
    found["evaluation time"] = f"{telemetry.clock(total)} for one checkpoint"
  return found
