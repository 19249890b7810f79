"""What two transfer tasks draw into their images.

Sources: big_vision datasets/ai2d (letters), pp/proj/paligemma/widgetcap and
TensorFlow's draw_bounding_boxes (boxes).
"""

import functools
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from unifluid_jax.data.records import Box

_LARGEST = 100  # points of a letter
_RED = (255, 0, 0)


def letters(
  image: UInt8[np.ndarray, "H W 3"],
  labels: Sequence[tuple[str, Box]],
  font: str = "",
) -> UInt8[np.ndarray, "H W 3"]:
  """Texts on white boxes, as large as fits, centred at their upper edge.

  Args:
    image: RGB at its own size, on which AI2D's boxes are measured.
    labels: texts with their boxes in pixels; a later one covers an earlier.
    font: TrueType file; big_vision asks for DM Sans. "": Pillow's own.

  Raises:
    FileNotFoundError: `font` is missing.
    ValueError: it is no TrueType font.
  """
  if not labels:
    return image
  picture = Image.fromarray(image)
  pen = ImageDraw.Draw(picture)
  for text, (ymin, xmin, ymax, xmax) in labels:
    left, right = sorted((int(xmin), int(xmax)))
    top, bottom = sorted((int(ymin), int(ymax)))
    pen.rectangle((left, top, right, bottom), fill="white")
    letter, width = _fitting(text, right - left, bottom - top, font)
    start = left + (right - left - width) // 2
    pen.text((start, top), text, fill="black", font=letter)
  return np.array(picture)


def outline(
  image: UInt8[np.ndarray, "H W 3"], box: Box, aspect: float
) -> UInt8[np.ndarray, "H W 3"]:
  """A red line, one pixel wide, around a box; none beyond the image.

  Args:
    image: already resized.
    box: in units of the height that the image had.
    aspect: that height over its width.
  """
  ymin, xmin, ymax, xmax = box
  height, width = image.shape[:2]
  rows = [int(y * (height - 1)) for y in (ymin, ymax)]
  columns = [int(x * aspect * (width - 1)) for x in (xmin, xmax)]
  down = slice(max(rows[0], 0), max(rows[1] + 1, 0))
  across = slice(max(columns[0], 0), max(columns[1] + 1, 0))
  image = image.copy()
  image[[r for r in rows if 0 <= r < height], across] = _RED
  image[down, [c for c in columns if 0 <= c < width]] = _RED
  return image


def _fitting(
  text: str, width: int, height: int, font: str
) -> tuple[ImageFont.FreeTypeFont, int]:
  """The largest size at which a text fits, and its width there."""
  for size in range(_LARGEST, 1, -1):
    _, _, right, bottom = _font(font, size).getbbox(text)
    if right <= width and bottom <= height:
      return _font(font, size), int(right)
  return _font(font, 1), int(_font(font, 1).getbbox(text)[2])


@functools.cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
  if not path:
    return ImageFont.load_default(size)
  content = epath.Path(path).read_bytes()
  try:
    return ImageFont.truetype(io.BytesIO(content), size)
  except OSError as error:
    raise ValueError(
      f"{path} is no TrueType font ({error}): download it again, or remove it "
      "to have Pillow's own font"
    ) from error
