"""The chunked loss against the whole softmax, smoothed and not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.ops.cross_entropy import chunked_cross_entropy

B, A, D, V = 2, 5, 4, 7
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, A, D)).astype(np.float32)
TABLE = RNG.normal(size=(V, D)).astype(np.float32)
TARGETS = RNG.integers(0, V, (B, A)).astype(np.int32)


def chunked(hidden, chunk, *smoothing):
  return chunked_cross_entropy(
    lambda h: h @ TABLE.T,
    jnp.asarray(hidden),
    jnp.asarray(TARGETS),
    chunk,
    *smoothing,
  )


def reference(smoothing):
  """Cross entropy with the whole target distribution, in float64."""
  logits = HIDDEN.astype(np.float64) @ TABLE.T.astype(np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  q = np.full((B, A, V), smoothing / (V - 1))
  np.put_along_axis(q, TARGETS[..., None], 1 - smoothing, axis=-1)
  return -(q * log_p).sum(-1), logits.argmax(-1) == TARGETS


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("chunk", [2, 8])
def test_equals_the_whole_softmax(chunk, smoothing):
  losses = chunked(HIDDEN, chunk, smoothing)
  want, right = reference(smoothing)
  np.testing.assert_allclose(losses.nll, want, rtol=1e-5)
  np.testing.assert_array_equal(losses.hits, right)
  logits = HIDDEN.astype(np.float64) @ TABLE.T
  log_z = np.log(np.exp(logits).sum(-1))
  np.testing.assert_allclose(losses.log_z, log_z, rtol=1e-5)
  np.testing.assert_allclose(losses.max_logit, logits.max(-1), rtol=1e-5)


@pytest.mark.parametrize("chunk", [2, 8])
def test_gradients_of_the_regularisers(chunk):
  """Of logsumexp the softmax's, of the maximum its row's alone."""
  grads = [
    jax.grad(lambda h, k=k: getattr(chunked(h, chunk), k).sum())(HIDDEN)
    for k in ("log_z", "max_logit")
  ]
  logits = HIDDEN @ TABLE.T
  np.testing.assert_allclose(
    grads[0], np.asarray(jax.nn.softmax(logits)) @ TABLE, rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(grads[1], TABLE[logits.argmax(-1)], rtol=1e-6)


def test_uniform_logits_cost_log_v_whatever_the_smoothing():
  loss, *_ = chunked(np.zeros_like(HIDDEN), 8, 0.3)
  np.testing.assert_allclose(loss, np.log(V), rtol=1e-6)


def test_no_smoothing_is_the_plain_loss_bit_by_bit():
  logits = jnp.asarray(HIDDEN) @ TABLE.T
  picked = jnp.take_along_axis(logits, TARGETS[..., None], axis=-1)[..., 0]
  plain = jax.nn.logsumexp(logits, axis=-1) - picked
  np.testing.assert_array_equal(chunked(HIDDEN, 8)[0], plain)
  np.testing.assert_array_equal(chunked(HIDDEN, 8, 0.0)[0], plain)


def test_smoothed_gradient_is_softmax_minus_the_target_distribution():
  smoothing = 0.2
  grad = jax.grad(lambda h: chunked(h, 2, smoothing)[0].sum())(HIDDEN)
  logits = HIDDEN @ TABLE.T
  q = np.full((B, A, V), smoothing / (V - 1))
  np.put_along_axis(q, TARGETS[..., None], 1 - smoothing, axis=-1)
  want = (np.asarray(jax.nn.softmax(logits)) - q) @ TABLE
  np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-6)
