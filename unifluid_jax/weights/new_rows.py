"""How rows start that a vocabulary gained: image codes, control tokens."""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

_STD = 0.02  # of random rows, as PaliGemma §5.3 draws them
# Of the old rows' covariance: transformers' resize_token_embeddings with
# mean_resizing, after Hewitt, "Initializing new word embeddings" (2021).
_SHARE = 1e-9


def fit(table: Any, like: Any, name: str, rule: str, seed: int) -> Any:
  """Cuts a table of the vocabulary, or adds rows to it.

  Args:
    table: f[V, D] as it was read.
    like: of the wanted shape, dtype and sharding.
    name: of the parameter; input and output tables draw apart.
    rule: "random", or "mean": every new row is the mean of the old ones but
      for a little noise, so that none is far likelier than words are.
    seed: of what is drawn.
  """
  rows = like.shape[0]
  extra = max(rows - table.shape[0], 0)
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
  if rule == "mean" and extra:
    new = near_mean(table, extra, key).astype(like.dtype)
  else:
    new = _STD * jax.random.normal(key, (extra, *like.shape[1:]), like.dtype)
  whole = jnp.concatenate([table, new])[:rows]
  place = getattr(like, "sharding", None)
  return whole if place is None else jax.device_put(whole, place)


@functools.partial(jax.jit, static_argnums=1)
def near_mean(
  table: Float[Array, "V D"], count: int, key: PRNGKeyArray
) -> Float[Array, "n D"]:
  """Draws of N(mean of the rows, 1e-9 times their covariance).

  Differs: transformers takes the mean alone where the covariance is singular;
  here the noise stays within the rows' span.
  """
  rows = table.astype(jnp.float32)
  mean = rows.mean(0)
  centred = rows - mean
  covariance = jnp.matmul(centred.T, centred, precision="highest") / len(rows)
  variances, axes = jnp.linalg.eigh(covariance)
  root = axes * jnp.sqrt(jnp.maximum(variances, 0))  # covariance: root root^T
  noise = jax.random.normal(key, (count, table.shape[1]))
  noise = jnp.matmul(noise, root.T, precision="highest")
  return mean + _SHARE**0.5 * noise
