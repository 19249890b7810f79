"""The energy score, by which a head learns to draw in one evaluation.

EAR (arXiv 2505.07812) with alpha = 1: of draws x, x' for a target y, the
expectation of ||x - y|| - ||x - x'|| / 2 is least, strictly, where the draws
have the target's distribution (Gneiting and Raftery 2007).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def distance(
  a: Float[Array, "*rows C"], b: Float[Array, "*rows C"]
) -> Float[Array, "*rows"]:
  """Euclidean distance; where a and b are equal its gradient is 0."""
  square = jnp.square(a - b).sum(-1)
  apart = square > 0
  return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def loss_terms(
  draws: Float[Array, "n *rows C"], target: Float[Array, "*rows C"]
) -> tuple[Float[Array, "n *rows"], Float[Array, "n *rows"]]:
  """Both terms of the negative energy score; their sum is minimised.

  Means over the n draws are unbiased: every draw is compared with all others.

  Differs: the original has independent pairs of draws; all pairs of as many
  draws have the same mean and vary less.

  Args:
    draws: n >= 2 of each row.
    target: y.

  Returns:
    Distance of each draw from the target, and minus half of its mean distance
    from the other draws; float32.
  """
  draws, target = draws.astype(jnp.float32), target.astype(jnp.float32)
  n = len(draws)
  others = [distance(draws, jnp.roll(draws, k, axis=0)) for k in range(1, n)]
  apart = distance(draws, jnp.broadcast_to(target, draws.shape))
  return apart, -0.5 * sum(others) / (n - 1)
