"""Fused attention for TPUs: no logits in memory, forward or backward.

The kernel is JAX's splash attention (jax.experimental.pallas.ops.tpu). It
knows grouped heads, a softcap and masks that are arrays; what is added here
is the batch, padding to whole blocks, and the mesh.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Bool, Float

from unifluid_jax.core import parallel

_LANES = 128  # blocks are multiples of a vector register's width
_LONGEST = 512  # positions of a block: its float32 logits take 1 MiB
# Heads x blocks of queries per call: each takes 3 x 512 bytes of the 1 MiB that
# a TPU core has for scalars, where the kernel keeps what each block sees.
_SCALARS = 256


def splash(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Bool[Array, "B T S"],
  *,
  softcap: float,
  scale: float,
  interpret: bool = False,
) -> Float[Array, "B T N H"]:
  """What `attention.attend` computes, block by block.

  A kernel cannot be partitioned by the compiler: where a mesh is set, each
  device runs its own rows and heads.

  Differs: the queries are scaled, as gemma's are, and not the logits: in
  bfloat16 that rounds once more unless `scale` is a power of 2. The softmax's
  weights stay float32 in the forward product. A row without any visible key
  attends to all keys.

  Args:
    q: queries of N heads; N is a multiple of K.
    k: keys, in the dtype of `q`.
    v: values, in the dtype of `q`.
    mask: True where a key is visible.
    softcap: of the scaled logits, before the mask; 0: none.
    scale: of the logits.
    interpret: run on any device, slowly, to check numbers.

  Returns:
    Attended values in the dtype of `q`.
  """
  local = functools.partial(
    _local, softcap=softcap, scale=scale, interpret=interpret
  )
  return parallel.by_rows_and_heads(local, q, k, v, mask)


def _local(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Bool[Array, "B T S"],
  *,
  softcap: float,
  scale: float,
  interpret: bool,
) -> Float[Array, "B T N H"]:
  """One device's rows and heads, as many rows per call as scalars have room."""
  b, t, n, _ = q.shape
  block_q, block_kv = _block(t), _block(k.shape[1])
  sizes = splash_attention.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    use_fused_bwd_kernel=True,
  )
  call = functools.partial(
    _call, sizes=sizes, softcap=softcap, interpret=interpret
  )
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  q, k, v = (
    padded(x.swapaxes(1, 2), {2: block})
    for x, block in ((q, block_q), (k, block_kv), (v, block_kv))
  )
  mask = padded(mask, {1: block_q, 2: block_kv})
  # The kernel divides by the sum of a row's weights.
  mask |= ~mask.any(axis=-1, keepdims=True)
  most = max(1, _SCALARS // (n * q.shape[2] // block_q))
  rows = max(r for r in range(1, most + 1) if b % r == 0)
  parts = [x.reshape(-1, rows, *x.shape[1:]) for x in (q, k, v, mask)]
  out = lax.map(lambda xs: call(*xs), parts)
  return out.reshape(q.shape)[:, :, :t].swapaxes(1, 2)


def _block(length: int) -> int:
  """Positions of a block: the fewest blocks, then the least padding."""
  count = -(-length // _LONGEST)
  return -(-length // (count * _LANES)) * _LANES


def padded(x: Array, blocks: dict[int, int]) -> Array:
  """Pads axes of `x` at their end to whole blocks."""
  widths = [(0, -x.shape[i] % blocks.get(i, 1)) for i in range(x.ndim)]
  return jnp.pad(x, widths)


def _call(
  q: Float[Array, "B N T H"],
  k: Float[Array, "B K S H"],
  v: Float[Array, "B K S H"],
  mask: Bool[Array, "B T S"],
  *,
  sizes: splash_attention.BlockSizes,
  softcap: float,
  interpret: bool,
) -> Float[Array, "B N T H"]:
  """The kernel has heads and no batch: heads of all rows follow one another."""
  kernel = splash_attention.make_splash_mha(
    mask,
    block_sizes=sizes,
    attn_logits_soft_cap=softcap or None,
    downcast_smem_data=False,
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  kernel.fwd_mask_info = _for_heads(kernel.fwd_mask_info, q.shape[1])
  kernel.dkv_mask_info = _for_heads(kernel.dkv_mask_info, q.shape[1])
  out = kernel(*(x.reshape(-1, *x.shape[2:]) for x in (q, k, v)))
  return out.reshape(q.shape)


def _for_heads(info: Any, heads: int) -> Any:
  """Plans of rows as plans of heads; a row's heads share its mask's blocks."""
  repeated = {
    name: jnp.repeat(getattr(info, name), heads, axis=0)
    for name in ("data_next", "mask_next", "block_mask")
  }
  # Read by Python: under jit the kernel's own flag is traced.
  return info._replace(**repeated, is_dynamic_mask=True)
