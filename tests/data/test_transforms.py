import io

import numpy as np
import pytest
from PIL import Image

from unifluid_jax.core.config import AugmentConfig
from unifluid_jax.data import transforms
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.records import BadRecord

RNG = np.random.default_rng


def encode(array_or_image, kind="PNG", **options):
  image = array_or_image
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def noise(height, width, seed=0):
  return RNG(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_decode_png_is_exact():
  image = noise(5, 7)
  np.testing.assert_array_equal(decode_image(encode(image)), image)


def test_decode_jpeg():
  flat = np.full((16, 16, 3), 90, np.uint8)
  got = decode_image(encode(flat, "JPEG", quality=95))
  assert np.abs(got.astype(int) - 90).max() <= 2


def test_decode_grey():
  grey = RNG(0).integers(0, 256, (4, 6), np.uint8)
  got = decode_image(encode(grey))
  np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, -1))


def test_decode_16_bit_grey_keeps_the_high_byte():
  grey = RNG(0).integers(0, 1 << 16, (4, 6), np.uint16)
  got = decode_image(encode(grey))
  np.testing.assert_array_equal(got[..., 1], grey >> 8)


def test_decode_alpha_over_white():
  rgba = np.zeros((1, 3, 4), np.uint8)
  rgba[0, :, 0] = 200
  rgba[0, :, 3] = (0, 255, 51)  # 51 / 255 = 0.2
  got = decode_image(encode(rgba))
  want = [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
  np.testing.assert_allclose(got[0], want, atol=1)


def test_decode_palette_transparency_over_white():
  image = Image.new("P", (2, 1))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putpixel((1, 0), 1)
  got = decode_image(encode(image, transparency=0))
  np.testing.assert_array_equal(got[0], [[255, 255, 255], [40, 50, 60]])


def test_decode_applies_exif_orientation():
  image = noise(4, 6)
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees clockwise
  got = decode_image(encode(image, exif=exif))
  np.testing.assert_array_equal(got, np.rot90(image, -1))


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"not an image",
    encode(noise(32, 32))[:900],
    encode(noise(64, 64), "JPEG")[:1500],
    encode(noise(32, 32)).replace(b"IDAT", b"JDAT"),
  ],
)
def test_corrupt_images_are_bad_records(data):
  with pytest.raises(ValueError, match="cannot be decoded") as info:
    decode_image(data)
  assert isinstance(info.value, BadRecord)


def test_corruption_of_any_byte_never_escapes():
  data = bytearray(encode(noise(8, 8)))
  for i in range(len(data)):
    broken = bytes(data[:i]) + bytes([data[i] ^ 0xFF]) + bytes(data[i + 1 :])
    try:
      decode_image(broken)
    except BadRecord:
      pass


def test_centre_crop_matches_box_halving():
  image = noise(16, 32)
  got = transforms.centre_crop_resize(image, 8)
  # 16 x 32 halves once to 8 x 16; columns 4..12 are the centre.
  halves = image.reshape(8, 2, 16, 2, 3).astype(float).mean((1, 3))
  # PIL rounds after each of two passes: half a level each.
  assert np.abs(got - halves[:, 4:12]).max() <= 1.0


@pytest.mark.parametrize("shape", [(9, 9), (8, 11), (31, 17), (5, 40), (3, 4)])
def test_sizes(shape):
  image = noise(*shape)
  assert transforms.centre_crop_resize(image, 8).shape == (8, 8, 3)
  assert transforms.squash_resize(image, 8).shape == (8, 8, 3)


def test_centre_crop_keeps_the_middle_and_squash_the_whole():
  image = np.zeros((8, 24, 3), np.uint8)
  image[:, 8:16] = 255
  assert (transforms.centre_crop_resize(image, 8) == 255).all()
  squashed = transforms.squash_resize(image, 8)
  assert squashed[0, 0, 0] < 10 and squashed[0, 4, 0] > 245


def test_squash_is_antialiased():
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 255
  inner = transforms.squash_resize(stripes, 8)[:, 1:-1]
  assert np.abs(inner.astype(int) - 127).max() <= 3


def test_fitting_images_pass_unchanged():
  image = noise(8, 8)
  assert transforms.centre_crop_resize(image, 8) is image
  assert transforms.squash_resize(image, 8) is image


def test_to_float():
  image = np.array([[[0, 255, 51]]], np.uint8)
  got = transforms.to_float(image)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, [[[-1, 1, -0.6]]], atol=1e-6)


def test_mirrored():
  image = noise(2, 3)
  np.testing.assert_array_equal(transforms.mirrored(image), image[:, ::-1])


@pytest.mark.parametrize("shape, size", [
  ((100, 100), (32, 32)),
  ((100, 140), (32, 32)),  # 1.4 is nearer to 1 than to 2: below the root of 2
  ((100, 145), (24, 48)),
  ((10, 900), (24, 48)),
  ((130, 100), (40, 30)),
  ((700, 100), (40, 10)),
])  # fmt: skip
def test_images_go_to_the_nearest_aspect_ratio(shape, size):
  sizes = ((32, 32), (24, 48), (40, 30), (40, 10))
  assert transforms.nearest_size((*shape, 3), sizes) == size
  # By the logarithm: turned by 90 degrees, the same choice.
  turned = transforms.nearest_size(shape[::-1], [s[::-1] for s in sizes])
  assert turned == size[::-1]


