"""Gaussian diffusion as MAR's head uses it: schedule, loss, ancestral sampler.

Improved DDPM (arXiv 2102.09672) with noise prediction and learned variance;
constants as in MAR diffusion/gaussian_diffusion.py and diffusion/respace.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Key

# A bin of the t = 0 likelihood is one of 256 grey levels on [-1, 1] wide.
_HALF_BIN = 1 / 255


class Schedule(NamedTuple):
  """Constants of S diffusion steps; entry i belongs to step i.

  Slicing every field by the same range of steps gives a schedule of those
  steps, which `ancestral_sample` accepts.
  """

  index: Any  # i32[S] 0 .. S-1
  timesteps: Any  # i32[S] what the network is told: steps of the full chain
  betas: Any  # f32[S]
  alphas_bar: Any  # f32[S] product of (1 - beta)
  log_betas: Any  # f32[S]
  log_posterior: Any  # f32[S] log posterior variance; entry 0 repeats entry 1
  c1: Any  # f32[S] posterior mean = c1 * x0 + c2 * x_t
  c2: Any  # f32[S]
  signal: Any  # f32[S] sqrt(alphas_bar)
  noise: Any  # f32[S] sqrt(1 - alphas_bar)
  recip: Any  # f32[S] x0 = recip * x_t - recip_m1 * noise
  recip_m1: Any  # f32[S]


def cosine_schedule(steps: int = 1000) -> Schedule:
  """The full training chain with Nichol and Dhariwal's cosine schedule.

  Args:
    steps: T.

  Raises:
    ValueError: fewer than one step.
  """
  if steps < 1:
    raise ValueError(f"steps={steps}: a diffusion chain needs at least 1")
  return _from_alphas_bar(_cosine_alphas_bar(steps), np.arange(steps))


def respace(count: int, steps: int = 1000) -> Schedule:
  """`count` evenly strided steps of the cosine chain, for sampling.

  The stride (steps - 1) / (count - 1) is accumulated as a float and rounded
  half to even, as MAR's respacing does; betas are those of the chain that
  jumps between the kept steps.

  Differs: one step takes the chain's last timestep, where the input is noise;
  the original takes the first.

  Args:
    count: S.
    steps: T of the training chain.

  Raises:
    ValueError: `count` outside 1..steps.
  """
  if not 1 <= count <= steps:
    raise ValueError(f"sampling steps={count}: choose 1..{steps}")
  kept = [steps - 1]
  if count > 1:
    stride, position, kept = (steps - 1) / (count - 1), 0.0, []
    for _ in range(count):
      kept.append(round(position))
      position += stride
  timesteps = np.asarray(kept)
  return _from_alphas_bar(_cosine_alphas_bar(steps)[timesteps], timesteps)


def _cosine_alphas_bar(steps: int) -> Float64[np.ndarray, "T"]:
  """Cumulative alphas after beta was clipped to 0.999."""
  u = np.arange(steps + 1, dtype=np.float64) / steps
  curve = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
  betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
  return np.cumprod(1 - betas)


def _from_alphas_bar(
  alphas_bar: Float64[np.ndarray, "S"], timesteps: Int[np.ndarray, "S"]
) -> Schedule:
  """All constants in float64, rounded once to float32."""
  before = np.concatenate([[1.0], alphas_bar[:-1]])
  alphas = alphas_bar / before
  betas = 1 - alphas
  posterior = betas * (1 - before) / (1 - alphas_bar)
  # The posterior of step 0 has no width. A single step never draws from it.
  posterior[0] = posterior[1] if len(posterior) > 1 else betas[0]
  fields = dict(
    betas=betas,
    alphas_bar=alphas_bar,
    log_betas=np.log(betas),
    log_posterior=np.log(posterior),
    c1=betas * np.sqrt(before) / (1 - alphas_bar),
    c2=(1 - before) * np.sqrt(alphas) / (1 - alphas_bar),
    signal=np.sqrt(alphas_bar),
    noise=np.sqrt(1 - alphas_bar),
    recip=np.sqrt(1 / alphas_bar),
    recip_m1=np.sqrt(1 / alphas_bar - 1),
  )
  return Schedule(
    index=np.arange(len(betas), dtype=np.int32),
    timesteps=timesteps.astype(np.int32),
    **{k: v.astype(np.float32) for k, v in fields.items()},
  )


def sample_steps(
  key: Key[Array, ""], draws: int, shape: tuple[int, ...], steps: int = 1000
) -> Int[Array, "draws *rows"]:
  """Uniform steps 0 .. T-1 for several noise draws of each row.

  Differs: MAR draws them independently; here draw i of n lies in the i-th n-th
  of the chain. Each row's mean over its draws keeps its expectation and loses
  most of its variance, for the loss of a row depends on the step above all.

  Args:
    key: of all draws.
    draws: n, for each row.
    shape: of the rows.
    steps: T.
  """
  u = jax.random.uniform(key, (draws, *shape))
  stratum = jnp.arange(draws).reshape(draws, *(1 for _ in shape))
  t = jnp.floor((stratum + u) * (steps / draws)).astype(jnp.int32)
  return jnp.minimum(t, steps - 1)  # u * steps / draws may round up


def q_sample(
  schedule: Schedule,
  x0: Float[Array, "*rows C"],
  t: Int[Array, "*rows"],
  noise: Float[Array, "*rows C"],
) -> Float[Array, "*rows C"]:
  """Noisy x_t = sqrt(alphas_bar) x0 + sqrt(1 - alphas_bar) noise, float32.

  Args:
    schedule: the training chain.
    x0: clean tokens.
    t: step of each row, an index into `schedule`.
    noise: standard normal.
  """
  signal = jnp.asarray(schedule.signal)[t][..., None]
  sigma = jnp.asarray(schedule.noise)[t][..., None]
  return signal * x0.astype(jnp.float32) + sigma * noise.astype(jnp.float32)


def loss_terms(
  schedule: Schedule,
  prediction: Float[Array, "*rows C2"],
  x0: Float[Array, "*rows C"],
  x_t: Float[Array, "*rows C"],
  t: Int[Array, "*rows"],
  noise: Float[Array, "*rows C"],
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
  """MAR's two losses of each row; their plain sum is what it minimises.

  The predicted noise learns from the first term only, the predicted variance
  from the second only. At t = 999 of an untrained head the second is about
  700 bits: log the terms apart and set no alarm on their sum.

  Args:
    schedule: the training chain.
    prediction: noise in the first C channels, variance value in the last C.
    x0: clean tokens.
    x_t: what the network saw.
    t: step of each row.
    noise: what x_t was made with.

  Returns:
    Squared error of the noise, and the variational bound in bits; both means
    over C, float32.
  """
  prediction, x0, x_t, noise = (
    x.astype(jnp.float32) for x in (prediction, x0, x_t, noise)
  )
  at = _at(schedule, t)
  eps, value = jnp.split(prediction, 2, axis=-1)
  mse = jnp.square(noise - eps).mean(-1)

  mean, log_variance = _reverse(at, x_t, jax.lax.stop_gradient(eps), value)
  target = at.c1 * x0 + at.c2 * x_t
  kl = _normal_kl(target, at.log_posterior, mean, log_variance)
  nll = _discretised_nll(x0, mean, log_variance)
  bound = jnp.where(t == 0, nll.mean(-1), kl.mean(-1))
  return mse, bound / math.log(2)


def ancestral_sample(
  schedule: Schedule,
  denoise: Callable[[Array, Any], Array],
  x_T: Float[Array, "B *rest C"],
  keys: Key[Array, "B"],
  temperature: float | Float[Array, ""],
  inputs: Any = None,
  limit: float = math.inf,
) -> Float[Array, "B *rest C"]:
  """Walks the chain from its last step to its first.

  Row b's noise at step i comes from `fold_in(keys[b], i)`: a row does not
  depend on its neighbours.

  Args:
    schedule: usually `respace`, or consecutive steps of one.
    denoise: (x [B ... C], inputs of the step) -> noise and variance value,
      [B ... 2C].
    x_T: standard normal when the walk starts at the chain's end.
    keys: one per row.
    temperature: scales the noise added at each step, nothing else.
    inputs: pytree with leading axis S; `denoise` gets the step's slice.
    limit: predicted clean tokens are clipped to +-limit, as ADM's
      clip_denoised does. At the chain's end they are the error of the noise
      times 20,291: MAR does without, but few sampling steps of a small head
      do not recover from that.
  """

  def draw(
    key: Key[Array, ""], index: Int[Array, ""]
  ) -> Float[Array, "*rest C"]:
    return jax.random.normal(jax.random.fold_in(key, index), x_T.shape[1:])

  def step(
    x: Float[Array, "B *rest C"],
    scanned: Any,  # one step's constants, noise [B ... C] and inputs
  ) -> tuple[Float[Array, "B *rest C"], None]:
    at, noise, given = scanned
    eps, value = jnp.split(denoise(x, given).astype(jnp.float32), 2, axis=-1)
    mean, log_variance = _reverse(at, x, eps, value, limit)
    sigma = jnp.where(at.index == 0, 0.0, jnp.exp(0.5 * log_variance))
    return mean + temperature * sigma * noise, None

  constants = jax.tree.map(jnp.asarray, schedule)
  # All at once: small draws inside the loop would cost a kernel launch each.
  draws = jax.vmap(jax.vmap(draw, (0, None)), (None, 0))
  scanned = (constants, draws(keys, constants.index), inputs)
  x, _ = jax.lax.scan(step, x_T.astype(jnp.float32), scanned, reverse=True)
  return x


def _at(schedule: Schedule, t: Int[Array, "*rows"]) -> Schedule:
  """Constants of each row's step, ready to broadcast over channels."""
  return Schedule(*(jnp.asarray(field)[t][..., None] for field in schedule))


