"""Parameters for tests, drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np


def filled(shapes, seed=0):
  """Parameters of these shapes, none at its initial 0 or 1.

  Drawn by numpy: compiling one generator per parameter takes far longer than
  the tests themselves.
  """
  rng = np.random.default_rng(seed)

  def fill(path, x):
    values = rng.standard_normal(x.shape)
    if path[-1].key == "kernel":
      values /= np.sqrt(np.prod(x.shape[:-1]))
    else:
      values = (path[-1].key == "scale") + values / 10
    return jnp.asarray(values, x.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)
