"""The right of four texts: what is asked, and how choices are scored."""

import collections
import dataclasses
import re

import numpy as np
import pytest

from tests.systems.conftest import tiny
from unifluid_jax.data.records import Record
from unifluid_jax.data.worlds import shapes, shapes_choices, shapes_text
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.worlds import choice_suite

WORLD = shapes.World()
NUMBERS = {"two", "three", "four"}
COUNT = 200


def scenes(n=COUNT, seed=0, split="validation"):
  rng = np.random.default_rng(seed)
  return [shapes.sample_scene(WORLD, rng, split) for _ in range(n)]


def consistent(text):
  """Whether a text can be the caption of a scene, by its words alone."""
  shape = "|".join(WORLD.shapes)
  colour = "|".join(WORLD.colours)
  plural = "|".join(shapes_text.plural(s) for s in WORLD.shapes)
  thing = rf"an? (?P<c{{0}}>{colour}) (?P<s{{0}}>{shape})"
  if re.fullmatch(rf"(two|three|four) ({colour}) ({plural})", text):
    return True
  if re.fullmatch(thing.format(0), text):
    return True
  m = re.fullmatch(
    rf"{thing.format(0)} (left of|above) {thing.format(1)}", text
  )
  return bool(m) and m["c0"] != m["c1"] and m["s0"] != m["s1"]


@pytest.mark.parametrize("split", ["validation", "held_out"])
def test_only_the_first_ending_is_consistent_with_the_world(split):
  rng, seen = np.random.default_rng(1), collections.Counter()
  for scene in scenes(split=split):
    caption, _ = shapes_choices.choices(WORLD, scene, rng, split)
    texts = [caption.context + e for e in caption.endings]
    assert texts[0] == shapes_text.caption(scene)
    assert [consistent(t) for t in texts] == [True, False, False, False]
    assert len(set(texts)) == shapes_choices.OPTIONS
    assert caption.context.endswith(" ") and caption.question == ""
    # With EOS in the slot of configs/shapes.py.
    assert max(len(t.split()) for t in texts) <= 8
    seen[len(scene.items), scene.identical] += 1
  assert len(seen) == 5


def test_answers_differ_in_their_kind():
  rng, kinds = np.random.default_rng(1), collections.Counter()

  def kind_of(answer):
    if answer in WORLD.colours:
      return "colour"
    if answer in ("yes", "no"):
      return "yes/no"
    if answer in ("left", "right", "above", "below"):
      return "relation"
    assert answer in shapes_text.NUMBERS
    return "count"

  for scene in scenes():
    _, choice = shapes_choices.choices(WORLD, scene, rng, "validation")
    found = [kind_of(e) for e in choice.endings]
    assert sorted(found) == sorted(shapes_text.KINDS)
    begin = {"count": "how many", "colour": "what colour",
             "relation": "where is", "yes/no": ("is ", "are ")}  # fmt: skip
    assert choice.question.startswith(begin[found[0]])
    assert choice.context == ""
    kinds[found[0]] += 1
  assert min(kinds.values()) > 10 and len(kinds) == 4


class Reader:
  """Says how likely texts are by a function of the pair."""

  def __init__(self, score):
    self.score = score

  def log_likelihoods(self, questions, texts):
    assert len(questions) == len(texts)
    pairs = zip(questions, texts, strict=True)
    return np.float32([self.score(q, t) for q, t in pairs])


def bench():
  made = Bench(tiny(), "")
  records = [
    Record(id=str(i), image=b"", scene=shapes.scene_to_json(s))
    for i, s in enumerate(scenes(40))
  ]
  made.records = lambda split: records
  return made


def run(score):
  return choice_suite.text_choice(Reader(score), bench())


def test_who_knows_the_language_and_who_does_not():
  def knows(question, text):
    if question is None:
      return 0.0 if consistent(text) else -1.0
    first = question.split()[0]
    right = {"how": NUMBERS | {"one", "zero"}, "what": set(WORLD.colours),
             "where": {"left", "right", "above", "below"}}  # fmt: skip
    return float(text in right.get(first, {"yes", "no"}))

  out = run(knows)
  assert out.values["text_choice/accuracy"] == 1.0
  assert out.values["text_choice/caption"] == 1.0
  assert out.values["text_choice/answer"] == 1.0
  assert set(out.floors.values()) == {0.25}
  assert set(out.floors) == set(out.values)
  assert out.settings == {"texts": 80, "options": 4}
  # To prefer nothing is no choice; half of the texts are of each kind.
  assert set(run(lambda q, t: 0.0).values.values()) == {0.0}
  half = run(lambda q, t: knows(q, t) if q else 0.0).values
  assert half["text_choice/accuracy"] == 0.5
  assert half["text_choice/answer"] == 1.0
  assert half["text_choice/caption"] == 0.0


def test_longer_texts_are_less_likely_unless_lengths_are_normalised():
  """Each character costs one nat, each wrong text a little more."""
  by_sum = run(lambda q, t: -float(len(t)))
  by_length = run(lambda q, t: -len(t) * (1 + (q is None) * 1.0
                                          - 0.1 * consistent(t)))  # fmt: skip
  assert by_length.values["text_choice/normalised"] == 0.5  # captions
  assert by_sum.values["text_choice/normalised"] == 0.0
  # Right captions of groups are never the shortest, of one object they are.
  assert 0 < by_sum.values["text_choice/caption"] < 1


def test_other_data_are_refused():
  made = bench()
  data = dataclasses.replace(made.config.data, world={})
  made.config = dataclasses.replace(made.config, data=data)
  with pytest.raises(ValueError, match="world of shapes"):
    choice_suite.text_choice(Reader(lambda q, t: 0.0), made)
