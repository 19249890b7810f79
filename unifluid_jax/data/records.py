"""What a data set gives: records, and the error of one that cannot be used."""

from typing import Any, NamedTuple

Box = tuple[float, float, float, float]  # ymin, xmin, ymax, xmax


class BadRecord(ValueError):
  """A record that cannot be used: unreadable, corrupt, or blank."""


class Marks(NamedTuple):
  """What is done to an image before the vision encoder sees it."""

  turns: int = 0  # counter-clockwise quarter turns that set it upright
  letters: tuple[tuple[str, Box], ...] = ()  # painted over texts; pixels
  box: Box | None = None  # outlined, in units of the image's height
  font: str = ""  # TrueType file of the letters; Pillow's own if empty


class Turn(NamedTuple):
  """A text or an image of a dialogue, in its place among the others."""

  text: str = ""
  image: Any = None  # encoded file, or u8[H, W, 3]
  target: bool = True  # whether it is to be learned, or given
  role: str = ""  # whose message it is a part of, in a conversation


class Record(NamedTuple):
  """One image with all its texts; what a format lacks is empty."""

  id: str
  image: bytes  # encoded file; empty for text alone
  prompts: tuple[str, ...] = ()  # texts to draw it from
  captions: tuple[str, ...] = ()
  questions: tuple[tuple[str, str], ...] = ()  # (question, answer)
  edit: tuple[str, bytes] | None = None  # (instruction, encoded target)
  # f16[h, w, 2c] of the VAE's posterior; of dialogues u16[images, N]
  moments: Any = None
  kinds: tuple[str, ...] = ()  # of the questions, where the set names them
  scene: str = ""  # what the image was drawn from, for evaluation
  edit_scene: str = ""  # what the edit's target was drawn from
  more: tuple[bytes, ...] = ()  # further images that the questions speak of
  marks: Marks = Marks()
  dialogue: tuple[Turn, ...] = ()  # texts and images in their order
