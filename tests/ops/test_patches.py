"""Channel and raster order of image tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.ops import patches


def test_order_of_channels_and_tokens():
  # Value = 100 channel + 10 row + column.
  c, r, q = jnp.arange(3), jnp.arange(4), jnp.arange(4)
  x = 100 * c + 10 * r[:, None, None] + q[:, None]
  tokens = patches.patchify(x[None].astype(jnp.float32), 2)
  assert tokens.shape == (1, 4, 12)
  assert tokens[0, 0, :4].tolist() == [0, 1, 10, 11]
  assert tokens[0, 0, 4:8].tolist() == [100, 101, 110, 111]
  assert tokens[0, 1, :4].tolist() == [2, 3, 12, 13]
  assert tokens[0, 2, :4].tolist() == [20, 21, 30, 31]


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_round_trip(patch):
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
  tokens = patches.patchify(x, patch)
  assert tokens.shape == (2, (6 // patch) ** 2, 4 * patch**2)
  np.testing.assert_array_equal(patches.unpatchify(tokens, patch, 4), x)


def test_shapes_that_do_not_divide():
  with pytest.raises(ValueError, match="model.image_size"):
    patches.patchify(jnp.zeros((1, 5, 4, 4)), 2)
  with pytest.raises(ValueError, match="no square"):
    patches.unpatchify(jnp.zeros((1, 8, 16)), 2, 4)
  with pytest.raises(ValueError, match="model.patch"):
    patches.unpatchify(jnp.zeros((1, 4, 12)), 2, 4)
