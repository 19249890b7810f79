"""Where the codes of each scale stand in an image's row of codes.

VAR (arXiv 2404.02905) codes an image as K square grids of growing sides P_k,
one after another, each in raster order.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def slots(sides: Sequence[int], first: int, last: int | None = None) -> slice:
  """Slots of the scales `first` to `last` inclusive; default `first` alone."""
  last = first if last is None else last
  start = sum(side**2 for side in sides[:first])
  return slice(start, sum(side**2 for side in sides[: last + 1]))


def levels(sides: Sequence[int]) -> Int[np.ndarray, " N"]:
  """The scale of every slot, from 0."""
  counts = [side**2 for side in sides]
  return np.repeat(np.arange(len(sides), dtype=np.int32), counts)


def slot_weights(sides: Sequence[int], kind: str) -> Float[np.ndarray, " N"]:
  """What each code weighs in a loss, 1 on average.

  Args:
    sides: P_k.
    kind: "equal", or "inverse_side", in inverse proportion to P_k.
  """
  side = np.asarray(sides)[levels(sides)]
  weights = {"equal": np.ones(len(side)), "inverse_side": 1 / side}[kind]
  return (weights / weights.mean()).astype(np.float32)
