"""Products with weights that a mesh splits."""

import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from unifluid_jax import parallel

_WEIGHT = {"D": "fsdp", "N": "tensor", "F": "tensor"}
_TILE = 8  # rows of a TPU's memory layout


def product(x: Any, weight: Any, letters: str) -> Any:
  """x times a weight as a matrix, [inputs, outputs]: heads lie side by side.

  The weight's gradient is a matrix too, until it has been summed over devices:
  a TPU then lays out both factors of that product as they are, and not by the
  small axes of one head.

  Args:
    x: [B, T, inputs].
    weight: of any rank; its first axes make the inputs.
    letters: of the matrix, split as `parallel.RULES` split the weight: D, one
      of them, over fsdp, N and F over tensor, K not at all.

  Returns:
    [B, T, outputs].
  """
  flat, mesh = weight.reshape(x.shape[-1], -1), parallel.mesh_in_use()
  axes = tuple(_WEIGHT.get(letter) for letter in letters)
  if mesh is None or any(
    axis and size % mesh.shape[axis]
    for size, axis in zip(flat.shape, axes, strict=True)
  ):
    return x @ flat
  broken = flat.shape[axes.index("fsdp")] // mesh.shape["fsdp"] % _TILE
  if broken and parallel.layout(x.shape[:1], "B") == P(parallel.BATCH_AXES):
    return _product_of_pieces(x, flat, axes)
  return x @ jax.lax.with_sharding_constraint(flat, P(*axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product_of_pieces(x, flat, axes):
  """Of a matrix whose rows (or columns) over fsdp are broken tiles.

  Pieces of, say, 36 rows travel as they lie, side by side in an array of
  three axes, forward and backward; within one matrix every row of theirs
  would have to move again. The gradient's sum over devices is written out:
  XLA would sum padded pieces, and nothing beside it.
  """
  return x @ _whole(flat, axes)


def _whole(flat, axes):
  rows, other = _rows_over_fsdp(flat, axes)
  pieces = rows.reshape(parallel.mesh_in_use().shape["fsdp"], -1, rows.shape[1])
  for first in ("fsdp", None):
    pieces = jax.lax.with_sharding_constraint(pieces, P(first, None, other))
  whole = pieces.reshape(rows.shape)
  return whole if axes[0] == "fsdp" else whole.T


def _rows_over_fsdp(flat, axes):
  return (flat, axes[1]) if axes[0] == "fsdp" else (flat.T, axes[0])


def _pieces_back(axes, saved, d_out):
  x, flat = saved
  rows, other = _rows_over_fsdp(flat, axes)
  factors = (x, d_out) if axes[0] == "fsdp" else (d_out, x)

  def summed(a, b):
    own = jax.lax.dot_general(a, b, (((0, 1), (0, 1)), ((), ())))
    pieces = own.reshape(parallel.mesh_in_use().shape["fsdp"], -1, own.shape[1])
    pieces = jax.lax.psum_scatter(pieces, "fsdp", tiled=True)
    return jax.lax.psum(pieces, "data")

  pieces = jax.shard_map(
    summed,
    in_specs=(P(parallel.BATCH_AXES), P(parallel.BATCH_AXES, None, other)),
    out_specs=P("fsdp", None, other),
    check_vma=False,
  )(*factors)
  gradient = pieces.reshape(rows.shape)
  gradient = gradient if axes[0] == "fsdp" else gradient.T
  return d_out @ _whole(flat, axes).T, gradient


_product_of_pieces.defvjp(
  lambda x, flat, axes: (_product_of_pieces(x, flat, axes), (x, flat)),
  _pieces_back,
)
