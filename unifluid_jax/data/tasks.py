"""What a model can be asked to do, and how a record becomes an example of it.

One choice of texts and one flip serve all fields of an example. Only this file
and `fields.py` know tasks; systems name those they can do (`System.inputs`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from unifluid_jax.core.config import MAX_PIXELS, AugmentConfig, ChatConfig
from unifluid_jax.data import transforms
from unifluid_jax.data.fields import Example, Picture
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.records import BadRecord, Marks, Record, Turn

T = TypeVar("T")
_CAPTION_SHARE = 0.4  # of understanding examples, where questions exist too


class NoExample(ValueError):
  """A valid record that has nothing for the task."""


@dataclasses.dataclass(frozen=True)
class Options:
  """Settings that all examples share."""

  tokenizer: Any  # needed by text fields only
  caption_prefix: str  # the question that asks for a caption
  flip: bool = False
  max_pixels: int = MAX_PIXELS  # of an encoded image
  chat: ChatConfig = ChatConfig()  # what stands around messages
  augment: AugmentConfig = AugmentConfig()  # of images that are read

  def example(
    self, texts: Mapping[str, str | None], images: Mapping[str, Picture]
  ) -> Example:
    """An example of these texts and images."""
    return Example(texts, images, self.tokenizer, self.max_pixels)

  def ordered(self, turns: Sequence[Turn], codes: Any = None) -> Example:
    """An example of texts and images in this order, encoded or not."""
    return Example(
      {}, {}, self.tokenizer, self.max_pixels, tuple(turns),
      chat=self.chat, codes=codes,
    )  # fmt: skip


def text_to_image(
  record: Record, rng: np.random.Generator, options: Options
) -> Example:
  """One of the record's prompts (else captions), and its image.

  Args:
    record: where the example comes from.
    rng: chooses the prompt and the flip.
    options: of the configuration.

  Raises:
    NoExample: no prompt and no caption.
    BadRecord: only blank ones.
  """
  prompt = _choose(record.prompts or record.captions, rng, "prompt")
  return options.example(
    {"prompt": prompt}, {"drawn": _drawn(record, rng, options)}
  )


def image(
  record: Record, rng: np.random.Generator, options: Options
) -> Example:
  """The image alone, to train tokenizers on."""
  return options.example({}, {"drawn": _drawn(record, rng, options)})


def image_to_text(
  record: Record, rng: np.random.Generator, options: Options
) -> Example:
  """A caption (two cases in five where both exist) or a question.

  Never flipped: questions name sides and images hold writing. Images vary as
  `options.augment` says.

  Args:
    record: where the example comes from.
    rng: chooses the text.
    options: of the configuration.

  Raises:
    NoExample: no caption and no question.
    BadRecord: only blank ones.
    ValueError: an image to be augmented has marks.
  """
  ask_caption = not record.questions
  if record.captions and record.questions:
    ask_caption = bool(rng.random() < _CAPTION_SHARE)
  if ask_caption:
    question = options.caption_prefix
    answer = _choose(record.captions, rng, "caption")
  else:
    question, answer = _choose_pair(record.questions, rng)
  frames = (record.image, *record.more)
  if options.augment.changes:
    frames = _augmented(record, rng, options)
  seen = Picture(frames, record.marks, cached=record.moments)
  return options.example({"prefix": question, "suffix": answer}, {"seen": seen})


def edit(record: Record, rng: np.random.Generator, options: Options) -> Example:
  """Source image, instruction and target image; flipped together.

  Raises:
    NoExample: the record has no edit.
    BadRecord: a blank instruction, or a corrupt image.
  """
  if record.edit is None:
    raise NoExample("no edit")
  instruction, target = record.edit
  flip = options.flip and bool(rng.random() < 0.5)

  def picture(data: bytes) -> Picture:
    # Flipped before resizing: fields read the source at two sizes.
    image = decode_image(data, options.max_pixels)
    return Picture((transforms.mirrored(image) if flip else image,))

  return options.example(
    {"prompt": _choose((instruction,), rng, "instruction")},
    {"seen": picture(record.image), "drawn": picture(target)},
  )


def text(record: Record, rng: np.random.Generator, options: Options) -> Example:
  """A question with its answer, or a caption after BOS alone.

  Raises:
    NoExample: the record has no text.
    BadRecord: only blank texts.
  """
  pairs = (*record.questions, *(("", c) for c in record.captions))
  prefix, suffix = _choose_pair(pairs, rng)
  return options.example({"prefix": prefix or None, "suffix": suffix}, {})


def dialogue(
  record: Record, rng: np.random.Generator, options: Options
) -> Example:
  """All texts and images in their order; blank texts are left out.

  Never flipped: texts may name sides.

  Raises:
    NoExample: the record has no dialogue.
    BadRecord: nothing in it is to be learned.
  """
  del rng
  if not record.dialogue:
    raise NoExample("no dialogue")
  turns = [t for t in record.dialogue if t.image is not None or t.text.strip()]
  if not any(t.target for t in turns):
    raise BadRecord("a dialogue without a turn to learn")
  return options.ordered(turns, record.moments)


Task = Callable[[Record, np.random.Generator, Options], Example]

T2I, I2T, EDIT, TEXT, IMAGE = "t2i", "i2t", "edit", "text", "image"
DIALOGUE = "dialogue"

# In the order of their streams.
TASKS: Mapping[str, Task] = {
  T2I: text_to_image,
  I2T: image_to_text,
  EDIT: edit,
  TEXT: text,
  IMAGE: image,
  DIALOGUE: dialogue,
}
# Needs only the image of a record: every source serves it.
EVERY_SOURCE = (IMAGE,)


def _augmented(
  record: Record, rng: np.random.Generator, options: Options
) -> tuple[np.ndarray, ...]:
  """A record's images as training varies them, at their own sizes."""
  if record.marks != Marks():
    raise ValueError(
      "data.augment moves images, and boxes and letters painted into them "
      "would stay where they are: set its numbers to 0 for such data"
    )
  return tuple(
    transforms.augmented(
      decode_image(image, options.max_pixels), options.augment, rng
    )
    for image in (record.image, *record.more)
  )


def _drawn(
  record: Record, rng: np.random.Generator, options: Options
) -> Picture:
  flip = options.flip and bool(rng.random() < 0.5)
  return Picture((record.image,), flip=flip, cached=record.moments)


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
