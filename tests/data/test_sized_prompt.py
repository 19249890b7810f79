"""Images of several sizes as rows, and prompts that name them."""

import dataclasses

import numpy as np
import pytest

from unifluid_jax.core.types import PAD
from unifluid_jax.data import fields, sized_prompt, transforms
from unifluid_jax.data.records import BadRecord

BOS, NULL, BOI = 2, 26, 24
SIZES = (16, 16), (8, 24), (24, 8)  # of cells of 4: 16, 12 and 12 codes
RNG = np.random.default_rng


class Words:
  """A tokenizer of words, one id each; as data/text.Tokenizer."""

  special = {"bos": BOS, "boi": BOI, "unconditional": NULL}

  def __init__(self, digits=True):
    self._ids, self._digits = {}, digits

  def encode(self, text):
    words = text.split()
    if not self._digits:
      words = [w.strip("0123456789.") or "unk" for w in words]
    return [self._ids.setdefault(w, 100 + len(self._ids)) for w in words]

  def fit(self, ids, room):
    return ids[:room]

  def read(self, row):
    """Words of a row; special ids as they are."""
    names = {i: w for w, i in self._ids.items()}
    return [names.get(int(i), int(i)) for i in row if i != PAD]


def noise(height, width):
  return RNG(0).integers(0, 256, (height, width, 3), np.uint8)


def image(**changes):
  field = fields.Cached(
    "drawn", (16,), np.int32, 16, "crop", target=True, sizes=SIZES, cell=4
  )
  return field if not changes else dataclasses.replace(field, **changes)


def prompt(length=14, endings=()):
  text = fields.Text("prompt", length, ("bos",), ("boi",), endings=endings)
  null = fields.Text("prompt", length, ("bos",), ("unconditional", "boi"))
  return sized_prompt.SizedPrompt(text, null, image().pixels, 4)


def example(tokenizer=None, size=None, words="a dog", **picture):
  images = {}
  if picture:
    frame = picture.pop("frame", b"unread")
    images = {"drawn": fields.Picture((frame,), **picture)}
  return fields.Example({"prompt": words}, images, tokenizer, size=size)


@pytest.mark.parametrize("grid", [(4, 4), (2, 6), (6, 2)])
def test_cached_codes_are_padded_behind_and_say_their_size(grid):
  codes = np.arange(np.prod(grid), dtype=np.uint16).reshape(grid)
  field = image(file=True)
  rows = fields.arrays({"image": field}, example(cached=codes))
  want = [*range(codes.size), *[PAD] * (16 - codes.size)]
  np.testing.assert_array_equal(rows["image"], want)
  np.testing.assert_array_equal(rows["image.size"], 4 * np.array(grid))
  declared = fields.shapes({"image": field})
  assert {k: (x.shape, x.dtype) for k, x in rows.items()} == {
    k: (s.shape, s.dtype) for k, s in declared.items()
  }


@pytest.mark.parametrize("grid", [(3, 4), (12,), (16,)])
def test_codes_of_other_grids_are_bad_records(grid):
  with pytest.raises(BadRecord, match="those of model.sizes"):
    image(file=True).rows(example(cached=np.zeros(grid, np.uint16)), None)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape, size", [
  ((20, 20), (16, 16)), ((30, 64), (8, 24)), ((64, 30), (24, 8)),
])  # fmt: skip
def test_pixels_stand_in_the_upper_left_of_the_largest(shape, size, flip):
  field, frame = image(), noise(*shape)
  rows = fields.arrays({"image": field}, example(frame=frame, flip=flip))
  want = np.zeros((24, 24, 3), np.float32)
  cropped = transforms.crop_resize(frame, size)
  cropped = cropped[:, ::-1] if flip else cropped
  want[: size[0], : size[1]] = transforms.to_float(cropped)
  np.testing.assert_array_equal(rows["image.pixels"], want)
  np.testing.assert_array_equal(rows["image.size"], size)
  declared = fields.shapes({"image": field})
  assert {k: (x.shape, x.dtype) for k, x in rows.items()} == {
    k: (s.shape, s.dtype) for k, s in declared.items()
  }


@pytest.mark.parametrize("given, width, height", [
  (dict(cached=np.zeros((2, 6))), "24", "8."),  # training, from files
  (dict(frame=noise(50, 20)), "8", "24."),  # training, from pixels
  (dict(size=(8, 24)), "24", "8."),  # a prompt with a size
  (dict(), "16", "16."),  # and one without
])  # fmt: skip
def test_prompts_name_the_size_of_their_image(given, width, height):
  words = Words()
  rows = prompt(endings=(" Now.", " Go.")).rows(example(words, **given), None)
  size = f"Image Size: Width is {width} Height is {height}".split()
  read = {k: words.read(row) for k, row in rows.items()}
  assert read == {
    "": [BOS, "a", "dog", *size, "Now.", BOI],
    "null": [BOS, *size, NULL, BOI],
  }
  assert all(row[-1] == BOI and len(row) == 14 for row in rows.values())


def test_long_prompts_lose_words_and_never_the_size():
  words = Words()
  rows = prompt(12).rows(example(words, words="a dog and a cat"), None)
  assert words.read(rows[""])[:5] == [BOS, "a", "dog", "Image", "Size:"]


def test_slots_without_room_for_the_size_are_refused():
  prompt(11).check(Words())
  prompt(12, endings=(" Now.",)).check(Words())
  for field, least in (
    (prompt(10), 11),  # of the null prompt; the other needs one less
    (prompt(11, endings=("", " Now or then.")), 13),
  ):
    with pytest.raises(ValueError, match=f"text.prompt=1. .*>= {least}"):
      field.check(Words())


def test_tokenizers_without_digits_are_refused():
  with pytest.raises(ValueError, match="prompts could not name model.sizes"):
    prompt().check(Words(digits=False))
