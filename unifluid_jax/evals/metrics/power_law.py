"""Power laws of a loss in compute, L(C) = a C^-b + c, with intervals.

The form of Kaplan et al. (arXiv 2001.08361) with the irreducible part c of
Hoffmann et al. (arXiv 2203.15556). Errors are taken relative to the loss: the
runs of a scaling study differ by powers of ten in compute, not in loss.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

_EXPONENTS = (0.01, 3.0)  # of b; steeper or flatter laws are none
_GRID = 40  # exponents tried before the best is refined
_PARAMETERS = 3


class PowerLaw(NamedTuple):
  """a C^-b + c, and how far the loss is explained."""

  a: float
  b: float
  c: float
  r2: float  # share of the variance of L that the curve explains

  def __call__(self, compute: np.ndarray | float) -> np.ndarray | float:
    """The loss at so much compute."""
    return self.a * compute**-self.b + self.c


class Fit(NamedTuple):
  """A law and the interval of each parameter."""

  law: PowerLaw
  low: PowerLaw  # each parameter's own lower bound, no curve
  high: PowerLaw


def fit(compute: Any, loss: Any) -> PowerLaw:
  """Least squares of relative errors, with a and c not negative.

  For each b the best a and c are a linear problem, so that one parameter is
  searched: there are no starting values to choose.

  Args:
    compute: FLOPs of the runs, positive, at least three different; any
      sequence of numbers.
    loss: their losses, positive.

  Raises:
    ValueError: too few points, or points that are no numbers above 0.
  """
  x, y = np.asarray(compute, np.float64), np.asarray(loss, np.float64)
  if x.shape != y.shape or x.ndim != 1:
    raise ValueError(f"{x.size} values of compute, {y.size} of the loss")
  good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
  if not good.all():
    i = int(np.flatnonzero(~good)[0])
    raise ValueError(
      f"point {i}, loss {y[i]} at compute {x[i]}: both must be finite and "
      "above 0"
    )
  if x.size <= _PARAMETERS or np.unique(x).size < _PARAMETERS:
    raise ValueError(
      f"{x.size} points at {np.unique(x).size} values of compute: a power law "
      f"needs at least {_PARAMETERS + 1} at {_PARAMETERS}"
    )
  unit = float(np.exp(np.log(x).mean()))  # near 1, so that x^-b is
  grid = np.geomspace(*_EXPONENTS, _GRID)
  errors = [_linear(x / unit, y, b)[1] for b in grid]
  k = int(np.argmin(errors))
  around = grid[max(k - 1, 0)], grid[min(k + 1, _GRID - 1)]
  found = optimize.minimize_scalar(
    lambda b: _linear(x / unit, y, b)[1], bounds=around, method="bounded",
    options={"xatol": 1e-10},
  )  # fmt: skip
  b = float(found.x) if found.fun <= errors[k] else float(grid[k])
  (a, c), _ = _linear(x / unit, y, b)
  rest = y - (a * (x / unit) ** -b + c)
  spread = np.square(y - y.mean()).sum()
  r2 = 1 - np.square(rest).sum() / spread if spread else 1.0
  return PowerLaw(float(a * unit**b), b, float(c), float(r2))


def _linear(x: np.ndarray, y: np.ndarray, b: float) -> tuple[np.ndarray, float]:
  """The best (a, c) >= 0 of one exponent, and the norm of relative errors."""
  columns = np.stack([x**-b, np.ones_like(x)], axis=1) / y[:, None]
  return optimize.nnls(columns, np.ones_like(y))


def bootstrap(
  compute: Any,
  loss: Any,
  draws: int = 1000,
  level: float = 0.95,
  seed: int = 0,
) -> Fit:
  """The fit with percentile intervals of a residual bootstrap.

  Relative residuals are drawn anew around the fitted curve and the curve is
  fitted again; the compute of the runs stays, as it was chosen. Residuals are
  first scaled by sqrt(n / (n - 3)): three parameters have made them small.

  Args:
    compute: see `fit`.
    loss: see `fit`.
    draws: of the bootstrap.
    level: share of the draws inside the intervals.
    seed: of the draws.

  Raises:
    ValueError: see `fit`.
  """
  law = fit(compute, loss)
  x, y = np.asarray(compute, np.float64), np.asarray(loss, np.float64)
  curve = law(x)
  scale = np.sqrt(y.size / (y.size - _PARAMETERS))
  residuals = (y / curve - 1) * scale
  residuals = residuals - residuals.mean()
  rng = np.random.default_rng(seed)
  laws = []
  for _ in range(draws):
    drawn = curve * (1 + rng.choice(residuals, y.size))
    laws.append(fit(x, np.maximum(drawn, 1e-12 * curve)))
  edge = (1 - level) / 2
  low, high = np.quantile(np.asarray(laws), (edge, 1 - edge), axis=0)
  return Fit(law, PowerLaw(*map(float, low)), PowerLaw(*map(float, high)))
