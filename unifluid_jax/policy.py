"""Policy gradients: a run that learns of how right its own drawings are.

GRPO (DeepSeekMath, arXiv 2402.03300 §4.1): every step draws several images of
each of some prompts with the parameters it is about to update. An image's
advantage is its reward less the mean of its prompt's; the loss is that of a
row to draw, times the advantage. With one update per drawing the ratio of new
to old probabilities is 1, so that there is nothing to clip.

Differs: the log-likelihood is what the system's loss says of an image, exact
for codes and a bound for a diffusion or a flow head (as AWM, arXiv 2509.25050),
of the drawn pixels encoded again. Advantages are not divided by their
deviation, which makes much of prompts that nearly always succeed (Dr. GRPO,
arXiv 2503.20783). Instead of a penalty for leaving the first policy, the run's
own data are trained on in every step.

A loss has no upper bound: what drives a model away from wrong drawings would
run away with it. Those that are far from right count no more; `packing.weigh`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from unifluid_jax import api, arguments, systems
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config
from unifluid_jax.core.freeze import ConfigError, need
from unifluid_jax.core.types import WEIGHT, Batch, Metrics, TrainState
from unifluid_jax.data import tasks, transforms
from unifluid_jax.evals.rewards import Reward
from unifluid_jax.train import Job

_PIXELS = "image.pixels"
_SEEDS = 2**31


def advantages(
  rewards: Float[np.ndarray, "G n"], worse: float
) -> Float[np.ndarray, "G n"]:
  """Rewards of a prompt's images less their mean; `worse` times those below."""
  better = rewards - rewards.mean(axis=1, keepdims=True)
  return np.where(better < 0, np.float32(worse) * better, better)


def local_rows(x: Any) -> np.ndarray:
  """This process's rows of a global array, as `parallel.to_global` takes them.

  They may lie apart: an axis of a TPU winds through its hosts.
  """
  parts = {s.index[0].start or 0: s.data for s in x.addressable_shards}
  return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def with_drawings(job: Job, reward: Reward, tokenizer: Any) -> Job:
  """A job whose every step also draws, and learns of what it drew.

  Args:
    job: see `train.make_job`; config.policy says how much is drawn.
    reward: asks and judges.
    tokenizer: of the run's texts.

  Raises:
    ConfigError: rows to draw that drawings cannot be added to, or numbers that
      do not split over the devices.
  """
  _check(job)
  return job._replace(step=_Step(job, reward, tokenizer))


def _check(job: Job) -> None:
  config = job.config
  own, drawn = config.batch.get(tasks.T2I, 0), _drawn(config)
  need(
    own > 0,
    f"policy.prompts={config.policy.prompts} needs batch.{tasks.T2I}: the "
    "run's own rows to draw keep images as they are",
  )
  others = [t for t in (tasks.EDIT, tasks.DIALOGUE) if config.batch.get(t)]
  need(
    not others,
    f"policy.prompts={config.policy.prompts} with batch.{''.join(others[:1])}: "
    "rows that draw in other tasks would count less beside what is drawn; "
    "set it to 0",
  )
  system = job.system
  need(
    set(system.inputs[tasks.T2I]) == {"prompt", "image"}
    and not getattr(system.codec, "sizes", ()),
    f"policy.prompts={config.policy.prompts}: drawings are added to rows of a "
    f"prompt and an image of one size, which system {config.system!r} has not "
    "as configured",
  )
  _, shares = parallel.batch_share(job.mesh)
  need(
    config.policy.prompts % shares == 0,
    f"policy.prompts={config.policy.prompts} must be divisible by the "
    f"{shares} processes",
  )
  rows = {**config.batch, tasks.T2I: own + drawn}
  parallel.check_batch({"policy": drawn}, 1, job.mesh)
  parallel.check_batch(rows, config.accumulate, job.mesh)


def _drawn(config: Config) -> int:
  return config.policy.prompts * config.policy.draws


