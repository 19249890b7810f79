"""Conversations about scenes: drawn when asked for, described, changed.

What VARGPT (arXiv 2501.12327 §4) teaches, in the words of `shapes_text` and
`wordings` alone, so that a tokenizer of the scenes knows all of them. Requests
have wordings that training never shows. Written as ShareGPT's JSON.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unifluid_jax.data import conversation
from unifluid_jax.data.conversation import Message
from unifluid_jax.data.images import encode_image
from unifluid_jax.data.instructions import templates, written
from unifluid_jax.data.instructions.templates import Pools, Templates
from unifluid_jax.data.worlds import (
  shapes,
  shapes_builder,
  shapes_text,
  wordings,
)
from unifluid_jax.data.worlds.shapes import Scene

VERSION = "1.1.0"
SUFFIX = "_dialogues"  # of the data set's folder, after the world's
FILE = "train.json"  # in that folder

DRAW, DESCRIBE, ASK, EDIT = "draw", "describe", "ask", "edit"
KINDS = (DRAW, DESCRIBE, ASK, EDIT)
DRAWN = (DRAW, EDIT)  # those that an image answers
# What conversations ask for, one after the other; of these in turn. Nine of
# seventeen answers draw, and none of them has more than two images. Each kind
# follows a drawing: that one was made must not tell what is due next.
SEQUENCES = (
  (DRAW,), (DESCRIBE,), (ASK,), (EDIT,),
  (DRAW, ASK), (ASK, EDIT), (DESCRIBE, DRAW), (DRAW, DESCRIBE, ASK),
  (ASK, DRAW), (DRAW, EDIT),
)  # fmt: skip

_STREAM = 2  # of random numbers, beside those of scenes and episodes
_PLAIN_SHARE = 0.5  # of drawings announced without a word of what they show
_PLAIN = ("here it is", "here is the picture", "here is the image")
_POOLS = Pools(
  prompts=(
    "[|please ][draw|paint|show me] {caption}",
    "[|please ][draw|paint|show me] [a picture|an image|a photo] of {caption}",
    "can you [draw|paint|show me] {caption}",
    "can you [draw|paint|show me] [a picture|an image|a photo] of {caption}",
  ),
  captions=(),
  answers=("here is {caption}", "[here |]you see {caption}"),
)
# Of 36 requests seven are held out.
WORDINGS: Templates = templates.choose(_POOLS, held_out=0.2)


class Exchange(NamedTuple):
  """What the user says, and what is to be answered."""

  kind: str  # one of KINDS
  asked: str
  said: str  # the answer; of drawings what announces them
  scene: Scene  # after the answer
  shown: Scene | None = None  # an image in the user's message
  form: str = ""  # the kind of a question, see `shapes_text.Question.kind`

  @property
  def draws(self) -> bool:
    """Whether an image is to be drawn."""
    return self.kind in DRAWN


def exchange(
  world: shapes.World,
  rng: np.random.Generator,
  kind: str,
  before: Scene | None = None,
  split: str = "train",
) -> Exchange:
  """A request or question, and its answer.

  Args:
    world: what may occur.
    rng: source of all randomness.
    kind: one of KINDS.
    before: the scene spoken of so far; without one the user shows one, unless
      a drawing is asked for.
    split: that scenes are of; words of "train" are reworded at random, of
      others plain, see `wordings`.
  """
  if kind == DRAW:
    scene = shapes.sample_scene(world, rng, split)
    text = shapes_text.prompt(scene, rng)
    asked = request(text, rng)
    return Exchange(kind, asked, _announced(text, rng), scene)
  shown = None
  if before is None:
    before = shown = shapes.sample_scene(world, rng, split)
  if kind == EDIT:
    edit = shapes_text.edit(world, before, rng)
    asked = _worded(edit.form, edit.slots, rng, split)
    return Exchange(kind, asked, _pick(_PLAIN, rng), edit.target, shown)
  question = shapes_text.description(before)
  if kind == ASK:
    question = _pick(shapes_text.questions(world, before, rng, split), rng)
  asked = _worded(question.form, question.slots, rng, split)
  return Exchange(kind, asked, question.answer, before, shown, question.kind)


def request(text: str, rng: np.random.Generator, unseen: bool = False) -> str:
  """A text as somebody asks for its image.

  Args:
    text: of `shapes_text.prompt`, or of a GenEval task.
    rng: chooses the wording.
    unseen: in words that no training shows.
  """
  options = WORDINGS.held_out if unseen else WORDINGS.prompts
  return _pick(options, rng).replace(templates.CAPTION, text)


def sample(
  world: shapes.World,
  rng: np.random.Generator,
  kinds: Sequence[str],
  split: str = "train",
) -> list[Exchange]:
  """A conversation of these kinds, of one scene as long as none is drawn."""
  found: list[Exchange] = []
  for kind in kinds:
    before = found[-1].scene if found else None
    found.append(exchange(world, rng, kind, before, split))
  return found


def messages(
  exchanges: Sequence[Exchange],
) -> tuple[list[Message], list[Scene]]:
  """The messages of a conversation, and the scenes of its placeholders."""
  made, scenes = [], []
  for e in exchanges:
    asked, said = e.asked, e.said
    if e.shown is not None:
      asked = f"{conversation.SEEN} {asked}"
      scenes.append(e.shown)
    if e.draws:
      said = f"{said} {conversation.DRAWN}"
      scenes.append(e.scene)
    made += [
      Message(conversation.USER, asked),
      Message(conversation.ASSISTANT, said),
    ]
  return made, scenes


def _worded(form: str, slots: Any, rng: np.random.Generator, split: str) -> str:
  """A question or instruction, reworded in training."""
  if split == "train":
    return wordings.reworded(form, slots, rng)
  return wordings.plain(form, slots)


def _announced(text: str, rng: np.random.Generator) -> str:
  """What the model says before it draws."""
  if rng.random() < _PLAIN_SHARE:
    return _pick(_PLAIN, rng)
  return _pick(WORDINGS.answers, rng).replace(templates.CAPTION, text)


def _pick(options: Sequence[Any], rng: np.random.Generator) -> Any:
  return options[int(rng.integers(len(options)))]


# ---------------------------------------------------------------- as a data set


def build(
  directory: str | os.PathLike[str],
  world: shapes.World,
  size: int,
  seed: int = 0,
) -> pathlib.Path:
  """Makes conversations to train on, or finds them made already.

  See `shapes_builder.build`. Conversation i depends on world, seed and i alone.
  """
  recipe = shapes_builder.recipe(VERSION, world, {"train": size}, seed)

  def write(folder: pathlib.Path) -> None:
    with written.list_file(folder / FILE) as entries:
      for entry in _entries(folder, world, size, seed):
        entries.add(entry)

  return shapes_builder.write_once(directory, recipe, write)


def record(
  world: shapes.World, seed: int, index: int
) -> tuple[list[Message], list[Scene]]:
  """A conversation of the data set."""
  rng = np.random.default_rng([seed, 0, index, _STREAM])
  return messages(sample(world, rng, SEQUENCES[index % len(SEQUENCES)]))


def _entries(
  folder: pathlib.Path, world: shapes.World, size: int, seed: int
) -> Iterator[dict[str, Any]]:
  """All conversations as JSON; their images are written on the way."""
  number = 0
  for i in range(size):
    said, scenes = record(world, seed, i)
    names = []
    for scene in scenes:
      data = encode_image(shapes.draw(world, scene), compress_level=1)
      names.append(written.write_image(folder, number, data))
      number += 1
    yield written.entry(said, names)
