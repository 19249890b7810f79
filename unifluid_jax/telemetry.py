"""Numbers a run leaves behind: metrics files, progress lines, profiles.

clu's metric writers import TensorFlow; event files are therefore written by
tensorboardX, and clu serves where it stands alone (parameter tables).
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from clu import parameter_overview

# Peak dense bf16 FLOP/s of one device (jax.Device.device_kind); published.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 2307e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}


class MetricsWriter:
  """Appends rows to `metrics.jsonl` and, if wanted, TensorBoard events."""

  def __init__(self, workdir: str, *, tensorboard: bool, name: str = "metrics"):
    """Opens both files for appending; only process 0 should own one."""
    os.makedirs(workdir, exist_ok=True)
    self._file = open(Path(workdir) / f"{name}.jsonl", "a")
    self._events = None
    if tensorboard:
      from tensorboardX import SummaryWriter

      self._events = SummaryWriter(str(Path(workdir) / "events" / name))

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """One row; each number is a plain float."""
    self._file.write(json.dumps({"step": step, **metrics}) + "\n")
    self._file.flush()
    if self._events is not None:
      for key, value in metrics.items():
        self._events.add_scalar(key, value, step)
      self._events.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    self._file.close()
    if self._events is not None:
      self._events.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Rows of a metrics file; a torn last line of a killed run is dropped."""
  path = Path(path)
  rows = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        logging.warning("%s: dropped a torn line", path)
  return rows


class Progress:
  """Rate and time left of a counted job."""

  def __init__(self, label: str, start: int, total: int):
    """Starts the clock at step `start` of `total`."""
    self._label, self._total = label, total
    self._last = (start, time.monotonic())
    self._begin: tuple[int, float] | None = None

  def line(self, step: int, text: str = "") -> tuple[str, float]:
    """A progress line and the seconds a step since the last one took."""
    now = time.monotonic()
    last_step, last_time = self._last
    seconds = (now - last_time) / max(step - last_step, 1)
    self._last = (step, now)
    # The first window holds the compilation: no estimate comes from it.
    if self._begin is None:
      self._begin = (step, now)
      left = "-" if step < self._total else clock(0.0)
    else:
      rate = (now - self._begin[1]) / max(step - self._begin[0], 1)
      left = clock((self._total - step) * rate)
    share = 100 * step / max(self._total, 1)
    speed = 1 / seconds if seconds > 0 else math.inf
    line = (
      f"{self._label} {step}/{self._total} ({share:.0f} %)  {text}  "
      f"{speed:.2f}/s  ETA {left}"
    )
    return line, seconds


def clock(seconds: float) -> str:
  """Seconds as h:mm:ss or m:ss."""
  minutes, s = divmod(round(seconds), 60)
  hours, m = divmod(minutes, 60)
  return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def count(tree: Any) -> int:
  """Elements of all arrays of a tree."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def parameter_table(params: Any) -> list[tuple[str, int]]:
  """Parameters by top-level part, and their sum."""
  rows = [(name, count(part)) for name, part in params.items()]
  return [*rows, ("all", int(parameter_overview.count_parameters(params)))]


def bytes_per_device(tree: Any, shardings: Any) -> int:
  """Bytes that one device holds of a sharded tree of arrays or shapes."""
  sizes = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize,
    tree,
    shardings,
  )
  return sum(jax.tree.leaves(sizes))


def table(title: str, rows: Sequence[tuple[str, Any]]) -> str:
  """Two aligned columns under a title."""
  width = max((len(name) for name, _ in rows), default=0)
  lines = [f"{name:<{width}}  {value}" for name, value in rows]
  return "\n".join([f"-- {title} --", *lines])


def flops_of(compiled: Any) -> float | None:
  """FLOPs XLA counts in a compiled step; loop bodies are counted once."""
  cost = compiled.cost_analysis()
  return float(cost["flops"]) if cost and "flops" in cost else None


def peak_flops() -> float | None:
  """Peak FLOP/s of all devices together; None where it is not known."""
  peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
  return peak * jax.device_count() if peak else None
