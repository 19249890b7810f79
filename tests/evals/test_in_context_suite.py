"""Scores of subjects that follow a rule, or do not, on two-example prompts."""

import numpy as np
import pytest

from tests.systems.conftest import tiny
from unifluid_jax.data.worlds import in_context, shapes
from unifluid_jax.data.worlds.in_context import DRAW, RULES, TELL
from unifluid_jax.data.worlds.wordings import NUMBERS
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.worlds import in_context_suite as suite
from unifluid_jax.evals.worlds import shapes_detector

WORLD, EACH = shapes.World(), 5
KINDS = {**dict.fromkeys(WORLD.colours, 0), **dict.fromkeys(WORLD.shapes, 1),
         **dict.fromkeys(NUMBERS, 2)}  # fmt: skip


def word(thing, k):
  return NUMBERS[thing[k]] if k == 2 else thing[k]


class Follower:
  """Infers the rule from the examples, of which it needs `needs`."""

  def __init__(self, needs=2, alone=0):
    self.dialogues, self.needs, self.alone = self, needs, alone
    self.detector = shapes_detector.ShapesDetector(WORLD)
    self.lengths = []

  def seen(self, turn):
    """What an image shows, read off its pixels."""
    found = self.detector.detect(turn.image)
    return found[0].colour, found[0].name, len(found)

  def texts(self, dialogues):
    self.lengths.append({len(d) for d in dialogues})
    out = []
    for *examples, asked in dialogues:
      words = [t.text for t in examples[1::2]]
      k = KINDS[words[0]] if len(words) >= self.needs else self.alone
      assert len({KINDS[w] for w in words} | {k}) == 1 or self.needs > 2
      out.append(word(self.seen(asked), k).upper())
    return out

  def images(self, dialogues, seeds):
    assert seeds == range(10**6, 10**6 + len(dialogues))
    self.lengths.append({len(d) for d in dialogues})
    rng, out = np.random.default_rng(0), []
    for *examples, asked in dialogues:
      k = KINDS[asked.text]
      thing = ["red", "circle", 1]
      if len(examples) // 2 >= self.needs:
        thing = list(self.seen(examples[1]))
      thing[k] = NUMBERS.index(asked.text) if k == 2 else asked.text
      pairs = (tuple(thing[:2]),) * thing[2]
      scene = shapes.arrange(WORLD, rng, pairs, False, "solid")
      out.append(shapes.draw(WORLD, scene))
    return np.stack(out)


@pytest.fixture(scope="module")
def bench():
  return Bench(tiny(eval__prompts_per_task=EACH, eval__seed=1), "")


def test_a_model_that_infers_the_rule(bench):
  subject = Follower()
  out = suite.in_context(subject, bench)
  values = out.values
  # Two pairs and the question; with another's examples; the question alone.
  assert subject.lengths == [{5}, {5}, {1}] * 2
  for kind in (TELL, DRAW):
    assert values[f"in_context/{kind}"] == 1.0
    assert [values[f"in_context/{kind}/{k}"] for k in RULES] == [1.0] * 3
  # It follows the examples into the wrong attribute,
  assert values["in_context/tell_shuffled"] == 0.0
  # to scenes that are rarely those asked for,
  assert values["in_context/draw_shuffled"] < 0.4
  # and without them it names the colour, and draws a red circle at most.
  assert values["in_context/tell_without"] == pytest.approx(1 / 3)
  assert values["in_context/draw_without"] < 0.4
  assert set(out.floors) == set(values) and len(values) == 12
  assert out.settings["prompts"] == 2 * 3 * EACH
  assert [s.correct for s in out.shown] == [True] * 12
  assert {len(s.prompt.split(", ")) for s in out.shown} == {3}


def test_a_model_that_sees_no_examples(bench):
  values = suite.in_context(Follower(needs=3, alone=1), bench).values
  for suffix in ("", "_shuffled", "_without"):
    assert values[f"in_context/tell{suffix}"] == pytest.approx(1 / 3)
    draw = values[f"in_context/draw{suffix}"]
    assert draw == values["in_context/draw"] < 0.4
  assert values["in_context/tell/shape"] == 1.0
  assert values["in_context/tell/colour"] == values["in_context/tell/number"]


def test_floors_are_what_chance_gives(bench):
  floors = suite.in_context(Follower(), bench).floors
  for suffix in ("", "_shuffled", "_without", "/colour"):
    assert floors[f"in_context/tell{suffix}"] == pytest.approx(1 / 3)
  # 28 pairs are shown: four, seven a shape; three or four of a colour.
  assert floors["in_context/draw/number"] == pytest.approx(1 / 28)
  assert floors["in_context/draw/shape"] == pytest.approx(1 / 28)
  assert 1 / 16 <= floors["in_context/draw/colour"] <= 1 / 12
  each = [floors[f"in_context/draw/{k}"] for k in RULES]
  assert floors["in_context/draw"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("wrong", ["colour", "shape", "number", "more"])
def test_an_image_is_right_if_all_attributes_are(wrong):
  episode = in_context.sample_episode(
    WORLD, np.random.default_rng(1), DRAW, "colour"
  )
  scene = episode.scenes[-1]
  detector = shapes_detector.ShapesDetector(WORLD)

  def judged(pairs):
    rng = np.random.default_rng(2)
    made = shapes.arrange(WORLD, rng, pairs, False, "solid")
    return suite.shows(detector.detect(shapes.draw(WORLD, made)), episode)

  colour, shape, number = in_context.thing_of(scene)
  assert judged([(colour, shape)] * number)
  other = shapes.other_pair(WORLD, np.random.default_rng(3), ((colour, shape),))
  pairs = {
    "colour": [(other[0], shape)] * number,
    "shape": [(colour, other[1])] * number,
    "number": [(colour, shape)] * (number % 4 + 1),
    "more": [(colour, shape)] * min(number, 3) + [other],
  }[wrong]
  assert not judged(pairs)


def test_one_prompt_has_no_other_to_exchange_examples_with():
  one = Bench(tiny(eval__prompts_per_task=1), "")
  with pytest.raises(ValueError, match="prompts_per_task=1.* at least 2"):
    suite.in_context(Follower(), one)
