"""Products with weights that a mesh splits."""

import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from unifluid_jax.core import parallel

_WEIGHT = {"D": "fsdp", "N": "tensor", "F": "tensor"}
_TILE = 8  # rows of a TPU's memory layout


def product(
  x: Float[Array, "B T inputs"], weight: Float[Array, "..."], letters: str
) -> Float[Array, "B T outputs"]:
  """x times a weight as a matrix, [inputs, outputs]: heads lie side by side.

  The weight's gradient is a matrix too, until it has been summed over devices:
  a TPU then lays out both factors of that product as they are, and not by the
  small axes of one head.

  Args:
    x: rows of the inputs.
    weight: of any rank; its first axes make the inputs.
    letters: of the matrix, split as the network's rows split the weight: D,
      one of them, over fsdp, N and F over tensor, K not at all.
  """
  flat, mesh = weight.reshape(x.shape[-1], -1), parallel.mesh_in_use()
  axes = tuple(_WEIGHT.get(letter) for letter in letters)
  if mesh is None or any(
    axis and size % mesh.shape[axis]
    for size, axis in zip(flat.shape, axes, strict=True)
  ):
    return x @ flat
  remainder = flat.shape[axes.index("fsdp")] // mesh.shape["fsdp"] % _TILE
  batch = P(parallel.batch_axes(mesh))
  if remainder and parallel.layout(x.shape[:1], "B") == batch:
    transposed = axes[1] == "fsdp"
    rows, other = (flat.T, axes[0]) if transposed else (flat, axes[1])
    return _product_of_pieces(x, rows, transposed, other)
  return x @ jax.lax.with_sharding_constraint(flat, P(*axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product_of_pieces(
  x: Float[Array, "B T inputs"],
  rows: Float[Array, "rows columns"],
  transposed: bool,
  other: str | None,
) -> Float[Array, "B T outputs"]:
  """x times a matrix, or a transposed one, whose rows are split over fsdp.

  A device's rows are not divisible by the tile. Pieces of, say, 36 rows
  travel as they lie, side by side in an array of three axes, forward and
  backward; within one matrix every row of theirs would have to move again.
  The gradient's sum over devices is written out: XLA would sum padded pieces,
  and nothing beside it. `other` is the mesh axis of the other dimension.
  """
  whole = _gathered(rows, other)
  return x @ (whole.T if transposed else whole)


def _pieces(
  rows: Float[Array, "rows columns"],
) -> Float[Array, "fsdp piece columns"]:
  fsdp = parallel.mesh_in_use().shape["fsdp"]
  return rows.reshape(fsdp, -1, rows.shape[1])


def _gathered(
  rows: Float[Array, "rows columns"], other: str | None
) -> Float[Array, "rows columns"]:
  pieces = _pieces(rows)
  for first in ("fsdp", None):
    pieces = jax.lax.with_sharding_constraint(pieces, P(first, None, other))
  return pieces.reshape(rows.shape)


def _back(
  transposed: bool,
  other: str | None,
  saved: Any,  # x and rows of `_product_of_pieces`
  d_out: Float[Array, "B T outputs"],
) -> tuple[Float[Array, "B T inputs"], Float[Array, "rows columns"]]:
  x, rows = saved
  whole, mesh = _gathered(rows, other), parallel.mesh_in_use()
  batch = parallel.batch_axes(mesh)

  def summed(
    a: Float[Array, "B T rows"], b: Float[Array, "B T columns"]
  ) -> Float[Array, "1 piece columns"]:
    own = jax.lax.dot_general(a, b, (((0, 1), (0, 1)), ((), ())))
    pieces = jax.lax.psum_scatter(_pieces(own), "fsdp", tiled=True)
    return jax.lax.psum(pieces, parallel.replica_axes(mesh))

  pieces = jax.shard_map(
    summed,
    in_specs=(P(batch), P(batch, None, other)),
    out_specs=P("fsdp", None, other),
    check_vma=False,
  )(*((d_out, x) if transposed else (x, d_out)))
  return d_out @ (whole if transposed else whole.T), pieces.reshape(rows.shape)


_product_of_pieces.defvjp(
  lambda x, rows, *rest: (_product_of_pieces(x, rows, *rest), (x, rows)), _back
)
