"""The contrastive loss against plain loops, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unifluid_jax.ops import contrastive as ops

B = 8
contrastive = jax.jit(ops.contrastive)


def drawn(seed):
  rng = np.random.default_rng(seed)
  pairs = rng.standard_normal((2, B, 4))
  return pairs / np.linalg.norm(pairs, axis=-1, keepdims=True)


def reference(x, y, scale, same):
  """Mean loss and hits of 2 B questions, one after another."""
  losses, hits = [], []
  for one, other in ((x, y), (y, x)):
    for i in range(B):
      rivals = [j for j in range(B) if j == i or not same[i][j]]
      scores = {j: scale * one[i] @ other[j] for j in rivals}
      total = np.log(sum(np.exp(s) for s in scores.values()))
      losses.append(total - scores[i])
      hits.append(scores[i] == max(scores.values()))
  return np.mean(losses), np.mean(hits)


def test_both_directions_are_averaged_and_equal_rows_left_out():
  x, y = drawn(0)
  y = 0.5 * y + 0.5 * x
  y /= np.linalg.norm(y, axis=-1, keepdims=True)
  names = np.array([0, 1, 2, 1, 4, 5, 5, 5])
  same = names[:, None] == names
  args = jnp.float32(x), jnp.float32(y), jnp.float32(7.0)
  values = []
  for mask in (same, np.eye(B, dtype=bool)):
    got = contrastive(*args, jnp.asarray(mask))
    want = reference(x, y, 7.0, mask)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    values.append(want)
  assert values[0][0] < values[1][0] and values[0][1] > values[1][1]
  assert 0.3 < values[1][1] < 0.9


def test_vectors_that_say_nothing_cost_the_logarithm_of_the_batch():
  x = jnp.ones((B, 4)) / 2
  loss, found = contrastive(x, x, jnp.float32(14.0), jnp.zeros((B, B), bool))
  np.testing.assert_allclose(loss, np.log(B), rtol=1e-6)
  np.testing.assert_allclose(found, 1 / B)


def test_left_out_rows_keep_gradients_finite():
  x, y = map(jnp.float32, drawn(1))
  same = jnp.ones((B, B), bool)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def gradients(x, scale):
    return contrastive(x, y, scale, same)[0]

  value, grads = gradients(x, jnp.float32(3.0))
  np.testing.assert_allclose(value, 0, atol=1e-6)
  for g in grads:
    np.testing.assert_allclose(g, 0, atol=1e-6)


def test_rows_on_eight_devices_meet_those_of_the_others():
  x, y = map(jnp.float32, drawn(2))
  mesh = jax.make_mesh((8,), ("data",), devices=jax.devices()[:8],
                       axis_types=(jax.sharding.AxisType.Auto,))  # fmt: skip
  same = jnp.zeros((B, B), bool)
  whole = contrastive(x, y, jnp.float32(5.0), same)
  x, y = jax.device_put((x, y), NamedSharding(mesh, P("data")))
  split = contrastive(x, y, jnp.float32(5.0), same)
  np.testing.assert_allclose(split, whole, rtol=1e-6)
