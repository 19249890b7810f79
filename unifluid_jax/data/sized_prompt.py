"""Prompts that name the size of the image to be drawn.

Liquid (arXiv 2412.04332 §4.2, Figure 8): a run on images of several sizes says
in the text how large each is, and is asked for a size likewise. The sentence
is that of its released code (github.com/FoundationVision/Liquid).
"""

import dataclasses
from typing import Any

import numpy as np

from unifluid_jax.data.fields import Example, Pixels, Shape, Text
from unifluid_jax.data.transforms import Size

NULL = "null"  # part of the field: the prompt of guidance's null condition


def sentence(size: Size) -> str:
  """What stands between a prompt and its ending.

  Differs: a space comes first, which the released code leaves out.
  """
  height, width = size
  return f" Image Size: Width is {width} Height is {height}."


@dataclasses.dataclass(frozen=True)
class SizedPrompt:
  """A prompt and the sentence of its image's size, i32[P].

  Part `null` i32[P] has the sentence without the prompt: what guidance leads
  away from is an image of the same size.

  In training the size is that of the example's image, in prompts
  `Example.size`, or the default.
  """

  text: Text
  null: Text  # the tokens around the sentence alone
  image: Pixels  # how the example's image becomes one of its sizes
  cell: int  # pixels per side of a cached code
  target: bool = False

  def shapes(self) -> dict[str, Shape]:
    """See `fields.Field`."""
    return self.text.shapes() | {NULL: self.null.shapes()[""]}

  def rows(
    self, example: Example, rng: np.random.Generator | None
  ) -> dict[str, np.ndarray]:
    """See `fields.Field`.

    Raises:
      BadRecord: a corrupt image.
      ValueError: no room for the sentence.
    """
    tokenizer, size = example.tokenizer, sentence(self._size(example))
    text = example.texts[self.text.slot]
    ending = size + self.text.ending(rng)
    return {
      "": self.text.row(tokenizer, text, ending),
      NULL: self.null.row(tokenizer, "", size),
    }

  def _size(self, example: Example) -> Size:
    picture = example.images.get(self.image.role)
    if picture is None:
      return example.size or (self.image.size, self.image.size)
    if picture.cached is not None:
      rows, columns = picture.cached.shape
      return rows * self.cell, columns * self.cell
    # Decoded once more than the image's own field does: only where no codes
    # are cached, and then encoding costs far more.
    height, width = self.image.view(example).shape[:2]
    return height, width

  def check(self, tokenizer: Any) -> None:
    """Refuses slots and tokenizers that sentences do not fit.

    Raises:
      ValueError: no room for a sentence, or no pieces for its numbers, so that
        two sizes have the same ids.
    """
    seen: dict[tuple[int, ...], str] = {}
    for size in self.image.sizes:
      said = sentence(size)
      for ending in self.text.endings or ("",):
        self.text.row(tokenizer, "", said + ending)
      self.null.row(tokenizer, "", said)
      ids = tuple(tokenizer.encode(said))
      if ids in seen:
        raise ValueError(
          f"text.tokenizer writes {said!r} as it writes {seen[ids]!r}: prompts "
          "could not name model.sizes. Train it with python -m "
          "unifluid_jax.prepare and this configuration, or name one that has "
          "digits"
        )
      seen[ids] = said
