"""Functions of a model's weights, made callable on rows of numpy arrays."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# (params, frozen, *arrays [B, ...]) → array [B, ...], made callable on numpy
# arrays with any number of rows.
Mapper = Callable[[Callable[..., Any]], Callable[..., np.ndarray]]


def jitted(params: Any, frozen: Any, rows: int) -> Mapper:
  """Runs functions by jax.jit on the default device, `rows` at a time.

  Fewer rows are padded to the next power of two, so that few shapes compile.
  """

  def mapper(function):
    compiled = jax.jit(function)

    def call(*arrays):
      total, parts = len(arrays[0]), []
      for start in range(0, total, rows):
        part = [a[start : start + rows] for a in arrays]
        count = len(part[0])
        size = 1 << (count - 1).bit_length()
        out = compiled(params, frozen, *(pad_rows(a, size) for a in part))
        parts.append(np.asarray(out)[:count])
      return np.concatenate(parts)

    return call

  return mapper


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
  """Repeats the last row until there are `size`."""
  missing = size - len(array)
  return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
