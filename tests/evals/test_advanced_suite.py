"""Compare, differ, negate, universal: right scenes pass, near misses fail."""

import dataclasses
import re

import numpy as np
import pytest

from tests.systems.conftest import tiny
from unifluid_jax.data.records import Record
from unifluid_jax.data.worlds import (
  shapes,
  shapes_advanced,
  shapes_builder,
  shapes_text,
)
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.metrics.geneval import Detection
from unifluid_jax.evals.worlds import advanced_suite, shapes_detector

WORLD = shapes.World()
DETECTOR = shapes_detector.ShapesDetector(WORLD)
PLACES = [(8.0, 8.0), (24.0, 8.0), (8.0, 24.0), (24.0, 24.0)]
COUNTS = {"one": 1, "two": 2, "three": 3}
SIDES = {
  "left of": ((8, 8), (24, 8)), "right of": ((24, 8), (8, 8)),
  "above": ((8, 8), (8, 24)), "below": ((8, 24), (8, 8)),
  "and": ((8, 8), (24, 24)),
}  # fmt: skip
KINDS = ("compare", "differ", "negate", "universal")


def singular(word):
  return {"crosses": "cross"}.get(word, word.removesuffix("s")
                                  if word != "cross" else word)  # fmt: skip


def drawn(*objects):
  """An image of (shape, colour[, place]) objects."""
  items = tuple(
    shapes.Item(o[0], o[1], *map(float, o[2] if len(o) > 2 else PLACES[i]), 6.0)
    for i, o in enumerate(objects)
  )
  return shapes.draw(WORLD, shapes.Scene("light", items))


def right_and_wrong(prompt):
  """What the words of a prompt mean, and scenes that miss it by one thing.

  Reads the prompt alone, not the conditions.
  """
  if m := re.fullmatch(r"(\w+) (\w+) and (\w+) (\w+)", prompt):
    n, a, m_, b = m[1], singular(m[2]), m[3], singular(m[4])
    n, m_ = COUNTS[n], COUNTS[m_]
    swapped = [(a, "red")] * m_ + [(b, "blue")] * n
    return [(a, "red")] * n + [(b, "blue")] * m_, [
      swapped, [(a, "red")] * n, [(b, "blue")] * m_,
      [(a, "red")] * (n - 1) + [(b, "blue")] * m_,
    ]  # fmt: skip
  if m := re.fullmatch(r"an? (\w+) (\w+) and no (\w+)", prompt):
    colour, shape, absent = m.groups()
    other = next(c for c in WORLD.colours if c != colour)
    return [(shape, colour)], [
      [(shape, colour), (absent, other)], [(absent, colour)],
      [(shape, other)], [],
    ]  # fmt: skip
  if m := re.fullmatch(r"the (\w+) are (\w+) and the (\w+) is (\w+)", prompt):
    shape, colour, other, different = m.groups()
    shape = singular(shape)
    beside = (other, different)
    third = next(c for c in WORLD.colours if c not in (colour, different))
    return [(shape, colour)] * 3 + [beside], [
      [(shape, colour)] * 2 + [(shape, third), beside],
      [(shape, colour)] * 2 + [(shape, different), beside],
      [(shape, colour), beside],
      [(shape, colour)] * 2,
      [(shape, colour)] * 2 + [(other, colour)],
      [(shape, colour)] * 2 + [beside] * 2,
      [(shape, colour)] * 2 + [beside, (other, third)],
    ]  # fmt: skip
  m = re.fullmatch(
    r"an? (\w+) (\w+) (and|left of|right of|above|below) an? (\w+) (\w+)",
    prompt,
  )
  first, shape, where, second, again = m.groups()
  assert shape == again and first != second
  here, there = SIDES[where]
  pair = [(shape, first, here), (shape, second, there)]
  different = next(s for s in WORLD.shapes if s != shape)
  third = next(c for c in WORLD.colours if c not in (first, second))
  wrong = [
    pair[:1],
    [(shape, first, here), (shape, first, there)],
    [(shape, first, here), (different, second, there)],
    [*pair, (shape, third, (24, 24) if where != "and" else (8, 24))],
  ]
  if where != "and":
    opposite = SIDES[shapes_text.OPPOSITE[where]]
    wrong.append([(shape, first, opposite[0]), (shape, second, opposite[1])])
  return pair, wrong


def tasks(kind, n=40):
  rng = np.random.default_rng(0)
  return shapes_advanced.prompts(WORLD, kind, n, rng)


@pytest.mark.parametrize("kind", KINDS)
def test_right_scenes_pass_and_near_misses_fail(kind):
  for task in tasks(kind):
    right, wrong = right_and_wrong(task.prompt)
    reason = advanced_suite.judge(task, DETECTOR.detect(drawn(*right)))
    assert reason == "", (task.prompt, reason)
    for scene in wrong:
      reason = advanced_suite.judge(task, DETECTOR.detect(drawn(*scene)))
      assert reason, (task.prompt, scene)
    assert advanced_suite.judge(task, [])


