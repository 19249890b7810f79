"""From records to training examples: decoding, resizing, choosing texts.

Sources: ADM's centre crop for the generated image (as MAR trains), PaliGemma's
plain resize for the vision encoder (big_vision pp).
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from unifluid_jax.core.config import MAX_PIXELS
from unifluid_jax.core.types import Edit, ImageToText, TextOnly, TextToImage
from unifluid_jax.data import paint
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.records import BadRecord, Marks, Record
from unifluid_jax.data.text import Tokenizer

T = TypeVar("T")
_CAPTION_SHARE = 0.4  # of understanding examples, where questions exist too
_LONGEST = 32  # times the shorter side: what is cropped beyond is never seen
_ROOM = 1 << 24  # pixels between the two passes of a resize


class NoExample(ValueError):
  """A sound record that carries nothing for the task."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How examples look: sizes in pixels, slots in tokens."""

  tokenizer: Tokenizer | None  # only images do without
  image_size: int  # of the VAE
  vit_size: int  # of the vision encoder
  prompt: int  # P of t2i and edit
  prefix: int  # P of i2t and text
  suffix: int  # A
  caption_prefix: str  # the question that asks for a caption
  flip: bool = False
  edit_latents: bool = False  # edits carry the source at the VAE's size too
  images: int = 1  # of an understanding example
  max_pixels: int = MAX_PIXELS  # of an encoded image


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
  if image.shape[:2] == (size, size):
    return image
  picture = Image.fromarray(shortened(image))
  while min(picture.size) >= 2 * size:
    width, height = picture.size
    picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
  scale = size / min(picture.size)
  width, height = (max(size, round(side * scale)) for side in picture.size)
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - size) // 2, (height - size) // 2
  return np.array(picture.crop((left, top, left + size, top + size)))


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
  image: UInt8[np.ndarray, "*F H W 3"], size: int
) -> UInt8[np.ndarray, "*F S S 3"]:
  """The whole image as a square, aspect not kept, for the vision encoder.

  Differs: always antialiased; PaliGemma's transfers vary by task.

  Args:
    image: RGB; several on top of one another are resized one by one.
    size: side of the result.
  """
  if image.shape[-3:-1] == (size, size):
    return image
  if image.ndim > 3:
    return np.stack([squash_resize(frame, size) for frame in image])
  picture = Image.fromarray(image)
  if size > picture.width and size * picture.height > _ROOM:
    # Pillow widens first: a long narrow image would fill the memory.
    shape = (picture.width, size)
    picture = picture.resize(shape, Image.Resampling.BILINEAR)
  return np.array(picture.resize((size, size), Image.Resampling.BILINEAR))


def view(
  record: Record, size: int, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "*F S S 3"]:
  """What the vision encoder is shown: an image, or several in a stack.

  Args:
    record: its images, and what is done to them.
    size: side of the result.
    max_pixels: of an encoded image.

  Raises:
    BadRecord: a corrupt image.
  """
  frames = [
    _shown(decode_image(f, max_pixels), record.marks, size)
    for f in (record.image, *record.more)
  ]
  return np.stack(frames) if record.more else frames[0]


def _shown(
  image: UInt8[np.ndarray, "H W 3"], marks: Marks, size: int
) -> UInt8[np.ndarray, "S S 3"]:
  """Letters belong to the image's own pixels, the box to the resized ones."""
  upright = np.rot90(image, marks.turns)
  image = paint.letters(upright, marks.letters, marks.font)
  square = squash_resize(image, size)
  if marks.box is None:
    return square
  return paint.outline(square, marks.box, image.shape[0] / image.shape[1])


def to_float(
  image: UInt8[np.ndarray, "*F H W 3"],
) -> Float32[np.ndarray, "*F H W 3"]:
  """Pixels in [-1, 1]."""
  return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_text_to_image(
  record: Record, rng: np.random.Generator, recipe: Recipe
) -> TextToImage:
  """One of the record's prompts (else captions), and pixels or moments.

  Args:
    record: where the example comes from.
    rng: chooses the prompt and the flip.
    recipe: sizes and slots.

  Raises:
    NoExample: no prompt and no caption.
    BadRecord: only blank ones, or a corrupt image.
  """
  text = _choose(record.prompts or record.captions, rng, "prompt")
  row = recipe.tokenizer.prompt_row(text, recipe.prompt)
  if record.moments is not None:
    moments = np.asarray(record.moments, np.float32)
    return TextToImage(row, moments=moments)
  return TextToImage(row, image=_picture(record, rng, recipe))


