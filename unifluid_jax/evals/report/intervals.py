"""Means over seeds and their differences, with Student's t intervals.

All intervals are two-sided with 95 % confidence and take runs of different
seeds for independent draws of one normal distribution; the spread between
evaluations of one run is not part of them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

CONFIDENCE = 0.95


class Estimate(NamedTuple):
  """A value and how far the true one may be from it."""

  value: float
  half: float | None  # half the width of the interval; None: not known

  @property
  def excludes_zero(self) -> bool:
    """Whether the interval is known and has zero outside."""
    return self.half is not None and abs(self.value) > self.half


def mean(values: Sequence[float]) -> Estimate:
  """The mean over runs; of one run there is no interval."""
  n = len(values)
  centre = float(np.mean(values))
  if n < 2:
    return Estimate(centre, None)
  error = math.sqrt(_variance_of_mean(values))
  return Estimate(centre, _quantile(float(n - 1)) * error)


def difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
  """Mean of `b` minus mean of `a`, with Welch's interval.

  The variances of the two need not be equal (Welch, The generalization of
  "Student's" problem, Biometrika 34, 1947). Without two runs on either side
  one of them is not known, and so there is no interval.
  """
  value = float(np.mean(b) - np.mean(a))
  if min(len(a), len(b)) < 2:
    return Estimate(value, None)
  va, vb = _variance_of_mean(a), _variance_of_mean(b)
  if va + vb == 0:
    return Estimate(value, 0.0)
  freedom = (va + vb) ** 2 / (
    va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)
  )  # Satterthwaite's
  return Estimate(value, _quantile(freedom) * math.sqrt(va + vb))


def _variance_of_mean(values: Sequence[float]) -> float:
  return float(np.var(values, ddof=1)) / len(values)


def _quantile(freedom: float) -> float:
  """Of Student's t distribution, above which 2.5 % lie."""
  return float(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2))