@pytest.mark.parametrize(
  ("kind", "distinct"),
  # shapes: 12 couples x 4 pairs of numbers; 7 colours each: 42 couples x 5;
  # 28 pairs x 3; 28 x 28 pairs that share neither, 43 per shape couple.
  [("compare", 48), ("differ", 840), ("negate", 84), ("universal", 516)],
)
def test_prompts_are_distinct_and_never_held_out(kind, distinct):
  found = tasks(kind, distinct)
  assert len({t.prompt for t in found}) == distinct
  assert {t.kind for t in found} == {kind}
  again = tasks(kind, distinct + 1)
  assert again[:-1] == found and again[-1] == found[0]
  for colour, shape in WORLD.held_out:
    if kind != "universal":
      assert not any(f"{colour} {shape}" in t.prompt for t in found)
    else:
      words = (f"{shapes_text.plural(shape)} are {colour}",
               f"{shape} is {colour}")  # fmt: skip
      assert not any(w in t.prompt for t in found for w in words)


def test_only_words_of_the_training_language():
  """The tokenizer's corpus, and with it every recorded number, stays."""
  known = set()
  for i in range(300):
    r = shapes_builder.record(WORLD, "train", 0, i)
    texts = [*r["prompts"], *r["captions"], r["edit"]["instruction"]]
    for q in r["questions"]:
      texts += [q["question"], q["answer"]]
    known |= set(re.findall(r"\w+", " ".join(texts).lower()))
  for kind in KINDS:
    for task in tasks(kind, 900):
      words = task.prompt.split()
      assert set(words) <= known
      assert len(words) < 13  # and BOS: configs/shapes.py has 14 slots


def test_thresholds_are_gene_vals():
  """Weak finds count as present, but not towards numbers."""
  box = (2.0, 2.0, 14.0, 14.0)
  compare, negate = (
    shapes_advanced.Advanced(
      kind, "", (shapes_advanced.Condition(0, 0, "circle"),)
    )
    for kind in ("compare", "negate")
  )
  for score, counts, present in ((0.95, 1, 1), (0.5, 0, 1), (0.2, 0, 0)):
    found = [Detection("circle", score, box, "red")]
    assert bool(advanced_suite.judge(compare, found)) == counts
    assert bool(advanced_suite.judge(negate, found)) == present


class Painter:
  """Draws what some of the prompts mean."""

  def __init__(self, knows):
    self.knows = knows

  def images(self, prompts, seeds):
    assert seeds == range(10**6, 10**6 + len(prompts))
    pairs = [right_and_wrong(p) for p in prompts]
    return np.stack([
      drawn(*(right if self.knows(p) else wrong[0]))
      for p, (right, wrong) in zip(prompts, pairs, strict=True)
    ])  # fmt: skip

  def answers(self, *_):
    raise AssertionError("nothing is read")

  edits = reconstruct = look = answers


def bench(**changes):
  made = Bench(tiny(eval__prompts_per_task=8, eval__seed=1, **changes), "")
  records = []
  for i in range(16):
    r = shapes_builder.record(WORLD, "validation", 0, i)
    records.append(Record(id=r["id"], image=r["image"].getvalue()))
  made.records = lambda split: records
  return made


def test_kinds_are_reported_apart_with_their_chance():
  out = advanced_suite.geneval_advanced(Painter(lambda p: True), bench())
  names = {f"geneval_advanced/{k}" for k in ("overall", *KINDS)}
  assert set(out.values) == set(out.floors) == names
  assert set(out.values.values()) == {1.0}
  # Real scenes hold one number or one shape each: only absence is common.
  for kind in ("compare", "differ", "universal"):
    assert out.floors[f"geneval_advanced/{kind}"] == 0.0
  assert out.settings["prompts_per_task"] == 8
  assert len(out.shown) == 16 and {s.task for s in out.shown} == set(KINDS)
  for s in out.shown:
    i = KINDS.index(s.task) * 8 + s.seed % 8
    assert s.seed == 10**6 + i and s.correct


def test_overall_is_the_mean_of_the_kinds():
  painter = Painter(lambda p: p.startswith("the ") or " no " in p)
  values = advanced_suite.geneval_advanced(painter, bench()).values
  assert values == {
    "geneval_advanced/overall": 0.5, "geneval_advanced/compare": 0.0,
    "geneval_advanced/differ": 0.0, "geneval_advanced/negate": 1.0,
    "geneval_advanced/universal": 1.0,
  }  # fmt: skip


def test_unknown_kinds_and_other_data_are_refused():
  with pytest.raises(ValueError, match="choose one of compare"):
    tasks("counting")
  made = bench()
  data = dataclasses.replace(made.config.data, world={})
  made.config = dataclasses.replace(made.config, data=data)
  with pytest.raises(ValueError, match="world of shapes"):
    advanced_suite.geneval_advanced(Painter(lambda p: True), made)
