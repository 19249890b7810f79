"""Images of any resolution as several views of one size.

The whole image is one view; enlarged and cut into a grid of crops it is seen
again in detail. The features of the crops are stitched into one map, whose
padding is cut off. Sources: UniToken (arXiv 2504.04423) §3.1, which follows
LLaVA-NeXT (AnyRes).

Pinpoints are the sizes (width, height) that an image may be enlarged to, all
whole numbers of views.

Differs: fractions of pixels and features are rounded exactly; LLaVA-NeXT
multiplies floats, which now and then rounds one less. At least one row and one
column of the map are kept, however long the image.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from unifluid_jax.data import transforms

Size = tuple[int, int]  # width, height

_BICUBIC = Image.Resampling.BICUBIC


def best(size: Size, pinpoints: Sequence[Size]) -> Size:
  """The pinpoint that keeps most of an image's pixels, then wastes least.

  Args:
    size: of the image.
    pinpoints: of equally good ones the first wins.
  """

  def merit(pinpoint: Size) -> tuple[int, int]:
    width, height = inside(size, pinpoint)
    kept = min(width * height, size[0] * size[1])
    return kept, kept - pinpoint[0] * pinpoint[1]

  return max(pinpoints, key=merit)


def inside(size: Size, frame: Size, up: bool = False) -> Size:
  """An image's size when it just fits into a frame, its aspect kept.

  Args:
    size: of the image.
    frame: it fills one side of it.
    up: the other side is rounded up, not down.
  """
  (w, h), (width, height) = size, frame
  if width * h <= height * w:
    return width, _divide(h * width, w, up)
  return _divide(w * height, h, up), height


def most_crops(view: int, pinpoints: Sequence[Size]) -> int:
  """Crops of the largest grid."""
  return max((w // view * (h // view) for w, h in pinpoints), default=0)


def most_features(view: int, side: int, pinpoints: Sequence[Size]) -> int:
  """Length of the longest `sequence`: a grid without padding."""
  grids = [(w // view * side, h // view * side) for w, h in pinpoints]
  return side**2 + max((h * (w + 1) for w, h in grids), default=0)


def views(
  image: UInt8[np.ndarray, "H W 3"], view: int, pinpoints: Sequence[Size]
) -> UInt8[np.ndarray, "n S S 3"]:
  """The whole image as a square, then the crops of its grid, row by row.

  Args:
    image: RGB.
    view: S, side of a view.
    pinpoints: none: no grid.
  """
  whole = transforms.squash_resize(image, view, _BICUBIC)
  if not pinpoints:
    return whole[None]
  size = image.shape[1], image.shape[0]
  width, height = best(size, pinpoints)
  w, h = inside(size, (width, height), up=True)
  canvas = np.zeros((height, width, 3), np.uint8)
  left, top = (width - w) // 2, (height - h) // 2
  resized = Image.fromarray(image).resize((w, h), _BICUBIC)
  canvas[top : top + h, left : left + w] = resized
  cut = canvas.reshape(height // view, view, width // view, view, 3)
  return np.concatenate(
    [whole[None], cut.swapaxes(1, 2).reshape(-1, view, view, 3)]
  )


def sequence(
  size: Size, view: int, side: int, pinpoints: Sequence[Size]
) -> Int32[np.ndarray, "n"]:
  """The features that represent an image, in order.

  Those of the whole image, then the map of the grid: its rows, each followed
  by the new line, without those that show padding alone.

  Args:
    size: of the image.
    view: side of a view, in pixels.
    side: features of a view per side.
    pinpoints: none: no grid, and no new lines.

  Returns:
    Indices of features: feature (y, x) of view i is i side^2 + y side + x, the
    new line follows those of `1 + most_crops` views.
  """
  n = side**2
  whole = np.arange(n, dtype=np.int32)
  if not pinpoints:
    return whole
  pinpoint = best(size, pinpoints)
  columns, rows = (length // view for length in pinpoint)
  grid = np.arange(n, (1 + rows * columns) * n, dtype=np.int32)
  grid = grid.reshape(rows, columns, side, side).swapaxes(1, 2)
  grid = _unpadded(grid.reshape(rows * side, columns * side), size)
  line = (1 + most_crops(view, pinpoints)) * n
  grid = np.pad(grid, ((0, 0), (0, 1)), constant_values=line)
  return np.concatenate([whole, grid.reshape(-1)])


def _unpadded(
  grid: Int32[np.ndarray, "h w"], size: Size
) -> Int32[np.ndarray, "rows columns"]:
  """A map without the margins that its image, kept in aspect, leaves."""
  height, width = grid.shape
  w, h = inside(size, (width, height))
  # As many on both sides: where the rest is odd, one row of it stays.
  top = min((height - h) // 2, (height - 1) // 2)
  left = min((width - w) // 2, (width - 1) // 2)
  return grid[top : height - top, left : width - left]


def _divide(a: int, b: int, up: bool) -> int:
  return -(-a // b) if up else a // b
