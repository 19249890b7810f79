"""Fused attention for NVIDIA GPUs: no logits in memory, forward or backward.

Source: FlashAttention-2 (arXiv 2307.08691). The forward pass keeps a row's
maximum and sum while it walks over blocks of keys, and leaves the logarithm
of that sum; the backward pass computes the weights again from it, in one
kernel for keys and values and one for queries. Written in Pallas for its
Triton back end, of which JAX 0.11 says that it will go some day.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from unifluid_jax.core import parallel
from unifluid_jax.ops import fused_attention

# Finite, so that the difference of two is 0 and not NaN; below any logit.
_UNSEEN = -1e30
_SMALLEST = 16  # a side of a product of blocks
_ALL = slice(None)


class Blocks(NamedTuple):
  """Positions per step, and what the compiler is told, of one kernel."""

  queries: int
  keys: int
  warps: int
  stages: int  # blocks in shared memory: one in use, the others being loaded


class Plan(NamedTuple):
  """Blocks of the three kernels; all sides are powers of 2 from 16."""

  forward: Blocks
  dkv: Blocks
  dq: Blocks


# By the bytes of a head, padded; queries, keys, warps, stages. The second row
# is the fastest of what was timed on an H200 (docs/log.md); the others
# were compiled for one, fit its shared memory and have not been timed.
_PLANS = {
  256: Plan(Blocks(64, 64, 4, 2), Blocks(32, 64, 4, 2), Blocks(64, 64, 4, 2)),
  512: Plan(Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2), Blocks(64, 64, 4, 2)),
  1024: Plan(Blocks(32, 32, 4, 2), Blocks(16, 32, 8, 1), Blocks(32, 32, 8, 1)),
}


class _Call(NamedTuple):
  """What all kernels of one call share."""

  softcap: float
  scale: float
  keys: int | None  # without padding; None where there is none
  plan: Plan
  interpret: bool


_Queries, _Keys = Float[Array, "B T N H"], Float[Array, "B S K H"]
_Mask = Bool[Array, "B T S"] | None
_Numbers = Float[Array, "B N T"]  # one per row of logits


def flash(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Bool[Array, "B T S"] | None,
  *,
  softcap: float,
  scale: float,
  plan: Plan | None = None,
  interpret: bool = False,
) -> Float[Array, "B T N H"]:
  """What `attention.attend` computes, block by block.

  A kernel cannot be partitioned by the compiler: where a mesh is set, each
  device runs its own rows and heads.

  Differs: a row without any visible key gives zeros, and takes no part in the
  gradients. The softmax's weights are rounded to the dtype of `v` before they
  are divided by their sum, not after.

  Args:
    q: queries of N heads; N is a multiple of K.
    k: keys, in the dtype of `q`.
    v: values, in the dtype of `q`.
    mask: True where a key is visible; None: everywhere.
    softcap: of the scaled logits, before the mask; 0: none.
    scale: of the logits.
    plan: blocks of the kernels, for tuning; None: by the size of a head.
    interpret: run on any device, slowly, to check numbers.

  Returns:
    Attended values in the dtype of `q`.
  """
  local = functools.partial(
    _local, softcap=softcap, scale=scale, plan=plan, interpret=interpret
  )
  return parallel.by_rows_and_heads(local, q, k, v, mask)


def _local(
  q: _Queries, k: _Keys, v: _Keys, mask: _Mask, *,
  softcap: float, scale: float, plan: Plan | None, interpret: bool,
) -> _Queries:  # fmt: skip
  """One device's rows and heads, padded to whole blocks."""
  (t, _, h), s = q.shape[1:], k.shape[1]
  head = max(_SMALLEST, pl.next_power_of_2(h))
  plan = _fit(plan or default_plan(head * q.dtype.itemsize), t, s)
  rows = max(blocks.queries for blocks in plan)
  columns = max(blocks.keys for blocks in plan)
  padded = fused_attention.padded
  q = padded(q, {1: rows, 3: head})
  k, v = (padded(x, {1: columns, 3: head}) for x in (k, v))
  if mask is not None:
    mask = padded(mask, {1: rows, 2: columns})
  keys = None if k.shape[1] == s else s
  call = _Call(softcap, scale, keys, plan, interpret)
  return _attention(q, k, v, mask, call)[:, :t, :, :h]


