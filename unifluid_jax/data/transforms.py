"""Images at the sizes that networks take, as pixels and as numbers.

Sources: ADM's centre crop for the generated image (as MAR trains), PaliGemma's
plain resize for the vision encoder (big_vision pp).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from unifluid_jax.core.config import AugmentConfig
from unifluid_jax.data import paint
from unifluid_jax.data.records import Marks

Size = tuple[int, int]  # height, width in pixels

_LONGEST = 32  # times the shorter side: what is cropped beyond is never seen
_ROOM = 1 << 24  # pixels between the two passes of a resize
_LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601


def centre_crop_resize(
  image: UInt8[np.ndarray, "H W 3"], size: int
) -> UInt8[np.ndarray, "S S 3"]:
  """The central square: ADM's preprocessing, for images to be generated.

  The shorter side is halved by averaging while it is at least twice the
  target, then resized bicubically to it; the longer one is cropped.

  Differs: images more than 32 times as long as wide are cropped to that
  first, which moves the square by less than a pixel of the source: enlarging
  them whole would take memory without end.

  Args:
    image: RGB.
    size: side of the result.
  """
  return crop_resize(image, (size, size))


def crop_resize(
  image: UInt8[np.ndarray, "H W 3"], size: Size
) -> UInt8[np.ndarray, "h w 3"]:
  """The same for a rectangle: the largest central one of its aspect ratio.

  Args:
    image: RGB.
    size: of the result.
  """
  if image.shape[:2] == tuple(size):
    return image
  wanted = size[1], size[0]  # Pillow's order
  picture = Image.fromarray(shortened(image))
  while all(
    side >= 2 * least for side, least in zip(picture.size, wanted, strict=True)
  ):
    width, height = picture.size
    picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
  sides = list(zip(picture.size, wanted, strict=True))
  scale = max(least / side for side, least in sides)
  width, height = (max(least, round(side * scale)) for side, least in sides)
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - wanted[0]) // 2, (height - wanted[1]) // 2
  box = left, top, left + wanted[0], top + wanted[1]
  return np.array(picture.crop(box))


def nearest_size(image: Sequence[int], sizes: Sequence[Size]) -> Size:
  """The size whose aspect ratio is nearest an image's, by its logarithm.

  Args:
    image: its shape, height and width first.
    sizes: to choose from; of two that are equally near, the first is taken.
  """

  def log_ratio(shape):
    return math.log(shape[1] / shape[0])

  ratio = log_ratio(image)
  return min(sizes, key=lambda size: abs(log_ratio(size) - ratio))


def shortened(
  image: UInt8[np.ndarray, "H W 3"],
) -> UInt8[np.ndarray, "h w 3"]:
  """The middle of a very long image, with the same centre."""
  short = min(image.shape[:2])
  cuts = []
  for side in image.shape[:2]:
    # As odd or even as the side: the centre stays between the same pixels.
    kept = min(side, _LONGEST * short + side % 2)
    first = (side - kept) // 2
    cuts.append(slice(first, first + kept))
  return image[tuple(cuts)]


def squash_resize(
  image: UInt8[np.ndarray, "*F H W 3"],
  size: int,
  kernel: Image.Resampling = Image.Resampling.BILINEAR,
) -> UInt8[np.ndarray, "*F S S 3"]:
  """The whole image as a square, aspect not kept, for the vision encoder.

  Differs: always antialiased; PaliGemma's transfers vary by task.

  Args:
    image: RGB; several on top of one another are resized one by one.
    size: side of the result.
    kernel: that pixels are interpolated by.
  """
  if image.shape[-3:-1] == (size, size):
    return image
  if image.ndim > 3:
    return np.stack([squash_resize(frame, size, kernel) for frame in image])
  picture = Image.fromarray(image)
  if size > picture.width and size * picture.height > _ROOM:
    # Pillow widens first: a long narrow image would fill the memory.
    shape = (picture.width, size)
    picture = picture.resize(shape, kernel)
  return np.array(picture.resize((size, size), kernel))


def marked(
  image: UInt8[np.ndarray, "H W 3"], marks: Marks, size: int
) -> UInt8[np.ndarray, "S S 3"]:
  """The whole image as a square, with what is drawn into it.

  Letters belong to the image's own pixels, the box to the resized ones.
  """
  image = upright(image, marks)
  square = squash_resize(image, size)
  if marks.box is None:
    return square
  return paint.outline(square, marks.box, image.shape[0] / image.shape[1])


def marked_crop(
  image: UInt8[np.ndarray, "H W 3"], marks: Marks, size: Size
) -> UInt8[np.ndarray, "h w 3"]:
  """The same of a crop: where the box goes on beyond it, its line is open."""
  image = upright(image, marks)
  cut = crop_resize(image, size)
  if marks.box is None:
    return cut
  sides = image.shape[:2]
  scale = max(new / old for new, old in zip(size, sides, strict=True))
  # The box is in units of the image's height, and in the crop of its sides.
  box = [
    (at * sides[0] * scale - (sides[i % 2] * scale - size[i % 2]) / 2)
    / size[i % 2]
    for i, at in enumerate(marks.box)
  ]
  return paint.outline(cut, tuple(box), 1.0)


def upright(
  image: UInt8[np.ndarray, "H W 3"], marks: Marks
) -> UInt8[np.ndarray, "h w 3"]:
  """The image turned, with its letters, at its own size; without the box."""
  return paint.letters(np.rot90(image, marks.turns), marks.letters, marks.font)


def mirrored(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
  """Left to right."""
  return np.ascontiguousarray(image[:, ::-1])


def augmented(
  image: UInt8[np.ndarray, "H W 3"],
  config: AugmentConfig,
  rng: np.random.Generator,
) -> UInt8[np.ndarray, "H W 3"]:
  """The image moved, enlarged or reduced, recoloured, perhaps mirrored.

  Beyond its edges the image goes on as it is there. The crop and the factors
  of colours (brightness, contrast, saturation, in this order) are uniform.

  Args:
    image: RGB; keeps its shape.
    config: how much.
    rng: draws seven numbers.
  """
  *place, mirror = rng.random(4)
  across, down, size = (2 * u - 1 for u in place)
  factors = 1 + config.colour * (2 * rng.random(3) - 1)
  moved = _moved(
    image, (config.shift * down, config.shift * across), 1 + config.scale * size
  )
  if config.colour:
    moved = _recoloured(moved, *factors)
  return mirrored(moved) if config.mirror and mirror < 0.5 else moved


def _moved(
  image: UInt8[np.ndarray, "H W 3"], shift: tuple[float, float], scale: float
) -> UInt8[np.ndarray, "H W 3"]:
  """What a window sees that is `scale` times as large and shifted."""
  if scale == 1 and not any(shift):
    return image
  edges = []
  for side, by in zip(image.shape[:2], shift, strict=True):
    middle = side * (0.5 + by)
    edges.append((middle - scale * side / 2, middle + scale * side / 2))
  room = math.ceil(
    max(max(-low, high - side, 0.0)
        for (low, high), side in zip(edges, image.shape[:2], strict=True))
  )  # fmt: skip
  wide = np.pad(image, ((room, room), (room, room), (0, 0)), mode="edge")
  (top, bottom), (left, right) = edges
  box = left + room, top + room, right + room, bottom + room
  height, width = image.shape[:2]
  picture = Image.fromarray(wide)
  return np.array(
    picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
  )


def _recoloured(
  image: UInt8[np.ndarray, "H W 3"],
  brightness: float,
  contrast: float,
  saturation: float,
) -> UInt8[np.ndarray, "H W 3"]:
  """Every factor 1: the same image."""
  bright = image.astype(np.float32) * brightness
  mean = bright.mean()
  bright = mean + (bright - mean) * contrast
  grey = bright @ _LUMA
  bright = grey[..., None] + (bright - grey[..., None]) * saturation
  return np.clip(np.round(bright), 0, 255).astype(np.uint8)


def to_float(
  image: UInt8[np.ndarray, "*F H W 3"],
) -> Float32[np.ndarray, "*F H W 3"]:
  """Pixels in [-1, 1]."""
  return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: Any) -> np.ndarray:
  """[-1, 1] → 0..255, rounded."""
  scaled = (np.asarray(images, np.float32) + 1) * 127.5
  return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
