"""A grid of captioned images as one picture, for READMEs and reports."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
  images: Sequence[Any], captions: Sequence[str], columns: int, scale: int = 1
) -> Image.Image:
  """A grid of captioned images on white.

  Args:
    images: u8[H, W, 3] each, all of one size.
    captions: one line of text each; wrapped to the image's width.
    columns: images a row.
    scale: whole factor that images are enlarged by, without smoothing.

  Returns:
    The picture.

  Raises:
    ValueError: no images, not one caption each, or sizes that differ.
  """
  if not len(images) or len(images) != len(captions):
    raise ValueError(
      f"need one caption per image and at least one image, not "
      f"{len(captions)} captions for {len(images)} images"
    )
  sizes = {np.shape(image) for image in images}
  if len(sizes) > 1:
    raise ValueError(f"images must share one size, not {sorted(sizes)}")
  pictures = [enlarged(image, scale) for image in images]
  width, height = pictures[0].size
  gap, line = 16, 17
  font = ImageFont.load_default(13)
  texts = [_wrapped(text, width, font) for text in captions]
  columns = min(columns, len(pictures))
  rows = -(-len(pictures) // columns)
  cell = height + 8 + line * max(len(lines) for lines in texts)
  sheet = Image.new(
    "RGB",
    (gap + columns * (width + gap), gap + rows * (cell + gap)),
    (255, 255, 255),
  )
  pen = ImageDraw.Draw(sheet)
  for i, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
    x = gap + i % columns * (width + gap)
    y = gap + i // columns * (cell + gap)
    sheet.paste(picture, (x, y))
    for n, text in enumerate(lines):
      pen.text((x, y + height + 6 + n * line), text, (40, 40, 44), font)
  return sheet


def enlarged(image: Any, scale: int) -> Image.Image:
  """A picture of u8[H, W, 3], each pixel `scale` pixels wide."""
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
    raise ValueError(
      f"images must be uint8 [H, W, 3], not {pixels.dtype} {pixels.shape}"
    )
  return Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def _wrapped(text: str, width: int, font: Any) -> list[str]:
  """Lines of at most `width` pixels; a longer word keeps a line of its own."""
  lines = [""]
  for word in text.split():
    longer = f"{lines[-1]} {word}".strip()
    if lines[-1] and font.getlength(longer) > width:
      lines.append(word)
    else:
      lines[-1] = longer
  return lines
