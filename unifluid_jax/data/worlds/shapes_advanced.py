"""Prompts that ask for more than GenEval's: compare, differ, negate, all.

The kinds are the advanced skills of GenAI-Bench (arXiv 2406.13743, §3), but
for counting, which GenEval has: comparison of numbers, telling objects of one
category apart, absence, and what holds of every member of a group.

Differs: GenAI-Bench's prompts say "more", "not" and "every". These use the
words of the training language alone, in compositions that training never
shows: two numbers in one prompt, two objects of one shape, a thing that is not
there, and several objects with one that is different.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from unifluid_jax.data.worlds import shapes
from unifluid_jax.data.worlds.shapes import World
from unifluid_jax.data.worlds.shapes_text import RELATIONS, article, plural
from unifluid_jax.data.worlds.wordings import NUMBERS


class Condition(NamedTuple):
  """How many objects of a kind there must be, from `low` to `high`."""

  low: int
  high: int | None = None  # None: any more as well
  shape: str = ""  # empty: any
  colour: str = ""  # empty: any
  other: bool = False  # of any colour but that one


class Advanced(NamedTuple):
  """A prompt, and what an image of it must fulfil, all of it."""

  kind: str  # of KINDS
  prompt: str
  conditions: tuple[Condition, ...]
  # (colour, relation, colour): the object of the first colour stands so to
  # the one of the second; both are of the first condition's shape.
  relation: tuple[str, str, str] | None = None


def prompts(
  world: World, kind: str, n: int, rng: np.random.Generator
) -> list[Advanced]:
  """Tasks of one kind.

  All distinct ones are shuffled; they repeat only when `n` exceeds their
  number. No held-out pair is asked for.

  Args:
    world: names shapes and colours.
    kind: one of KINDS.
    n: how many.
    rng: source of the order.

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in _TASKS:
    raise ValueError(f"kind={kind!r}: choose one of {', '.join(_TASKS)}")
  tasks = _TASKS[kind](world)
  order = rng.permutation(len(tasks))
  return [tasks[order[i % len(tasks)]] for i in range(n)]


def _compare(world: World) -> list[Advanced]:
  """So many of one shape and another number of a second: "two a and one b"."""
  numbers = [
    (n, m)
    for n, m in itertools.permutations(range(1, shapes.MAX_COUNT), 2)
    if n + m <= shapes.MAX_COUNT
  ]
  return [
    Advanced(
      "compare",
      f"{_several(n, a)} and {_several(m, b)}",
      (Condition(n, n, a), Condition(m, m, b)),
    )
    for a, b in itertools.permutations(world.shapes, 2)
    for n, m in numbers
  ]


def _differ(world: World) -> list[Advanced]:
  """Two objects of one shape, told apart by colour, some of them by place."""
  allowed = world.pairs("train")
  couples = [
    (shape, c, d)
    for shape in world.shapes
    for c, d in itertools.permutations(world.colours, 2)
    if (c, shape) in allowed and (d, shape) in allowed
  ]
  return [
    Advanced(
      "differ",
      f"{article(f'{c} {shape}')} {where} {article(f'{d} {shape}')}",
      (
        Condition(2, 2, shape),
        Condition(1, 1, shape, c),
        Condition(1, 1, shape, d),
      ),
      None if where == "and" else (c, where, d),
    )
    for shape, c, d in couples
    for where in ("and", *RELATIONS)
  ]


def _negate(world: World) -> list[Advanced]:
  """A thing, and a shape that must not be there."""
  return [
    Advanced(
      "negate",
      f"{article(f'{colour} {shape}')} and no {absent}",
      (Condition(1, None, shape, colour), Condition(0, 0, absent)),
    )
    for colour, shape in world.pairs("train")
    for absent in world.shapes
    if absent != shape
  ]


def _universal(world: World) -> list[Advanced]:
  """All of a group in one colour, beside one of another shape and colour."""
  allowed = world.pairs("train")
  return [
    Advanced(
      "universal",
      f"the {plural(shape)} are {colour} and the {other} is {different}",
      (
        Condition(2, None, shape, colour),
        Condition(0, 0, shape, colour, other=True),
        Condition(1, 1, other),
        Condition(1, 1, other, different),
      ),
    )
    for (colour, shape), (different, other) in itertools.product(
      allowed, allowed
    )
    if shape != other and colour != different
  ]


def _several(count: int, shape: str) -> str:
  """One circle, two circles."""
  return f"{NUMBERS[count]} {shape if count == 1 else plural(shape)}"


_TASKS: Mapping[str, Callable[[World], list[Advanced]]] = {
  "compare": _compare,
  "differ": _differ,
  "negate": _negate,
  "universal": _universal,
}
KINDS = tuple(_TASKS)
