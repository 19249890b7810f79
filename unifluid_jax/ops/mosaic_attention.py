"""Fused attention for TPUs whose keys fit the chip's fast memory at once.

A program sees all keys of its heads, so a softmax is a softmax: nothing is
carried from block to block, and the backward pass, in one kernel, needs
nothing of the forward pass but its inputs. Arrays stay as the projections
make them, heads side by side ([B, T, N*H]), and rotations happen inside: no
layout but the products' own exists, and no rotated copy is ever written.
Written in Pallas for its Mosaic back end.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu
from jaxtyping import Array, Bool, Float, Int8

from unifluid_jax.core import parallel
from unifluid_jax.ops import fused_attention

_LANES = 128  # of a vector register; blocks are multiples of it
# Logits of a block of queries: an array of as many float32 takes 1 MiB, and
# the backward pass holds a few.
_LOGITS = 2**18
# Bytes of fast memory a kernel may use, of a core's 64 or more from v5e on;
# v4 has 16 MiB and takes splash.
_MEMORY = 48 * 2**20
# Finite, so that a row without any visible key gives a mean and not NaN.
_UNSEEN = -1e30
# Capped logits up to here need no maximum taken off before their exponentials:
# e ** 60 = 2 ** 86.6 leaves room for sums, and 2 ** -120 counts for nothing
# beside e ** -60.
_BOUNDED, _UNSEEN_POWER = 60.0, -120.0
_LOG2_E = math.log2(math.e)
# Heads of queries a program takes: while the softmax of one is computed, the
# products of another run. More would only make the program longer.
_HEADS = 8


class _Call(NamedTuple):
  """What both kernels of one call share."""

  size: int  # of a head
  group: int  # query heads that read one head of keys
  softcap: float
  scale: float
  interpret: bool


def attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Bool[Array, "B T S"] | None,
  rotation: tuple[Float[Array, "B T R"], Float[Array, "B T R"]] | None = None,
  *,
  softcap: float,
  scale: float,
  interpret: bool = False,
) -> Float[Array, "B T N H"]:
  """What `attention.attend` computes, some heads of keys at a time.

  A kernel cannot be partitioned by the compiler: where a mesh is set, each
  device runs its own rows and heads. All keys of a head have to fit: 3200 of
  256 channels in bfloat16. Splash attention has no such limit.

  Differs: the softmax's weights are rounded to the dtype of `v` before they
  are divided by their sum, not after. A row without any visible key passes
  gradients on to its logits.

  Args:
    q: queries of N heads; N is a multiple of K.
    k: keys, in the dtype of `q`.
    v: values, in the dtype of `q`.
    mask: True where a key is visible; None: everywhere.
    rotation: cosines and sines for queries and keys, R = H / 2; S is T then.
    softcap: of the scaled logits, before the mask; 0: none.
    scale: of the logits.
    interpret: run on any device, slowly, to check numbers.

  Returns:
    Attended values in the dtype of `q`.

  Raises:
    ValueError: the keys of a program's heads do not fit.
  """
  local = functools.partial(
    _local, softcap=softcap, scale=scale, interpret=interpret
  )
  cos, sin = rotation or (None, None)
  return parallel.by_rows_and_heads(local, q, k, v, mask, cos, sin)


def _local(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Bool[Array, "B T S"] | None,
  cos: Float[Array, "B T R"] | None,
  sin: Float[Array, "B T R"] | None,
  *,
  softcap: float,
  scale: float,
  interpret: bool,
) -> Float[Array, "B T N H"]:
  """One device's rows and heads, padded to whole blocks."""
  shape, (b, t, n, h), (_, s, kv, _) = q.shape, q.shape, k.shape
  call = _Call(h, n // kv, softcap, scale, interpret)
  q, k, v = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
  if mask is None and s % _LANES:
    mask = jnp.ones((b, t, s), bool)
  padded = functools.partial(fused_attention.padded, blocks={1: _LANES})
  q, k, v = map(padded, (q, k, v))
  cos, sin = (None if x is None else padded(x) for x in (cos, sin))
  if mask is not None:
    mask = fused_attention.padded(mask, {1: _LANES, 2: _LANES})
    mask = mask.swapaxes(1, 2).astype(jnp.int8)
  _check_room(call, q.shape[1], k)
  out = _attention(q, k, v, mask, cos, sin, call)
  return out[:, :t].reshape(shape)


# Heads lie side by side: NH and KH are N * H and K * H channels.
_Queries, _Keys = Float[Array, "B T NH"], Float[Array, "B S KH"]
_Mask, _Angles = Int8[Array, "B S T"] | None, Float[Array, "B S R"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attention(
  q: _Queries, k: _Keys, v: _Keys, mask: _Mask, cos: _Angles, sin: _Angles,
  call: _Call,
) -> _Queries:  # fmt: skip
  arrays = (q, k, v, mask, cos, sin)
  return _launch(_forward_kernel, call, arrays, [(q, "row")], 0)[0]


def _forward(
  q: _Queries, k: _Keys, v: _Keys, mask: _Mask, cos: _Angles, sin: _Angles,
  call: _Call,
) -> tuple[_Queries, Any]:  # fmt: skip
  saved = q, k, v, mask, cos, sin
  return _attention(*saved, call), saved


def _backward(
  call: _Call,
  saved: Any,  # the arrays that `_attention` got
  d_out: _Queries,
) -> tuple[_Queries, _Keys, _Keys, None, None, None]:
  q, k, v, *_ = saved
  results = [(q, "row"), (k, "key"), (v, "key")]
  grads = _launch(_backward_kernel, call, (*saved, d_out), results, 2)
  return (*grads, None, None, None)


_attention.defvjp(_forward, _backward)


def _launch(
  kernel: Callable[..., None],
  call: _Call,
  arrays: Sequence[Array | None],
  results: Sequence[tuple[Array, str]],
  sums: int,
) -> tuple[Array, ...]:
  """Runs a kernel for every row, heads of keys and block of queries.

  Args:
    kernel: the kernel.
    call: shared settings.
    arrays: q, k, v, mask, cos, sin and, backward, the result's gradient.
    results: an array like each result and what a program sees of it: "row",
      a block of queries of some heads, or "key", all of theirs.
    sums: float32 arrays like keys that stay from block to block.
  """
  (b, t, _), (_, s, keys) = arrays[0].shape, arrays[1].shape
  block, width = _block(t, s), _width(call, t, arrays[1])
  specs = {
    "row": ((None, block, call.group * width), lambda b, n, i: (b, i, n)),
    "key": ((None, s, width), lambda b, n, i: (b, 0, n)),
    "mask": ((None, s, block), lambda b, n, i: (b, 0, i)),
    "angle": ((None, s, call.size // 2), lambda b, n, i: (b, 0, 0)),
  }
  specs = {name: pl.BlockSpec(*spec) for name, spec in specs.items()}
  kinds = ["row", "key", "key", "mask", "angle", "angle", "row"]
  return pl.pallas_call(
    functools.partial(kernel, call=call),
    grid=(b, keys // width, t // block),
    in_specs=[
      None if x is None else specs[kind]
      for x, kind in zip(arrays, kinds[: len(arrays)], strict=True)
    ],
    out_specs=[specs[kind] for _, kind in results],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in results],
    scratch_shapes=[tpu.VMEM((s, width), jnp.float32)] * sums,
    interpret=call.interpret,
    compiler_params=tpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=_MEMORY,
    ),
  )(*arrays)


def _width(call: _Call, t: int, k: _Keys) -> int:
  """Channels of keys a program takes: of as many heads as have room.

  Heads that fill registers; where none do, or nothing fits, the fewest.
  """
  keys = k.shape[2]
  widths = [n for n in range(call.size, keys + 1, call.size) if keys % n == 0]
  widths = [n for n in widths if n % _LANES == 0 or n == keys]
  fits = [
    n for n in widths
    if n // call.size * call.group <= _HEADS
    and _needed(call, t, k, n) <= _MEMORY
  ]  # fmt: skip
  return max(fits, default=min(widths))


def _check_room(call: _Call, t: int, k: _Keys) -> None:
  """Refuses keys of which the backward pass cannot hold what it must."""
  width = _width(call, t, k)
  needed = _needed(call, t, k, width)
  if needed > _MEMORY:
    raise ValueError(
      f"{k.shape[1]} keys of {width} channels need {needed / 2**20:.1f} MiB of "
      f"a TPU's fast memory, a kernel may use {_MEMORY >> 20}: set "
      "config.model.attention='splash'"
    )


def _needed(call: _Call, t: int, k: _Keys, width: int) -> int:
  """Bytes of fast memory that the backward pass holds.

  Keys, values and both gradients, twice each, for one is moved while the
  other is used; two sums in float32; cosines and sines, twice each; arrays
  like a block's logits, fewer than 14; queries and two gradients of a block,
  twice.
  """
  s, size, block = k.shape[1], k.dtype.itemsize, _block(t, k.shape[1])
  angles = -(-call.size // (2 * _LANES)) * _LANES
  needed = s * (8 * width * (size + 1) + 16 * angles + 28 * block * size)
  return needed + 6 * block * call.group * width * size


def _block(t: int, s: int) -> int:
  """Queries of a block: the most whose logits have room; divides `t`."""
  fits = [n for n in range(_LANES, t + 1, _LANES) if t % n == 0]
  return max((n for n in fits if n * s <= _LOGITS), default=_LANES)


# -------------------------------------------------------------------- kernels

# What a program sees: Q queries of its block, all S keys; GW and W channels,
# of the heads of queries and of the heads of keys that it takes; R = H / 2.


def _forward_kernel(
  q_ref: Any,  # [Q, GW]
  k_ref: Any, v_ref: Any,  # [S, W]
  mask_ref: Any,  # i8[S, Q] or None
  cos_ref: Any, sin_ref: Any,  # f32[S, R] or None
  out_ref: Any,  # [Q, GW]
  *, call: _Call,
) -> None:  # fmt: skip
  visible, queries, keys = _shared(mask_ref, cos_ref, sin_ref, q_ref)
  for head, readers in _heads(k_ref, call):
    k, v = _rotated(k_ref[:, head], keys), v_ref[:, head]
    for reader in readers:
      q = _rotated(q_ref[:, reader], queries)
      weights, total, _ = _weights(q, k, visible, call)
      out = _product(v, weights.astype(v.dtype), 0, 0) / total
      out_ref[:, reader] = out.astype(out_ref.dtype).T


def _backward_kernel(
  q_ref: Any,  # [Q, GW]
  k_ref: Any, v_ref: Any,  # [S, W]
  mask_ref: Any,  # i8[S, Q] or None
  cos_ref: Any, sin_ref: Any,  # f32[S, R] or None
  d_out_ref: Any, dq_ref: Any,  # [Q, GW]
  dk_ref: Any, dv_ref: Any,  # [S, W]
  dk_sum: Any, dv_sum: Any,  # f32[S, W], kept from block to block
  *, call: _Call,
) -> None:  # fmt: skip
  """Sums over the queries that read a head, and over blocks of them."""
  visible, queries, keys = _shared(mask_ref, cos_ref, sin_ref, q_ref)

  @pl.when(pl.program_id(2) == 0)
  def _():
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  for head, readers in _heads(k_ref, call):
    k, v = _rotated(k_ref[:, head], keys), v_ref[:, head]
    for reader in readers:
      q, d_out = _rotated(q_ref[:, reader], queries), d_out_ref[:, reader]
      weights, total, slope = _weights(q, k, visible, call)
      weights = weights / total
      d_weights = _product(v, d_out, 1, 1)
      shares = jnp.sum(weights * d_weights, axis=0, keepdims=True)
      d_logits = (weights * (d_weights - shares) * slope).astype(q.dtype)
      dv_sum[:, head] += _product(weights.astype(d_out.dtype), d_out, 1, 0)
      dk_sum[:, head] += _product(d_logits, q, 1, 0)
      dq = _product(d_logits, k, 0, 0)
      dq_ref[:, reader] = _back(dq, queries, dq_ref.dtype)

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    for head, _ in _heads(k_ref, call):
      dk_ref[:, head] = _back(dk_sum[:, head], keys, dk_ref.dtype)
    dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)


def _shared(
  mask_ref: Any, cos_ref: Any, sin_ref: Any, q_ref: Any
) -> tuple[
  Bool[Array, "S Q"] | None,
  tuple[Float[Array, "Q R"], Float[Array, "Q R"]] | None,
  tuple[Float[Array, "S R"], Float[Array, "S R"]] | None,
]:
  """What heads share: the mask, angles of the block's queries, of all keys."""
  # Compared as bytes, a mask would be packed and unpacked again.
  visible = None if mask_ref is None else mask_ref[...].astype(jnp.int32) != 0
  if cos_ref is None:
    return visible, None, None
  rows = pl.ds(pl.program_id(2) * q_ref.shape[0], q_ref.shape[0])
  queries = cos_ref[rows, :], sin_ref[rows, :]
  return visible, queries, (cos_ref[...], sin_ref[...])


def _heads(k_ref: Any, call: _Call) -> Iterator[tuple[slice, list[slice]]]:
  """Channels of each head of keys and of the queries' heads that read it."""
  for i in range(k_ref.shape[1] // call.size):
    heads = range(i * call.group, (i + 1) * call.group)
    yield _channels(i, call.size), [_channels(n, call.size) for n in heads]


def _channels(head: int, size: int) -> slice:
  return slice(head * size, (head + 1) * size)


def _rotated(
  x: Float[Array, "T H"],
  angles: tuple[Float[Array, "T R"], Float[Array, "T R"]] | None,
) -> Float[Array, "T H"]:
  """Rotates in float32; None: `x` itself."""
  return x if angles is None else _rotate(x, *angles).astype(x.dtype)


def _back(
  gradient: Float[Array, "T H"],
  angles: tuple[Float[Array, "T R"], Float[Array, "T R"]] | None,
  dtype: Any,
) -> Float[Array, "T H"]:
  """The gradient of `_rotated`: rotates the other way."""
  if angles is not None:
    cos, sin = angles
    gradient = _rotate(gradient, cos, -sin)
  return gradient.astype(dtype)


def _rotate(
  x: Float[Array, "T H"], cos: Float[Array, "T R"], sin: Float[Array, "T R"]
) -> Float[Array, "T H"]:
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=1)
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=1)


def _weights(
  q: Float[Array, "Q H"],
  k: Float[Array, "S H"],
  visible: Bool[Array, "S Q"] | None,
  call: _Call,
) -> tuple[
  Float[Array, "S Q"], Float[Array, "1 Q"], Float[Array, "S Q"] | float
]:
  """Softmax before its division, the sums, the slope of scale and cap.

  A column is a query: sums over lanes would take many times as long. Powers
  of 2, and the constants of scale, cap and base multiplied beforehand: what is
  done for every logit counts.
  """
  product, slope = _product(k, q, 1, 1), call.scale
  if call.softcap:
    bent = jnp.tanh(product * (call.scale / call.softcap))
    slope = call.scale * (1 - bent * bent)
    powers = bent * (call.softcap * _LOG2_E)
  else:
    powers = product * (call.scale * _LOG2_E)
  bounded = 0 < call.softcap <= _BOUNDED
  if visible is not None:
    powers = jnp.where(visible, powers, _UNSEEN_POWER if bounded else _UNSEEN)
  if not bounded:
    powers -= jnp.max(powers, axis=0, keepdims=True)
  weights = jnp.exp2(powers)
  return weights, jnp.sum(weights, axis=0, keepdims=True), slope


def _product(
  a: Float[Array, "_ _"], b: Float[Array, "_ _"], i: int, j: int
) -> Float[Array, "_ _"]:
  """Sums over axis i of `a` and j of `b`, in float32."""
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return lax.dot_general(
    a, b, (((i,), (j,)), ((), ())),
    precision=precision, preferred_element_type=jnp.float32,
  )  # fmt: skip
