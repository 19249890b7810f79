"""Draws the emoji world and writes it as a data set.

Pictures are drawn once, by resvg, with transparency; records lay them over
white or over another plain ground. Beside the records lie ATTRIBUTION.md and
the licences of the sets. Pictures of sets that are share-alike are drawn only
where `sets` names them.
"""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from unifluid_jax.data.images import decode_drawing
from unifluid_jax.data.worlds import emoji, emoji_packages, shapes_builder
from unifluid_jax.data.worlds.emoji import Picture

VERSION = "1.0.0"
ATTRIBUTION = "ATTRIBUTION.md"
LICENCES = "LICENCES"
SETS = tuple(
  s for s in emoji_packages.SETS if s not in emoji_packages.SHARE_ALIKE
)
WHITE = (255, 255, 255)
# Plain grounds beside white, by the name that prompts give them.
GROUNDS = {
  "grey": (200, 200, 200),
  "sky blue": (170, 215, 245),
  "pale green": (190, 235, 190),
  "pale yellow": (250, 240, 170),
  "pink": (250, 200, 215),
  "black": (20, 20, 20),
}

Drawing = UInt8[np.ndarray, "S S 4"]


@dataclasses.dataclass(frozen=True)
class World:
  """What is drawn, and how; keys of config.data.world."""

  sets: tuple[str, ...] = SETS
  groups: tuple[str, ...] = emoji.GROUPS
  tones: bool = False  # pictures with skin tones too
  size: int = 64  # pixels
  views: int = 1  # records of each picture that is trained on
  grounds: float = 0.0  # share of them over another ground than white
  validation: int = 256  # pictures of those that are trained on
  seed: int = 0  # of wordings, wrong answers, grounds

  def __post_init__(self) -> None:
    for key, known in (
      ("sets", tuple(emoji_packages.SETS)),
      ("groups", emoji.GROUPS),
    ):
      chosen = getattr(self, key)
      wrong = [name for name in chosen if name not in known]
      if wrong or not chosen or isinstance(chosen, str):
        raise ValueError(
          f"data.world.{key}={chosen!r}: some of {', '.join(known)}"
        )
    if self.views < 1 or self.size < 8 or self.validation < 1:
      raise ValueError(
        f"data.world: views={self.views}, size={self.size}, validation="
        f"{self.validation}: at least 1 view, 8 pixels, 1 picture"
      )
    if not 0 <= self.grounds <= 1:
      raise ValueError(f"data.world.grounds={self.grounds} must be in [0, 1]")


def build(
  directory: str | os.PathLike[str], world: World, packages: str = ""
) -> pathlib.Path:
  """Makes the data set, or finds it made already.

  See `shapes_builder.build`; nothing is looked for in `packages`, and nothing
  downloaded, where the data set is there.

  Args:
    directory: where it shall be, on a local file system.
    world: what it holds.
    packages: a folder with the sets' packages; empty: npm downloads them.

  Returns:
    The directory.

  Raises:
    ValueError: the directory holds something else; a package is missing; or
      resvg_py is.
  """
  options = dataclasses.asdict(world)
  recipe = {"version": VERSION, "kind": "emoji", **options}
  recipe = json.loads(json.dumps(recipe))

  def write(folder: pathlib.Path) -> None:
    _write(folder, world, packages)

  return shapes_builder.write_once(directory, recipe, write)


def _write(folder: pathlib.Path, world: World, packages: str) -> None:
  """All files of the data set."""
  draw = drawer(world.size)
  wanted = [emoji_packages.SETS[name] for name in world.sets]
  wanted.append(emoji_packages.NAMES)
  *found, listing = emoji_packages.read(wanted, packages)
  names = emoji_packages.names(listing)
  pictures = {
    picture: draw(svg)
    for style, files in zip(world.sets, found, strict=True)
    for picture, svg in emoji_packages.drawings(
      style, files, names, world.groups, world.tones
    )
  }
  splits = emoji.split(pictures, world.validation)
  shapes_builder.write_splits(
    folder,
    shapes_builder.features(world.size),
    VERSION,
    {
      split: _records(world, pictures, known, split)
      for split, known in splits._asdict().items()
      if known
    },
    name="emoji",
    description="Emoji of several sets; see ATTRIBUTION.md.",
  )
  (folder / ATTRIBUTION).write_text(emoji_packages.attribution(wanted))
  (folder / LICENCES).mkdir()
  texts = emoji_packages.licences(wanted, [*found, listing])
  for name, text in texts.items():
    (folder / LICENCES / name).write_bytes(text)


