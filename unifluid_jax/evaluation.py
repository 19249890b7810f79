"""The evaluation job: watches a workdir and scores every new checkpoint.

It is a process of its own, so that metrics never slow or stop training. All
of `jax.pmap` sits in `Replicas`; its successor can replace it there.
"""

import contextlib
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import jax_utils
from jax.experimental import multihost_utils

from unifluid_jax import api, identity, mappers, systems
from unifluid_jax.core import (
  checkpoint,
  files,
  metric_writers,
  provenance,
  telemetry,
)
from unifluid_jax.core.config import Config
from unifluid_jax.evals import held_out, transfers
from unifluid_jax.evals.bench import Bench, Outcome, Shown
from unifluid_jax.evals.report import attribution, run_results, samples
from unifluid_jax.evals.report import data as report_data
from unifluid_jax.evals.worlds import (
  advanced_suite,
  choice_suite,
  dialogue_suite,
  edit_suite,
  emoji_edit_suite,
  emoji_suite,
  emoji_text_suite,
  in_context_suite,
  reading_suite,
  redraw_suite,
  second_judge,
  text_suite,
  wording_suite,
  world_suite,
)

# Of a `bench.Subject`, or what else a metric needs of a model.
METRICS: Mapping[str, Callable[[Any, Bench], Outcome]] = {
  "captions": text_suite.captions,
  "vqa": text_suite.vqa,
  "geneval": world_suite.geneval,
  "geneval_advanced": advanced_suite.geneval_advanced,
  "geneval_classified": second_judge.geneval_classified,
  "fid": world_suite.frechet,
  "tokenizer": world_suite.tokenizer,
  "edits": edit_suite.edits,
  "paraphrases": wording_suite.paraphrases,
  "in_context": in_context_suite.in_context,
  "reading": reading_suite.reading,
  "redrawn": redraw_suite.redrawn,
  "draws_when_asked": dialogue_suite.draws_when_asked,
  "emoji_captions": emoji_text_suite.captions,
  "emoji_vqa": emoji_text_suite.vqa,
  "emoji_drawn": emoji_suite.drawn,
  "emoji_fid": emoji_suite.frechet,
  "emoji_edits": emoji_edit_suite.edits,
  "validation_loss": held_out.validation_loss,
  "text_choice": choice_suite.text_choice,
  "samples": samples.draw,
  transfers.METRIC: transfers.transfer,
}
_SAY_EVERY = 20.0  # seconds
_CHARTED = 16  # images that TensorBoard and wandb get of a step
RESULTS = run_results.FILE
REPORT = "report.html"


