"""Classes of images, told by the texts of records and prompts."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int32

from unifluid_jax.data.fields import Example, Shape
from unifluid_jax.data.records import BadRecord

_SHOWN = 5  # classes that a message names


@dataclasses.dataclass(frozen=True)
class Label:
  """The class of an image, i32[]: the number of its name.

  An empty text is the null class, whose number is that of the names.
  """

  slot: str  # key of `Example.texts`
  names: tuple[str, ...]
  # Whether a text is a class's name, or mentions one, in whatever case: that
  # which begins first counts, of several there the longest.
  by: Literal["name", "mention"] = "name"
  target: bool = False

  def shapes(self) -> dict[str, Shape]:
    """See `Field`."""
    return {"": Shape((), np.int32)}

  def rows(
    self, example: Example, rng: np.random.Generator | None
  ) -> dict[str, Int32[np.ndarray, ""]]:
    """See `Field`."""
    del rng
    text = (example.texts[self.slot] or "").strip()
    return {"": np.asarray(self.number(text), np.int32)}

  def number(self, text: str) -> int:
    """The class that a text tells.

    Raises:
      BadRecord: none.
    """
    if not text:
      return len(self.names)
    if text in self.names:
      return self.names.index(text)
    if self.by == "mention":
      said, names = text.casefold(), [n.casefold() for n in self.names]
      found = [(_place(said, name), -len(name)) for name in names]
      places = [place for place in found if place[0] >= 0]
      if places:
        return found.index(min(places))
    verb = {"name": "is", "mention": "mentions"}[self.by]
    more = ", ..." if len(self.names) > _SHOWN else ""
    raise BadRecord(
      f"{text!r} {verb} no class of this run: "
      f"{', '.join(self.names[:_SHOWN])}{more}"
    )


def _place(text: str, name: str) -> int:
  """Where a name begins in a text, -1 for nowhere.

  Not inside of a word: a scarf is no car, though "cars" are. Scripts without
  spaces have no words that this could tell.
  """
  place = text.find(name)
  while place > 0 and name[0].isascii() and text[place - 1].isalpha():
    place = text.find(name, place + 1)
  return place