def sizes(directory: str | os.PathLike[str]) -> dict[str, int]:
  """Records of each split of a data set that has any."""
  info = tfds.builder_from_directory(os.fspath(directory)).info
  return {name: split.num_examples for name, split in info.splits.items()}


def drawer(size: int) -> Callable[[str], Drawing]:
  """Draws an SVG at `size` pixels, with transparency.

  Raises:
    ValueError: resvg_py is not installed.
  """
  try:
    import resvg_py  # the extra "emoji"
  except ImportError as error:
    raise ValueError(
      "the emoji world is drawn by resvg: pip install 'unifluid_jax[emoji]'"
    ) from error

  def draw(svg: str) -> Drawing:
    data = resvg_py.svg_to_bytes(
      svg_string=svg, width=size, height=size, skip_system_fonts=True
    )
    return decode_drawing(bytes(data))

  return draw


def laid_over(
  drawing: Drawing, ground: tuple[int, int, int] = WHITE
) -> UInt8[np.ndarray, "S S 3"]:
  """A drawing over a plain ground."""
  alpha = drawing[..., 3:].astype(np.float32) / 255
  over = drawing[..., :3] * alpha + np.float32(ground) * (1 - alpha)
  return np.round(over).astype(np.uint8)


def record(
  world: World,
  pictures: dict[Picture, Drawing],
  known: Sequence[Picture],
  picture: Picture,
  split: str,
  view: int,
) -> dict[str, Any]:
  """One example, as `shapes_builder.features` describe it.

  Edits of the training split lead to pictures that are trained on; those of
  the others to any, so that held-out pictures are made by edits as well.

  Args:
    world: what the data set holds.
    pictures: all drawings.
    known: the pictures of its split, among which edits lead in training.
    picture: what the record shows.
    split: "train", "validation" or "held_out".
    view: which of its records this is.
  """
  rng = emoji.rng_of(world.seed, split, view, *picture)
  train = split == "train"
  name, ground = _ground(world, picture, view, rng) if train else ("", WHITE)

  def png(which: Picture) -> io.BytesIO:
    return shapes_builder.png(laid_over(pictures[which], ground))

  others = known if train else list(pictures)
  asked = emoji.questions(picture, list(pictures), split, rng)
  return {
    "id": "/".join([split, *filter(None, picture), str(view)]),
    "image": png(picture),
    "prompts": emoji.prompts(picture, split, name),
    "captions": [emoji.caption(picture)],
    "questions": [question._asdict() for question in asked],
    "edit": _edit(picture, others, split, view, rng, png),
    "scene": emoji.picture_to_json(picture),
  }


def _edit(
  picture: Picture,
  others: Sequence[Picture],
  split: str,
  view: int,
  rng: np.random.Generator,
  png: Callable[[Picture], io.BytesIO],
) -> dict[str, Any]:
  """An edit of the picture, another one in each view; blank where none is."""
  targets = emoji.edits(picture, others)
  if not targets:
    return {"instruction": "", "target": png(picture), "scene": ""}
  first = int(emoji.chance("edit", *picture) * len(targets))
  target = targets[(first + view) % len(targets)]
  instruction = emoji.edit(picture, target, split, rng).instruction
  scene = emoji.picture_to_json(target)
  return {"instruction": instruction, "target": png(target), "scene": scene}


def _ground(
  world: World, picture: Picture, view: int, rng: np.random.Generator
) -> tuple[str, tuple[int, int, int]]:
  """Name and colour of a training record's ground; white has no name.

  Of a picture's views the share `grounds` has another one than white, as
  nearly as their number allows.
  """
  place = emoji.chance("ground", *picture) + view * world.grounds
  if int(place + world.grounds) == int(place):
    return "", WHITE
  names = list(GROUNDS)
  name = names[int(rng.integers(len(names)))]
  return name, GROUNDS[name]


def _records(
  world: World,
  pictures: dict[Picture, Drawing],
  known: Sequence[Picture],
  split: str,
) -> Iterator[dict[str, Any]]:
  """All of a split, view after view."""
  for view in range(world.views if split == "train" else 1):
    for picture in known:
      yield record(world, pictures, known, picture, split, view)
