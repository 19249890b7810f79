"""The three input conventions against loops, closed forms and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unifluid_jax.evals.published import inception_features as conventions

# Shrinks rows, stretches columns; sides that 299 does not divide.
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 340, 37, 3), np.uint8)


def run(name, images=IMAGES):
  out = jax.jit(conventions.CONVENTIONS[name])(jnp.asarray(images))
  assert out.shape == (len(images), 299, 299, 3) and out.dtype == jnp.float32
  return np.asarray(out)


def bilinear(image, position):
  """One read between four pixels for each output, in plain loops.

  `position` is float32, as both originals have it.
  """
  out = np.zeros((299, 299, 3))
  (height, width, _), image = image.shape, image.astype(np.float64)
  for i, j in np.ndindex(299, 299):
    y, x = (
      min(max(position(k, n), 0), n - 1) for k, n in ((i, height), (j, width))
    )
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    a, b = y - top, x - left
    upper = image[top, left] * (1 - b) + image[top, right] * b
    lower = image[bottom, left] * (1 - b) + image[bottom, right] * b
    out[i, j] = upper * (1 - a) + lower * a
  return out


def test_tf1_reads_at_corners():
  want = bilinear(IMAGES[1], lambda i, n: np.float32(n / 299) * np.float32(i))
  np.testing.assert_allclose(run("tf1")[1], (want - 128) / 128, atol=1e-5)


def test_pytorch_fid_reads_at_centres():
  want = bilinear(
    IMAGES[1],
    lambda i, n: np.float32(float(np.float32(n / 299)) * (i + 0.5) - 0.5),
  )
  want = 2 * (want / 255) - 1
  np.testing.assert_allclose(run("pytorch-fid")[1], want, atol=1e-5)


@pytest.mark.parametrize("size", [(340, 37), (64, 1000), (299, 299)])
def test_clean_fid_is_pillows_float_bicubic(size):
  rng = np.random.default_rng(1)
  # Extremes only, so that the cubic overshoots and the clip is needed.
  image = 255 * rng.integers(0, 2, (*size, 3)).astype(np.uint8)
  resized = np.stack(
    [
      Image.fromarray(image[..., c].astype(np.float32)).resize(
        (299, 299), Image.Resampling.BICUBIC
      )
      for c in range(3)
    ],
    axis=-1,
  )
  if size != (299, 299):
    assert resized.min() < -5 and resized.max() > 260
  want = (resized.clip(0, 255) - 128) / 128
  np.testing.assert_allclose(run("clean-fid", image[None])[0], want, atol=2e-5)


def test_a_ramp_shows_which_convention_it_is():
  """Pixel k holds k: every convention reads its own position."""
  ramp = np.broadcast_to(
    np.arange(128, dtype=np.uint8)[None, None, :, None], (1, 8, 128, 3)
  )
  column = np.arange(299)
  corner = np.minimum(column * 128 / 299, 127)
  centre = np.clip((column + 0.5) * 128 / 299 - 0.5, 0, 127)
  for name, want in [
    ("tf1", (corner - 128) / 128),
    ("pytorch-fid", centre / 127.5 - 1),
  ]:
    np.testing.assert_allclose(run(name, ramp)[0, 5, :, 1], want, atol=1e-6)
  inner = slice(5, 294)  # a cubic reproduces lines away from the edges
  np.testing.assert_allclose(
    run("clean-fid", ramp)[0, 5, inner, 1],
    (centre[inner] - 128) / 128,
    atol=1e-5,
  )


def test_the_right_size_is_only_normalised():
  images = np.random.default_rng(2).integers(0, 256, (1, 299, 299, 3), np.uint8)
  x = images.astype(np.float64)
  np.testing.assert_allclose(run("tf1", images), (x - 128) / 128, atol=1e-6)
  np.testing.assert_allclose(
    run("pytorch-fid", images), 2 * x / 255 - 1, atol=1e-6
  )
  np.testing.assert_allclose(
    run("clean-fid", images), (x - 128) / 128, atol=1e-6
  )


@pytest.mark.parametrize("size", [(340, 37), (64, 512)])
def test_pytorch_fid_equals_torch(size):
  torch = pytest.importorskip("torch")
  image = np.random.default_rng(3).integers(0, 256, (1, *size, 3), np.uint8)
  x = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
  x = torch.nn.functional.interpolate(
    x, size=(299, 299), mode="bilinear", align_corners=False
  )
  want = (2 * x - 1).permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(run("pytorch-fid", image), want, atol=2e-5)
