"""Views and stitched features of images of any resolution."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from unifluid_jax.data import any_resolution, fields, transforms
from unifluid_jax.data.fields import Crops, Example, Picture
from unifluid_jax.data.records import BadRecord, Marks

# UniToken's: views of SigLIP 384, which floors 384 / 14 to 27 features.
PINPOINTS = ((384, 768), (768, 384), (768, 768), (384, 1152), (1152, 384))
SIDE = 27
# The same shapes with views of 6 pixels and 2 x 2 features.
SMALL = tuple((w // 64, h // 64) for w, h in PINPOINTS)
RNG = np.random.default_rng


def seen(image, **marks):
  return Example({}, {"seen": Picture((image,), Marks(**marks))})


def noise(width, height, seed=0):
  return RNG(seed).integers(1, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
  "width, height, pinpoint, length",
  [
    (512, 512, (768, 768), 3699),
    (768, 768, (768, 768), 3699),
    (640, 480, (768, 768), 2929),
    (1200, 400, (1152, 384), 2943),
    (400, 1200, (384, 1152), 2997),
    (768, 384, (768, 384), 2214),
    (300, 300, (384, 768), 1513),
    (64, 64, (384, 768), 1513),  # a grid, however small the image
  ],
)
def test_lengths_are_those_of_the_released_code(
  width, height, pinpoint, length
):
  size = width, height
  assert any_resolution.best(size, PINPOINTS) == pinpoint
  assert len(any_resolution.sequence(size, 384, SIDE, PINPOINTS)) == length


def test_of_equally_good_grids_the_smallest_is_chosen():
  assert any_resolution.best((768, 384), PINPOINTS[::-1]) == (768, 384)
  # Of these two the first.
  assert any_resolution.best((300, 300), PINPOINTS[1::-1]) == (768, 384)


def test_the_longest_sequence_and_the_largest_grid():
  field = Crops("seen", 384, SIDE, PINPOINTS)
  assert (field.crops, field.length) == (4, 3699)
  base = Crops("seen", 384, SIDE)
  assert (base.crops, base.length) == (0, 729)
  want = np.arange(729)
  got = any_resolution.sequence((640, 480), 384, SIDE, ())
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  "size", [(9, 9), (30, 11), (11, 30), (12, 6), (40, 3), (3, 40), (7, 8)]
)
def test_features_are_read_as_a_loop_over_the_canvas_reads_them(size):
  """Feature (y, x) of the canvas is looked up in the crop that shows it."""
  view, side = 6, 2
  (w, h), (width, height) = size, any_resolution.best(size, SMALL)
  columns, rows = width // view * side, height // view * side
  # What remains of the map, by LLaVA-NeXT's unpad_image.
  top = left = 0
  if w / h > columns / rows:
    top = (rows - int(h * columns / w)) // 2
  else:
    left = (columns - int(w * rows / h)) // 2
  top, left = min(top, (rows - 1) // 2), min(left, (columns - 1) // 2)
  want = [0, 1, 2, 3]
  for y in range(top, rows - top):
    for x in range(left, columns - left):
      crop = 1 + (y // side) * (width // view) + x // side
      want.append(crop * side**2 + (y % side) * side + x % side)
    want.append(5 * side**2)
  got = any_resolution.sequence(size, view, side, SMALL)
  assert got.tolist() == want


@pytest.mark.parametrize("size", [(9, 9), (30, 11), (11, 30), (12, 6), (5, 7)])
def test_the_grid_is_the_resized_image_on_black(size):
  """Crops, put together again, are the image in the middle of the canvas."""
  image, view = noise(*size), 6
  (w, h), (width, height) = size, any_resolution.best(size, SMALL)
  cut = any_resolution.views(image, view, SMALL)
  whole = Image.fromarray(image).resize((view, view), Image.BICUBIC)
  np.testing.assert_array_equal(cut[0], whole)
  scale = min(width / w, height / h)
  inner = [min(int(np.ceil(round(x * scale, 9))), y)
           for x, y in ((w, width), (h, height))]  # fmt: skip
  canvas = Image.new("RGB", (width, height))
  corner = (width - inner[0]) // 2, (height - inner[1]) // 2
  canvas.paste(Image.fromarray(image).resize(inner, Image.BICUBIC), corner)
  canvas = np.array(canvas)
  crops = [
    canvas[y : y + view, x : x + view]
    for y in range(0, height, view)
    for x in range(0, width, view)
  ]
  np.testing.assert_array_equal(cut[1:], crops)


def test_a_very_long_image_keeps_rows_that_show_it():
  """No pinpoint keeps a pixel of it: the smallest one that comes first."""
  cut = any_resolution.views(noise(4000, 1), 6, SMALL)
  assert cut.shape == (3, 6, 6, 3)
  order = any_resolution.sequence((4000, 1), 6, 4, SMALL)
  assert len(order) == 16 + 2 * (4 + 1)


def test_arrays_are_those_declared_and_padded_behind():
  field = Crops("seen", 6, 2, SMALL)
  assert pickle.loads(pickle.dumps(field)) == field
  image = noise(12, 6)
  rows = field.rows(seen(image), None)
  assert {k: (x.shape, x.dtype) for k, x in rows.items()} == {
    k: tuple(s) for k, s in field.shapes().items()
  }
  n = 4 + 2 * 5
  assert rows["valid"].tolist() == [True] * n + [False] * (24 - n)
  order = any_resolution.sequence((12, 6), 6, 2, SMALL)
  np.testing.assert_array_equal(rows["index"], np.pad(order, (0, 24 - n)))
  views = any_resolution.views(image, 6, SMALL)
  np.testing.assert_array_equal(rows["views"][:3], transforms.to_float(views))
  assert not rows["views"][3:].any()
  # Of the views that are padding no feature is read.
  assert rows["index"].max() == 5 * 4 and (order[order < 20] < 12).all()


def test_the_image_is_set_upright_marked_and_mirrored_before_it_is_cut():
  field, image = Crops("seen", 6, 2, SMALL), noise(24, 12)
  got = field.view(seen(image, turns=1))
  np.testing.assert_array_equal(got, np.rot90(image))
  boxed = field.view(seen(image, box=(0.0, 0.0, 1.0, 2.0)))
  edge = np.ones((12, 24), bool)
  edge[1:-1, 1:-1] = False
  np.testing.assert_array_equal((boxed == (255, 0, 0)).all(-1), edge)
  example = Example({}, {"seen": Picture((image,), flip=True)})
  np.testing.assert_array_equal(field.view(example), image[:, ::-1])


def test_files_are_decoded_and_series_are_refused():
  field, image = Crops("seen", 6, 2), noise(12, 6)
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  a, b = (field.rows(seen(x), None) for x in (file.getvalue(), image))
  np.testing.assert_array_equal(a["views"], b["views"])
  assert fields.shapes({"seen": field})["seen.index"].shape == (4,)
  two = Example({}, {"seen": Picture((image, image))})
  with pytest.raises(BadRecord, match="2 images"):
    field.rows(two, None)
