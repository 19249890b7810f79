"""What a task's batch is made of: one class per kind of array.

A system declares the fields of every task it can do (`System.inputs`); the
pipeline, the Python API and ahead-of-time compilation build them from there.
Fields are pickled to data workers and import no accelerator library.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8

from unifluid_jax.core.config import MAX_PIXELS, ChatConfig
from unifluid_jax.core.types import PAD
from unifluid_jax.data import any_resolution, paint, transforms
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.records import BadRecord, Marks, Turn

PIXELS = "pixels"  # part of a `Cached` field without a file
SIZE = "size"  # part of images of several sizes: height, width in pixels


class Picture(NamedTuple):
  """An image in one of its roles, not decoded yet."""

  frames: tuple[Any, ...]  # encoded files, or u8[H, W, 3]; several: a series
  marks: Marks = Marks()
  flip: bool = False  # mirrored left to right, after resizing
  cached: Any = None  # its encoding, read from a file


class Example(NamedTuple):
  """One record as an example of a task; fields make arrays of it."""

  texts: Mapping[str, str | None]  # slot → text; None: nothing is asked
  images: Mapping[str, Picture]  # role → image
  tokenizer: Any = None  # needed by text fields only
  max_pixels: int = MAX_PIXELS  # of an encoded image
  turns: tuple[Turn, ...] = ()  # texts and images in their order
  size: transforms.Size | None = None  # of an image that is yet to be drawn
  chat: ChatConfig = ChatConfig()  # what stands around their messages
  codes: Any = None  # [images, N] of turns, read from a file; see `Dialogue`


class Shape(NamedTuple):
  """Shape and dtype of one row of a field's array."""

  shape: tuple[int, ...]
  dtype: Any


@runtime_checkable
class Field(Protocol):
  """One or more arrays of a batch; a new kind is a new class here.

  Attributes:
    target: whether a system is to produce it; prompts come without it.
  """

  target: bool

  def shapes(self) -> Mapping[str, Shape]:
    """Part name → shape of a row; most fields have one part, named ""."""

  def rows(self, example: Example, rng: Any) -> Mapping[str, np.ndarray]:
    """The same parts of one example.

    Raises:
      BadRecord: a corrupt image, or not as many as configured.
    """


@runtime_checkable
class Encoded(Protocol):
  """A field that a frozen codec encodes, in the step or from a file."""

  file: bool  # whether it is read from the record; else its rows are pixels
  in_files: Any  # shapes that a record may have there; None: any number


@runtime_checkable
class Continued(Protocol):
  """A field whose row is both: given as far as it goes, then continued."""

  def as_prompt(self) -> Field:
    """The field of rows that a system is to continue."""


@dataclasses.dataclass(frozen=True)
class Pixels:
  """An image in [-1, 1], f32[*F, S, S, 3].

  With `sizes` an image is cropped to the one that is nearest in aspect ratio
  and stands in the upper left of f32[H, W, 3], which has room for all of them;
  part `size` i32[2] says which.
  """

  role: str
  size: int  # S
  fit: Literal["crop", "squash"]
  frames: int = 1  # F, an axis of its own if there are several
  target: bool = False
  sizes: tuple[transforms.Size, ...] = ()  # of single, cropped images

  def shapes(self) -> dict[str, Shape]:
    """See `Field`."""
    if self.sizes:
      height, width = np.max(self.sizes, axis=0).tolist()
      largest = Shape((height, width, 3), np.float32)
      return {"": largest, SIZE: Shape((2,), np.int32)}
    several = (self.frames,) if self.frames > 1 else ()
    return {"": Shape((*several, self.size, self.size, 3), np.float32)}

  def rows(
    self, example: Example, rng: np.random.Generator | None
  ) -> dict[str, np.ndarray]:
    """See `Field`."""
    del rng
    count = len(example.images[self.role].frames)
    if count != self.frames:
      raise BadRecord(f"{count} images, but data.images={self.frames}")
    pixels = transforms.to_float(self.view(example))
    if not self.sizes:
      return {"": pixels}
    height, width = pixels.shape[:2]
    row = np.zeros(self.shapes()[""].shape, np.float32)
    row[:height, :width] = pixels
    return {"": row, SIZE: np.int32([height, width])}

  def view(self, example: Example) -> UInt8[np.ndarray, "*F h w 3"]:
    """The image at its size; several, of any number, in a stack.

    Raises:
      BadRecord: a corrupt image.
    """
    picture = example.images[self.role]
    frames = [self._frame(f, picture, example) for f in picture.frames]
    return frames[0] if len(frames) == 1 else np.stack(frames)

  def _frame(
    self, frame: Any, picture: Picture, example: Example
  ) -> UInt8[np.ndarray, "h w 3"]:
    if not isinstance(frame, np.ndarray):
      frame = decode_image(frame, example.max_pixels)
    if self.sizes or self.fit == "crop":
      sizes = self.sizes or ((self.size, self.size),)
      upright = np.rot90(frame, picture.marks.turns)
      size = transforms.nearest_size(upright.shape, sizes)
      fitted = transforms.marked_crop(frame, picture.marks, size)
    else:
      fitted = transforms.marked(frame, picture.marks, self.size)
    return transforms.mirrored(fitted) if picture.flip else fitted


