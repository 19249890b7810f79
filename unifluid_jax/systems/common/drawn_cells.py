"""Images drawn cell by cell: what is shown meanwhile, what is drawn last."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def stage_sizes(n: int, most: int) -> list[int]:
  """How many of n parts each stage shows: at most `most` stages, the last n."""
  count = min(n, most)
  return [n * (k + 1) // count for k in range(count)]


def images_of_stages(
  decode: Callable[[Bool[Array, "B N"]], Float[Array, "B H W 3"]],
  rank: Int[Array, "B N"],
  grid: tuple[int, int],
  most: int,
) -> Float[Array, "B S H W 3"]:
  """Images of the first cells, of more, of all; undrawn cells are grey.

  Args:
    decode: makes images of the cells that are marked as known. A decoder sees
      beyond each cell: what it reads for the others is for `decode` to choose.
    rank: when each cell, in raster order, is drawn.
    grid: rows and columns of cells.
    most: images per row, about equally many cells apart; S is N if that is
      less.
  """

  def image(count: Any) -> Float[Array, "B H W 3"]:
    known = rank < count
    x, shown = decode(known), known.reshape(-1, *grid)
    for axis, side in enumerate(grid, 1):
      shown = jnp.repeat(shown, x.shape[axis] // side, axis=axis)
    return jnp.where(shown[..., None], x, 0.0)

  sizes = jnp.asarray(stage_sizes(math.prod(grid), most))
  return jax.lax.map(image, sizes).swapaxes(0, 1)


def check_redraw(config: Any, sampling: Any, again: Any) -> None:
  """Refuses cells that raster order cannot draw last.

  A model that draws in raster order has never seen a cell whose later cells
  are known.

  Args:
    config: of the run.
    sampling: how images are to be drawn.
    again: bool[rows, columns].

  Raises:
    ValueError: says which cells can be drawn again.
  """
  del config, sampling
  cells = again.reshape(-1)
  if not cells[cells.argmax() :].all():
    raise ValueError(
      "this run draws in raster order: choose a cell and all cells after it"
    )
