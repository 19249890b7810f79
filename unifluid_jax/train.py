"""The training loop. The step itself is `train_step`: start reading there.

It knows a system only by the contract of `core/types.py`.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unifluid_jax import systems
from unifluid_jax.codecs import inputs
from unifluid_jax.core import (
  checkpoint,
  files,
  lock,
  metric_writers,
  optim,
  parallel,
  stopping,
  telemetry,
  workdirs,
  xla_options,
)
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import Metrics, System, TrainState
from unifluid_jax.weights import warm_start

# Steps that the host hands out before the device has done them: enough that
# the device never waits, few enough that a signal is soon answered.
_AHEAD = 2


class NonFiniteError(FloatingPointError):
  """Loss, gradient or parameters became NaN or infinite."""


# ------------------------------------------------------------- Update step


def train_step(
  state: TrainState,
  frozen: Any,
  batch: Any,
  *,
  system: System,
  optimizer: optax.GradientTransformation,
  config: Config,
) -> tuple[TrainState, Metrics]:
  """One optimizer step over one global batch.

  Args:
    state: donated.
    frozen: weights the optimizer never sees.
    batch: pytree of arrays [B, ...], split over the mesh's batch axes.
    system: its loss is differentiated with respect to the parameters, except
      those that are constants: held by the system, or of learning rate 0.
    optimizer: see optim.make_optimizer.
    config: seed, accumulation and averaging are read.

  Returns:
    The next state, and scalar metrics of this step.
  """
  key = jax.random.fold_in(jax.random.key(config.seed), state.step)
  trains = optim.is_trained(config.optim, system.held, state.params)
  grad = optim.value_and_grad(system.loss, trains)
  counts = system.counts(batch)  # of the whole batch: its parts add up

  def micro(carry, xs):
    part = inputs.encode_pixels(system, frozen, xs[0])
    (loss, (metrics, seen)), grads = grad(
      state.params, frozen, part, counts, xs[1], state.step
    )
    new = (grads, dict(metrics, loss=loss), seen)
    return jax.tree.map(jnp.add, carry, new) if carry else new, None

  parts = parallel.micro_batches(batch, config.accumulate)
  keys = jax.random.split(key, config.accumulate)
  first = jax.tree.map(lambda x: x[0], (parts, keys))
  totals, _ = micro(None, first)
  if config.accumulate > 1:
    rest = jax.tree.map(lambda x: x[1:], (parts, keys))
    totals, _ = jax.lax.scan(micro, totals, rest)
  grads, metrics, seen = totals
  metrics = dict(metrics, grad_norm=optax.tree.norm(grads))
  grads = optim.with_zeros(grads, state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  key = jax.random.fold_in(key, config.accumulate)  # not one of the parts' keys
  revised = system.revise(params, seen, key, state.step)
  params = params if revised is None else revised
  ema = state.ema
  if config.optim.ema:
    ema = optim.update_ema(
      ema, params, config.optim.ema, state.step, system.held
    )
  return TrainState(state.step + 1, params, opt_state, ema), metrics


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
  """Whether parameters and averages can be used: their norm is finite.

  The norm overflows too where elements are finite but beyond 1e19.
  """
  return jnp.isfinite(optax.tree.norm((state.params, state.ema)))


# ------------------------------------------------------------ State, compiled


def init_state(
  system: System, optimizer: optax.GradientTransformation, config: Config
) -> TrainState:
  """A state at step 0; traced for its shapes, or jitted with shardings."""
  params = system.init(jax.random.key(config.seed))
  ema = jax.tree.map(jnp.copy, params) if config.optim.ema else None
  return TrainState(jnp.int32(0), params, optimizer.init(params), ema)


class Job(NamedTuple):
  """All that the loop needs, built once from a configuration."""

  config: Config
  system: System
  mesh: jax.sharding.Mesh
  optimizer: optax.GradientTransformation
  shapes: TrainState  # ShapeDtypeStructs with shardings
  step: Callable[..., tuple[TrainState, Metrics]]  # jitted train_step

  @property
  def shardings(self) -> Any:
    """NamedShardings of the state."""
    return jax.tree.map(lambda x: x.sharding, self.shapes)


def make_job(config: Config, system: System, devices: Any = None) -> Job:
  """Mesh, optimizer, sharded state shapes and the jitted step."""
  mesh = parallel.make_mesh(config.mesh, devices)
  parallel.check_batch(config.batch, config.accumulate, mesh)
  systems.check_devices(config, mesh)
  optimizer = optim.make_optimizer(
    config.optim, config.steps, system.parts, system.held
  )
  shapes = jax.eval_shape(lambda: init_state(system, optimizer, config))
  optim.check_prefixes(config.optim, system.held, shapes.params)
  places = parallel.shardings(shapes, shapes.params, system.parts, mesh)
  shapes = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    places,
  )
  step = functools.partial(
    train_step, system=system, optimizer=optimizer, config=config
  )
  jitted = jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(places, None),
    compiler_options=xla_options.of(mesh),
  )
  return Job(config, system, mesh, optimizer, shapes, jitted)


def restore_or_init(
  job: Job, workdir: str, meta: Mapping[str, Any]
) -> tuple[checkpoint.Restored, str]:
  """The state to start from: the first of these init sources that exists.

  1. the newest whole checkpoint of this workdir;
  2. the weights that config.init names;
  3. fresh parameters from config.seed.

  Args:
    job: see make_job.
    workdir: of the run.
    meta: JSON of its checkpoints.

  Returns:
    The state, and a sentence that names its init source.
  """
  restored = checkpoint.restore_newest(workdir, job.shapes)
  if restored.step is not None:
    return restored, f"1: resumed from step {restored.step} of this workdir"
  init = job.config.init
  wanted = {}
  if warm_start.paths(init):  # before anything is computed
    wanted = warm_start.plan(init, job.shapes.params)
  # Runs once: on CPU, optimising it takes longer than that saves.
  fast = jax.default_backend() != "cpu"
  make = jax.jit(
    lambda: init_state(job.system, job.optimizer, job.config),
    out_shardings=job.shardings,
    compiler_options=None if fast else {"xla_backend_optimization_level": 0},
  )
  state = make()
  if not warm_start.paths(init):
    return restored._replace(state=state), (
      f"3: no pretrained weights: all parameters fresh, seed {job.config.seed}"
    )
  tables = systems.spec(job.config.system).tables
  params, notes = warm_start.load(
    init,
    state.params,
    job.shapes.params,
    job.system.parts,
    tables,
    job.config.new_rows,
    job.config.seed,
  )
  model, special = job.config.model, job.config.text.special
  notes += warm_start.other_settings(init, model)
  notes += warm_start.other_ids(wanted, tables, special, model, meta)
  # A copy: the step donates both.
  ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
  state = state._replace(params=params, ema=ema)
  return restored._replace(state=state), "2: " + "; ".join(notes)


# ------------------------------------------------------------------- The loop


def run(
  job: Job,
  workdir: str,
  loader: Callable[[int], Iterator[Any]],
  meta: Mapping[str, Any],
  say: Callable[[str], None],
  keep: Callable[[Any], None] = lambda frozen: None,
) -> TrainState:
  """Trains to config.steps; resumes by itself.

  The order is fixed: batch → step → log → save. A checkpoint of step k is
  written after step k's update, and the loader restarts at batch k, so a
  resumed run repeats nothing and skips nothing. Whatever can be refused is
  checked before the workdir is touched.

  Args:
    job: see make_job.
    workdir: checkpoints and metrics go here.
    loader: first step → iterator of process-local batches.
    meta: saved as JSON beside every state.
    say: prints a line (process 0 only).
    keep: writes the run's copies of tokenizer and codec, given the frozen
      weights; called after the last check.

  Raises:
    NonFiniteError: names the window of steps and the last good checkpoint.
    lock.LockedError: another process trains in this workdir.
    checkpoint.CheckpointError: no checkpoint of this workdir can be used.
  """
  config, began = job.config, time.time()
  metric_writers.check(config.log)
  with contextlib.ExitStack() as exits:
    exits.enter_context(jax.set_mesh(job.mesh))
    stop = exits.enter_context(stopping.Stop())
    workdirs.on_first(lambda: lock.refuse_if_held(workdir))
    restored, rung = restore_or_init(job, workdir, meta)
    state, start = restored.state, int(restored.state.step)
    sizes = telemetry.startup_rows(config, job.mesh, job.shapes, job.shardings)
    say(telemetry.table("start", [*sizes, ("resume rung", rung)]))
    if start >= config.steps:
      say(f"nothing to do: step {start} of {config.steps} is reached")
      return state
    # Via the host: an array of one device cannot go to other processes.
    frozen = jax.device_put(
      jax.device_get(systems.load_frozen(job.system)),
      jax.sharding.NamedSharding(job.mesh, jax.P()),
    )
    batches = loader(start)
    exits.callback(getattr(batches, "close", lambda: None))  # workers
    held = exits.enter_context(workdirs.claimed(workdir, restored, say))
    keep(frozen)
    saved = checkpoint.Checkpoints(workdir, config.checkpoint)
    exits.callback(saved.close)
    log = _Log(job, workdir, start, saved, say, meta, began)
    exits.callback(log.close)
    for step in range(start + 1, config.steps + 1):
      log.profile(step - start)
      batch = parallel.to_global(next(batches), job.mesh)
      state, metrics = job.step(state, frozen, batch)
      log.add(metrics)
      stop.can_save = True
      last = step == config.steps or stop.requested(step)
      save = last or step % config.checkpoint.every == 0
      if save or step % config.log.every == 0 or step == start + 1:
        log.flush(step)
      if save:
        with log.saving():
          log.check(step, state)
          workdirs.on_first(held)
          saved.save(step, state, dict(meta, step=step))
      if last and step < config.steps:
        saved.wait()
        say(f"{stopping.TOLD}: saved step {step}; the same command resumes")
        break
  return state


class _Log:
  """Collects metrics on the device; fetches, checks and prints windows."""

  def __init__(self, job, workdir, start, saved, say, meta, began):
    self._job, self._say, self._saved = job, say, saved
    self._workdir = workdir
    self._last, self._pending = start, []
    self._checked = start  # newest step whose parameters were finite
    self._progress = telemetry.Progress("train", start, job.config.steps)
    self._factor = optim.learning_rate(job.config.optim, job.config.steps)
    self._writer = None
    if jax.process_index() == 0:
      c, tree = job.config, meta.get("config")
      sinks = metric_writers.sinks(
        workdir, c.log, "metrics", c.name, tree, start
      )
      self._writer = metric_writers.MetricsWriter(workdir, sinks)
      rows = telemetry.read_metrics(f"{workdir}/metrics.jsonl")
      self._goodput = telemetry.Goodput(rows, start, began)
    self._profile = contextlib.ExitStack()

  def add(self, metrics: Metrics) -> None:
    """Keeps a step's metrics; waits for the step before the last two.

    Unbounded, a window of steps would be under way when a run is told to stop,
    each with buffers of its own for the next state.
    """
    self._pending.append(metrics)
    jax.block_until_ready(self._pending[-1 - _AHEAD : -_AHEAD])

  def flush(self, step: int) -> None:
    """Writes the mean of the window that ends at `step`."""
    if not self._pending:
      return
    fetched = jax.device_get(self._pending)
    self._pending = []
    mean = {
      k: float(np.mean([m[k] for m in fetched], dtype=np.float64))
      for k in fetched[0]
    }
    bad = [k for k in ("loss", "grad_norm") if not np.isfinite(mean[k])]
    if bad:
      raise self._not_finite(" and ".join(bad), self._last, step)
    told = ("loss", "text_acc", "reward")
    shown = [k for k in sorted(mean) if k.startswith(told)]
    text = " ".join(f"{k} {mean[k]:.4f}" for k in shown)
    line, seconds = self._progress.line(step, text)
    window, self._last = (step - self._last) * seconds, step
    mean["lr"] = float(self._job.config.optim.lr * self._factor(step - 1))
    mean["seconds_per_step"] = seconds
    mean |= speed(self._job, seconds)
    if self._writer is not None:
      mean["goodput"], counters = self._goodput.add(window, time.time())
      self._writer.write(step, mean, counters)
    self._say(f"{line}  {telemetry.speeds(mean)}")

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """Writes rows before the state; the block does not count as step time."""
    with self._progress.paused():
      if self._writer is not None:
        self._writer.flush()
      yield

  def check(self, step: int, state: TrainState) -> None:
    """Raises where a state must not be saved."""
    if not is_finite(state):
      raise self._not_finite("parameters", self._checked, step)
    self._checked = step

  def _not_finite(self, what: str, before: int, step: int) -> NonFiniteError:
    self._saved.wait()
    good = self._saved.latest()
    good = "none was saved" if good is None else good
    return NonFiniteError(
      f"{what} not finite in steps {before + 1}..{step}; last good "
      f"checkpoint: {good}. Lower config.optim.lr or config.optim.clip, or "
      "look at the data of these steps"
    )

  def profile(self, count: int) -> None:
    """Starts and ends the trace window of config.log."""
    log = self._job.config.log
    if not log.profile_steps:
      return
    begin = max(log.profile_start, 1)  # the first step is number 1
    if count == begin:
      folder = self._profile.enter_context(
        files.local_folder(f"{self._workdir}/profile")
      )
      self._profile.enter_context(jax.profiler.trace(folder))
    elif count == begin + log.profile_steps:
      self._profile.close()

  def close(self) -> None:
    with self._profile:
      if self._writer is not None:
        self._writer.close()


def speed(job: Job, seconds: float) -> dict[str, float]:
  """Tokens/s, and MFU where the device's peak is known.

  Neither of policy gradients: a step's cost is that of rows that are read, and
  drawings are rows as well.
  """
  cost = job.system.cost()
  if cost is None or seconds <= 0 or job.config.policy.prompts:
    return {}
  peak = telemetry.peak_flops()
  out = {"tokens_per_second": cost.tokens / seconds}
  return out | ({"mfu": cost.flops / seconds / peak} if peak else {})
