"""Encoding of a batch's pixels, before a system sees them."""

from typing import Any

from unifluid_jax.core.types import Batch, Params
from unifluid_jax.data import fields


def encode_pixels(system: Any, frozen: Params, batch: Batch) -> Batch:
  """A batch whose `Cached` fields hold encoded images instead of pixels.

  Fields that were read from a file stay as they are: a system never knows
  which were.

  Args:
    system: gives the codec.
    frozen: the system's frozen weights.
    batch: task → name → array [B, ...]; pixels, one or several images per
      row, stand under "name.pixels".
  """
  suffix = f".{fields.PIXELS}"

  def encoded(arrays):
    out = {}
    for name, x in arrays.items():
      if name.endswith(suffix):
        name = name.removesuffix(suffix)
        x = _encoded(system.codec, frozen["codec"], x)
      out[name] = x
    return out

  return {task: encoded(arrays) for task, arrays in batch.items()}


def _encoded(codec: Any, frozen: Params, images: Any) -> Any:
  """[B, *M, H, W, 3] → [B, *M, *cache], also of several images per row."""
  several = images.shape[:-3]
  out = codec.encode(frozen, images.reshape(-1, *images.shape[-3:]))
  return out.reshape(*several, *out.shape[1:])