def default_plan(head: int) -> Plan:
  """The table's row for heads of so many bytes.

  Raises:
    ValueError: such heads leave no room for blocks.
  """
  for limit, plan in _PLANS.items():
    if head <= limit:
      return plan
  raise ValueError(
    f"heads of {head} bytes are too large for the fused attention: set "
    "config.model.attention='plain'"
  )


def _fit(plan: Plan, queries: int, keys: int) -> Plan:
  """No block is longer than the padded sequence."""
  rows, columns = (
    max(_SMALLEST, pl.next_power_of_2(n)) for n in (queries, keys)
  )
  return Plan(
    *(Blocks(min(a, rows), min(b, columns), *rest) for a, b, *rest in plan)
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
  q: _Queries, k: _Keys, v: _Keys, mask: _Mask, call: _Call
) -> _Queries:
  """Whole blocks: T, S and H are multiples of what the plan takes."""
  return _forward(q, k, v, mask, call)[0]


def _attention_forward(
  q: _Queries, k: _Keys, v: _Keys, mask: _Mask, call: _Call
) -> tuple[_Queries, Any]:
  out, log_sums = _forward(q, k, v, mask, call)
  return out, (q, k, v, mask, out, log_sums)


def _attention_backward(
  call: _Call,
  saved: Any,  # what `_attention` got and gave, logarithms of sums [B, N, T]
  d_out: _Queries,
) -> tuple[_Queries, _Keys, _Keys, None]:
  *arrays, out, log_sums = saved
  # The softmax's own part of the gradient, one number per row.
  products = out.astype(jnp.float32) * d_out.astype(jnp.float32)
  shares = products.sum(axis=-1).swapaxes(1, 2)  # [B, N, T]
  arrays = (*arrays, d_out, log_sums, shares)
  return (_queries(*arrays, call), *_keys_and_values(*arrays, call), None)


_attention.defvjp(_attention_forward, _attention_backward)


# ------------------------------------------------------------------- launches


def _forward(
  q: _Queries, k: _Keys, v: _Keys, mask: _Mask, call: _Call
) -> tuple[_Queries, _Numbers]:
  """Attended values, logarithms of sums."""
  b, t, n, _ = q.shape
  grid, row, key, seen, number = _by_queries(q, k, mask, call.plan.forward)
  sums = jax.ShapeDtypeStruct((b, n, t), jnp.float32)
  launch = _launcher(_forward_kernel, call, call.plan.forward, grid)
  return launch(
    in_specs=[row, key, key, seen],
    out_specs=[row, number],
    out_shape=[_like(q), sums],
  )(q, k, v, mask)


def _queries(
  q: _Queries, k: _Keys, v: _Keys, mask: _Mask,
  d_out: _Queries, log_sums: _Numbers, shares: _Numbers, call: _Call,
) -> _Queries:  # fmt: skip
  """The gradient of the queries."""
  grid, row, key, seen, number = _by_queries(q, k, mask, call.plan.dq)
  return _launcher(_dq_kernel, call, call.plan.dq, grid)(
    in_specs=[row, key, key, seen, row, number, number],
    out_specs=row,
    out_shape=_like(q),
  )(q, k, v, mask, d_out, log_sums, shares)


