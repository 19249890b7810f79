"""MAR's diffusion head: an adaLN MLP that denoises one image token.

MAR (arXiv 2406.11838) models/diffloss.py. The modulations depend on the step
and the token's condition, not on the noisy token, so sampling computes them
before its inner loop. Other kinds of heads (`models/token_head.py`) have the
same network.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Real

from unifluid_jax.core import parallel
from unifluid_jax.core.parameter_rows import Row
from unifluid_jax.core.presets import HeadConfig
from unifluid_jax.core.types import Params
from unifluid_jax.ops import diffusion, sampling

# Nothing decays as MAR trains; all kernels do where PaliGemma's recipe is
# asked for. C channels of a token, Z of its condition, W the width.
_DENSE, _DECAY = ((0,), (1,)), ("paligemma",)
ROWS = (
  Row(r"input/kernel", (None, "fsdp"), decay=_DECAY),  # CW
  Row(r"(cond|(time|step)/\w+)/kernel", ("fsdp", None), _DENSE, _DECAY),  # ZW
  Row(r"block_\d+/(modulation|in|out)/kernel", ("fsdp", None), _DENSE, _DECAY),
  Row(r"final/(modulation|out)/kernel", ("fsdp", None), decay=_DECAY),
  Row(r".*(bias|norm/scale)", (None,)),
)

_FREQUENCIES = 128  # of the time sinusoid; twice as many features

# For the two narrow projections that carry the tokens themselves: by default
# accelerators round float32 operands.
_EXACT = jax.lax.Precision.HIGHEST

# Modulations held at once while sampling, bytes. 256 MiB is every step of 100
# for 40 rows of the 1280 x 8 head in bfloat16; more rows are hoisted in runs
# of fewer steps, and from about 600 rows on reading modulations back costs as
# much as reading the weights that make them.
HOIST_BYTES = 2**28


class Modulations(NamedTuple):
  """All that a denoising step needs besides the noisy tokens."""

  blocks: Any  # tuple over depth of [... 3W]: shift, scale, gate
  final: Any  # [... 2W]: shift, scale


def _dense(
  features: int,
  name: str,
  dtype: Any,
  init: Any = None,
  precision: Any = None,
) -> nn.Dense:
  """Dense layer with MAR's initialisation unless another is given."""
  init = init or nn.initializers.xavier_uniform()
  return nn.Dense(
    features, dtype=dtype, kernel_init=init, precision=precision, name=name
  )


def _modulate(x: Array, shift: Array, scale: Array) -> Array:
  return x * (1 + scale) + shift


