"""Scores of subjects that draw when asked, always, never."""

import numpy as np
import pytest

from tests.systems.conftest import tiny
from unifluid_jax.data.conversation import Reply
from unifluid_jax.data.worlds import chats, shapes, shapes_text
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.worlds import dialogue_suite as suite
from unifluid_jax.evals.worlds import shapes_detector

WORLD, EACH = shapes.World(), 12
DETECTOR = shapes_detector.ShapesDetector(WORLD)
ELSEWHERE = shapes.sample_scene(WORLD, np.random.default_rng(5))


@pytest.fixture(scope="module")
def asked():
  return suite.prompts(WORLD, EACH)


@pytest.fixture(scope="module")
def bench():
  return Bench(tiny(eval__prompts_per_task=EACH, eval__seed=1), "")


def picture(asked):
  """An image as it is asked for."""
  if asked.task is None:
    return shapes.draw(WORLD, asked.exchange.scene)
  pairs = [
    (clause.get("color", "green"), clause["class"])
    for clause in asked.task["include"]
    for _ in range(clause["count"])
  ]
  rng = np.random.default_rng(0)
  while True:  # the named side comes up after a few tries
    aligned = asked.task["tag"] == "position"
    scene = shapes.arrange(WORLD, rng, pairs, aligned, "solid")
    image = shapes.draw(WORLD, scene)
    if geneval.judge(asked.task, DETECTOR.detect(image))[0]:
      return image


class Subject:
  """Answers by hand: `draws` and `says` of the prompt that it recognises."""

  def __init__(self, asked, draws, stops=True):
    self.dialogues, self.draws, self.stops = self, draws, stops
    self.asked = asked

  def found(self, turns):
    """The prompt that a dialogue begins with, and what comes after it."""
    for a in self.asked:
      n = len(a.turns)
      if len(turns) >= n and all(
        x is y for x, y in zip(a.turns, turns, strict=False)
      ):
        return a, turns[n:]
    raise AssertionError(turns)

  def replies(self, dialogues):
    out = []
    for turns in dialogues:
      a, rest = self.found(turns)
      if rest:  # its own text and its image
        assert rest[-1].image is not None
        assert {t.role for t in rest} == {"assistant"}
        out.append(Reply("", not self.stops))
        continue
      draws = self.draws(a)
      # Where no image is due, the text is right, with an image or without.
      due = draws and a.exchange.draws
      out.append(Reply("x" if due else a.exchange.said.upper(), draws))
    return out

  def images(self, dialogues, seeds):
    out = []
    for turns, seed in zip(dialogues, seeds, strict=True):
      a, rest = self.found(turns)
      assert [t.text for t in rest] == ["x"]
      assert self.asked[seed - 10**6] is a
      if a.exchange.kind == "edit" and len(a.turns) > 2:
        # Edits of what was drawn before lead elsewhere.
        a = a._replace(exchange=a.exchange._replace(scene=ELSEWHERE))
      out.append(picture(a))
    return np.stack(out)


@pytest.fixture
def score(asked, bench, monkeypatch):
  monkeypatch.setattr(suite, "prompts", lambda world, each: asked)
  return lambda *a, **k: suite.draws_when_asked(Subject(asked, *a, **k), bench)


def test_half_of_the_prompts_ask_for_an_image_in_every_place(asked):
  kinds = [a.exchange.kind for a in asked]
  assert kinds == [k for k in chats.KINDS for _ in range(EACH)]
  for i, a in enumerate(asked):
    last = a.turns[-1]
    assert last.role == "user" and a.turns[0].role == "user"
    assert [t.text for t in a.turns if t.role == "user" and t.text][-1] == (
      a.exchange.asked
    )
    shown = [t for t in a.turns if t.image is not None]
    # Without an exchange before it, a prompt is one message.
    assert (len({t.role for t in a.turns}) == 1) == (i % 2 == 0)
    assert len(shown) == (a.exchange.kind != "draw" or i % 2)
    assert (a.task is not None) == (a.exchange.kind == "draw")
  drawn = [a for a in asked if a.task]
  assert [a.unseen for a in drawn] == [False, False, True, True] * 3
  assert {a.task["tag"] for a in drawn} == set(shapes_text.TAGS)
  words = {True: chats.WORDINGS.held_out, False: chats.WORDINGS.prompts}
  for a in drawn:
    text = a.task["prompt"]
    assert a.exchange.asked.replace(text, "{caption}") in words[a.unseen]


def test_of_few_prompts_there_are_no_unseen_wordings_to_score(monkeypatch):
  few = suite.prompts(WORLD, 2)
  monkeypatch.setattr(suite, "prompts", lambda world, each: few)
  bench = Bench(tiny(eval__prompts_per_task=2, eval__seed=1), "")
  out = suite.draws_when_asked(Subject(few, lambda a: a.exchange.draws), bench)
  assert "dialogue/draws_when_asked_unseen" not in out.values
  assert np.isfinite(list(out.values.values())).all()


def test_a_model_that_draws_when_asked(score):
  out = score(lambda a: a.exchange.draws)
  values = dict(out.values)
  for kind in chats.KINDS:
    assert values[f"dialogue/draws_when_asked/{kind}"] == 1.0
  assert values["dialogue/draws_when_asked"] == 1.0
  assert values["dialogue/draws_when_asked_unseen"] == 1.0
  assert values["dialogue/said"] == values["dialogue/said/ask"] == 1.0
  assert values["dialogue/drawn/draw"] == values["dialogue/ends"] == 1.0
  assert values["dialogue/drawn/edit"] == 0.5
  assert values["dialogue/drawn"] == 0.75
  assert len(values) == 13 and out.settings["prompts"] == 4 * EACH
  assert out.floors == {"dialogue/draws_when_asked": 0.5}
  assert len(out.shown) == 12
  assert {s.correct for s in out.shown if s.kind == "answer"} == {True}


def test_models_that_always_or_never_draw(score):
  values = score(lambda a: True, stops=False).values
  assert values["dialogue/draws_when_asked"] == 0.5
  assert values["dialogue/draws_when_asked/ask"] == 0.0
  assert values["dialogue/said"] == values["dialogue/ends"] == 0.0
  assert values["dialogue/drawn/draw"] == 1.0
  values = score(lambda a: False).values
  assert values["dialogue/draws_when_asked"] == 0.5
  assert values["dialogue/draws_when_asked/draw"] == 0.0
  assert values["dialogue/draws_when_asked_unseen"] == 0.0
  assert values["dialogue/said"] == 1.0
  assert values["dialogue/drawn"] == 0.0 and "dialogue/ends" not in values


def test_a_model_that_knows_the_trained_wordings_alone(score):
  """An image that is not drawn is not right; others are judged as theirs."""
  values = score(lambda a: a.exchange.draws and not a.unseen).values
  assert values["dialogue/draws_when_asked_unseen"] == 0.0
  assert values["dialogue/draws_when_asked/draw"] == 0.5
  assert values["dialogue/draws_when_asked"] == 0.875
  assert values["dialogue/drawn/draw"] == 0.5


@pytest.mark.parametrize("kind", ["draw", "edit"])
def test_an_image_is_judged_by_what_was_asked(asked, kind):
  first, other = [a for a in asked if a.exchange.kind == kind][1:3]
  right = DETECTOR.detect(picture(first))
  assert suite.shows(first, right)
  assert not suite.shows(first, DETECTOR.detect(picture(other)))
  if kind == "edit":  # nothing beside what is to be there
    assert not suite.shows(first, [*right, *right])
