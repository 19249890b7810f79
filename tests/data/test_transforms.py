import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from unifluid_jax.core.types import BOS, PAD
from unifluid_jax.data import text, transforms
from unifluid_jax.data.sources.source import BadRecord, Record

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
  np.testing.assert_array_equal(transforms.decode_image(encode(image)), image)


def test_decode_jpeg():
  flat = np.full((16, 16, 3), 90, np.uint8)
  got = transforms.decode_image(encode(flat, "JPEG", quality=95))
  assert np.abs(got.astype(int) - 90).max() <= 2


def test_decode_grey():
  grey = RNG(0).integers(0, 256, (4, 6), np.uint8)
  got = transforms.decode_image(encode(grey))
  np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, -1))


def test_decode_16_bit_grey_keeps_the_high_byte():
  grey = RNG(0).integers(0, 1 << 16, (4, 6), np.uint16)
  got = transforms.decode_image(encode(grey))
  np.testing.assert_array_equal(got[..., 1], grey >> 8)


def test_decode_alpha_over_white():
  rgba = np.zeros((1, 3, 4), np.uint8)
  rgba[0, :, 0] = 200
  rgba[0, :, 3] = (0, 255, 51)  # 51 / 255 = 0.2
  got = transforms.decode_image(encode(rgba))
  want = [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
  np.testing.assert_allclose(got[0], want, atol=1)


def test_decode_palette_transparency_over_white():
  image = Image.new("P", (2, 1))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putpixel((1, 0), 1)
  got = transforms.decode_image(encode(image, transparency=0))
  np.testing.assert_array_equal(got[0], [[255, 255, 255], [40, 50, 60]])


def test_decode_applies_exif_orientation():
  image = noise(4, 6)
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees clockwise
  got = transforms.decode_image(encode(image, exif=exif))
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
    transforms.decode_image(data)
  assert isinstance(info.value, BadRecord)


def test_corruption_of_any_byte_never_escapes():
  data = bytearray(encode(noise(8, 8)))
  for i in range(len(data)):
    broken = bytes(data[:i]) + bytes([data[i] ^ 0xFF]) + bytes(data[i + 1 :])
    try:
      transforms.decode_image(broken)
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


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
  words = ["a red circle", "two stars", "how many", "caption en", "make it"]
  path = tmp_path_factory.mktemp("t") / "t.model"
  return transforms.Recipe(
    tokenizer=text.train(words * 9, path, 90),
    image_size=8,
    vit_size=6,
    prompt=7,
    prefix=9,
    suffix=5,
    caption_prefix="caption en",
  )


def record(**fields):
  return Record("r", encode(noise(8, 8)), **fields)


def with_(recipe, **fields):
  return dataclasses.replace(recipe, **fields)


def test_text_to_image(recipe):
  example = transforms.to_text_to_image(
    record(prompts=("a red circle",), captions=("two stars",)), RNG(0), recipe
  )
  row = recipe.tokenizer.prompt_row("a red circle", 7)
  np.testing.assert_array_equal(example.prompt, row)
  np.testing.assert_array_equal(example.image, transforms.to_float(noise(8, 8)))
  assert example.moments is None


def test_prompts_fall_back_to_captions(recipe):
  example = transforms.to_text_to_image(
    record(captions=("two stars",)), RNG(0), recipe
  )
  assert recipe.tokenizer.decode(example.prompt) == "two stars"


def test_cached_moments_replace_the_image(recipe):
  moments = RNG(0).normal(size=(2, 2, 8)).astype(np.float16)
  broken = Record("r", b"junk", prompts=("two stars",), moments=moments)
  example = transforms.to_text_to_image(broken, RNG(0), recipe)
  assert example.image is None and example.moments.dtype == np.float32
  np.testing.assert_array_equal(example.moments, moments)


def test_flips_are_fair_and_mirror(recipe):
  image = transforms.to_float(noise(8, 8))
  flipping, rng = with_(recipe, flip=True), RNG(0)
  flipped = 0
  for _ in range(200):
    got = transforms.to_text_to_image(
      record(prompts=("two",)), rng, flipping
    ).image
    mirrored = np.array_equal(got, image[:, ::-1])
    assert mirrored or np.array_equal(got, image)
    flipped += mirrored
  assert 70 < flipped < 130


def test_image_to_text_mixes_captions_and_questions(recipe):
  both = record(captions=("a red circle",), questions=(("how many", "two"),))
  rng, tokenizer = RNG(0), recipe.tokenizer
  captions = 0
  for _ in range(1500):
    example = transforms.to_image_to_text(both, rng, recipe)
    question = tokenizer.decode(example.prefix).strip()
    answer = tokenizer.decode(example.suffix)
    assert (question, answer) in {
      ("caption en", "a red circle"),
      ("how many", "two"),
    }
    captions += question == "caption en"
  assert 524 < captions < 676  # 2/5 of 1500, four standard errors
  assert example.image.shape == (6, 6, 3)
  assert example.prefix.shape == (9,) and example.suffix.shape == (5,)


def test_image_to_text_with_one_kind_of_text(recipe):
  for fields, answer in (
    (dict(captions=("two stars",)), "two stars"),
    (dict(questions=(("how many", "two"),)), "two"),
  ):
    example = transforms.to_image_to_text(record(**fields), RNG(1), recipe)
    assert recipe.tokenizer.decode(example.suffix) == answer


def test_edit(recipe):
  target = noise(8, 8, seed=1)
  edit = record(edit=("make it red", encode(target)))
  plain = transforms.to_edit(edit, RNG(0), recipe)
  assert plain.source.shape == (6, 6, 3) and plain.source_image is None
  np.testing.assert_array_equal(plain.image, transforms.to_float(target))
  assert recipe.tokenizer.decode(plain.prompt) == "make it red"
  both = with_(recipe, edit_latents=True, flip=True)
  seen = set()
  for seed in range(8):
    got = transforms.to_edit(edit, RNG(seed), both)
    mirrored = not np.array_equal(got.image, plain.image)
    source = transforms.to_float(noise(8, 8))
    want = source[:, ::-1] if mirrored else source
    np.testing.assert_array_equal(got.source_image, want)
    seen.add(mirrored)
  assert seen == {True, False}


def test_text_only(recipe):
  caption = transforms.to_text_only(
    Record("r", b"", captions=("two stars",)), RNG(0), recipe
  )
  assert caption.prefix.tolist() == [PAD] * 8 + [BOS]
  assert recipe.tokenizer.decode(caption.suffix) == "two stars"
  answer = transforms.to_text_only(
    Record("r", b"", questions=(("how many", "two"),)), RNG(0), recipe
  )
  np.testing.assert_array_equal(
    answer.prefix, recipe.tokenizer.prefix_row("how many", 9)
  )


def test_image_only_has_a_prompt_of_width_0(recipe):
  example = transforms.to_image_only(record(), RNG(0), recipe)
  assert example.prompt.shape == (0,) and example.prompt.dtype == np.int32
  assert example.image.shape == (8, 8, 3)


@pytest.mark.parametrize(
  "build, blank",
  [
    (transforms.to_text_to_image, dict(prompts=(" ",))),
    (transforms.to_image_to_text, dict(captions=("",))),
    (transforms.to_image_to_text, dict(questions=(("how many", " "),))),
    (transforms.to_edit, dict(edit=("", encode(noise(8, 8))))),
    (transforms.to_text_only, dict(captions=("\n",))),
  ],
)
def test_blank_texts_are_bad_and_absent_ones_no_example(recipe, build, blank):
  with pytest.raises(BadRecord, match="blank"):
    build(record(**blank), RNG(0), recipe)
  with pytest.raises(transforms.NoExample):
    build(record(), RNG(0), recipe)


def test_blank_texts_are_passed_over(recipe):
  some = record(prompts=("", "two stars", " "))
  for seed in range(5):
    example = transforms.to_text_to_image(some, RNG(seed), recipe)
    assert recipe.tokenizer.decode(example.prompt) == "two stars"
