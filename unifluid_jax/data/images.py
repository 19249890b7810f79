"""Encoded images: which files are read, which formats opened, how large.

Bytes come from strangers. Formats are the common ones whose decoders are well
tested and start no program (Pillow runs Ghostscript on EPS); an image's size
is known from its header before anything is decoded.
"""

import io
import os
import posixpath
import warnings
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from unifluid_jax.core import files
from unifluid_jax.core.config import MAX_PIXELS
from unifluid_jax.data.records import BadRecord

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 1 << 28  # of a file
_BAND = 1 << 20  # pixels converted at once: no second copy of a large image
_TILE_SIDES = (322, 323)  # TIFF tags; a decoder holds a whole tile

# An image is used, or is a bad record that is named: Pillow's warnings of large
# images and odd metadata would only be noise between the lines.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode_image(
  data: bytes, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
  """An encoded image as upright RGB; of an animation the first frame.

  Transparency is laid over white, 16-bit grey loses its low byte, and EXIF
  orientation is applied. Memory while it decodes: 17 bytes a pixel (WebP),
  8 to 10 (other formats).

  Args:
    data: of one of `FORMATS`.
    max_pixels: config.data.max_pixels.

  Raises:
    BadRecord: (a ValueError) the file is empty, of another format, corrupt,
      truncated or too large.
  """
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      _check_size(image, max_pixels)
      image.load()
      ImageOps.exif_transpose(image, in_place=True)
      return _rgb(image)
  except BadRecord:
    raise
  # Decoders raise whatever their bytes lead them to, AssertionError included.
  except Exception as error:
    raise BadRecord(
      f"image of {len(data)} bytes cannot be decoded: "
      f"{_reason(error, max_pixels)}"
    ) from error


def opaque_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
  """A PIL image as `decode_image` makes it of its file."""
  return _rgb(ImageOps.exif_transpose(image))


def decode_drawing(data: bytes) -> UInt8[np.ndarray, "H W 4"]:
  """RGB and alpha of a PNG that a renderer of ours has just made."""
  with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
    return np.array(image.convert("RGBA"))


def encode_image(
  image: UInt8[np.ndarray, "H W 3"] | Image.Image,
  kind: str = "PNG",
  **options: Any,
) -> bytes:
  """An image as a file's content; `options` are those of Pillow's writer."""
  picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def channels(data: bytes) -> int:
  """Channels of an encoded image, by its header.

  Raises:
    BadRecord: as `decode_image`.
  """
  return _header(data)[0]


def file_ending(data: bytes) -> str:
  """What the files of an encoded image's format end with: "png", "jpeg", ...

  Raises:
    BadRecord: as `decode_image`.
  """
  return _header(data)[1].lower()


def dimensions(data: bytes) -> tuple[int, int]:
  """Width and height of an encoded image, by its header, as it is stored.

  Raises:
    BadRecord: as `decode_image`.
  """
  return _header(data)[2]


def _header(data: bytes) -> tuple[int, str, tuple[int, int]]:
  """Channels, format, and width and height."""
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      return len(image.getbands()), image.format or "", image.size
  except Exception as error:  # as above
    raise BadRecord(
      f"image of {len(data)} bytes cannot be decoded: "
      f"{_reason(error, MAX_PIXELS)}"
    ) from error


def _reason(error: Exception, max_pixels: int) -> str:
  """One line for what Pillow raises."""
  # The text of UnidentifiedImageError is a memory address.
  if isinstance(error, UnidentifiedImageError):
    return f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
  bomb = (Image.DecompressionBombError, Image.DecompressionBombWarning)
  if isinstance(error, bomb):  # a warning only where those are errors
    return f"more pixels than data.max_pixels={max_pixels}"
  return " ".join(str(error).split()) or type(error).__name__


def _check_size(image: Image.Image, max_pixels: int) -> None:
  """Refuses by the header what would take too much memory."""
  sides = [image.size]
  if image.format == "TIFF":
    tags = image.tag_v2
    sides.append(tuple(int(tags.get(tag, 1)) for tag in _TILE_SIDES))
  for width, height in sides:
    if width * height > max_pixels:
      raise BadRecord(
        f"image of {width} x {height} pixels, more than "
        f"data.max_pixels={max_pixels}: reduce it, or raise the limit"
      )


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
  """Opaque RGB, band by band."""
  width, height = image.size
  rows = max(1, _BAND // width)
  if rows >= height:
    return np.array(_opaque(image))
  out = np.empty((height, width, 3), np.uint8)
  for top in range(0, height, rows):
    bottom = min(top + rows, height)
    out[top:bottom] = _opaque(image.crop((0, top, width, bottom)))
  return out


def _opaque(image: Image.Image) -> Image.Image:
  """RGB over white; every pixel by itself."""
  if image.mode.startswith("I"):
    grey = (np.asarray(image) >> 8).clip(0, 255)
    image = Image.fromarray(grey.astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image.convert("RGB")


def resolve_name(name: str, folder: str, root: str) -> str:
  """The path of an image file that a data set names.

  Links are followed: whoever made a link decided where it leads.

  Args:
    name: relative to `folder`.
    folder: of the data set's file.
    root: config.data.root; the path must stay below it or below `folder`.

  Raises:
    BadRecord: it is absolute, leaves both, or is no path at all.
  """
  if "\0" in name:
    raise BadRecord(f"image {name!r} holds a NUL: no path does")
  if posixpath.isabs(name) or files.is_remote(name):
    raise BadRecord(
      f"image {name!r} is absolute: write it relative to the file that names "
      "it, and set data.root to a folder above both"
    )
  path = posixpath.join(folder, name)
  inside = ".." not in name  # as nearly always: the rest takes time
  if not inside and not (is_below(path, folder) or is_below(path, root)):
    raise BadRecord(
      f"image {name!r} lies outside of data.root={root!r}: move it there, "
      "or link its folder"
    )
  return path


def is_below(path: str, folder: str) -> bool:
  """Whether a path, its ".." followed but no links, lies in a folder."""
  parent = _normal(folder)
  return posixpath.commonpath([_normal(path), parent]) == parent


def _normal(path: str) -> str:
  """Without "." and "..", absolute."""
  if files.is_remote(path):
    return "/" + posixpath.normpath(path)
  return os.path.abspath(path)


def read_file(path: str | os.PathLike[str]) -> bytes:
  """The bytes of an image file.

  Raises:
    BadRecord: it is missing, unreadable, no regular file (opening a FIFO or a
      device may wait for ever), or too large.
  """
  try:
    files.check_regular(path)
    file = epath.Path(path)
    size = file.stat().length
    if size > MAX_BYTES:
      raise BadRecord(f"{path}: {size} bytes, images have {MAX_BYTES} at most")
    return file.read_bytes()
  except BadRecord:
    raise
  except (OSError, ValueError) as error:
    raise BadRecord(f"unreadable: {error}") from error
