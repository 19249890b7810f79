"""A block of a diffusion head's step in two kernels, for GPUs and TPUs.

With few images a head step is bound by how many kernels it launches, not by
what they compute. Here norm, modulation, first product, bias and SiLU are one
kernel, and second product, bias, gate and residual another: a column of the
second product reads every column of the first, so there is no fewer without
a barrier across the device. Written in Pallas; the same kernels are lowered
by Triton and by Mosaic, and interpreted by a CPU.

A step's modulations are one array, of which a kernel reads its own columns:
as arrays apart, a loop over steps would copy each of them for every step.

R rows of a program, W the head's width, J of its columns, M of all
modulations.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton
from jaxtyping import Array, Float

from unifluid_jax.core.types import Params

Kernel = Literal["triton", "mosaic", "interpret"]

# What a width is to be a multiple of: a TPU's vector register is as wide.
# Products walk over the width in such parts.
LANES = 128
EPSILON = 1e-6  # of the norm
_FEWEST, _MOST = 16, 64  # rows of a program: powers of two, as Triton asks
# At most, of a program. A GPU wants many programs; a TPU runs them one after
# another, each for a price. Not timed.
_COLUMNS = {"triton": 32, "mosaic": 4 * LANES, "interpret": LANES}


def padded_rows(rows: int) -> int:
  """The multiple of a program's rows that holds so many."""
  return rows + -rows % _rows(rows)


