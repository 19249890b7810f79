"""Encoding of a batch's pixels, before a system sees them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unifluid_jax.core.types import PAD, Batch, Params
from unifluid_jax.data import fields


def encode_pixels(system: Any, frozen: Params, batch: Batch) -> Batch:
  """A batch whose `Cached` fields hold encoded images instead of pixels.

  Fields that were read from a file stay as they are: a system never knows
  which were.

  Args:
    system: gives the codec.
    frozen: the system's frozen weights.
    batch: task → name → array [B, ...]; pixels, one or several images per
      row, stand under "name.pixels"; "name.size" beside them if images are
      of several sizes.
  """
  suffix = f".{fields.PIXELS}"

  def encoded(arrays):
    out = {}
    for name, x in arrays.items():
      if name.endswith(suffix):
        name = name.removesuffix(suffix)
        size = arrays.get(f"{name}.{fields.SIZE}")
        if size is None:
          x = _encoded(system.codec, frozen["codec"], x)
        else:
          x = _encoded_by_size(system.codec, frozen["codec"], x, size)
      out[name] = x
    return out

  return {task: encoded(arrays) for task, arrays in batch.items()}


def _encoded(codec: Any, frozen: Params, images: Any) -> Any:
  """[B, *M, H, W, 3] → [B, *M, *cache], also of several images per row."""
  several = images.shape[:-3]
  out = codec.encode(frozen, images.reshape(-1, *images.shape[-3:]))
  return out.reshape(*several, *out.shape[1:])


def _encoded_by_size(
  codec: Any,
  frozen: Params,
  images: Float[Array, "B H W 3"],
  size: Int[Array, "B 2"],
) -> Int[Array, "B N"]:
  """Codes of images in the upper left of their rows, then PAD.

  Shapes are static: all rows are encoded at every size, and each keeps what is
  of its own. With k sizes a step encodes k times as much: cached codes cost
  nothing.
  """
  out = jnp.full((len(images), *codec.cache.shape), PAD, codec.cache.dtype)
  for height, width in codec.sizes:
    codes = codec.encode(frozen, images[:, :height, :width])
    missing = out.shape[1] - codes.shape[1]
    codes = jnp.pad(codes, ((0, 0), (0, missing)), constant_values=PAD)
    own = (size == jnp.asarray([height, width])).all(axis=1)
    out = jnp.where(own[:, None], codes, out)
  return out
