"""Fréchet distance against closed forms; the classifier that feeds it."""

import numpy as np
import pytest
import scipy.linalg
from PIL import Image, ImageDraw

from unifluid_jax.evals.metrics import fid
from unifluid_jax.evals.worlds import scene_classifier


def _moments(features):
  s = fid.statistics(features)
  return s.mean, fid.covariance(s)


def test_diagonal_gaussians_closed_form():
  rng = np.random.default_rng(0)
  mu1, mu2 = rng.normal(size=(2, 16))
  var1, var2 = rng.uniform(0, 4, size=(2, 16))
  expected = ((mu1 - mu2) ** 2).sum() + (
    (np.sqrt(var1) - np.sqrt(var2)) ** 2
  ).sum()
  got = fid.frechet_distance(mu1, np.diag(var1), mu2, np.diag(var2))
  assert got == pytest.approx(expected, rel=1e-12)


def test_full_covariances_against_scipy_sqrtm():
  rng = np.random.default_rng(1)
  a, b = rng.normal(size=(2, 12, 12))
  cov1, cov2 = a @ a.T + np.eye(12), b @ b.T + np.eye(12)
  root = scipy.linalg.sqrtm(cov1 @ cov2).real
  zero = np.zeros(12)
  assert fid.frechet_distance(zero, cov1, zero, cov2) == pytest.approx(
    np.trace(cov1 + cov2 - 2 * root), rel=1e-10
  )


@pytest.mark.parametrize("count", [30, 500])  # rank-deficient, full rank
def test_identical_sets_are_at_zero(count):
  mu, cov = _moments(np.random.default_rng(2).normal(3, 5, size=(count, 64)))
  assert fid.frechet_distance(mu, cov, mu, cov) < 1e-6


def test_streaming_equals_numpy_for_any_split():
  # A mean far from 0 is what raw second moments would not survive.
  x = np.random.default_rng(3).normal(1e6, 1, size=(101, 8))
  total = fid.empty(8)
  for part in np.split(x, [1, 4, 50, 99]):
    total = fid.merge(total, fid.statistics(part))
  assert total.count == 101
  np.testing.assert_allclose(total.mean, x.mean(axis=0), rtol=1e-14)
  np.testing.assert_allclose(
    fid.covariance(total), np.cov(x, rowvar=False), atol=1e-8
  )


def test_merge_of_partial_merges_equals_one_pass():
  x = np.random.default_rng(4).normal(size=(60, 5))
  a, b, c = (fid.statistics(p) for p in np.split(x, [7, 40]))
  tree = fid.merge(fid.merge(c, a), b)
  once = fid.statistics(x)
  np.testing.assert_allclose(tree.scatter, once.scatter, rtol=1e-12)
  np.testing.assert_allclose(tree.mean, once.mean, rtol=1e-12)


def test_float32_features_are_summed_in_float64():
  x = np.random.default_rng(5).normal(100, 1, size=(64, 4)).astype(np.float32)
  s = fid.statistics(x)
  assert s.scatter.dtype == np.float64
  np.testing.assert_allclose(
    fid.covariance(s), np.cov(x.astype(np.float64), rowvar=False), rtol=1e-12
  )


def test_rank_deficient_sets_carry_a_warning():
  rng = np.random.default_rng(6)
  small = fid.statistics(rng.normal(size=(8, 8)))
  large = fid.statistics(rng.normal(size=(9, 8)))
  warning = fid.distance(large, small).warning
  assert warning.startswith("rank-deficient: biased high (8 generated images")
  assert "real" not in warning
  assert fid.distance(large, large).warning == ""


def test_bad_features_are_refused(classifier):
  with pytest.raises(ValueError, match=r"images \[1\].*not finite"):
    fid.statistics(np.array([[0.0], [np.nan]]))
  with pytest.raises(ValueError, match=r"\[B, F\]"):
    fid.statistics(np.zeros((2, 2, 2)))
  with pytest.raises(ValueError, match="at least 2 images"):
    fid.covariance(fid.statistics(np.zeros((1, 3))))
  with pytest.raises(ValueError, match="one feature network"):
    fid.merge(fid.empty(3), fid.empty(4))
  with pytest.raises(ValueError, match="no images"):
    fid.gather(classifier, [])


