"""Fréchet distance between image sets: streaming statistics and the distance.

Which network gives the features decides what a distance means; any
`FeatureNet` will do. Sources: Heusel et al. 2017; Chan et al. 1983 for the
merge of partial moments. All statistics are float64 on the host.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class FeatureNet(Protocol):
  """Anything that maps images to feature vectors."""

  def features(self, images: Any) -> Any:
    """f32[B, H, W, 3] in [-1, 1] to f32[B, F]."""


class Statistics(NamedTuple):
  """Moments of a set of feature vectors; sets are joined by `merge`."""

  count: int
  mean: Any  # f64[F]
  scatter: Any  # f64[F, F] sum of outer products of deviations from the mean


class Distance(NamedTuple):
  """A Fréchet distance and what its reader has to know."""

  value: float
  warning: str  # empty when both covariances can have full rank


def empty(features: int) -> Statistics:
  """Statistics of no images, the neutral element of `merge`."""
  return Statistics(0, np.zeros(features), np.zeros((features, features)))


def statistics(features: Any) -> Statistics:
  """Statistics of one batch.

  Args:
    features: [B, F] of any float type, computed in float64.

  Returns:
    Count, mean and centred second moment.

  Raises:
    ValueError: wrong rank, an empty batch, or values that are not finite.
  """
  x = np.asarray(features, dtype=np.float64)
  if x.ndim != 2 or not len(x):
    raise ValueError(f"features must be [B, F] with B > 0, not {x.shape}")
  if not np.isfinite(x).all():
    rows = np.flatnonzero(~np.isfinite(x).all(axis=1))[:10].tolist()
    raise ValueError(f"features of images {rows} of the batch are not finite")
  mean = x.mean(axis=0)
  centred = x - mean
  return Statistics(len(x), mean, centred.T @ centred)


def merge(a: Statistics, b: Statistics) -> Statistics:
  """Statistics of the union of two disjoint sets (Chan et al. 1983).

  Exact for any partition, so batches, devices and processes may each gather
  their own; stable where subtracting raw moments would cancel.
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(
      f"cannot merge features of sizes {a.mean.shape} and {b.mean.shape}: "
      "use one feature network for both"
    )
  count = int(a.count) + int(b.count)
  if not count:
    return a
  delta = b.mean - a.mean
  mean = a.mean + delta * (b.count / count)
  cross = np.outer(delta, delta) * (a.count * (b.count / count))
  return Statistics(count, mean, a.scatter + b.scatter + cross)


def gather(net: FeatureNet, batches: Iterable[Any]) -> Statistics:
  """Statistics of a stream of image batches.

  Args:
    net: feature network.
    batches: f32[B, H, W, 3] in [-1, 1] each.

  Returns:
    Their joint statistics.

  Raises:
    ValueError: the stream is empty, or features are not finite.
  """
  total = None
  for images in batches:
    part = statistics(net.features(images))
    total = part if total is None else merge(total, part)
  if total is None:
    raise ValueError("no images to gather statistics of")
  return total


def covariance(s: Statistics) -> Float[np.ndarray, "F F"]:
  """Unbiased covariance (division by n - 1); needs two images."""
  if s.count < 2:
    raise ValueError(f"a covariance needs at least 2 images, not {s.count}")
  return s.scatter / (s.count - 1)


def frechet_distance(
  mu1: Float[np.ndarray, " F"],
  cov1: Float[np.ndarray, "F F"],
  mu2: Float[np.ndarray, " F"],
  cov2: Float[np.ndarray, "F F"],
) -> float:
  """Squared Fréchet distance of two Gaussians.

  |mu1 - mu2|^2 + Tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)). The last trace is
  the sum of singular values of cov1^(1/2) cov2^(1/2), the roots by eigh with
  negative eigenvalues (rounding) set to 0.

  Differs: from the usual scipy `sqrtm`, which turns complex or fails on
  singular covariances; on regular ones the two agree to rounding.

  Args:
    mu1: first mean.
    cov1: first covariance, symmetric.
    mu2: second mean.
    cov2: second covariance, symmetric.

  Returns:
    The distance, never negative.
  """
  delta = np.asarray(mu1, np.float64) - np.asarray(mu2, np.float64)
  product = _sqrt_psd(cov1) @ _sqrt_psd(cov2)
  root_trace = np.linalg.svd(product, compute_uv=False).sum()
  value = delta @ delta + np.trace(cov1) + np.trace(cov2) - 2 * root_trace
  return max(float(value), 0.0)


def distance(real: Statistics, generated: Statistics) -> Distance:
  """Fréchet distance between two sets, with a warning on small ones.

  The covariance of n images has rank n - 1 at most: unless n exceeds the
  number of features the distance is biased high, and comparable only with
  distances at the same n.
  """
  value = frechet_distance(
    real.mean, covariance(real), generated.mean, covariance(generated)
  )
  size = len(real.mean)
  short = [
    f"{n} {name} images"
    for name, n in (("real", real.count), ("generated", generated.count))
    if n <= size
  ]
  if not short:
    return Distance(value, "")
  return Distance(
    value,
    f"rank-deficient: biased high ({', '.join(short)} for {size} features; "
    f"use more than {size})",
  )


def _sqrt_psd(matrix: np.ndarray) -> np.ndarray:
  matrix = np.asarray(matrix, np.float64)
  values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
