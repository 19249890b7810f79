"""Numbers about a run: what it logged, progress lines, speed, sizes."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from clu import parameter_overview

from unifluid_jax.core import jsonl
from unifluid_jax.core.config import Config

# Peak dense bf16 FLOP/s of one device (jax.Device.device_kind); published. Of a
# chip, but for TPU7x, whose chips are two devices each.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 1153.5e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}


METRICS = "metrics.jsonl"  # of a workdir
_EVERY = 20.0  # seconds between progress lines


def read_metrics(path: str | os.PathLike) -> list[jsonl.Row]:
  """Rows of a run's metrics.jsonl, each step once, in order.

  A run that was killed has logged steps that it takes again when it resumes:
  a row supersedes all earlier rows from its step on.
  """
  kept: list[jsonl.Row] = []
  for row in jsonl.read(path):
    while kept and kept[-1]["step"] >= row["step"]:
      kept.pop()
    kept.append(row)
  return kept


class Goodput:
  """The share of wall time that a run has spent in steps that count.

  Wall time runs from the first start of the run and includes whatever is not
  a step: starting, compiling, saving, downtime between restarts. Steps that
  were lost, as they were not saved before a kill, do not count, nor does the
  first step of each start, which compiles. A step's time includes waiting for
  its data. The counters lie in the rows of metrics.jsonl.
  """

  def __init__(self, rows: Sequence[Mapping[str, Any]], step: int, now: float):
    """Goes on where the rows end.

    Args:
      rows: of `read_metrics`.
      step: that the run starts from.
      now: Unix time in seconds at which this process began to work.
    """
    kept = [r for r in rows if "run_began" in r]
    before = [r for r in kept if r["step"] <= step]
    self._began = kept[0]["run_began"] if kept else now
    self._seconds = before[-1]["step_seconds"] if before else 0.0
    self._first = True

  def add(self, seconds: float, now: float) -> tuple[float, dict[str, float]]:
    """Counts the time of a window of steps.

    Returns:
      Goodput in [0, 1], and the counters to keep in the window's row.
    """
    if not self._first:
      self._seconds += seconds
    self._first = False
    counters = {"run_began": self._began, "step_seconds": self._seconds}
    return self._seconds / max(now - self._began, 1e-9), counters


class Progress:
  """Rate and time left of a counted job."""

  def __init__(self, label: str, start: int, total: int):
    """Starts the clock at step `start` of `total`."""
    self._label, self._total = label, total
    self._last = (start, time.monotonic())
    self._begin: tuple[int, float] | None = None
    self._reported = -math.inf

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """What happens in the block counts for no step's time."""
    begin = time.monotonic()
    try:
      yield
    finally:
      step, last = self._last
      self._last = (step, last + time.monotonic() - begin)

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

  def report(self, step: int, log: Callable[[str], None]) -> None:
    """Logs a line at the end, and before it every 20 seconds at most."""
    if step < self._total and time.monotonic() < self._reported + _EVERY:
      return
    log(self.line(step)[0])
    self._reported = time.monotonic()


def speeds(metrics: Mapping[str, float]) -> str:
  """Tokens per second, MFU and goodput of a row, as far as it has them."""
  shown = []
  if "tokens_per_second" in metrics:
    shown.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
  shown += [
    f"{name} {100 * metrics[key]:.0f} %"
    for key, name in {"mfu": "MFU", "goodput": "goodput"}.items()
    if key in metrics
  ]
  return "  ".join(shown)


def clock(seconds: float) -> str:
  """Seconds as h:mm:ss or m:ss."""
  minutes, s = divmod(round(seconds), 60)
  hours, m = divmod(minutes, 60)
  return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def startup_rows(
  config: Config, mesh: jax.sharding.Mesh, shapes: Any, shardings: Any
) -> list[tuple[str, Any]]:
  """What a run logs before its first step.

  Args:
    config: of the run.
    mesh: it trains on.
    shapes: of its train state.
    shardings: of its train state.

  Returns:
    Names and values, for `table`.
  """
  kind = jax.devices()[0].device_kind
  state_bytes = bytes_per_device(shapes, shardings)
  rows = [("devices", f"{mesh.size} x {kind}, {jax.process_count()} process")]
  rows += [("mesh", " x ".join(f"{k} {v}" for k, v in mesh.shape.items()))]
  rows += [
    (f"parameters, {name}", f"{n:,}")
    for name, n in parameter_table(shapes.params)
  ]
  rows += [
    (f"learning rate, {prefix}", f"x {rate:g}" if rate else "0: frozen")
    for prefix, rate in config.optim.rates.items()
    if rate != 1
  ]
  rows += [
    (f"optimizer, {prefix}", f"its own, from step {part.start}")
    for prefix, part in config.optim.parts.items()
  ]
  batch = ", ".join(f"{k} {v}" for k, v in config.batch.items() if v)
  parts = f" in {config.accumulate} parts" * (config.accumulate > 1)
  return [
    *rows,
    ("state a device", f"{state_bytes / 2**20:,.1f} MiB"),
    ("batch", batch + parts),
  ]


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


def peak_flops() -> float | None:
  """Peak FLOP/s of all devices together; None where it is not known."""
  peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
  return peak * jax.device_count() if peak else None