def _sampling(config: Config) -> Any:
  """The options that policy.sampling changes.

  Raises:
    ConfigError: no such option, or a value out of its range.
  """
  spec, changes = systems.spec(config.system), dict(config.policy.sampling)
  try:
    arguments.check_sampling(changes, spec.sampling, spec.ranges)
    changes = {k: v for k, v in changes.items() if v is not None}
    sampling = dataclasses.replace(config.sampling, **changes)
    spec.check_sampling(config, sampling, tasks.T2I)
  except ValueError as error:
    raise ConfigError(f"config.policy.sampling: {error}") from error
  return sampling


class _Step:
  """A train step that draws first."""

  def __init__(self, job: Job, reward: Reward, tokenizer: Any):
    self._job, self._reward = job, reward
    spec = jax.P(parallel.batch_axes(job.mesh))
    self._rows = jax.sharding.NamedSharding(job.mesh, spec)
    self._share, self._shares = parallel.batch_share(job.mesh)
    self._sampling = _sampling(job.config)
    self._weights: Any = None  # parameters and frozen weights of this step
    self._model = api.Model(job.config, job.system, tokenizer, self._mapped)
    self._join = jax.jit(_join, out_shardings=self._rows)
    self._encode = self._mapped(
      lambda params, frozen, x: job.system.codec.encode(frozen["codec"], x)
    )

  def __call__(
    self, state: TrainState, frozen: Any, batch: Batch
  ) -> tuple[TrainState, Metrics]:
    """As `train.train_step`, with what this process's drawings earned."""
    self._weights = state.params, frozen
    rows, rewards = self._draw(int(state.step))
    own = dict(batch[tasks.T2I])
    advantage = advantages(rewards, self._job.config.policy.worse)
    batch = {**batch, tasks.T2I: self._joined(own, rows, advantage)}
    self._weights = None  # the step may free them
    state, metrics = self._job.step(state, frozen, batch)
    return state, dict(
      metrics,
      reward=rewards.mean(),
      reward_told_apart=(rewards.std(axis=1) > 0).mean(),
    )

  def _draw(
    self, step: int
  ) -> tuple[dict[str, np.ndarray], Float[np.ndarray, "G n"]]:
    """This process's rows and their rewards."""
    c = self._job.config
    # Of the step and the process: a resumed run draws what it would have.
    rng = np.random.default_rng((c.seed, step, self._share))
    count = c.policy.prompts // self._shares
    asked = self._reward.prompts(count, rng)
    asked = [task for task in asked for _ in range(c.policy.draws)]
    prompts = [task["prompt"] for task in asked]
    seeds = rng.integers(_SEEDS, size=len(prompts)).tolist()
    images = self._model.images(prompts, seeds, self._sampling)
    rewards = np.asarray(self._reward.judge(asked, images), np.float32)
    rows = self._model.drawings.prompts(prompts, self._sampling)
    rows[_PIXELS] = transforms.to_float(images)
    return rows, rewards.reshape(-1, c.policy.draws)

  def _joined(
    self, own: dict[str, Any], rows: dict[str, np.ndarray], advantage: Any
  ) -> dict[str, Any]:
    """The run's own rows to draw, then those it drew, with their weights."""
    if _PIXELS not in own:
      rows["image"] = self._encode(rows.pop(_PIXELS))
    local = {"own": len(own["prompt"]) // self._shares,
             "drawn": advantage.size}  # fmt: skip
    # The loss is a mean over all rows; each kind is to be one by itself.
    scale = {kind: sum(local.values()) / n for kind, n in local.items()}
    rows[WEIGHT] = self._job.config.policy.weight * advantage.reshape(-1)
    rows[WEIGHT] = np.float32(rows[WEIGHT] * scale["drawn"])
    mine = {WEIGHT: np.full(local["own"], scale["own"], np.float32)}
    rows, mine = (parallel.to_global(x, self._job.mesh) for x in (rows, mine))
    return self._join(own | mine, rows)

  def _mapped(self, function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """A `mappers.Mapper` over the mesh, of this process's rows."""
    compiled = jax.jit(function, out_shardings=self._rows)

    def call(*arrays):
      given = parallel.to_global(arrays, self._job.mesh)
      return local_rows(compiled(*self._weights, *given))

    return call


def _join(own: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
  """Rows behind the run's own, field by field, in its dtypes."""
  return {
    name: jnp.concatenate([x, rows[name].astype(x.dtype)])
    for name, x in own.items()
  }