class _Time(nn.Module):
  """Features of a number: sinusoid, then two layers."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, t: Real[Array, "*rows"]) -> Float[Array, "*rows W"]:
    rates = 10_000.0 ** -(np.arange(_FREQUENCIES) / _FREQUENCIES)
    angle = t.astype(jnp.float32)[..., None] * rates.astype(np.float32)
    features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    normal = nn.initializers.normal(0.02)
    x = _dense(self.width, "in", self.dtype, normal)(features)
    return _dense(self.width, "out", self.dtype, normal)(nn.silu(x))


class _Block(nn.Module):
  """Gated residual MLP; its modulation is computed apart."""

  width: int
  dtype: Any

  def setup(self):
    self.norm = nn.LayerNorm(
      epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False
    )
    self.modulation = _dense(
      3 * self.width, "modulation", self.dtype, nn.initializers.zeros
    )
    self.up = _dense(self.width, "in", self.dtype)
    self.down = _dense(self.width, "out", self.dtype)

  def modulations(self, y: Array) -> Array:
    return self.modulation(y)

  def __call__(self, h: Array, modulation: Array) -> Array:
    shift, scale, gate = jnp.split(modulation, 3, axis=-1)
    u = _modulate(self.norm(h).astype(self.dtype), shift, scale)
    return h + gate * self.down(nn.silu(self.up(u)))


class _Final(nn.Module):
  """Modulated projection to what is predicted; starts at zero."""

  width: int
  features: int
  dtype: Any

  def setup(self):
    self.norm = nn.LayerNorm(
      epsilon=1e-6, use_scale=False, use_bias=False, use_fast_variance=False
    )
    zeros = nn.initializers.zeros
    self.modulation = _dense(2 * self.width, "modulation", self.dtype, zeros)
    self.out = _dense(self.features, "out", jnp.float32, zeros, _EXACT)

  def modulations(self, y: Array) -> Array:
    return self.modulation(y)

  def __call__(self, h: Array, modulation: Array) -> Array:
    shift, scale = jnp.split(modulation, 2, axis=-1)
    return self.out(_modulate(self.norm(h), shift, scale))


class DiffusionHead(nn.Module):
  """Predicts the noise in a token and the variance of the reverse step.

  The residual stream and the projections from and to tokens are float32: at
  small t the noise (0.006) is finer than bfloat16 resolves the token. The
  blocks' products run in `dtype`.

  Attributes:
    config: width W and depth.
    channels: C of a token.
    dtype: compute dtype.
    outputs: values that are predicted for each channel.
  """

  config: HeadConfig
  channels: int
  dtype: Any = jnp.float32
  outputs: int = 2

  def setup(self):
    """Names the parts; those that a kind never calls have no parameters."""
    width, features = self.config.width, self.outputs * self.channels
    self.input = _dense(width, "input", jnp.float32, precision=_EXACT)
    self.time = _Time(width, self.dtype, name="time")
    self.step = _Time(width, self.dtype, name="step")
    self.cond = _dense(width, "cond", self.dtype)
    self.blocks = [
      _Block(width, self.dtype, name=f"block_{i}")
      for i in range(self.config.depth)
    ]
    self.final = _Final(width, features, self.dtype, name="final")

  def __call__(
    self,
    x: Float[Array, "... C"],
    t: Real[Array, "*rows"] | None,
    z: Float[Array, "*tokens Z"],
    level: Int[Array, "*rows"] | None = None,
  ) -> Float[Array, "*rows F"]:
    """Training form.

    Args:
      x: noisy tokens.
      t: steps of the full chain, 0 .. 999, or None.
      z: decoder outputs; its leading axes broadcast against those of t, so
        that several draws of a token share one projection of z.
      level: of the step's size, for shortcuts.

    Returns:
      Noise in the first C channels, variance value in the last C; float32.
      With one output a channel, what the kind of head says.
    """
    y = self.cond(z)
    if t is not None:
      y = self._told(t, level) + y
    return self.denoise(x, self._modulations(y))

  def modulations(
    self,
    t: Real[Array, "S"],
    z: Float[Array, "B Z"],
    level: Int[Array, "S"] | None = None,
  ) -> Modulations:
    """Modulations of every pair of step and row: leaves [S, B, ...]."""
    told = self._told(t, level)
    return self._modulations(told[:, None] + self.cond(z))

  def denoise(
    self, x: Float[Array, "... C"], modulations: Modulations
  ) -> Float[Array, "*rows F"]:
    """The part that depends on the noisy token; leaves are [*rows, ...]."""
    h = self.input(x)
    for block, modulation in zip(self.blocks, modulations.blocks, strict=True):
      h = block(h, modulation)
    return self.final(h, modulations.final)

  def _told(
    self, t: Real[Array, "*rows"], level: Int[Array, "*rows"] | None
  ) -> Float[Array, "*rows W"]:
    features = self.time(t)
    return features if level is None else features + self.step(level)

  def _modulations(self, y: Float[Array, "*rows W"]) -> Modulations:
    y = nn.silu(y)
    return Modulations(
      tuple(block.modulations(y) for block in self.blocks),
      self.final.modulations(y),
    )


def narrow(params: Params, dtype: Any) -> Params:
  """The head's parameters with the blocks' kernels in the blocks' dtype.

  Every use narrows them to it; a loop over tokens, for each token. The two
  projections of the tokens themselves stay float32.
  """

  def one(path, leaf):
    name = parallel.path_str(path)
    exact = name.startswith("input/") or name.startswith("final/out/")
    return leaf if leaf.ndim < 2 or exact else leaf.astype(dtype)

  return jax.tree_util.tree_map_with_path(one, params)


def sample_tokens(
  head: DiffusionHead,
  params: Any,
  schedule: diffusion.Schedule,
  z: Float[Array, "B Z"],
  z_null: Float[Array, "B Z"] | None,
  keys: Key[Array, "B"],
  cfg: float | Float[Array, ""],
  temperature: float | Float[Array, ""],
  *,
  limit: float = math.inf,
  hoist_bytes: int = HOIST_BYTES,
  z_none: Float[Array, "B Z"] | None = None,
  image_cfg: float | Float[Array, ""] = 1.0,
) -> Float[Array, "B C"]:
  """Draws one token for each row.

  Guidance acts on the predicted noise only; the variance is the conditional
  one, and all predictions see the same noisy token (MAR models/diffloss.py).

  Args:
    head: the module.
    params: its parameters, without a collection name.
    schedule: of the sampling steps.
    z: conditions.
    z_null: conditions of the empty prompt (of an edit, with its source); None
      is no guidance, at half the work.
    keys: one per row; a row depends on its own key only.
    cfg: guidance scale; 1 is no guidance.
    temperature: of the noise added at each step.
    limit: of predicted clean tokens, see `diffusion.ancestral_sample`.
    hoist_bytes: static; modulations of as many steps as fit in it are
      computed at once. It changes speed and memory, not the result.
    z_none: conditions of neither prompt nor source, for edits with a scale of
      their own towards the source; needs z_null.
    image_cfg: that scale; without z_none it is unused.
  """
  variables = {"params": params}
  given = [c for c in (z, z_null, z_none) if c is not None]
  guided = sampling.Guided(given, cfg, image_cfg)
  rows = jnp.concatenate(given)

  def denoise(x, modulations):
    out = head.apply(variables, guided.same(x), modulations, method="denoise")
    if len(given) == 1:
      return out
    eps, value = jnp.split(out, 2, axis=-1)
    return jnp.concatenate([guided.combine(eps), value[: len(x)]], axis=-1)

  def run_of_steps(x, part):
    modulations = head.apply(
      variables, part.timesteps, rows, method="modulations"
    )
    return diffusion.ancestral_sample(
      part, denoise, x, step_keys, temperature, modulations, limit
    ), None

  start_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  x = jax.vmap(lambda k: jax.random.normal(k, (head.channels,)))(start_keys)
  run = hoisted_steps(head, len(schedule.index), rows.shape[0], hoist_bytes)
  parts = jax.tree.map(lambda a: jnp.reshape(a, (-1, run)), schedule)
  return jax.lax.scan(run_of_steps, x, parts, reverse=True)[0]


def hoisted_steps(
  head: DiffusionHead, steps: int, rows: int, limit: int
) -> int:
  """Largest divisor of `steps` whose modulations fit in `limit` bytes.

  Args:
    head: the module.
    steps: evaluations, one after another.
    rows: of each, all conditions together.
    limit: bytes.
  """
  values = (3 * head.config.depth + 2) * head.config.width
  step_bytes = rows * values * jnp.dtype(head.dtype).itemsize
  fitting = [
    n for n in range(1, steps + 1) if steps % n == 0 and n * step_bytes <= limit
  ]
  return max(fitting, default=1)


@dataclasses.dataclass(frozen=True)
class DdpmHead:
  """MAR's diffusion loss and sampler; see `token_head.TokenHead`.

  Attributes:
    net: predicts noise and variance.
  """

  net: DiffusionHead

  outputs: ClassVar[int] = 2
  fewest_draws: ClassVar[int] = 1
  solvers: ClassVar[tuple[str, ...]] = ("euler",)

  def inputs(self, condition: int) -> tuple[Array, ...]:
    """See `token_head.TokenHead`."""
    token = jnp.zeros((1, self.net.channels))
    return token, jnp.zeros(1, jnp.int32), jnp.zeros((1, condition))

  def losses(
    self,
    params: Params,
    z: Float[Array, "B N Z"],
    x0: Float[Array, "B N C"],
    key: Key[Array, ""],
    draws: int,
  ) -> dict[str, Float[Array, "n B N"]]:
    """Squared error of the noise, and the variational bound."""
    chain = diffusion.cosine_schedule()
    x0 = jnp.broadcast_to(x0, (draws, *x0.shape))
    k_t, k_noise = jax.random.split(key)
    t = diffusion.sample_steps(k_t, draws, x0.shape[1:-1])
    noise = jax.random.normal(k_noise, x0.shape, jnp.float32)
    x_t = diffusion.q_sample(chain, x0, t, noise)
    # Constrained explicitly: GSPMD would choose partial sums over fsdp.
    x_t = parallel.constrain(x_t, "_BTC")
    t = parallel.constrain(t, "_BT")
    out = self.net.apply({"params": params}, x_t, t, z)
    mse, vb = diffusion.loss_terms(chain, out, x0, x_t, t, noise)
    return {"mse": mse, "vb": vb}

  def sample(
    self,
    params: Params,
    guided: sampling.Guided,
    keys: Key[Array, "B"],
    steps: int,
    temperature: float | Float[Array, ""],
    *,
    limit: float = math.inf,
    solver: str = "euler",
  ) -> Float[Array, "B C"]:
    """Ancestral sampling, whatever the solver; see `sample_tokens`."""
    del solver
    z, z_null, z_none = (*guided.conditions, None, None)[:3]
    return sample_tokens(
      self.net, params, diffusion.respace(steps), z, z_null, keys,
      guided.scale, temperature,
      limit=limit, z_none=z_none, image_cfg=guided.image_scale,
    )  # fmt: skip

  @staticmethod
  def refusal(options: Any) -> str:
    """See `token_head.TokenHead`."""
    del options
    return ""