@dataclasses.dataclass(frozen=True)
class Cached:
  """An image as a frozen codec encodes it, in the step or from a file.

  Without a file the rows are pixels, which the step encodes before the loss
  sees them. With `sizes` the rows are i32[N] codes of the largest image, PAD
  behind those of a smaller one, and part `size` i32[2] says how large it is.
  """

  role: str
  shape: tuple[int, ...]  # of one encoded image, as `ImageCodec.cache` says
  dtype: Any
  size: int  # of the pixels
  fit: Literal["crop", "squash"]
  file: bool = False  # read from the record
  target: bool = False
  sizes: tuple[transforms.Size, ...] = ()  # see `Pixels`
  cell: int = 1  # pixels per side of a code

  @property
  def pixels(self) -> Pixels:
    """The image that is encoded."""
    return Pixels(self.role, self.size, self.fit, sizes=self.sizes)

  @property
  def in_files(self) -> tuple[tuple[int, ...], ...]:
    """Shapes that one encoded image may have in a file."""
    grids = [(h // self.cell, w // self.cell) for h, w in self.sizes]
    return tuple(grids) or (self.shape,)

  def view(self, example: Example) -> UInt8[np.ndarray, "h w 3"]:
    """The image that is encoded; see `Pixels.view`."""
    return self.pixels.view(example)

  def shapes(self) -> dict[str, Shape]:
    """See `Field`."""
    pixels = self.pixels.shapes()
    encoded = {"": Shape(self.shape, self.dtype)}
    size = {SIZE: pixels[SIZE]} if self.sizes else {}
    return (encoded if self.file else {PIXELS: pixels[""]}) | size

  def rows(
    self, example: Example, rng: np.random.Generator | None
  ) -> dict[str, np.ndarray]:
    """See `Field`."""
    if self.file:
      picture = example.images[self.role]
      if len(picture.frames) != 1:
        raise BadRecord(f"{len(picture.frames)} images, a file has one encoded")
      return self._from_file(np.asarray(picture.cached, self.dtype))
    rows = self.pixels.rows(example, rng)
    return {PIXELS: rows.pop("")} | rows

  def _from_file(self, cached: np.ndarray) -> dict[str, np.ndarray]:
    if not self.sizes:
      return {"": cached}
    if cached.shape not in self.in_files:
      raise BadRecord(
        f"its codes are {cached.shape}, those of model.sizes {self.in_files}"
      )
    row = np.full(self.shape, PAD, self.dtype)
    row[: cached.size] = cached.ravel()
    return {"": row, SIZE: np.int32(cached.shape) * self.cell}


@dataclasses.dataclass(frozen=True)
class Crops:
  """An image of any resolution as views, and how their features are read.

  Parts: `views` f32[1 + M, S, S, 3] in [-1, 1], the whole image and a grid of
  crops, those that its grid has not all 0; `index` i32[C], the features in
  order, of all views one after another and then the new line; `valid`
  bool[C], False behind them.
  """

  role: str
  size: int  # S, side of a view
  side: int  # features of a view per side
  pinpoints: tuple[any_resolution.Size, ...] = ()  # none: no grid
  target: bool = False

  @property
  def crops(self) -> int:
    """M, of the largest grid."""
    return any_resolution.most_crops(self.size, self.pinpoints)

  @property
  def length(self) -> int:
    """C, features and new lines at most."""
    return any_resolution.most_features(self.size, self.side, self.pinpoints)

  def shapes(self) -> dict[str, Shape]:
    """See `Field`."""
    view = (self.size, self.size, 3)
    return {
      "views": Shape((1 + self.crops, *view), np.float32),
      "index": Shape((self.length,), np.int32),
      "valid": Shape((self.length,), np.bool_),
    }

  def rows(
    self, example: Example, rng: np.random.Generator | None
  ) -> dict[str, np.ndarray]:
    """See `Field`."""
    del rng
    image, shape = self.view(example), self.shapes()["views"].shape
    cut = any_resolution.views(image, self.size, self.pinpoints)
    views = np.zeros(shape, np.float32)
    views[: len(cut)] = transforms.to_float(cut)
    order = any_resolution.sequence(
      (image.shape[1], image.shape[0]), self.size, self.side, self.pinpoints
    )
    index = np.zeros(self.length, np.int32)
    index[: len(order)] = order
    valid = np.arange(self.length) < len(order)
    return {"views": views, "index": index, "valid": valid}

  def view(self, example: Example) -> UInt8[np.ndarray, "H W 3"]:
    """The image before it is cut, at its own size.

    Raises:
      BadRecord: a corrupt image, or several.
    """
    picture = example.images[self.role]
    if len(picture.frames) != 1:
      raise BadRecord(f"{len(picture.frames)} images, this system sees one")
    (image,), marks = picture.frames, picture.marks
    if not isinstance(image, np.ndarray):
      image = decode_image(image, example.max_pixels)
    image = transforms.upright(image, marks)
    if marks.box is not None:
      image = paint.outline(image, marks.box, image.shape[0] / image.shape[1])
    return transforms.mirrored(image) if picture.flip else image


@dataclasses.dataclass(frozen=True)
class Text:
  """Token ids i32[P] of one text and the special tokens around it.

  Where the slot is too short, only the text is truncated.

  Differs: PaliGemma's truncation drops EOS; a truncated answer keeps it here,
  so that a row never teaches the model not to stop.
  """

  slot: str  # key of config.text, for messages, and of `Example.texts`
  length: int
  before: tuple[str, ...] = ()  # names of special tokens
  after: tuple[str, ...] = ()
  align: Literal["left", "right"] = "right"
  target: bool = False
  opening: tuple[str, ...] = ()  # special tokens between `before` and a text
  # One is added to the text: any in training, the first in prompts.
  endings: tuple[str, ...] = ()
  lead: str = ""  # what every text begins with

  def shapes(self) -> dict[str, Shape]:
    """See `Field`."""
    return {"": Shape((self.length,), np.int32)}

  def rows(
    self, example: Example, rng: np.random.Generator | None
  ) -> dict[str, np.ndarray]:
    """See `Field`."""
    text = example.texts[self.slot]
    return {"": self.row(example.tokenizer, text, self.ending(rng))}

  def ending(self, rng: np.random.Generator | None) -> str:
    """One of `endings`: any, or without `rng` the first."""
    if rng is not None and len(self.endings) > 1:
      return self.endings[int(rng.integers(len(self.endings)))]
    return "".join(self.endings[:1])

  def row(
    self, tokenizer: Any, text: str | None, ending: str = ""
  ) -> Int32[np.ndarray, "P"]:
    """One row; without a text the tokens `before` it, alone.

    Raises:
      ValueError: no room for the special tokens and the ending.
    """
    named, lead = (*self.before, *self.opening), self.lead
    named = named, self.after
    if text is None:
      named, text, ending, lead = (self.before, ()), "", "", ""
    before, after = ([tokenizer.special[n] for n in names] for names in named)
    after = [*(tokenizer.encode(ending) if ending else ()), *after]
    room = self.length - len(before) - len(after)
    if room < 0:
      names = [n.upper() for n in (*named[0], *named[1])]
      names = " and ".join([*names, repr(ending)] if ending else names)
      raise ValueError(
        f"text.{self.slot}={self.length} has no room for {names}: use >= "
        f"{len(before) + len(after)}"
      )
    ids = [*before, *tokenizer.fit(tokenizer.encode(lead + text), room), *after]
    row = np.full(self.length, PAD, np.int32)
    start = self.length - len(ids) if self.align == "right" else 0
    row[start : start + len(ids)] = ids
    return row


def arrays(
  inputs: Mapping[str, Field], example: Example, rng: Any = None
) -> dict[str, np.ndarray]:
  """One row of every field: name, or name.part → array.

  Args:
    inputs: name → field, of one task.
    example: what they are made from.
    rng: for fields that draw.
  """
  return {
    joined(name, part): array
    for name, field in inputs.items()
    for part, array in field.rows(example, rng).items()
  }


def shapes(inputs: Mapping[str, Field]) -> dict[str, Shape]:
  """The same names → shape of a row."""
  return {
    joined(name, part): shape
    for name, field in inputs.items()
    for part, shape in field.shapes().items()
  }


def joined(name: str, part: str) -> str:
  """Name of an array in a batch: the field's, and its part's if it has one."""
  return f"{name}.{part}" if part else name


def prompts(
  inputs: Mapping[str, Field], images: Mapping[str, Picture]
) -> dict[str, Field]:
  """The fields of a prompt: all but the targets, see `uncached`."""
  given = {
    name: field.as_prompt() if isinstance(field, Continued) else field
    for name, field in inputs.items()
    if not field.target
  }
  return uncached(given, images)


def uncached(
  inputs: Mapping[str, Field], images: Mapping[str, Picture]
) -> dict[str, Field]:
  """The fields of an example that no cache was made of: images are pixels.

  Args:
    inputs: of one task.
    images: of the example; it may have more or fewer frames than a run was
      trained with.
  """

  def given(field):
    if isinstance(field, Pixels):
      return dataclasses.replace(field, frames=len(images[field.role].frames))
    if isinstance(field, Encoded):
      return dataclasses.replace(field, file=False)
    return field

  return {name: given(field) for name, field in inputs.items()}
