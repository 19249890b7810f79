"""Sentences about scenes: prompts, captions, questions, edits, GenEval tasks.

The prompt forms are GenEval's without the leading "a photo of" (GenEval
prompts/create_prompts.py). All texts are in their plain form here, the one
that evaluation uses; `wordings` knows the others.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from unifluid_jax.data.worlds import shapes, wordings
from unifluid_jax.data.worlds.shapes import Item, Scene, World
from unifluid_jax.data.worlds.wordings import NUMBERS

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {
  "left of": "right of",
  "right of": "left of",
  "above": "below",
  "below": "above",
}
KINDS = ("count", "colour", "relation", "yes/no")
TAGS = (
  "single_object",
  "two_object",
  "counting",
  "colors",
  "position",
  "color_attr",
)
_PLURALS = {"cross": "crosses"}
_COLOUR_SHARE = 0.7  # of prompts that name colours
_RELATION_SHARE = 0.6  # of prompts for two objects that name the relation


class Question(NamedTuple):
  """A question about a scene; `kind` is one of KINDS, or "description"."""

  form: str  # of wordings.QUESTIONS
  slots: Mapping[str, str]  # what its templates name
  answer: str
  kind: str

  @property
  def question(self) -> str:
    """Its plain wording."""
    return wordings.plain(self.form, self.slots)


class Edit(NamedTuple):
  """An instruction and the scene it leads to."""

  form: str  # of wordings.INSTRUCTIONS
  slots: Mapping[str, str]
  target: Scene

  @property
  def instruction(self) -> str:
    """Its plain wording."""
    return wordings.plain(self.form, self.slots)


def plural(shape: str) -> str:
  """The shape's plural."""
  return _PLURALS.get(shape, shape + "s")


def article(words: str) -> str:
  """The words with "a" or "an" before them."""
  return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(
  items: tuple[Item, ...], colour: bool = True, relation: bool = True
) -> str:
  """One, two different, or several identical objects in words.

  Args:
    items: the objects in the order they are named.
    colour: whether colours (and textures) are named.
    relation: whether two objects are joined by their relation, not "and".
  """
  first = items[0]
  if len({item.pair for item in items}) == 1:
    if len(items) == 1:
      return article(_noun(first, colour))
    words = _noun(first, colour).rsplit(first.shape, 1)[0]
    return f"{NUMBERS[len(items)]} {words}{plural(first.shape)}"
  a, b = items
  where = shapes.relation(a, b) if relation else None
  left, right = (article(_noun(i, colour)) for i in (a, b))
  return f"{left} {where or 'and'} {right}"


def _noun(item: Item, colour: bool) -> str:
  """The object without article: "circle", "red circle"."""
  if not colour:
    return item.shape
  texture = "" if item.texture == "solid" else item.texture + " "
  return f"{texture}{item.colour} {item.shape}"


def prompt(scene: Scene, rng: np.random.Generator) -> str:
  """A text that the scene illustrates; says more or less of it at random."""
  items = scene.items
  if rng.random() < 0.5:
    items = items[::-1]
  return describe(
    items,
    colour=bool(rng.random() < _COLOUR_SHARE),
    relation=bool(rng.random() < _RELATION_SHARE),
  )


def caption(scene: Scene) -> str:
  """The scene's one canonical caption: every colour, count and relation.

  Two objects are named from left to right, or from top to bottom.
  """
  items = scene.items
  if len(items) == 2 and not scene.identical:
    if shapes.relation(*items) in ("right of", "below"):
      items = items[::-1]
  return describe(items)


def questions(
  world: World, scene: Scene, rng: np.random.Generator, split: str
) -> list[Question]:
  """Questions of every kind that applies to the scene, with their answers.

  Yes/no questions come in pairs of one form, one of each answer; the "no"
  differs from the truth in a single word. Outside the held-out split no
  question names a held-out pair.
  """
  return [
    *_counts(world, scene, rng),
    *_colours(scene),
    *_relations(scene),
    *_existence(world, scene, rng, split),
    *_yes_no_number(scene, rng),
    *_yes_no_relation(scene, rng),
  ]


def description(scene: Scene) -> Question:
  """The question what there is to see; its answer is the caption."""
  return Question("description", {}, caption(scene), "description")


