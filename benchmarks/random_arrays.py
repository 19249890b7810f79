"""Inputs and weights of benchmarks, where their values do not matter."""

from typing import Any

import jax
import jax.numpy as jnp

from unifluid_jax.core.types import UNK


def like(shapes: Any, vocab: int) -> Any:
  """Arrays of these shapes: token ids, or small numbers around zero."""
  leaves, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(0), len(leaves))

  def draw(key, leaf):
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      draws = jax.random.randint(key, leaf.shape, UNK + 1, vocab)
      return draws.astype(leaf.dtype)
    return 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)

  make = jax.jit(draw, static_argnums=1)
  return tree.unflatten(
    make(key, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    for key, leaf in zip(keys, leaves, strict=True)
  )
