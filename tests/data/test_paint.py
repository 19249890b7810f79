"""What is drawn into images, pixel by pixel."""

import numpy as np
import pytest
from PIL import ImageFont

from unifluid_jax.data import paint

WHITE, RED = (255, 255, 255), (255, 0, 0)


def grey(height, width):
  return np.full((height, width, 3), 90, np.uint8)


def test_a_letter_lies_on_white_centred_and_as_large_as_fits():
  image = grey(60, 80)
  out = paint.letters(image, [("B", (10.0, 20.0, 40.0, 70.0))])
  assert (image == 90).all()  # the input stays
  box = out[10:41, 20:71]
  assert (np.delete(out.reshape(-1, 3), _inside(out, 10, 41, 20, 71), 0) == 90
          ).all()  # fmt: skip
  ink = (box < 128).all(-1)
  rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
  # A capital of a font that fills 30 pixels from ascender to descender.
  assert 15 <= np.ptp(rows) <= 30
  centre = (columns[0] + columns[-1]) / 2
  assert abs(centre - 25) <= 3
  assert tuple(box[0, 0]) == tuple(box[-1, -1]) == WHITE


def _inside(image, top, bottom, left, right):
  grid = np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2])
  return grid[top:bottom, left:right].reshape(-1)


def test_letters_are_as_large_as_the_narrower_side_allows():
  ink = []
  for width in (10.0, 40.0):
    out = paint.letters(grey(60, 60), [("A", (0.0, 0.0, 50.0, width))])
    ink.append((out < 60).all(-1).sum())
  assert 0 < 4 * ink[0] < ink[1]


def small_font(path):
  """Pillow's own font with letters of half the size: twice the units an em."""
  content = bytearray(ImageFont.load_default(9).font_bytes)
  tables = (content[i : i + 16] for i in range(12, 12 + 16 * content[5], 16))
  (head,) = (t for t in tables if t[:4] == b"head")
  at = int.from_bytes(head[8:12]) + 18
  units = int.from_bytes(content[at : at + 2])
  content[at : at + 2] = (2 * units).to_bytes(2)
  path.write_bytes(content)
  return str(path)


def test_letters_are_drawn_in_the_font_that_is_given(tmp_path):
  image, label = grey(200, 200), ("H", (0.0, 0.0, 199.0, 199.0))
  heights = []
  for font in ("", small_font(tmp_path / "small.ttf")):
    ink = (paint.letters(image, [label], font) < 60).all(-1)
    heights.append(np.ptp(np.flatnonzero(ink.any(1))))
  assert heights[1] == pytest.approx(heights[0] / 2, abs=2)


def test_a_font_that_is_none_is_an_error_that_names_it(tmp_path):
  label = ("A", (0.0, 0.0, 9.0, 9.0))
  broken = tmp_path / "broken.ttf"
  broken.write_bytes(b"<html>")
  with pytest.raises(ValueError, match=r"broken.ttf is no TrueType font"):
    paint.letters(grey(20, 20), [label], str(broken))
  with pytest.raises(FileNotFoundError, match=r"nowhere.ttf"):
    paint.letters(grey(20, 20), [label], str(tmp_path / "nowhere.ttf"))


def test_a_turned_rectangle_and_no_letters():
  image = grey(20, 20)
  assert paint.letters(image, []) is image
  out = paint.letters(image, [("", (9.0, 9.0, 2.0, 2.0))])
  assert (out[2:10, 2:10] == 255).all() and (out[:2] == 90).all()


def test_an_outline_is_one_red_pixel_wide():
  """11 pixels: row r lies at r / 10 of the height."""
  out = paint.outline(grey(11, 11), (0.2, 0.1, 0.95, 0.48), aspect=2.0)
  want = grey(11, 11)
  for row in range(2, 10):
    for column in range(2, 10):
      if row in (2, 9) or column in (2, 9):
        want[row, column] = RED
  np.testing.assert_array_equal(out, want)


def test_an_outline_beyond_the_image_is_open_there():
  out = paint.outline(grey(5, 5), (-1.0, 0.5, 2.0, 9.0), aspect=1.0)
  want = grey(5, 5)
  want[:, 2] = RED
  np.testing.assert_array_equal(out, want)
