"""The contrastive loss of matching pairs (CLIP, arXiv 2103.00020)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def contrastive(
  x: Float[Array, "B D"],
  y: Float[Array, "B D"],
  scale: Float[Array, ""],
  same: Bool[Array, "B B"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Cross entropy of finding each row's partner among all, both ways.

  Differs: CLIP counts a row whose partner occurs twice as wrong for one of the
  two; here neither is a negative of the other.

  Args:
    x: unit vectors.
    y: unit vectors; row i of both is a pair.
    scale: of the cosines, one over the temperature.
    same: True where rows i and j are alike; the diagonal has no meaning.

  Returns:
    The mean of both directions' mean cross entropies, in nats; the share of
    rows, over both directions, whose partner is the nearest.
  """
  cosines = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
  pair = jnp.eye(len(x), dtype=bool)
  logits = jnp.where(same & ~pair, -jnp.inf, scale * cosines)
  own = jnp.diagonal(logits)
  losses, hits = [], []
  for axis in (0, 1):
    losses.append((jax.nn.logsumexp(logits, axis=axis) - own).mean())
    best = jnp.argmax(logits, axis=axis)
    hits.append((best == jnp.arange(len(x))).mean())
  return sum(losses) / 2, sum(hits) / 2