class Replicas:
  """Runs functions on all local devices: replicated weights, split rows.

  A `mappers.Mapper`. What it has compiled serves the next checkpoint's weights
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

  def load(
    self, params: Any, frozen: Mapping[str, Any], exact: Container[str] = ()
  ) -> None:
    """Replaces the weights, replicated; networks' are cast to bfloat16.

    Scalars are constants, e.g. the scale of latents, which bfloat16 would
    change by up to .4 %: they keep their dtype.

    Args:
      params: of the system.
      frozen: its frozen parts by name.
      exact: names of those that keep their dtype.
    """

    def cast(x):
      x = jnp.asarray(x)
      weights = x.ndim > 0 and jnp.issubdtype(x.dtype, jnp.floating)
      return x.astype(jnp.bfloat16) if weights else x

    frozen = {
      name: part if name in exact else jax.tree.map(cast, part)
      for name, part in frozen.items()
    }
    self._weights = None  # frees them: two checkpoints may not fit
    self._weights = jax_utils.replicate(
      (jax.tree.map(cast, params), frozen), self._devices
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
          mappers.pad_rows(a, rows * count).reshape(count, rows, *a.shape[1:])
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
      mine = [mappers.pad_rows(a[start : start + share], share) for a in arrays]
      whole = multihost_utils.process_allgather(call(*mine))
      return whole.reshape(-1, *whole.shape[2:])[:total]

    return shared if self._together and jax.process_count() > 1 else call


def exact_parts(system: Any) -> tuple[str, ...]:
  """Frozen parts that bfloat16 would change, e.g. codes of a quantiser."""
  return tuple(name for name, part in system.frozen.items() if part.exact)


def load_model(config: Config, workdir: str, step: int) -> api.Model:
  """The model of one checkpoint, mapped over all local devices."""
  identity.check_model(config, workdir, step)
  config = identity.with_own_codec(config, workdir)
  system = api.generator(config, workdir)
  tokenizer = api.read_tokenizer(config, workdir)
  params = api.read_params(config, system, workdir, step, None)
  frozen = systems.load_frozen(system)
  api.check_frozen(system, workdir, step, frozen)
  replicas = Replicas(config.eval.batch)
  replicas.load(params, frozen, exact_parts(system))
  return api.Model(config, system, tokenizer, replicas)


class Evaluator:
  """Scores checkpoints of one workdir; data and compilations are kept."""

  def __init__(self, config: Config, workdir: str, say: Callable[[str], None]):
    """Checks the metrics' names and loads what all checkpoints share.

    Raises:
      ValueError: an unknown metric, or a missing tokenizer or VAE, or
        charts that cannot be written here.
    """
    metric_writers.check(config.log)
    unknown = sorted(set(config.eval.metrics) - set(METRICS))
    if unknown:
      raise ValueError(
        f"config.eval.metrics: {unknown[0]!r} is unknown; known: "
        f"{', '.join(METRICS)}"
      )
    config = identity.with_own_codec(config, workdir)
    self.config, self.workdir, self._say = config, workdir, say
    self._system = api.generator(config, workdir)
    self._frozen = systems.load_frozen(self._system)
    tokenizer = api.read_tokenizer(config, workdir)
    self._replicas = Replicas(config.eval.batch, say=say, together=True)
    self._model = api.Model(config, self._system, tokenizer, self._replicas)
    self._bench = Bench(config, workdir, say)

  def run(
    self, step: int, metrics: Sequence[str] | None = None
  ) -> list[Exception]:
    """Scores one checkpoint; process 0 rewrites the report.

    Each metric runs on its own: one that fails is recorded with its error,
    the others finish. Of several processes one that fails ends, and so ends
    all: they could not go on together.

    Args:
      step: of the checkpoint.
      metrics: of the configuration's; default all. What others have found
        of this step stays.

    Returns:
      The errors.

    Raises:
      checkpoint.CheckpointGone: it was deleted, in all processes alike.
    """
    self._load(step)
    errors, rows, shown, values = [], [], [], {}
    for name in metrics or self.config.eval.metrics:
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
      seconds = time.monotonic() - begin
      rows += run_results.as_rows(step, outcome, self.config)
      rows.append({"step": step, "metric": name, "seconds": round(seconds, 3)})
      shown += outcome.shown
      values |= outcome.values
      lines = scores(step, outcome) or f"step {step}  {name}"
      self._say(f"{lines}  ({seconds:.0f} s)")
    if jax.process_index() == 0:
      provenance.record(self.workdir, step, provenance.EVALUATION)
      samples.write(self.workdir, step, shown, add=metrics is not None)
      record(self.config, self.workdir, rows)
      chart(self.config, self.workdir, step, values, shown)
    return errors

  def _load(self, step: int) -> None:
    """Gives the model a checkpoint's weights.

    Raises:
      checkpoint.CheckpointGone: in all processes, if one finds it gone: the
        others would wait for its share.
      ConfigError: it is of another model, or was trained with another codec.
    """
    gone = None
    try:
      identity.check_model(self.config, self.workdir, step)
      params = api.read_params(
        self.config, self._system, self.workdir, step, None
      )
      api.check_frozen(self._system, self.workdir, step, self._frozen)
    except checkpoint.CheckpointGone as error:
      gone = error
    if jax.process_count() > 1 and np.any(
      multihost_utils.process_allgather(np.int32(gone is not None))
    ):
      gone = gone or checkpoint.CheckpointGone(
        f"another process found no checkpoint of step {step}"
      )
    if gone is not None:
      raise gone
    self._replicas.load(params, self._frozen, exact_parts(self._system))


def record(
  config: Config, workdir: str, rows: Sequence[Mapping[str, Any]]
) -> None:
  """Adds rows to a workdir's results and rewrites its report.

  Args:
    config: of the run.
    workdir: of the run.
    rows: as `run_results.as_rows` and `file_results.rows` make them.
  """
  run_results.append(workdir, rows)
  _write_report(config, workdir)


def refresh(config: Config, workdir: str) -> bool:
  """Rewrites a report that is missing or does not show all results.

  Returns:
    Whether there was anything to do.
  """
  path = files.path(workdir) / REPORT
  if not run_results.exist(workdir) or report_data.is_current(path, workdir):
    return False
  _write_report(config, workdir)
  return True


def _write_report(config: Config, workdir: str) -> None:
  report_data.write(
    files.path(workdir) / REPORT,
    workdir,
    config.name,
    systems.summary(config),
    systems.spec(config.system).losses,
    attribution.read(config.data.root),
  )


def chart(
  config: Config,
  workdir: str,
  step: int,
  values: Mapping[str, float],
  shown: Sequence[Shown],
) -> None:
  """Passes a step's scores and some of its images to TensorBoard and wandb."""
  drawn = [s for s in shown if s.kind in ("generated", "edit")]
  images = {
    f"{s.kind}/{s.prompt}" + f" #{s.seed}" * (s.seed is not None): s.image
    for s in drawn[:_CHARTED]
  }
  sinks = metric_writers.sinks(workdir, config.log, "eval", config.name, None)
  with contextlib.ExitStack() as exits:
    for sink in sinks:
      exits.callback(sink.close)
      sink.write(step, values, images)


def scores(step: int, outcome: Outcome) -> str:
  """Values with their floors, one a line."""
  lines = []
  for name, value in outcome.values.items():
    floor = outcome.floors.get(name)
    tail = "" if floor is None else f"   floor {floor:.3f}"
    lines.append(f"step {step}  {name:<32} {value:8.3f}{tail}")
  return "\n".join(lines)


def watch(
  evaluator: Evaluator, once: bool, only: int | None
) -> list[Exception]:
  """Scores checkpoints as they appear, until the run's last one.

  Metrics that had failed when this call begins are tried once more. A
  checkpoint that its run deletes meanwhile is skipped.

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
  if jax.process_index() == 0 and refresh(config, workdir):
    logging.warning("%s/%s was missing or old: rewritten", workdir, REPORT)
  if once:
    checkpoint.latest_step(workdir)
  left = run_results.to_run(run_results.read(workdir), config.eval.metrics)
  errors = []
  done = {step for step, metrics in left.items() if not metrics}
  while True:
    step = _next(workdir, done)
    if step is not None:
      try:
        errors += evaluator.run(step, left.get(step))
      except checkpoint.CheckpointGone as error:
        logging.warning("step %d is skipped: %s", step, error)
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
