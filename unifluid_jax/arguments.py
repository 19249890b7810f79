"""What callers of the Python API may pass, checked before anything runs."""

import numbers
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from unifluid_jax.core import files, ranges
from unifluid_jax.core.config import MAX_PIXELS
from unifluid_jax.data.images import decode_image, opaque_rgb, read_file
from unifluid_jax.data.records import BadRecord

# Names that diffusers gives to sampling options → ours.
_DIFFUSERS = {"guidance_scale": "cfg", "num_inference_steps": "steps"}


def check_text(text: str) -> None:
  """Refuses what no tokenizer can read.

  Raises:
    ValueError: empty, or not valid Unicode.
  """
  if not isinstance(text, str):
    raise ValueError(f"expected a text, got {type(text).__name__}")
  if not text.strip():
    raise ValueError("the text is empty")
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"{text!r} is not valid Unicode (character {error.start})"
    ) from error


def check_seeds(seed: int, count: int) -> None:
  """Refuses seeds that do not fit 32 bits.

  Args:
    seed: of the first image.
    count: images with a seed each, one apart.

  Raises:
    ValueError: names the allowed range.
  """
  last = 2**32 - max(count, 1)
  whole = isinstance(seed, numbers.Integral)
  if not whole or not 0 <= seed <= last:
    raise ValueError(f"seed={seed}: a whole number from 0 to {last}")


def renamed(changes: Mapping[str, Any], sampling: type) -> dict[str, Any]:
  """Sampling options under our names, where diffusers' names were given.

  Args:
    changes: options as they were given.
    sampling: dataclass of the system.

  Raises:
    ValueError: an option under both names, or one that the system lacks.
  """
  out = dict(changes)
  known = typing.get_type_hints(sampling)
  for theirs, ours in _DIFFUSERS.items():
    if theirs not in out:
      continue
    if ours not in known:
      raise ValueError(
        f"{theirs}: this system has no {ours}; known: {', '.join(known)}"
      )
    if ours in out:
      raise ValueError(f"{theirs} is another name of {ours}: give one of them")
    out[ours] = out.pop(theirs)
  return out


def seed_of(
  seed: int | None, options: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
  """The seed, and the other options without `generator`.

  Args:
    seed: as given; None: it was not, 0 unless a generator is.
    options: "generator" may be a seed, a numpy Generator, which is advanced
      by one draw, or an object with `initial_seed()`, as PyTorch's.

  Raises:
    ValueError: both, or a generator of another kind.
  """
  rest = dict(options)
  generator = rest.pop("generator", None)
  if generator is None:
    return (0 if seed is None else seed), rest
  if seed is not None:
    raise ValueError("generator is another name of seed: give one of them")
  if isinstance(generator, np.random.Generator):
    return int(generator.integers(2**31)), rest
  if hasattr(generator, "initial_seed"):
    return generator.initial_seed(), rest
  if isinstance(generator, numbers.Integral):
    return int(generator), rest
  raise ValueError(
    f"generator={generator!r}: give a whole number, a numpy Generator or a "
    "torch.Generator"
  )


def check_sampling(
  changes: Mapping[str, Any], sampling: type, rows: tuple[ranges.Row, ...]
) -> None:
  """Refuses sampling options that do not exist or are out of range.

  Args:
    changes: fields of `sampling`; None: left as it is.
    sampling: dataclass of the system.
    rows: ranges of its numbers.

  Raises:
    ValueError: names the option and what it takes.
  """
  hints = typing.get_type_hints(sampling)
  for name, value in changes.items():
    if name not in hints:
      raise ValueError(
        f"unknown sampling option {name!r}; known: {', '.join(hints)}"
      )
    if value is None:
      continue
    if typing.get_origin(hints[name]) is tuple:
      _check_size(name, value)
      continue
    if hints[name] is bool:
      if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")
      continue
    choices = typing.get_args(hints[name])
    if value in choices:
      continue
    if choices:
      raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")
    whole = hints[name] is int
    kind = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
      what = "a whole number" if whole else "a number"
      raise ValueError(f"{name}={value} must be {what}")
    allowed = ranges.row_of(f"sampling.{name}", rows).range
    if not allowed.holds(int(value) if whole else float(value)):
      raise ValueError(f"{name}={value} must be {allowed}")


def _check_size(name: str, value: Any) -> None:
  """Refuses what is no (height, width).

  Raises:
    ValueError: names the option.
  """
  whole = isinstance(value, tuple) and len(value) == 2
  if not whole or not all(type(x) is int and x > 0 for x in value):
    raise ValueError(f"{name}={value!r}: (height, width) in pixels")


def as_array(image: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """uint8 [H, W, 3] of a PIL image, an array or a file.

  An image that was opened gives the pixels that its file would. An array is
  used as it is; several may lie on top of one another.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no regular file, no image to decode, or an array of other
      numbers: 0 to 1 would be taken for black.
  """
  if isinstance(image, np.ndarray):
    fits = image.ndim in (3, 4) and image.shape[-1] == 3 and image.size
    if image.dtype != np.uint8 or not fits:
      raise ValueError(
        f"an image is {image.dtype}{list(image.shape)}: give uint8"
        "[height, width, 3] with RGB from 0 to 255, or a PIL image"
      )
    return image
  if isinstance(image, Image.Image):
    return opaque_rgb(image)
  path = epath.Path(image)
  if not path.exists():
    raise FileNotFoundError(f"no image at {path}")
  files.check_regular(path)
  try:
    return decode_image(read_file(path), max_pixels)
  except BadRecord as error:
    raise BadRecord(f"{path}: {error}") from error
