"""The energy score is proper, and what is summed estimates it without bias."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.ops import energy


def mean_distance(shift, width):
  """E|Z| of Z ~ N(shift, width**2): the folded normal's mean."""
  return width * math.sqrt(2 / math.pi) * math.exp(
    -(shift**2) / (2 * width**2)
  ) + shift * math.erf(shift / (width * math.sqrt(2)))


def expected(mean, width):
  """The loss of draws N(mean, width**2) for targets N(0, 1)."""
  apart = mean_distance(mean, math.hypot(width, 1))
  return apart - 0.5 * mean_distance(0.0, width * math.sqrt(2))


def test_terms_against_plain_loops():
  rng = np.random.default_rng(0)
  draws, target = rng.normal(size=(4, 3, 2)), rng.normal(size=(3, 2))
  apart, spread = energy.loss_terms(jnp.asarray(draws), jnp.asarray(target))
  for i in range(4):
    for row in range(3):
      want = np.linalg.norm(draws[i, row] - target[row])
      np.testing.assert_allclose(apart[i, row], want, rtol=1e-6)
      others = [
        np.linalg.norm(draws[i, row] - draws[j, row])
        for j in range(4)
        if j != i
      ]
      np.testing.assert_allclose(
        spread[i, row], -np.mean(others) / 2, rtol=1e-6
      )


def sample(n, rows=200_000, seed=0):
  k_x, k_y = jax.random.split(jax.random.key(seed))
  return jax.random.normal(k_x, (n, rows, 1)), jax.random.normal(k_y, (rows, 1))


def loss(mean, width, noise, target):
  terms = energy.loss_terms(mean + width * noise, target)
  return sum(terms).mean(0)


@pytest.mark.parametrize("n", [2, 3])
def test_the_loss_is_its_closed_form_without_bias(n):
  """Own pairs, counted, would take (n - 1) / n of the second term."""
  noise, target = sample(n)
  for mean, width in ((0.0, 1.0), (0.8, 1.0), (0.0, 0.3), (-0.5, 2.0)):
    found = np.asarray(loss(mean, width, noise, target), np.float64)
    error = 4 * found.std() / math.sqrt(found.size)
    assert error < 0.02
    assert abs(found.mean() - expected(mean, width)) < error


def test_the_true_distribution_has_the_least_loss():
  grid = [
    (expected(m, s), m, s)
    for m in np.linspace(-1, 1, 21)
    for s in np.linspace(0.2, 2, 37)
  ]
  assert min(grid)[1:] == pytest.approx((0.0, 1.0))
  # And the gradient leads there: none at the truth, towards it elsewhere.
  noise, target = sample(2)

  @jax.jit
  def gradient(mean, width):
    def mean_loss(m, s):
      return loss(m, s, noise, target).mean()

    return jnp.stack(jax.grad(mean_loss, (0, 1))(mean, width))

  assert np.abs(gradient(0.0, 1.0)).max() < 0.005
  for mean, width in ((0.5, 0.5), (-0.5, 1.5)):
    slope, step = gradient(mean, width), 1e-4
    want = [
      (expected(mean + step, width) - expected(mean - step, width)) / 2 / step,
      (expected(mean, width + step) - expected(mean, width - step)) / 2 / step,
    ]
    np.testing.assert_allclose(slope, want, atol=0.01)
    assert np.sign(slope[0]) == np.sign(mean)
    assert np.sign(slope[1]) == np.sign(width - 1)


def test_gradients_reach_both_draws_and_push_them_apart():
  draws = jnp.asarray([[[1.0, 0.0]], [[4.0, 4.0]]])

  def spread(draws):
    return energy.loss_terms(draws, jnp.zeros((1, 2)))[1].sum()

  found = jax.grad(spread)(draws)
  np.testing.assert_allclose(found[0], [[0.6, 0.8]], rtol=1e-6)
  np.testing.assert_allclose(found[1], [[-0.6, -0.8]], rtol=1e-6)


def test_equal_draws_have_a_gradient():
  """Fresh heads draw zeros: distances of 0 give slope 0 and not nan."""
  draws, target = jnp.zeros((2, 1, 3)), jnp.asarray([[3.0, 0.0, 4.0]])

  def total(draws):
    return sum(energy.loss_terms(draws, target)).sum()

  found = jax.grad(total)(draws)
  np.testing.assert_allclose(found, [[[-0.6, 0.0, -0.8]]] * 2, rtol=1e-6)
  assert energy.distance(target, target) == 0
