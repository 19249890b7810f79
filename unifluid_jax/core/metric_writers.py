"""Where metrics go: rows of JSON always; TensorBoard and wandb where wanted.

clu's metric writers import TensorFlow; event files are therefore written by
tensorboardX. Only process 0 should own a writer.
"""

import contextlib
import json
import time
import types
import uuid
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from unifluid_jax.core import files, jsonl, telemetry
from unifluid_jax.core.config import ConfigError, LogConfig

Image = UInt8[np.ndarray, "H W 3"]
_RUN_ID = "wandb_id"  # file of a workdir: a resumed run goes on in wandb too


@runtime_checkable
class Sink(Protocol):
  """A place that shows metrics."""

  def write(
    self, step: int, scalars: Mapping[str, float], images: Mapping[str, Image]
  ) -> None:
    """Takes what belongs to a step."""

  def flush(self) -> None:
    """Makes all that was written readable."""

  def close(self) -> None:
    """Flushes and ends."""


def check(log: LogConfig) -> None:
  """Refuses what cannot be written here.

  Raises:
    ConfigError: wandb is wanted and not installed.
  """
  if log.wandb:
    _wandb()


def sinks(
  workdir: str, log: LogConfig, job: str, name: str, config: Any, start: int = 0
) -> list[Sink]:
  """TensorBoard and wandb, as far as they are wanted.

  Args:
    workdir: of the run.
    log: says which.
    job: "metrics" of training, "eval"; each has charts of its own.
    name: of the run.
    config: JSON that is shown beside the charts; empty: none.
    start: step that the run resumes from; later events are superseded.
  """
  out: list[Sink] = []
  if log.tensorboard:
    out.append(Events(f"{workdir}/events/{job}", config, start))
  if log.wandb:
    out.append(Wandb(workdir, log.wandb, job, name, config))
  return out


class MetricsWriter:
  """Appends rows to `metrics.jsonl` and passes metrics on to the sinks.

  On object stores rows are kept until `flush`, as each is an object then.
  """

  def __init__(self, workdir: str, sinks: list[Sink]):
    """Writes nothing yet."""
    self._file = files.path(workdir) / telemetry.METRICS
    self._sinks, self._rows = sinks, []

  def write(
    self, step: int, metrics: Mapping[str, float], counters: Mapping[str, Any]
  ) -> None:
    """One row; `counters` are kept in it and not charted."""
    self._rows.append({"step": step, **metrics, **counters})
    for sink in self._sinks:
      sink.write(step, metrics, {})
    if not files.is_remote(self._file):
      self.flush()

  def flush(self) -> None:
    """Everything written so far can be read by others."""
    rows, self._rows = self._rows, []
    jsonl.append(self._file, rows)
    for sink in self._sinks:
      sink.flush()

  def close(self) -> None:
    """Flushes and closes all, also if one of them fails."""
    with contextlib.ExitStack() as exits:
      for sink in self._sinks:
        exits.callback(sink.close)
      self.flush()


class Events:
  """TensorBoard event files.

  On object stores, where files cannot grow, each flush ends one: TensorBoard
  reads all of a folder, in the order of their names.
  """

  def __init__(self, folder: str, config: Any, start: int = 0):
    """See `sinks`; opens no file yet."""
    self._folder, self._config, self._start = folder, config, start
    self._begun, self._writer = False, None
    self._files = contextlib.ExitStack()

  def _open(self):
    from tensorboardX import SummaryWriter

    first = not self._begun
    writer = SummaryWriter(
      self._files.enter_context(files.local_folder(self._folder)),
      purge_step=self._start + 1 if first and self._start else None,
      # Names are in order, and differ, within a second too.
      filename_suffix=f".{time.time_ns()}",
    )
    self._begun = True
    if first and self._config:
      text = json.dumps(self._config, indent=2)
      code = "\n".join(f"    {line}" for line in text.splitlines())
      writer.add_text("config", code, self._start)  # indented: Markdown's code
    return writer

  def write(
    self, step: int, scalars: Mapping[str, float], images: Mapping[str, Image]
  ) -> None:
    """One event per entry."""
    self._writer = self._writer or self._open()
    for key, value in scalars.items():
      self._writer.add_scalar(key, value, step)
    for key, image in images.items():
      self._writer.add_image(key, image, step, dataformats="HWC")

  def flush(self) -> None:
    """Ends the file on object stores; locally events follow in a moment."""
    if files.is_remote(self._folder):
      self.close()
    elif self._writer is not None:
      self._writer.flush()

  def close(self) -> None:
    """Writes what is left; another `write` begins another file."""
    if self._writer is not None:
      self._writer.close()
      self._writer = None
    self._files.close()


class Wandb:
  """A run of Weights & Biases per job of a workdir, resumed with it."""

  def __init__(
    self, workdir: str, project: str, job: str, name: str, config: Any
  ):
    """See `sinks`.

    Raises:
      ConfigError: wandb is not installed.
    """
    self._wandb = _wandb()
    note = files.path(workdir) / _RUN_ID
    if not note.exists():
      files.write(note, uuid.uuid4().hex[:12])
    self._run = self._wandb.init(
      project=project,
      id=f"{note.read_text().strip()}-{job}",
      name=name if job == "metrics" else f"{name} {job}",
      group=name,
      config=config,
      resume="allow",
    )
    # wandb's own count of calls never goes back, as a resumed run does.
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def write(
    self, step: int, scalars: Mapping[str, float], images: Mapping[str, Image]
  ) -> None:
    """One call of wandb's log."""
    shown = {
      key: self._wandb.Image(image, caption=key)
      for key, image in images.items()
    }
    self._run.log({"step": step, **scalars, **shown})

  def flush(self) -> None:
    """Nothing: wandb sends in the background."""

  def close(self) -> None:
    """Waits until all is sent."""
    self._run.finish()


def _wandb() -> types.ModuleType:
  try:
    import wandb
  except ImportError as error:
    raise ConfigError(
      "config.log.wandb needs the package wandb: pip install wandb, or set "
      "--config.log.wandb=''"
    ) from error
  return wandb