def _counts(world: World, scene: Scene, rng) -> list[Question]:
  """The number of all objects and of one shape, in a quarter an absent one."""
  present = [item.shape for item in scene.items]
  absent = [shape for shape in world.shapes if shape not in present]
  options = absent if absent and rng.random() < 0.25 else present
  shape = options[int(rng.integers(len(options)))]
  total, some = NUMBERS[len(present)], NUMBERS[present.count(shape)]
  return [
    Question("count_all", {}, total, "count"),
    Question("count", {"shapes": plural(shape)}, some, "count"),
  ]


def _colours(scene: Scene) -> list[Question]:
  """The colour of every object, or of all if they are alike."""
  if scene.identical:
    item = scene.items[0]
    slots = {"shapes": plural(item.shape)}
    return [Question("colours", slots, item.colour, "colour")]
  return [
    Question("colour", {"shape": i.shape}, i.colour, "colour")
    for i in scene.items
  ]


def _relations(scene: Scene) -> list[Question]:
  """Where each of two objects is, seen from the other."""
  if len(scene.items) != 2 or scene.identical:
    return []
  a, b = scene.items
  return [
    Question(
      "relation",
      {"a": i.shape, "b": j.shape},
      (shapes.relation(i, j) or "").removesuffix(" of"),
      "relation",
    )
    for i, j in ((a, b), (b, a))
  ]


def _existence(world: World, scene: Scene, rng, split) -> list[Question]:
  """Whether an object of a shape and colour is there.

  Half of the "no" questions about two objects give one the other's colour.
  """
  present = {item.pair for item in scene.items}
  allowed = set(world.pairs("train"))
  if split == "held_out":
    held = set(world.pairs("held_out"))
    allowed |= held
  yes = sorted(present & held if split == "held_out" else present)
  colour, shape = yes[int(rng.integers(len(yes)))]
  near = [(c, shape) for c in world.colours] + [
    (colour, s) for s in world.shapes
  ]
  wrong = [p for p in near if p in allowed and p not in present]
  swapped = [p for p in wrong if p[1] == shape
             and p[0] in {c for c, _ in present}]  # fmt: skip
  if swapped and rng.random() < 0.5:
    wrong = swapped
  no = wrong[int(rng.integers(len(wrong)))]
  return [
    Question("exists", {"thing": article(" ".join(pair))}, reply, "yes/no")
    for pair, reply in (((colour, shape), "yes"), (no, "no"))
  ]


def _yes_no_number(scene: Scene, rng) -> list[Question]:
  """Whether there are exactly so many of several identical objects."""
  if not scene.identical:
    return []
  n = len(scene.items)
  wrong = [k for k in range(2, shapes.MAX_COUNT + 1) if k != n]
  m = wrong[int(rng.integers(len(wrong)))]
  name = plural(scene.items[0].shape)
  return [
    Question("number", {"n": NUMBERS[k], "shapes": name}, reply, "yes/no")
    for k, reply in ((n, "yes"), (m, "no"))
  ]


def _yes_no_relation(scene: Scene, rng) -> list[Question]:
  """Whether one object stands at the named side of the other."""
  if len(scene.items) != 2 or scene.identical:
    return []
  a, b = scene.items if rng.random() < 0.5 else scene.items[::-1]
  where = shapes.relation(a, b) or ""
  slots = {"a": a.shape, "b": b.shape}
  return [
    Question("side", {**slots, "where": side}, reply, "yes/no")
    for side, reply in ((where, "yes"), (OPPOSITE[where], "no"))
  ]


def edit(world: World, scene: Scene, rng: np.random.Generator) -> Edit:
  """Changes a colour, removes one of two objects, or adds to a single one.

  What the edit brings in is always an ordinary (colour, shape) pair.
  """
  if scene.identical or rng.random() < 0.5:
    return _recolour(world, scene, rng)
  if len(scene.items) == 2:
    k = int(rng.integers(2))
    gone, kept = scene.items[k], scene.items[1 - k]
    after = dataclasses.replace(scene, items=(kept,))
    return Edit("remove", {"noun": _noun(gone, True)}, after)
  (item,) = scene.items
  pair = shapes.other_pair(world, rng, (item.pair,))
  new = shapes.place(world, rng, (item,), pair, True, item.texture)
  if new is None:
    return _recolour(world, scene, rng)
  slots = {
    "thing": article(_noun(new, True)),
    "where": shapes.relation(new, item) or "",
    "noun": _noun(item, True),
  }
  return Edit("add", slots, dataclasses.replace(scene, items=(item, new)))