def to_image_only(
  record: Record, rng: np.random.Generator, recipe: Recipe
) -> TextToImage:
  """The image with a prompt of width 0, to train the VAE on."""
  image = _picture(record, rng, recipe)
  return TextToImage(np.zeros(0, np.int32), image=image)


def to_image_to_text(
  record: Record, rng: np.random.Generator, recipe: Recipe
) -> ImageToText:
  """A caption (two cases in five where both exist) or a question.

  Never flipped: questions name sides and images hold writing.

  Args:
    record: where the example comes from.
    rng: chooses the text.
    recipe: sizes and slots; `caption_prefix` asks for a caption.

  Raises:
    NoExample: no caption and no question.
    BadRecord: only blank ones, or a corrupt image.
  """
  ask_caption = not record.questions
  if record.captions and record.questions:
    ask_caption = bool(rng.random() < _CAPTION_SHARE)
  if ask_caption:
    question = recipe.caption_prefix
    answer = _choose(record.captions, rng, "caption")
  else:
    question, answer = _choose_pair(record.questions, rng)
  if 1 + len(record.more) != recipe.images:
    raise BadRecord(
      f"{1 + len(record.more)} images, but data.images={recipe.images}"
    )
  return ImageToText(
    to_float(view(record, recipe.vit_size, recipe.max_pixels)),
    recipe.tokenizer.prefix_row(question, recipe.prefix),
    recipe.tokenizer.suffix_row(answer, recipe.suffix),
  )


def to_edit(record: Record, rng: np.random.Generator, recipe: Recipe) -> Edit:
  """Source image, instruction and target image; flipped together.

  Raises:
    NoExample: the record has no edit.
    BadRecord: a blank instruction, or a corrupt image.
  """
  if record.edit is None:
    raise NoExample("no edit")
  instruction, target = record.edit
  flip = recipe.flip and bool(rng.random() < 0.5)
  source = _flip(decode_image(record.image, recipe.max_pixels), flip)
  after = _flip(decode_image(target, recipe.max_pixels), flip)
  size = recipe.image_size
  return Edit(
    to_float(squash_resize(source, recipe.vit_size)),
    recipe.tokenizer.prompt_row(
      _choose((instruction,), rng, "instruction"), recipe.prompt
    ),
    to_float(centre_crop_resize(after, size)),
    to_float(centre_crop_resize(source, size)) if recipe.edit_latents else None,
  )


def to_text_only(
  record: Record, rng: np.random.Generator, recipe: Recipe
) -> TextOnly:
  """A question with its answer, or a caption after BOS alone.

  Raises:
    NoExample: the record has no text.
    BadRecord: only blank texts.
  """
  pairs = (*record.questions, *(("", c) for c in record.captions))
  prefix, suffix = _choose_pair(pairs, rng)
  tokenizer = recipe.tokenizer
  if prefix:
    row = tokenizer.prefix_row(prefix, recipe.prefix)
  else:
    row = tokenizer.prompt_row("", recipe.prefix)
  return TextOnly(row, tokenizer.suffix_row(suffix, recipe.suffix))


def _picture(
  record: Record, rng: np.random.Generator, recipe: Recipe
) -> Float32[np.ndarray, "S S 3"]:
  """The record's image at the VAE's size."""
  flip = recipe.flip and bool(rng.random() < 0.5)
  image = decode_image(record.image, recipe.max_pixels)
  return to_float(_flip(centre_crop_resize(image, recipe.image_size), flip))


def _flip(image: np.ndarray, flip: bool) -> np.ndarray:
  """Mirrored left to right, or as it is."""
  return np.ascontiguousarray(image[:, ::-1]) if flip else image


def _choose(options: Sequence[str], rng: np.random.Generator, what: str) -> str:
  """One text that is not blank."""
  good = [text for text in options if text.strip()]
  return _one(options, good, rng, what)


def _choose_pair(
  pairs: Sequence[tuple[str, str]], rng: np.random.Generator
) -> tuple[str, str]:
  """One (question, answer) whose answer is not blank."""
  good = [pair for pair in pairs if pair[1].strip()]
  return _one(pairs, good, rng, "answer")


def _one(
  options: Sequence[T], good: Sequence[T], rng: np.random.Generator, what: str
) -> T:
  """A uniform choice among the good options."""
  if not options:
    raise NoExample(f"no {what}")
  if not good:
    raise BadRecord(f"blank {what}")
  return good[int(rng.integers(len(good)))] if len(good) > 1 else good[0]