def _reverse(
  at: Schedule,
  x: Float[Array, "*rows C"],
  eps: Float[Array, "*rows C"],
  value: Float[Array, "*rows C"],
  limit: float = math.inf,
) -> tuple[Float[Array, "*rows C"], Float[Array, "*rows C"]]:
  """Mean and log variance of p(x_{t-1} | x_t); `value` is not bounded."""
  x0 = jnp.clip(at.recip * x - at.recip_m1 * eps, -limit, limit)
  share = (value + 1) / 2
  log_variance = share * at.log_betas + (1 - share) * at.log_posterior
  return at.c1 * x0 + at.c2 * x, log_variance


def _normal_kl(
  mean1: Float[Array, "*rows C"],
  log_var1: Float[Array, "*rows 1"],
  mean2: Float[Array, "*rows C"],
  log_var2: Float[Array, "*rows C"],
) -> Float[Array, "*rows C"]:
  """KL(N1 || N2) in nats, elementwise."""
  distance = jnp.square(mean1 - mean2) * jnp.exp(-log_var2)
  return 0.5 * (
    log_var2 - log_var1 - 1 + jnp.exp(log_var1 - log_var2) + distance
  )


def _discretised_nll(
  x: Float[Array, "*rows C"],
  mean: Float[Array, "*rows C"],
  log_variance: Float[Array, "*rows C"],
) -> Float[Array, "*rows C"]:
  """-log probability, in nats, of the 8-bit bin around x; end bins are open."""
  precision = jnp.exp(-0.5 * log_variance)

  def cdf(u: Float[Array, "*rows C"]) -> Float[Array, "*rows C"]:
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))

  upper = cdf((x - mean + _HALF_BIN) * precision)
  lower = cdf((x - mean - _HALF_BIN) * precision)
  mass = jnp.where(
    x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower)
  )
  return -jnp.log(jnp.maximum(mass, 1e-12))