@pytest.mark.parametrize("shape, size, halved", [
  # 64 x 96 halves to 32 x 48, where 16 x 48 are the middle rows.
  ((64, 96), (16, 48), np.s_[8:24]),
  ((96, 64), (48, 16), np.s_[:, 8:24]),
])  # fmt: skip
def test_rectangles_are_the_middle_of_halved_images(shape, size, halved):
  image = noise(*shape)
  means = image.reshape(shape[0] // 2, 2, shape[1] // 2, 2, 3).mean((1, 3))
  got = transforms.crop_resize(image, size)
  assert np.abs(got - means[halved]).max() <= 1.0
  assert transforms.crop_resize(got, size) is got


def test_rectangles_keep_the_aspect_ratio():
  """A disc stays one, at a size that halving alone does not reach."""
  y, x = np.mgrid[:90, :150]
  disc = np.hypot(y - 44.5, x - 74.5) < 30
  image = np.repeat(255 * disc[..., None], 3, axis=2).astype(np.uint8)
  got = transforms.crop_resize(image, (24, 36))[..., 0] > 127  # by 36 / 135
  assert abs(got.any(0).sum() - 16) <= 1 and abs(got.any(1).sum() - 16) <= 1


def ramp(height=20, width=30):
  """Columns 0, 4, 8, ... in red, rows in green."""
  image = np.zeros((height, width, 3), np.uint8)
  image[..., 0] = 4 * np.arange(width)
  image[..., 1] = 4 * np.arange(height)[:, None]
  return image


def test_augmented_images_are_moved_by_at_most_what_is_asked():
  """A shift moves a ramp's middle by so many columns, a scale its slope."""
  image = ramp()
  shifts, scales = [], []
  for seed in range(300):
    moved = transforms.augmented(image, AugmentConfig(shift=0.2), RNG(seed))
    assert moved.shape == image.shape and moved.dtype == np.uint8
    shifts.append([
      (float(moved[10, 15, 0]) - 60) / 4 / 30,
      (float(moved[10, 15, 1]) - 40) / 4 / 20,
    ])  # fmt: skip
    scaled = transforms.augmented(image, AugmentConfig(scale=0.3), RNG(seed))
    slope = (float(scaled[10, 20, 0]) - float(scaled[10, 10, 0])) / 40
    scales.append(slope)
  for found in np.transpose(shifts):
    assert found.min() == pytest.approx(-0.2, abs=0.02)
    assert found.max() == pytest.approx(0.2, abs=0.02)
  assert np.corrcoef(np.transpose(shifts))[0, 1] == pytest.approx(0, abs=0.2)
  assert min(scales) == pytest.approx(0.7, abs=0.04)
  assert max(scales) == pytest.approx(1.3, abs=0.04)


def test_augmented_images_go_on_beyond_their_edges():
  flat = np.full((8, 8, 3), 7, np.uint8)
  config = AugmentConfig(shift=0.9, scale=0.9, mirror=True)
  for seed in range(20):
    assert (transforms.augmented(flat, config, RNG(seed)) == 7).all()


def test_augmented_images_are_mirrored_half_of_the_time():
  image = noise(6, 5)
  mirrored = transforms.mirrored(image)
  count = 0
  for seed in range(200):
    got = transforms.augmented(image, AugmentConfig(mirror=True), RNG(seed))
    flipped = bool((got == mirrored).all())
    assert flipped or (got == image).all()
    count += flipped
  assert 70 < count < 130


def test_augmented_colours():
  """Brightness scales all, contrast the rest, saturation what is not grey."""
  image = noise(16, 16) // 2 + 40
  got = transforms._recoloured(image, 1.2, 1.0, 1.0)
  np.testing.assert_allclose(got, np.minimum(image * 1.2, 255), atol=0.51)
  got = transforms._recoloured(image, 1.0, 0.5, 1.0).astype(np.float32)
  assert got.std() == pytest.approx(image.std() / 2, rel=0.02)
  assert got.mean() == pytest.approx(image.mean(), abs=0.5)
  grey = transforms._recoloured(image, 1.0, 1.0, 0.0).astype(int)
  assert (np.ptp(grey, axis=-1) == 0).all()
  np.testing.assert_array_equal(
    transforms._recoloured(image, 1.0, 1.0, 1.0), image
  )
  config = AugmentConfig(colour=0.3)
  varied = [transforms.augmented(image, config, RNG(s)) for s in range(100)]
  ratios = [v.mean() / image.mean() for v in varied]
  assert 0.68 < min(ratios) < 0.75 and 1.25 < max(ratios) < 1.32


def test_nothing_is_changed_by_an_augmentation_of_nothing():
  assert not AugmentConfig().changes and AugmentConfig(mirror=True).changes
  image = noise(5, 9)
  got = transforms.augmented(image, AugmentConfig(), RNG(0))
  np.testing.assert_array_equal(got, image)
