"""The emoji world: named pictures of several artists."""

import json
from typing import NamedTuple

STYLES = ("twemoji", "noto", "fluent", "emojione", "openmoji")


class Picture(NamedTuple):
  """What an emoji shows, and who drew it; a record's `scene`."""

  concept: str  # its Unicode name in lower case: "red apple"
  style: str  # one of STYLES
  group: str
  tone: str | None = None  # None: the concept's own picture


def picture_to_json(picture: Picture) -> str:
  """As records carry it."""
  return json.dumps(picture._asdict())


def picture_from_json(text: str) -> Picture:
  """The inverse of `picture_to_json`.

  Raises:
    ValueError: the text is no picture.
  """
  try:
    return Picture(**json.loads(text))
  except (TypeError, ValueError) as error:
    raise ValueError(f"{text!r} is no picture of the emoji world") from error