def _recolour(world: World, scene: Scene, rng) -> Edit:
  """One object, or all identical ones, in a colour the scene lacks."""
  alike = scene.identical
  k = int(rng.integers(len(scene.items)))
  item = scene.items[k]
  used = {i.colour for i in scene.items}
  options = [c for c, s in world.pairs("train")
             if s == item.shape and c not in used]  # fmt: skip
  colour = options[int(rng.integers(len(options)))]
  items = tuple(
    dataclasses.replace(i, colour=colour) if alike or i is item else i
    for i in scene.items
  )
  noun = _noun(item, True)
  if alike:
    noun = noun.removesuffix(item.shape) + plural(item.shape)
  after = dataclasses.replace(scene, items=items)
  return Edit("recolour", {"noun": noun, "colour": colour}, after)


def geneval_prompts(
  world: World,
  tag: str,
  n: int,
  rng: np.random.Generator,
  pairs: str = "seen",
) -> list[dict[str, Any]]:
  """Tasks in the form of GenEval's evaluation_metadata.jsonl.

  All distinct tasks of the tag are shuffled; they repeat only when `n`
  exceeds their number.

  Args:
    world: names shapes and colours.
    tag: one of TAGS.
    n: how many.
    rng: source of the order.
    pairs: "seen"; "held_out" asks for pairs that training never shows (in
      "color_attr" for one of the two objects); only for tags with colours.

  Returns:
    dicts with keys tag, include, prompt and, for counting, exclude.

  Raises:
    ValueError: an unknown tag or choice of pairs, or held-out pairs of a tag
      without colours.
  """
  if tag not in TAGS:
    raise ValueError(f"tag={tag!r}: choose one of {', '.join(TAGS)}")
  if pairs not in ("seen", "held_out"):
    raise ValueError(f"pairs={pairs!r}: choose 'seen' or 'held_out'")
  if pairs == "held_out" and tag not in ("colors", "color_attr"):
    raise ValueError(f"tag {tag!r} names no colours: use pairs='seen'")
  tasks = geneval_tasks(world, tag, pairs)
  order = rng.permutation(len(tasks))
  return [tasks[order[i % len(tasks)]] for i in range(n)]


def geneval_tasks(world: World, tag: str, pairs: str) -> list[dict[str, Any]]:
  """Every distinct task of a tag."""
  if tag == "single_object":
    return [_task(tag, article(s), [_clause(s)]) for s in world.shapes]
  if tag == "counting":
    return [
      _task(tag, f"{NUMBERS[k]} {plural(s)}", [_clause(s, k)],
            exclude=[_clause(s, k + 1)])
      for s in world.shapes for k in range(2, shapes.MAX_COUNT + 1)
    ]  # fmt: skip
  if tag == "colors":
    split = "held_out" if pairs == "held_out" else "train"
    return [
      _task(tag, article(f"{c} {s}"), [_clause(s, color=c)])
      for c, s in world.pairs(split)
    ]
  two = list(itertools.permutations(world.shapes, 2))
  if tag == "two_object":
    return [
      _task(tag, f"{article(a)} and {article(b)}", [_clause(a), _clause(b)])
      for a, b in two
    ]
  if tag == "position":
    # The prompt names the placed object first, `include` its reference.
    return [
      _task(tag, f"{article(a)} {where} {article(b)}",
            [_clause(b), _clause(a, position=[where, 0])])
      for a, b in two for where in RELATIONS
    ]  # fmt: skip
  return [
    _task(tag, f"{article(' '.join(p))} and {article(' '.join(q))}",
          [_clause(p[1], color=p[0]), _clause(q[1], color=q[0])])
    for p, q in _attribute_pairs(world, pairs)
  ]  # fmt: skip


def _attribute_pairs(
  world: World, pairs: str
) -> list[tuple[tuple[str, str], tuple[str, str]]]:
  """Ordered couples of (colour, shape) that share neither."""
  seen = world.pairs("train")
  couples = list(itertools.product(seen, seen))
  if pairs == "held_out":
    held = world.pairs("held_out")
    couples = [*itertools.product(held, seen), *itertools.product(seen, held)]
  return [(p, q) for p, q in couples if p[0] != q[0] and p[1] != q[1]]


def _clause(shape: str, count: int = 1, **more: Any) -> dict[str, Any]:
  """One entry of include or exclude."""
  return {"class": shape, "count": count, **more}


def _task(tag: str, text: str, include: list, **more: Any) -> dict[str, Any]:
  """One line of the metadata file."""
  return {"tag": tag, "include": include, **more, "prompt": text}