def _keys_and_values(
  q: _Queries, k: _Keys, v: _Keys, mask: _Mask,
  d_out: _Queries, log_sums: _Numbers, shares: _Numbers, call: _Call,
) -> tuple[_Keys, _Keys]:  # fmt: skip
  """Their gradients: a program sums over the query heads of its own head."""
  (b, t, n, h), (_, s, kv, _) = q.shape, k.shape
  columns, group = call.plan.dkv.keys, n // kv
  rows = pl.BlockSpec((None, t, group, h), lambda i, k, b: (b, 0, k, 0))
  key = pl.BlockSpec((None, columns, None, h), lambda i, k, b: (b, i, k, 0))
  numbers = pl.BlockSpec((None, group, t), lambda i, k, b: (b, k, 0))
  seen = pl.BlockSpec((None, t, columns), lambda i, k, b: (b, 0, i))
  seen = None if mask is None else seen
  grid = (s // columns, kv, b)
  return _launcher(_dkv_kernel, call, call.plan.dkv, grid)(
    in_specs=[rows, key, key, seen, rows, numbers, numbers],
    out_specs=[key, key],
    out_shape=[_like(k), _like(v)],
  )(q, k, v, mask, d_out, log_sums, shares)


def _by_queries(
  q: _Queries, k: _Keys, mask: _Mask, blocks: Blocks
) -> tuple[Any, ...]:
  """Grid of a kernel that walks over keys; what a program sees of arrays.

  Neighbours in the grid read the same keys.
  """
  (b, t, n, h), (_, s, kv, _) = q.shape, k.shape
  rows, group = blocks.queries, n // kv

  def kv_head(i: Any, n: Any, b: Any) -> tuple[Any, ...]:
    return b, 0, lax.div(n, group), 0

  row = pl.BlockSpec((None, rows, None, h), lambda i, n, b: (b, i, n, 0))
  key = pl.BlockSpec((None, s, None, h), kv_head)
  seen = pl.BlockSpec((None, rows, s), lambda i, n, b: (b, i, 0))
  number = pl.BlockSpec((None, None, rows), lambda i, n, b: (b, n, i))
  return (t // rows, n, b), row, key, None if mask is None else seen, number


def _launcher(
  kernel: Callable[..., None], call: _Call, blocks: Blocks,
  grid: tuple[int, ...],
) -> Callable[..., Any]:  # fmt: skip
  return functools.partial(
    pl.pallas_call,
    functools.partial(kernel, call=call),
    grid=grid,
    interpret=call.interpret,
    compiler_params=triton.CompilerParams(
      num_warps=blocks.warps, num_stages=blocks.stages
    ),
  )


def _like(x: Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


# -------------------------------------------------------------------- kernels

# Q queries and J keys of a block, G query heads of one head of keys.


def _forward_kernel(
  q_ref: Any,  # [Q, H]
  k_ref: Any, v_ref: Any,  # [S, H]
  mask_ref: Any,  # bool[Q, S] or None
  out_ref: Any,  # [Q, H]
  log_ref: Any,  # f32[Q]
  *, call: _Call,
) -> None:  # fmt: skip
  """A block of one head's queries against all keys."""
  q, block = q_ref[...], call.plan.forward.keys

  # The carry: out f32[Q, H], top f32[Q], total f32[Q].
  def step(i: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
    out, top, total = carry
    columns = pl.ds(i * block, block)
    v = v_ref[columns, :]
    logits, _ = _logits(triton.dot(q, k_ref[columns, :], trans_b=True), call)
    visible = _visible(mask_ref, (_ALL, columns), i * block, block, call)
    if visible is not None:
      logits = jnp.where(visible, logits, _UNSEEN)
    higher = jnp.maximum(top, logits.max(axis=1))
    weights = jnp.exp(logits - higher[:, None])
    shrink = jnp.exp(top - higher)
    out = out * shrink[:, None] + triton.dot(weights.astype(v.dtype), v)
    return out, higher, total * shrink + weights.sum(axis=1)

  out, top, total = lax.fori_loop(
    0,
    k_ref.shape[0] // block,
    step,
    (
      jnp.zeros(q.shape, jnp.float32),
      jnp.full(q.shape[0], _UNSEEN, jnp.float32),
      jnp.zeros(q.shape[0], jnp.float32),
    ),
  )
  # Where nothing is visible all keys, padding too, had one weight.
  out = jnp.where((top > _UNSEEN)[:, None], out / total[:, None], 0.0)
  out_ref[...] = out.astype(out_ref.dtype)
  log_ref[...] = top + jnp.log(total)


def _dq_kernel(
  q_ref: Any,  # [Q, H]
  k_ref: Any, v_ref: Any,  # [S, H]
  mask_ref: Any,  # bool[Q, S] or None
  d_out_ref: Any,  # [Q, H]
  log_ref: Any, share_ref: Any,  # f32[Q]
  dq_ref: Any,  # [Q, H]
  *, call: _Call,
) -> None:  # fmt: skip
  """A block of one head's queries against all keys."""
  q, d_out, block = q_ref[...], d_out_ref[...], call.plan.dq.keys
  log_sums, shares = log_ref[...][:, None], share_ref[...][:, None]

  def step(i: Any, dq: Float[Array, "Q H"]) -> Float[Array, "Q H"]:
    columns = pl.ds(i * block, block)
    k = k_ref[columns, :]
    logits, slope = _logits(triton.dot(q, k, trans_b=True), call)
    weights = jnp.exp(logits - log_sums)
    visible = _visible(mask_ref, (_ALL, columns), i * block, block, call)
    if visible is not None:
      weights = jnp.where(visible, weights, 0.0)
    d_weights = triton.dot(d_out, v_ref[columns, :], trans_b=True)
    d_logits = weights * (d_weights - shares) * slope
    return dq + triton.dot(d_logits.astype(k.dtype), k)

  dq = lax.fori_loop(
    0, k_ref.shape[0] // block, step, jnp.zeros(q.shape, jnp.float32)
  )
  dq_ref[...] = (dq * call.scale).astype(dq_ref.dtype)


def _dkv_kernel(
  q_ref: Any,  # [T, G, H]
  k_ref: Any, v_ref: Any,  # [J, H]
  mask_ref: Any,  # bool[T, J] or None
  d_out_ref: Any,  # [T, G, H]
  log_ref: Any, share_ref: Any,  # f32[G, T]
  dk_ref: Any, dv_ref: Any,  # [J, H]
  *, call: _Call,
) -> None:  # fmt: skip
  """A block of one head's keys against all queries of its group's heads.

  Products are [keys, queries], so that each is the next one's left side.
  """
  k, v, block = k_ref[...], v_ref[...], call.plan.dkv.queries
  per_head, first = q_ref.shape[0] // block, pl.program_id(0) * k.shape[0]

  # The carry: dk and dv, f32[J, H].
  def step(i: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
    dk, dv = carry
    head, i = lax.div(i, per_head), lax.rem(i, per_head)
    rows = pl.ds(i * block, block)
    q, d_out = q_ref[rows, head, :], d_out_ref[rows, head, :]
    logits, slope = _logits(triton.dot(k, q, trans_b=True), call)
    weights = jnp.exp(logits - log_ref[head, rows][None, :])
    visible = _visible(mask_ref, (rows, _ALL), first, k.shape[0], call)
    if visible is not None:
      weights = jnp.where(visible.T, weights, 0.0)
    dv += triton.dot(weights.astype(d_out.dtype), d_out)
    d_weights = triton.dot(v, d_out, trans_b=True)
    d_logits = weights * (d_weights - share_ref[head, rows][None, :]) * slope
    dk += triton.dot(d_logits.astype(q.dtype), q)
    return dk, dv

  zeros = jnp.zeros(k.shape, jnp.float32)
  steps = q_ref.shape[1] * per_head
  dk, dv = lax.fori_loop(0, steps, step, (zeros, zeros))
  dk_ref[...] = (dk * call.scale).astype(dk_ref.dtype)
  dv_ref[...] = dv.astype(dv_ref.dtype)


def _logits(
  products: Float[Array, "rows columns"], call: _Call
) -> tuple[Float[Array, "rows columns"], Float[Array, "rows columns"] | float]:
  """Scaled and capped; with the slope of the cap at each."""
  logits = products * call.scale
  if not call.softcap:
    return logits, 1.0
  bent = jnp.tanh(logits / call.softcap)
  return bent * call.softcap, 1.0 - bent * bent


def _visible(
  mask_ref: Any, index: tuple[Any, Any], first: Any, block: int, call: _Call
) -> Bool[Array, "#Q J"] | None:
  """The mask, or which keys are no padding, [1, J].

  None where all are visible. `first` is the number of the block's first key.
  """
  if mask_ref is not None:
    return mask_ref[index]
  if call.keys is None:
    return None
  return (first + jnp.arange(block) < call.keys)[None, :]
