"""Power laws are found again in curves that were made of one."""

import numpy as np
import pytest

from unifluid_jax.evals.metrics import power_law
from unifluid_jax.evals.metrics.power_law import PowerLaw, bootstrap, fit

COMPUTE = np.repeat([1e12, 4e12, 2e13, 1e14], 3)


@pytest.mark.parametrize(
  "a, b, c", [(50.0, 0.12, 0.0), (900.0, 0.3, 1.7), (2e5, 0.5, 3.0)]
)
def test_exact_curves_give_their_parameters(a, b, c):
  law = fit(COMPUTE, a * COMPUTE**-b + c)
  assert (law.a, law.b) == (pytest.approx(a, rel=1e-4), pytest.approx(b, 1e-5))
  assert law.c == pytest.approx(c, rel=1e-5, abs=1e-4)
  assert law.r2 == pytest.approx(1.0)
  assert law(3e13) == pytest.approx(a * 3e13**-b + c)


def test_units_of_compute_change_a_alone():
  loss = 900 * COMPUTE**-0.3 + 1.7
  noisy = loss * (1 + 0.01 * np.random.default_rng(0).normal(size=loss.size))
  one, other = fit(COMPUTE, noisy), fit(COMPUTE / 1e12, noisy)
  np.testing.assert_allclose(one[1:], other[1:], rtol=1e-4)
  assert one.a == pytest.approx(other.a * 1e12**one.b, rel=1e-3)


def test_the_fit_is_the_least_of_relative_errors():
  """No neighbour of the parameters is better; a plain search finds no other."""
  rng = np.random.default_rng(1)
  loss = (900 * COMPUTE**-0.3 + 1.7) * np.exp(0.02 * rng.normal(size=12))
  law = fit(COMPUTE, loss)

  def error(a, b, c):
    return np.square((a * COMPUTE**-b + c) / loss - 1).sum()

  best = error(law.a, law.b, law.c)
  for change in rng.normal(size=(500, 3)):
    near = np.asarray(law[:3]) * (1 + 0.01 * change)
    assert error(*near) >= best * (1 - 1e-9)
  unweighted = np.polyfit(np.log(COMPUTE), np.log(loss), 1)
  assert error(np.exp(unweighted[1]), -unweighted[0], 0.0) > best


def test_a_loss_that_does_not_fall_has_no_decreasing_part():
  law = fit(COMPUTE, np.full(12, 2.0))
  assert law(1e12) == pytest.approx(2.0) and law(1e14) == pytest.approx(2.0)
  rising = fit(COMPUTE, COMPUTE**0.1)
  assert rising.a == 0.0 and rising.c > 0
  assert rising.r2 < 0.1


def test_intervals_hold_the_truth_as_often_as_they_say():
  """Coverage of 90 % intervals over 40 noisy curves of known parameters."""
  rng, hits, widths = np.random.default_rng(2), [], []
  loss = 900 * COMPUTE**-0.3 + 1.0
  for i in range(40):
    noisy = loss * (1 + 0.01 * rng.normal(size=loss.size))
    found = bootstrap(COMPUTE, noisy, draws=40, level=0.9, seed=i)
    hits.append(found.low.b <= 0.3 <= found.high.b)
    widths.append(found.high.b - found.low.b)
    assert found.law == fit(COMPUTE, noisy)
    assert found.low.b <= found.law.b <= found.high.b
  assert 0.75 <= np.mean(hits) <= 1.0
  assert 0 < np.median(widths) < 0.3


def test_intervals_grow_with_the_noise_and_the_level():
  loss = 900 * COMPUTE**-0.3 + 1.0
  noise = np.random.default_rng(3).normal(size=loss.size)

  def width(size, level=0.9):
    found = bootstrap(COMPUTE, loss * (1 + size * noise), 100, level)
    return found.high.b - found.low.b

  assert width(0.001) < width(0.01) < width(0.04)
  assert width(0.01, 0.5) < width(0.01, 0.95)
  assert bootstrap(COMPUTE, loss, 5).high.b == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize(
  "compute, loss, message",
  [
    ([1, 2, 3], [3, 2, 1], "3 points at 3 values of compute: .* at least 4"),
    ([1, 1, 2, 2], [3, 3, 2, 2], "4 points at 2 values"),
    ([1, 2, 3, 4], [3, 2, 1], "4 values of compute, 3 of the loss"),
    ([1, 2, 3, 0], [3, 2, 1, 1], "point 3, loss 1.0 at compute 0.0"),
    ([1, 2, 3, 4], [3, np.nan, 1, 1], "point 1, loss nan"),
    ([1, 2, 3, 4], [3, 2, -1, 1], "point 2, loss -1.0"),
  ],
)
def test_what_cannot_be_fitted_is_refused(compute, loss, message):
  with pytest.raises(ValueError, match=message):
    fit(compute, loss)


def test_laws_name_their_parameters():
  assert PowerLaw(2.0, 1.0, 0.5, 1.0)(4.0) == 1.0
  assert power_law.Fit._fields == ("law", "low", "high")