def block(
  h: Float[Array, "B W"],
  modulations: Float[Array, "B M"],
  index: int,
  params: Params,
  kernel: Kernel,
) -> Float[Array, "B W"]:
  """h + gate * (SiLU(modulated norm of h @ in) @ out), biases included.

  Differs: values between operations are float32 within a kernel; by
  operations they are rounded to the products' dtype each time.

  Args:
    h: residual stream, float32; B as `padded_rows` gives it, W a multiple of
      `LANES`.
    modulations: shift, scale and gate of each block, one after another, in
      the products' dtype; more may follow.
    index: of the block.
    params: of a block of `models/diffusion_head.py`.
    kernel: whose compiler lowers it.

  Returns:
    The next block's residual stream, float32.
  """
  (rows, width), dtype = h.shape, modulations.dtype
  columns, tall = math.gcd(width, _COLUMNS[kernel]), _rows(rows)
  first = 3 * index

  def row(at: int = 0) -> pl.BlockSpec:
    return pl.BlockSpec((tall, width), lambda j, i: (i, at))

  def column(at: int = 0) -> pl.BlockSpec:
    before = at * (width // columns)
    return pl.BlockSpec((tall, columns), lambda j, i: (i, before + j))

  weight = pl.BlockSpec((width, columns), lambda j, i: (0, j))
  vector = pl.BlockSpec((1, columns), lambda j, i: (0, j))
  whole = pl.BlockSpec((1, width), lambda j, i: (0, 0))
  # Rows come last, so that a program finds its neighbour's weights on chip.
  launch = functools.partial(
    _launch, (width // columns, rows // tall), column(), h.shape, kernel
  )
  norm, up, down = (params[name] for name in ("norm", "in", "out"))
  specs = [row(), row(first), row(first + 1), whole, whole, weight, vector]
  u = launch(_up_kernel, specs, dtype)(
    h, modulations, modulations, _wide(norm["scale"]), _wide(norm["bias"]),
    up["kernel"].astype(dtype), _wide(up["bias"]),
  )  # fmt: skip
  specs = [row(), weight, vector, column(first + 2), column()]
  return launch(_down_kernel, specs, h.dtype)(
    u, down["kernel"].astype(dtype), _wide(down["bias"]), modulations, h
  )


def _rows(rows: int) -> int:
  """Of a program."""
  return min(_MOST, max(_FEWEST, pl.next_power_of_2(rows)))


def _wide(vector: Float[Array, "W"]) -> Float[Array, "1 W"]:
  return vector[None].astype(jnp.float32)


def _launch(
  grid: tuple[int, int],
  out: pl.BlockSpec,
  shape: tuple[int, ...],
  kernel: Kernel,
  body: Callable[..., None],
  inputs: list[pl.BlockSpec],
  dtype: Any,
) -> Callable[..., Array]:
  params = {
    "triton": triton.CompilerParams(num_warps=4, num_stages=2),
    "mosaic": tpu.CompilerParams(
      dimension_semantics=("parallel", "parallel")
    ),
    "interpret": None,
  }  # fmt: skip
  return pl.pallas_call(
    functools.partial(body, unroll=kernel == "mosaic"),
    grid=grid,
    in_specs=inputs,
    out_specs=out,
    out_shape=jax.ShapeDtypeStruct(shape, dtype),
    interpret=kernel == "interpret",
    compiler_params=params[kernel],
  )


def _up_kernel(
  h_ref: Any,  # f32[R, W]
  shift_ref: Any, scale_ref: Any,  # [R, W]
  norm_scale_ref: Any, norm_bias_ref: Any,  # f32[1, W]
  kernel_ref: Any,  # [W, J]
  bias_ref: Any,  # f32[1, J]
  out_ref: Any,  # [R, J]
  *, unroll: bool,
) -> None:  # fmt: skip
  """SiLU(modulated norm of h @ kernel + bias); the norm in every program."""
  rows, width = h_ref.shape
  over = functools.partial(_over, width, unroll)
  none = jnp.zeros((rows, 1), jnp.float32)
  mean = over(none, lambda at: _sum(h_ref[:, at])) / width
  spread = over(none, lambda at: _sum((h_ref[:, at] - mean) ** 2))
  factor = lax.rsqrt(spread / width + EPSILON)

  def product(at: Any) -> Float[Array, "R J"]:
    u = (h_ref[:, at] - mean) * factor
    u = u * norm_scale_ref[:, at] + norm_bias_ref[:, at]
    scale = scale_ref[:, at].astype(jnp.float32)
    u = u * (1 + scale) + shift_ref[:, at].astype(jnp.float32)
    return _dot(u.astype(kernel_ref.dtype), kernel_ref[at, :])

  out = over(jnp.zeros(out_ref.shape, jnp.float32), product)
  out += bias_ref[...]
  out_ref[...] = (out * jax.nn.sigmoid(out)).astype(out_ref.dtype)


def _down_kernel(
  u_ref: Any,  # [R, W]
  kernel_ref: Any,  # [W, J]
  bias_ref: Any,  # f32[1, J]
  gate_ref: Any,  # [R, J]
  h_ref: Any,  # f32[R, J]
  out_ref: Any,  # f32[R, J]
  *,
  unroll: bool,
) -> None:
  """h + gate * (u @ kernel + bias)."""
  out = _over(
    u_ref.shape[1],
    unroll,
    jnp.zeros(out_ref.shape, jnp.float32),
    lambda at: _dot(u_ref[:, at], kernel_ref[at, :]),
  )
  gate = gate_ref[...].astype(jnp.float32)
  out_ref[...] = h_ref[...] + gate * (out + bias_ref[...])


def _over(
  width: int, unroll: bool, zero: Array, part: Callable[[Any], Array]
) -> Array:
  """Sum of a function of each part of the width.

  Unrolled, a TPU's scheduler sees all parts at once; Triton pipelines loops.
  """

  def step(i: Any, total: Array) -> Array:
    return total + part(pl.ds(pl.multiple_of(i * LANES, LANES), LANES))

  return lax.fori_loop(0, width // LANES, step, zero, unroll=unroll)


def _sum(x: Float[Array, "R K"]) -> Float[Array, "R 1"]:
  return x.sum(axis=1, keepdims=True)


def _dot(a: Float[Array, "R K"], b: Float[Array, "K J"]) -> Array:
  return jnp.dot(
    a, b,
    precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
