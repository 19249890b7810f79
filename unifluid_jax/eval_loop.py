"""The evaluation job: watches a workdir and scores every new checkpoint.

It is a process of its own, so that metrics never slow or stop training. All
of `jax.pmap` sits in `Replicas`; its successor can replace it there.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import jax_utils
from jax.experimental import multihost_utils

from unifluid_jax import api, checkpoint, systems, telemetry
from unifluid_jax.config import Config
from unifluid_jax.data import text
from unifluid_jax.evals import (
  edit_suite,
  report_data,
  samples,
  text_suite,
  transfers,
  world_suite,
)
from unifluid_jax.evals.bench import Bench, Outcome, Subject

METRICS: Mapping[str, Callable[[Subject, Bench], Outcome]] = {
  "captions": text_suite.captions,
  "vqa": text_suite.vqa,
  "geneval": world_suite.geneval,
  "fid": world_suite.frechet,
  "tokenizer": world_suite.tokenizer,
  "edits": edit_suite.edits,
  "samples": samples.draw,
  transfers.METRIC: transfers.transfer,
}
_SAY_EVERY = 20.0  # seconds
RESULTS = "metrics_eval.jsonl"
REPORT = "report.html"


class Replicas:
  """Runs functions on all local devices: replicated weights, split rows.

  An `api.Mapper`. What it has compiled serves the next checkpoint's weights
  as well.
  """

  def __init__(
    self,
    rows: int,
    devices: Sequence[Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
    together: bool = False,
  ):
    """Holds no weights yet.

    Args:
      rows: per device and call; fewer are padded.
      devices: default all local ones.
      say: takes progress lines of long calls, which begin with `label`.
      together: all processes call with the same rows; each computes a share
        and all get all results. Else they know nothing of one another.
    """
    self.label = "rows"
    self._rows, self._say = rows, say
    self._together = together
    self._devices = devices or jax.local_devices()
    self._weights: Any = None

  def load(self, params: Any, frozen: Any) -> None:
    """Replaces the weights; floating ones are replicated in bfloat16."""

    def narrow(x):
      x = jnp.asarray(x)
      floating = jnp.issubdtype(x.dtype, jnp.floating)
      return x.astype(jnp.bfloat16) if floating else x

    self._weights = None  # frees them: two checkpoints may not fit
    self._weights = jax_utils.replicate(
      jax.tree.map(narrow, (params, frozen)), self._devices
    )

  def __call__(self, function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """`function` on numpy arrays with any number of rows."""
    compiled = jax.pmap(function, devices=self._devices)
    count, rows = len(self._devices), self._rows

    def call(*arrays):
      total, parts = len(arrays[0]), []
      progress = telemetry.Progress(self.label, 0, total)
      said = time.monotonic()
      for start in range(0, total, rows * count):
        part = [a[start : start + rows * count] for a in arrays]
        n = len(part[0])
        split = [
          api.pad_rows(a, rows * count).reshape(count, rows, *a.shape[1:])
          for a in part
        ]
        out = np.asarray(compiled(*self._weights, *split))
        parts.append(out.reshape(rows * count, *out.shape[2:])[:n])
        if start + n < total and time.monotonic() - said > _SAY_EVERY:
          self._say(progress.line(start + n)[0])
          said = time.monotonic()
      return np.concatenate(parts)

    def shared(*arrays):
      total, processes = len(arrays[0]), jax.process_count()
      share = -(-total // processes)
      start = min(jax.process_index() * share, total - 1)
      mine = [api.pad_rows(a[start : start + share], share) for a in arrays]
      whole = multihost_utils.process_allgather(call(*mine))
      return whole.reshape(-1, *whole.shape[2:])[:total]

    return shared if self._together and jax.process_count() > 1 else call


def load_model(config: Config, workdir: str, step: int) -> api.Model:
  """The model of one checkpoint, mapped over all local devices."""
  config = api.with_own_vae(config, workdir)
  system = systems.build(config)
  tokenizer = text.Tokenizer.load(str(epath.Path(workdir) / api.TOKENIZER))
  params = api.read_params(config, system, workdir, step, None)
  frozen = system.load_frozen()
  api.check_frozen(config, workdir, step, frozen)
  replicas = Replicas(config.eval.batch)
  replicas.load(params, frozen)
  return api.Model(config, system, tokenizer, replicas)


class Evaluator:
  """Scores checkpoints of one workdir; data and compilations are kept."""

  def __init__(self, config: Config, workdir: str, say: Callable[[str], None]):
    """Checks the metrics' names and loads what all checkpoints share.

    Raises:
      ValueError: an unknown metric, or a missing tokenizer or VAE.
    """
    unknown = sorted(set(config.eval.metrics) - set(METRICS))
    if unknown:
      raise ValueError(
        f"config.eval.metrics: {unknown[0]!r} is unknown; known: "
        f"{', '.join(METRICS)}"
      )
    config = api.with_own_vae(config, workdir)
    self.config, self.workdir, self._say = config, workdir, say
    self._system = systems.build(config)
    self._frozen = self._system.load_frozen()
    tokenizer = text.Tokenizer.load(str(epath.Path(workdir) / api.TOKENIZER))
    self._replicas = Replicas(config.eval.batch, say=say, together=True)
    self._model = api.Model(config, self._system, tokenizer, self._replicas)
    self._bench = Bench(config, workdir, say)

  def run(self, step: int) -> list[Exception]:
    """Scores one checkpoint; process 0 rewrites the report.

    Each metric runs on its own: one that fails is recorded with its error,
    the others finish. Of several processes one that fails ends, and so ends
    all: they could not go on together.

    Returns:
      The errors.
    """
    params = api.read_params(
      self.config, self._system, self.workdir, step, None
    )
    api.check_frozen(self.config, self.workdir, step, self._frozen)
    self._replicas.load(params, self._frozen)
    errors, rows, shown = [], [], []
    for name in self.config.eval.metrics:
      begin = time.monotonic()
      self._replicas.label = f"step {step}  {name}"
      try:
        outcome = METRICS[name](self._model, self._bench)
      # Whatever a metric throws must not take the others' results along.
      except Exception as error:
        logging.exception("metric %s failed at step %d", name, step)
        if jax.process_count() > 1:
          # The others may wait for this one's share, or not have failed.
          raise
        errors.append(error)
        rows.append({"step": step, "metric": name, "error": repr(error)})
        self._say(f"step {step}  {name}: FAILED: {error!r}")
        continue
      rows += as_rows(step, outcome)
      shown += outcome.shown
      lines = scores(step, outcome) or f"step {step}  {name}"
      self._say(f"{lines}  ({time.monotonic() - begin:.0f} s)")
    if jax.process_index() == 0:
      samples.write(self.workdir, step, shown)
      record(self.config, self.workdir, rows)
    return errors


def record(
  config: Config, workdir: str, rows: Sequence[Mapping[str, Any]]
) -> None:
  """Appends rows to a workdir's results and rewrites its report.

  Args:
    config: of the run.
    workdir: of the run.
    rows: as `as_rows` and `file_results.rows` make them.
  """
  folder = epath.Path(workdir)
  with (folder / RESULTS).open("a") as f:
    f.write("".join(json.dumps(row) + "\n" for row in rows))
  report_data.write(folder / REPORT, config, workdir)


def as_rows(step: int, outcome: Outcome) -> list[dict[str, Any]]:
  """Rows of metrics_eval.jsonl."""
  return [
    {
      "step": step,
      "metric": name,
      "value": value,
      "floor": outcome.floors.get(name),
      "settings": dict(outcome.settings),
    }
    for name, value in outcome.values.items()
  ]


def scores(step: int, outcome: Outcome) -> str:
  """Values with their floors, one a line."""
  lines = []
  for name, value in outcome.values.items():
    floor = outcome.floors.get(name)
    tail = "" if floor is None else f"   floor {floor:.3f}"
    lines.append(f"step {step}  {name:<32} {value:8.3f}{tail}")
  return "\n".join(lines)


def evaluated(workdir: str) -> set[int]:
  """Steps that this job has scored without errors.

  A published metric of files, which names itself in "by", is another job.
  """
  path = epath.Path(workdir) / RESULTS
  if not path.exists():
    return set()
  rows = [json.loads(line) for line in path.read_text().splitlines() if line]
  rows = [r for r in rows if "by" not in r]
  failed = {r["step"] for r in rows if "error" in r}
  return {r["step"] for r in rows} - failed


def watch(
  evaluator: Evaluator, once: bool, only: int | None
) -> list[Exception]:
  """Scores checkpoints as they appear, until the run's last one.

  Args:
    evaluator: of the workdir.
    once: score what is there now, and return.
    only: this step alone.

  Returns:
    All metrics' errors.

  Raises:
    checkpoint.CheckpointError: `only` or `once`, and nothing to score.
  """
  config, workdir = evaluator.config, evaluator.workdir
  if only is not None:
    if only not in checkpoint.steps(workdir):
      raise checkpoint.CheckpointError(
        f"no checkpoint of step {only} in {workdir}; there are "
        f"{checkpoint.steps(workdir)}"
      )
    return evaluator.run(only)
  if once:
    checkpoint.latest_step(workdir)
  errors, done = [], evaluated(workdir)
  while True:
    step = _next(workdir, done)
    if step is not None:
      errors += evaluator.run(step)
      done.add(step)
    elif once or (done and max(done) >= config.steps):
      return errors
    else:
      time.sleep(config.eval.poll_seconds)


def _next(workdir: str, done: set[int]) -> int | None:
  """The first step to score, in all processes what process 0 finds.

  They look at the folder at different moments, and must score the same.
  """
  left = [step for step in checkpoint.steps(workdir) if step not in done]
  step = left[0] if left else -1
  if jax.process_count() > 1:
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
  return None if step < 0 else step
