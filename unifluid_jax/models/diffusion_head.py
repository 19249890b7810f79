"""The network of all heads: an adaLN MLP that denoises one image token.

MAR (arXiv 2406.11838) models/diffloss.py. The modulations depend on the step
and the token's condition, not on the noisy token, so sampling computes them
before its inner loop.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from unifluid_jax.core import parallel
from unifluid_jax.core.parameter_rows import Row
from unifluid_jax.core.presets import HeadConfig
from unifluid_jax.core.types import Params
from unifluid_jax.ops import fused_attention, fused_head

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
  """All that a denoising step needs besides the noisy tokens.

  Arrays apart, so that no step of a loop splits them.
  """

  blocks: Any  # tuple over depth of shift, scale and gate [... W]
  final: Any  # shift, scale [... W]


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
      epsilon=fused_head.EPSILON, dtype=jnp.float32, use_fast_variance=False
    )
    self.modulation = _dense(
      3 * self.width, "modulation", self.dtype, nn.initializers.zeros
    )
    self.up = _dense(self.width, "in", self.dtype)
    self.down = _dense(self.width, "out", self.dtype)

  def modulations(self, y: Array) -> tuple[Array, ...]:
    return tuple(jnp.split(self.modulation(y), 3, axis=-1))

  def __call__(self, h: Array, modulation: tuple[Array, ...]) -> Array:
    shift, scale, gate = modulation
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

  def modulations(self, y: Array) -> tuple[Array, ...]:
    return tuple(jnp.split(self.modulation(y), 2, axis=-1))

  def __call__(self, h: Array, modulation: tuple[Array, ...]) -> Array:
    shift, scale = modulation
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
    """The part that depends on the noisy token; leaves are [*rows, W]."""
    h = self.input(x)
    for block, modulation in zip(self.blocks, modulations.blocks, strict=True):
      h = block(h, modulation)
    return self.final(h, modulations.final)

  def denoise_fused(
    self,
    x: Float[Array, "B C"],
    modulations: Float[Array, "B M"],
    kernel: fused_head.Kernel,
  ) -> Float[Array, "B F"]:
    """The same by `ops/fused_head.py`, of what `pack` gives."""
    h = self.input(x)
    for i, block in enumerate(self.blocks):
      params = block.variables["params"]
      h = fused_head.block(h, modulations, i, params, kernel)
    return self.final(h, unpack(modulations, self.config.depth).final)

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


def pack(modulations: Modulations) -> Float[Array, "*rows M"]:
  """All as one array, in their order."""
  return jnp.concatenate(jax.tree.leaves(modulations), axis=-1)


def unpack(packed: Float[Array, "*rows M"], depth: int) -> Modulations:
  """What `pack` took, of so many blocks."""
  parts = jnp.split(packed, 3 * depth + 2, axis=-1)
  blocks = (tuple(parts[3 * i : 3 * i + 3]) for i in range(depth))
  return Modulations(tuple(blocks), tuple(parts[-2:]))


def hoist(
  net: DiffusionHead,
  params: Params,
  t: Real[Array, "S"],
  z: Float[Array, "B Z"],
  level: Int[Array, "S"] | None = None,
) -> Any:
  """What `step` needs of every pair of evaluation and row.

  Args:
    net: the module.
    params: its parameters, without a collection name.
    t: steps of the full chain.
    z: conditions.
    level: of the steps' size, for shortcuts.

  Returns:
    Leaves [S, B, ...]; with `config.fused` B is padded to whole programs.
  """

  def of(z):
    return net.apply({"params": params}, t, z, level, method="modulations")

  if not net.config.fused:
    return of(z)
  whole = fused_head.padded_rows(len(z))
  return pack(of(fused_attention.padded(z, {0: whole})))


def step(
  net: DiffusionHead,
  params: Params,
  x: Float[Array, "B C"],
  hoisted: Any,
) -> Float[Array, "B F"]:
  """One evaluation at noisy tokens.

  With `config.fused` the platform that the program is lowered for decides
  whose kernels they are; NVIDIA GPUs and TPUs have some, others run the plain
  operations. So do several devices of a mesh, over which no compiler splits a
  kernel: where a run learns of its own drawings.

  Args:
    net: the module.
    params: its parameters, without a collection name.
    x: noisy tokens.
    hoisted: one evaluation's of what `hoist` gives.
  """
  evaluate = functools.partial(net.apply, {"params": params})
  if not net.config.fused:
    return evaluate(x, hoisted, method="denoise")

  def plain(x, packed):
    parts = unpack(packed, net.config.depth)
    return evaluate(x, parts, method="denoise")

  def fused(kernel):
    return lambda x, m: evaluate(x, m, kernel, method="denoise_fused")

  kernels = {"cuda": fused("triton"), "tpu": fused("mosaic")}
  mesh = parallel.mesh_in_use()
  if mesh is not None and mesh.size > 1:
    kernels = {}
  padded = fused_attention.padded(x, {0: len(hoisted)})
  out = jax.lax.platform_dependent(padded, hoisted, default=plain, **kernels)
  return out[: len(x)]


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
