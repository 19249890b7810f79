"""Texts with one right ending out of four: what words alone can teach.

A model that has read the captions and questions of the world, and seen no
image, knows that two objects differ in shape and in colour, which forms go
with which numbers, and what kind of answer a question has.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from unifluid_jax.data.worlds import shapes_text
from unifluid_jax.data.worlds.shapes import Scene, World
from unifluid_jax.data.worlds.wordings import NUMBERS

KINDS = ("caption", "answer")
OPTIONS = 4


class Choice(NamedTuple):
  """A beginning and four ways to go on, the first of which is right."""

  kind: str  # of KINDS
  question: str  # what is answered; empty: nothing is asked
  context: str  # how all four texts begin; empty, or ends with a space
  endings: tuple[str, ...]


def choices(
  world: World, scene: Scene, rng: np.random.Generator, split: str
) -> list[Choice]:
  """One choice of each kind.

  Args:
    world: of the scene.
    scene: whose caption and questions are the right ones.
    rng: source of all randomness.
    split: of the scene.
  """
  return [_caption(world, scene, rng), _answer(world, scene, rng, split)]


def _caption(world: World, scene: Scene, rng: np.random.Generator) -> Choice:
  """The caption against texts that break one rule of the world's scenes."""
  text, items = shapes_text.caption(scene), scene.items
  if len(items) == 2 and not scene.identical:
    first, last = items
    if not text.endswith(shapes_text.describe((last,))):
      first, last = last, first
    right = shapes_text.describe((last,))
    wrong = (
      shapes_text.describe((dataclasses.replace(last, colour=first.colour),)),
      shapes_text.describe((dataclasses.replace(last, shape=first.shape),)),
      shapes_text.describe((last, last)),
    )
  else:
    item = items[0]
    one, several = item.shape, shapes_text.plural(item.shape)
    right, other = (several, one) if len(items) > 1 else (one, several)
    others = [c for c in world.colours if c != item.colour]
    colour = others[int(rng.integers(len(others)))]
    # Groups stand alone, and nothing stands beside its like.
    beside = shapes_text.describe((item,))
    wrong = (other, f"{colour} {right}", f"{right} left of {beside}")
  return Choice("caption", "", text.removesuffix(right), (right, *wrong))


def _answer(
  world: World, scene: Scene, rng: np.random.Generator, split: str
) -> Choice:
  """The answer to a question against answers to the other kinds of question."""
  options = {
    "count": NUMBERS,
    "colour": world.colours,
    "relation": tuple(w.removesuffix(" of") for w in shapes_text.RELATIONS),
    "yes/no": ("yes", "no"),
  }
  asked = shapes_text.questions(world, scene, rng, split)
  kinds = sorted({q.kind for q in asked})
  kind = kinds[int(rng.integers(len(kinds)))]
  of_kind = [q for q in asked if q.kind == kind]
  q = of_kind[int(rng.integers(len(of_kind)))]
  wrong = (
    words[int(rng.integers(len(words)))]
    for other, words in options.items()
    if other != kind
  )
  return Choice("answer", q.question, "", (q.answer, *wrong))
