"""Keys and values of earlier tokens: two arrays for every layer.

Decoding reads all of them for each token, so they lie as products read them,
heads before slots, and each layer has arrays of its own: of a stack XLA copies
out the layer, and of other orders a transposed copy, once per token.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from unifluid_jax.core.presets import DecoderConfig


class LayerCache(NamedTuple):
  """Of one layer, S slots."""

  k: Any  # [B, K, H, S], after rotation
  v: Any  # [B, K, S, H]


class Cache(NamedTuple):
  """Of all layers, and where their tokens stand."""

  layers: tuple[LayerCache, ...]
  positions: Any  # i32[B, S]


def empty(config: DecoderConfig, batch: int, size: int, dtype: Any) -> Cache:
  """A cache of `size` slots; the caller's mask hides unused ones."""
  keys = jnp.zeros((batch, config.kv_heads, config.head_dim, size), dtype)
  values = jnp.zeros((batch, config.kv_heads, size, config.head_dim), dtype)
  return Cache(
    tuple(LayerCache(keys, values) for _ in range(config.depth)),
    jnp.zeros((batch, size), jnp.int32),
  )


def of_rows(cache: Cache, rows: Int[Array, "R"]) -> Cache:
  """The cache of the given rows, e.g. of each beam's parent."""
  return jax.tree.map(lambda x: x[rows], cache)


def write(
  cache: LayerCache, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"],
  index: int | Int[Array, ""],
) -> LayerCache:  # fmt: skip
  """The cache with T tokens from slot `index` on, which XLA writes in place."""
  k, v = (x.astype(cache.k.dtype) for x in (k, v))
  return LayerCache(
    lax.dynamic_update_slice(
      cache.k, k.transpose(0, 2, 3, 1), (0, 0, 0, index)
    ),
    lax.dynamic_update_slice(cache.v, v.swapaxes(1, 2), (0, 0, index, 0)),
  )