# --- the classifier of scenes -------------------------------------------------

_COLOURS = ((220, 40, 40), (40, 90, 220), (240, 200, 40))


def _scenes(count, seed):
  """2 x 2 cells: empty, or a disc or square in one of three colours."""
  rng = np.random.default_rng(seed)
  images = np.zeros((count, 32, 32, 3), np.uint8)
  labels = np.zeros((count, 5), np.int32)
  for image, label in zip(images, labels, strict=True):
    label[:4] = rng.integers(7, size=4)
    label[4] = rng.integers(2)
    canvas = Image.new("RGB", (32, 32), (230,) * 3 if label[4] else (25,) * 3)
    pen = ImageDraw.Draw(canvas)
    for cell, what in enumerate(label[:4]):
      if what:
        x, y = cell % 2 * 16 + 8, cell // 2 * 16 + 8
        x, y = (x, y) + rng.integers(-1, 2, size=2)
        form = pen.ellipse if what > 3 else pen.rectangle
        form((x - 6, y - 6, x + 5, y + 5), fill=_COLOURS[what % 3])
    image[:] = np.asarray(canvas)
  return images, labels


@pytest.fixture(scope="module")
def classifier():
  images, labels = _scenes(1500, seed=0)
  return scene_classifier.train_classifier(images, labels, seed=0, steps=300)


def _gather(classifier, images):
  return fid.gather(
    classifier,
    [scene_classifier.scaled(part) for part in np.split(images, 2)],
  )


def test_classifier_learns_every_slot(classifier):
  images, labels = _scenes(300, seed=1)
  predicted = classifier.predict(scene_classifier.scaled(images))
  assert ((np.asarray(predicted) == labels).mean(axis=0) > 0.95).all()


def test_distance_tells_real_mixed_and_noise_apart(classifier):
  rng = np.random.default_rng(2)
  real = _gather(classifier, _scenes(500, seed=3)[0])
  other = _scenes(500, seed=4)[0]
  mixed = other.copy()
  for y in range(0, 32, 8):
    for x in range(0, 32, 8):
      rows = rng.permutation(len(other))
      mixed[:, y : y + 8, x : x + 8] = other[rows, y : y + 8, x : x + 8]
  noise = rng.integers(0, 256, other.shape, dtype=np.uint8)
  floor, tiles, static = (
    fid.distance(real, _gather(classifier, x)).value
    for x in (other, mixed, noise)
  )
  assert tiles > 5 * floor
  assert static > 20 * floor


def test_features_are_standardised_and_keep_the_layout(classifier):
  images = scene_classifier.scaled(_scenes(600, seed=5)[0])
  features = np.asarray(classifier.features(images))
  assert features.shape == (600, 64)
  assert abs(features.mean()) < 0.05
  assert np.median(features.std(axis=0)) == pytest.approx(1, abs=0.1)
  mirrored = np.asarray(classifier.features(images[:, :, ::-1]))
  assert np.abs(features - mirrored).mean() > 0.3


def test_saved_classifier_gives_the_same_features(classifier, tmp_path):
  images = scene_classifier.scaled(_scenes(4, seed=6)[0])
  classifier.save(tmp_path / "net.npz")
  loaded = scene_classifier.load_classifier(tmp_path / "net.npz")
  np.testing.assert_array_equal(
    loaded.features(images), classifier.features(images)
  )
  np.testing.assert_array_equal(
    loaded.predict(images), classifier.predict(images)
  )


def test_classifier_refuses_labels_that_do_not_fit():
  images, labels = _scenes(4, seed=7)
  with pytest.raises(ValueError, match="one row of labels"):
    scene_classifier.train_classifier(images, labels - 1, steps=1)
  with pytest.raises(ValueError, match="choose another grid"):
    scene_classifier.train_classifier(images, labels, steps=1, grid=3)
