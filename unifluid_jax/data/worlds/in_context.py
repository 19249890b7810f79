"""Dialogues of scenes whose rule has to be read off two examples.

Liquid (arXiv 2412.04332) §4.4 and Figure 9: two pairs of image and text, then
an image whose text is to be found; here also two of text and image, then a
text to be drawn. All words are those of `shapes_text`.
"""

import itertools
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from unifluid_jax.data.images import encode_image
from unifluid_jax.data.records import Turn
from unifluid_jax.data.worlds import shapes, shapes_builder
from unifluid_jax.data.worlds.shapes import Scene
from unifluid_jax.data.worlds.wordings import NUMBERS

VERSION = "1.0.0"
SUFFIX = "_in_context"  # of the data set's folder, after the world's

TELL, DRAW = "tell", "draw"
RULES = ("colour", "shape", "number")
_PAIRS = 3  # two examples, and what is asked for
_STREAM = 1  # of random numbers, beside those of scenes

Thing = tuple[str, str, int]  # colour, shape, number of identical objects


class Episode(NamedTuple):
  """Three scenes of a rule, the last of which is asked for.

  kind "tell": texts name one attribute of the scenes, the rule; the scenes
    differ from one another in every attribute.
  kind "draw": texts name one attribute; the scenes share the others, and
    these are the rule.
  """

  kind: str  # TELL or DRAW
  named: str  # the attribute in the texts, one of RULES
  scenes: tuple[Scene, ...]

  @property
  def words(self) -> tuple[str, ...]:
    """The text of each scene, all different."""
    index = RULES.index(self.named)
    values = [thing_of(scene)[index] for scene in self.scenes]
    return tuple(NUMBERS[v] if isinstance(v, int) else v for v in values)

  def pairs(self, world: shapes.World) -> list[tuple[Turn, Turn]]:
    """What is given and what is to be found, of each scene; as pixels."""
    made = []
    for scene, word in zip(self.scenes, self.words, strict=True):
      image, text = Turn(image=shapes.draw(world, scene)), Turn(word)
      given, found = (image, text) if self.kind == TELL else (text, image)
      made.append((given._replace(target=False), found))
    return made


def thing_of(scene: Scene) -> Thing:
  """The attributes of a scene of identical objects, in the order of RULES."""
  first = scene.items[0]
  return first.colour, first.shape, len(scene.items)


def sample_episode(
  world: shapes.World,
  rng: np.random.Generator,
  kind: str,
  named: str,
  split: str = "train",
) -> Episode:
  """Scenes of one to four identical objects.

  Args:
    world: what may occur.
    rng: source of all randomness.
    kind: TELL or DRAW.
    named: one of RULES.
    split: "held_out": the pair that is asked for is one that training never
      shows; then DRAW with "number" shows it in the examples too.

  Raises:
    ValueError: a world without three such scenes.
  """
  pair = _pick(rng, world.pairs(split))
  asked = (*pair, int(rng.integers(1, shapes.MAX_COUNT + 1)))
  examples = (_unlike if kind == TELL else _alike)(world, rng, asked, named)
  scenes = tuple(_scene(world, rng, t) for t in (*examples, asked))
  return Episode(kind, named, scenes)


def _unlike(
  world: shapes.World, rng: np.random.Generator, asked: Thing, named: str
) -> list[Thing]:
  """Two things that share no attribute with each other and with `asked`."""
  del named
  taken = (asked[:2],)
  for _ in range(_PAIRS - 1):
    taken = (*taken, shapes.other_pair(world, rng, taken))
  numbers = [n for n in range(1, shapes.MAX_COUNT + 1) if n != asked[2]]
  order = rng.permutation(len(numbers))
  return [
    (*pair, numbers[k]) for pair, k in zip(taken[1:], order, strict=False)
  ]


def _alike(
  world: shapes.World, rng: np.random.Generator, asked: Thing, named: str
) -> list[Thing]:
  """Two things that differ from `asked` in the named attribute alone."""
  colour, shape, number = asked
  options: list[Thing] = [
    (c, s, number)
    for c, s in world.pairs("train")
    if (s == shape and c != colour if named == "colour"
        else c == colour and s != shape)
  ]  # fmt: skip
  if named == "number":
    every = range(1, shapes.MAX_COUNT + 1)
    options = [(colour, shape, n) for n in every if n != number]
  if len(options) < _PAIRS - 1:
    raise ValueError(
      f"World has no {_PAIRS} scenes that differ in their {named} alone: give "
      "it more colours and shapes, or hold out fewer pairs"
    )
  order = rng.permutation(len(options))
  return [options[k] for k in order[: _PAIRS - 1]]


def _scene(
  world: shapes.World, rng: np.random.Generator, thing: Thing
) -> Scene:
  colour, shape, number = thing
  texture = _pick(rng, world.textures)
  pairs = ((colour, shape),) * number
  return shapes.arrange(world, rng, pairs, False, texture)


def _pick(rng: np.random.Generator, options: Any) -> Any:
  return options[int(rng.integers(len(options)))]


# ---------------------------------------------------------------- as a data set


def build(
  directory: str | os.PathLike[str],
  world: shapes.World,
  size: int,
  seed: int = 0,
) -> pathlib.Path:
  """Makes a data set of training dialogues, or finds it made already.

  See `shapes_builder.build`. Record i depends on world, seed and i alone.
  """
  recipe = shapes_builder.recipe(VERSION, world, {"train": size}, seed)
  records = (record(world, seed, i) for i in range(size))

  def write(folder: pathlib.Path) -> None:
    shapes_builder.write_splits(
      folder, features(world.canvas), VERSION, {"train": records}
    )

  return shapes_builder.write_once(directory, recipe, write)


def features(canvas: int) -> tfds.features.FeaturesDict:
  """What a record holds: a turn's text or its PNG, the other one is empty.

  `image` is the first of them, which tokenizers of images train on.
  """
  f = tfds.features
  image = f.Image(shape=(canvas, canvas, 3), encoding_format="png")
  # Bytes as they are: an Image feature cannot be empty.
  turn = {"text": f.Text(), "image": f.Text(), "target": f.Scalar(np.bool_)}
  return f.FeaturesDict(
    {"id": f.Text(), "image": image, "dialogue": f.Sequence(turn)}
  )


def record(world: shapes.World, seed: int, index: int) -> dict[str, Any]:
  """One example, as the features describe it; kinds and rules in turn."""
  rng = np.random.default_rng([seed, 0, index, _STREAM])
  kind = (TELL, DRAW)[index % 2]
  named = RULES[index // 2 % len(RULES)]
  episode = sample_episode(world, rng, kind, named)
  turns = list(itertools.chain(*episode.pairs(world)))
  files = [
    b"" if t.image is None else encode_image(t.image, compress_level=1)
    for t in turns
  ]
  return {
    "id": f"{kind}-{named}-{index:06d}",
    "image": shapes_builder.png(next(t.image for t in turns if not t.text)),
    "dialogue": [
      {"text": t.text, "image": file, "target": t.target}
      for t, file in zip(turns, files, strict=True)
    ],
  }
