"""Pictures between browsers and models, apart from any widget."""

import base64
import html
from typing import Any

import numpy as np
from PIL import Image

from unifluid_jax import arguments
from unifluid_jax.data.images import encode_image
from unifluid_jax.data.records import BadRecord, Record

_SMALL = 128  # images up to this side are enlarged, their pixels kept visible
_SHOWN = 512


def enlarged(image: Any) -> Image.Image:
  """A small image by a whole factor, without smoothing; others as they are."""
  picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
  side = max(picture.size)
  if side > _SMALL:
    return picture
  factor = max(1, _SHOWN // side)
  size = (picture.width * factor, picture.height * factor)
  return picture.resize(size, Image.Resampling.NEAREST)


def data_uri(image: Any) -> str:
  """An image as the address of an <img>."""
  code = base64.b64encode(encode_image(image)).decode("ascii")
  return f"data:image/png;base64,{code}"


def read(path: str | None, most: int) -> np.ndarray:
  """The pixels of an upload, uint8 [H, W, 3].

  Raises:
    ValueError: none, or nothing that can be used; one sentence for the page.
  """
  if not path:
    raise ValueError("Choose a picture first.")
  try:
    return arguments.as_array(path, most)
  except BadRecord as error:
    # The path is a temporary one, which says nothing to whoever uploaded it.
    reason = str(error).removeprefix(f"{path}: ")
    raise ValueError(f"This picture cannot be used: {reason}.") from error
  except OSError as error:
    raise ValueError("This picture is gone: choose it again.") from error


def seen(model: Any, image: np.ndarray) -> np.ndarray:
  """What the encoder of a model sees of an image, uint8 [S, S, 3]."""
  view = model.look(Record("", encode_image(image)))
  return view[0] if view.ndim > 3 else view


def marked(unknown: list[str], cut: bool = False) -> str:
  """HTML that names what a model does not read of a text; "" for nothing.

  Args:
    unknown: words that it has never seen.
    cut: whether the end of the text does not fit.
  """
  said = []
  if unknown:
    words = ", ".join(f"<mark>{html.escape(word)}</mark>" for word in unknown)
    noun = "this word" if len(unknown) == 1 else "these words"
    said.append(f"The model has never seen {noun}: {words}")
  if cut:
    said.append("This is too long: the model does not read its end.")
  return "<br>".join(said)
