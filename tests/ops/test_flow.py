"""Flow matching against closed forms: Gaussians, linear fields, plain loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.ops import flow

MEAN, WIDTH = 0.7, 0.4  # of the Gaussian that is drawn


def best_velocity(x, t):
  """E[x0 - noise | x_t = x] where x0 is the Gaussian, the noise standard."""
  variance = (1 - t) ** 2 + (t * WIDTH) ** 2
  return MEAN + (t * WIDTH**2 - (1 - t)) / variance * (x - t * MEAN)


def least_loss(t):
  """What no velocity can predict: Var(x0 - noise | x_t)."""
  variance = (1 - t) ** 2 + (t * WIDTH) ** 2
  return WIDTH**2 + 1 - (t * WIDTH**2 - (1 - t)) ** 2 / variance


def solved(x, steps, solver, velocity=best_velocity, **kw):
  """All evaluations in one call."""
  table = flow.evaluations(steps, solver)
  start = flow.begin(jnp.asarray(x, jnp.float32))
  return np.asarray(
    flow.integrate(table, velocity, start, jnp.asarray(table.time), **kw).x
  )


def test_the_line_between_noise_and_token():
  x0, noise = jnp.ones((2, 3)), jnp.full((2, 3), -2.0)
  got = flow.interpolate(x0, jnp.asarray([0.0, 0.75]), noise)
  np.testing.assert_array_equal(got, [[-2.0] * 3, [0.25] * 3])
  ahead = flow.interpolate(x0, jnp.asarray([0.1, 0.85]), noise)
  np.testing.assert_allclose((ahead - got) / 0.1, x0 - noise, rtol=1e-5)


def test_times_are_uniform_and_each_draw_has_its_stratum():
  t = np.asarray(flow.sample_times(jax.random.key(0), 4, (5000,)))
  for i, drawn in enumerate(t):
    assert (drawn >= i / 4).all() and (drawn < (i + 1) / 4).all()
    assert abs(drawn.mean() - (i + 0.5) / 4) < 4 * 0.25 / math.sqrt(12 * 5000)


def test_one_euler_step_of_a_constant_velocity_is_exact():
  noise = np.asarray([[0.5, -3.0], [2.0, 1.0]], np.float32)
  speed = jnp.asarray([[1.0, -2.0], [0.25, 4.0]])
  for steps in (1, 2, 8):
    for solver in ("euler", "heun"):
      got = solved(noise, steps, solver, lambda x, t: speed)
      np.testing.assert_array_equal(got, noise + speed)


def test_evaluations_of_the_solvers():
  """Heun's last step is Euler's: nothing is evaluated at t = 1."""
  euler, heun = flow.evaluations(4), flow.evaluations(3, "heun")
  np.testing.assert_array_equal(euler.time, [0, 0.25, 0.5, 0.75])
  assert not euler.corrects.any() and (euler.size == 0.25).all()
  thirds = np.asarray([0, 1, 1, 2, 2], np.float32) / 3
  np.testing.assert_allclose(heun.time, thirds, rtol=1e-6)
  assert heun.corrects.tolist() == [False, True, False, True, False]
  np.testing.assert_allclose(heun.size, 1 / 3, rtol=1e-6)
  assert len(flow.evaluations(1, "heun").time) == 1


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_gaussians_converge_at_the_solvers_order(solver, order):
  """The field is linear: noise 0 and 1 show mean and width of the result.

  The mean's path is straight, so that any number of steps draws it exactly.
  """

  def error(steps):
    at_mean, one_above = solved([[0.0], [1.0]], steps, solver)[:, 0]
    np.testing.assert_allclose(at_mean, MEAN, rtol=1e-6)
    return abs(one_above - at_mean - WIDTH)

  coarse, fine, finest = (error(n) for n in (16, 32, 64))
  np.testing.assert_allclose(np.log2(coarse / fine), order, atol=0.2)
  np.testing.assert_allclose(np.log2(fine / finest), order, atol=0.1)
  assert finest < (0.02 if order == 1 else 3e-4)


def test_solvers_against_plain_loops():
  """A field that is not linear, in float64."""

  def field(x, t):
    return (jnp if isinstance(x, jax.Array) else np).sin(3 * x) + t * x

  x = start = np.asarray([[0.3, -1.2]])
  for i in range(5):
    x = x + field(x, i / 5) / 5
  np.testing.assert_allclose(solved(start, 5, "euler", field), x, rtol=1e-5)

  x = start
  for i in range(5):
    first = field(x, i / 5)
    second = field(x + first / 5, (i + 1) / 5) if i < 4 else first
    x = x + (first + second) / 10
  np.testing.assert_allclose(solved(start, 5, "heun", field), x, rtol=1e-5)


def test_parts_of_an_integration_are_the_whole():
  table, x = flow.evaluations(4, "heun"), jnp.asarray([[0.4], [-1.0]])
  state = flow.begin(x)
  for begin, end in ((0, 2), (2, 5), (5, 7)):  # also within a step
    part = flow.Evaluations(*(field[begin:end] for field in table))
    state = flow.integrate(part, best_velocity, state, jnp.asarray(part.time))
  np.testing.assert_allclose(state.x, solved(x, 4, "heun"), rtol=1e-6)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_limit_bounds_where_velocities_lead(solver):
  def outwards(x, t):  # to +-5, along lines
    return (5 * jnp.sign(x) - x) / (1 - t)

  x = np.asarray([[0.5], [-0.5]], np.float32)
  got = solved(x, 4, solver, outwards, limit=2.0)
  np.testing.assert_allclose(got, [[2.0], [-2.0]], rtol=1e-6)
  np.testing.assert_allclose(
    solved(x, 4, solver, outwards, limit=6.0),
    solved(x, 4, solver, outwards),
    rtol=1e-6,
  )


def test_the_least_loss_is_its_closed_form():
  """Over uniform times; any other velocity loses its squared distance."""
  n = 200_000
  k_t, k_x, k_n = jax.random.split(jax.random.key(1), 3)
  t = flow.sample_times(k_t, 2, (n, 1))
  x0 = MEAN + WIDTH * jax.random.normal(k_x, (2, n, 1, 1))
  noise = jax.random.normal(k_n, x0.shape)
  x = flow.interpolate(x0, t, noise)
  best = best_velocity(x, t[..., None])
  found = np.asarray(flow.squared_error(best, x0 - noise), np.float64)
  grid = (np.arange(10_000) + 0.5) / 10_000
  want = least_loss(grid).mean()
  assert abs(found.mean() - want) < 4 * found.std() / math.sqrt(found.size)
  off = np.asarray(flow.squared_error(best + 0.3, x0 - noise), np.float64)
  assert abs(off.mean() - want - 0.09) < 4 * off.std() / math.sqrt(off.size)


# ------------------------------------------------------------------ shortcuts


def test_shares_of_the_draws():
  counts = [flow.consistency_draws(n) for n in (2, 3, 4, 7, 8, 16)]
  assert counts == [1, 1, 1, 1, 2, 4]
  with pytest.raises(ValueError, match="at least 2"):
    flow.consistency_draws(1)


def test_steps_with_two_halves_lie_on_their_grid():
  t, level = flow.sample_steps(jax.random.key(2), (7000,))
  t, level = np.asarray(t, np.float64), np.asarray(level)
  assert np.bincount(level, minlength=8).tolist()[7:] == [0]
  share = np.bincount(level) / len(level)
  assert np.abs(share - 1 / 7).max() < 4 * math.sqrt(1 / 7 / len(level))
  size = 2.0**-level
  np.testing.assert_array_equal(t / size, np.round(t / size))
  assert (t >= 0).all() and (t + size <= 1).all()
  for k in range(7):
    assert set((t * 2**k)[level == k]) == set(range(2**k)), k


def test_two_halves_by_hand():
  def net(x, t, level):
    return x**2 + t[..., None] - 0.1 * level[..., None]

  x = np.asarray([[1.0, -2.0], [0.5, 3.0]])
  t, level = np.asarray([0.5, 0.25]), np.asarray([1, 3])
  half = np.asarray([[0.25], [0.0625]])
  first = net(x, t, level + 1)
  second = net(x + half * first, t + half[:, 0], level + 1)
  got = flow.two_halves(net, jnp.asarray(x), jnp.asarray(t), jnp.asarray(level))
  np.testing.assert_allclose(got, (first + second) / 2, rtol=1e-6)


def test_exact_shortcuts_of_a_linear_field_are_consistent():
  """dx/dt = a x: the mean velocity of a step d is x (exp(a d) - 1) / d."""
  a = -1.3

  def exact(x, t, level):
    size = 2.0 ** -level[..., None]
    return x * jnp.expm1(a * size) / size

  x = jnp.asarray([[1.0], [-2.0], [0.3]])
  t, level = jnp.asarray([0.0, 0.5, 0.25]), jnp.asarray([0, 1, 6])
  np.testing.assert_allclose(
    flow.two_halves(exact, x, t, level), exact(x, t, level), rtol=2e-5
  )
  # The velocity itself is no shortcut.
  plain = flow.two_halves(lambda x, t, level: a * x, x, t, level)
  assert abs(plain - a * x)[0] > 0.3


def test_targets_have_no_gradient():
  def target(scale):
    x = jnp.ones((1, 2))
    found = flow.two_halves(
      lambda x, t, level: scale * x, x, jnp.zeros(1), jnp.zeros(1, jnp.int32)
    )
    return found.sum()

  assert target(2.0) != target(3.0)
  assert jax.grad(target)(2.0) == 0
