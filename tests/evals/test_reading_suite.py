"""Scores of readers whose answers are made by hand."""

import numpy as np
import pytest

from tests.systems.conftest import tiny
from unifluid_jax.data.worlds import signs
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.worlds import reading_suite as suite

COUNT = 40
GLYPHS = {signs.glyph(x).tobytes(): x for x in signs.LETTERS}


@pytest.fixture(autouse=True)
def no_grain(monkeypatch):
  monkeypatch.setattr(signs, "draw", signs.plain)


def read_off(image):
  """The word, from its pixels alone."""
  ink = (image == signs.INK).all(-1)
  top, left = (axis.min() for axis in np.nonzero(ink))
  word = ""
  for x in range(left, left + 12, 4):
    word += GLYPHS[ink[top : top + 5, x : x + 3].tobytes()]
  return word


class Reader:
  """Reads what it sees, then says something about it."""

  def __init__(self, say):
    self.say, self.words, self.questions = say, [], set()

  def answers(self, images, questions):
    self.questions |= set(questions)
    found = [read_off(image) for image in images]
    self.words.append(found)
    return [self.say(i, word) for i, word in enumerate(found)]

  def images(self, *_):
    raise AssertionError("nothing is drawn")

  edits = reconstruct = look = images


def score(say):
  reader = Reader(say)
  out = suite.reading(reader, Bench(tiny(eval__examples=COUNT), ""))
  return reader, out


def test_a_reader_of_everything():
  reader, out = score(lambda i, word: " ".join(word).upper())
  assert set(out.values) == {
    "reading/exact", "reading/letters", "reading_held_out/exact",
    "reading_held_out/letters", *(f"reading/{signs.kind_of(s)}"
                                  for s in signs.SIZES),
  }  # fmt: skip
  assert set(out.values.values()) == {1.0}
  seen, held_out = reader.words
  assert set(seen) <= set(signs.words("train"))
  assert set(held_out) <= set(signs.words("held_out"))
  assert len(seen) == len(held_out) == COUNT
  assert reader.questions == {signs.QUESTION}
  assert out.settings == {"signs": 2 * COUNT, "decode": "greedy"}
  assert [s.correct for s in out.shown] == [True] * 12
  assert len({s.task for s in out.shown}) == 4
  assert all(s.output.lower() == s.truth for s in out.shown)


def test_words_and_letters_are_counted_apart():
  """Every fourth word is read, of the others the first two letters."""

  def say(i, word):
    return word if i % 4 == 0 else f"{word[0]} {word[1]} ?"

  _, out = score(say)
  for name in ("reading", "reading_held_out"):
    assert out.values[f"{name}/exact"] == pytest.approx(1 / 4)
    assert out.values[f"{name}/letters"] == pytest.approx(1 / 4 + 2 / 3 * 3 / 4)
  assert {s.correct for s in out.shown} == {True, False}


def test_sizes_and_splits_are_scored_apart():
  calls = []

  def say(i, word):
    calls.append(word)
    return word if len(calls) <= COUNT else ""

  _, out = score(say)
  assert out.values["reading/exact"] == out.values["reading/96x32"] == 1
  assert out.values["reading_held_out/exact"] == 0
  assert out.values["reading_held_out/letters"] == 0
  drawn = [signs.sample_sign(np.random.default_rng([0, i]), "validation")
           for i in range(COUNT)]  # fmt: skip
  wide = {s.word for s in drawn if s.size == (96, 32)}
  _, out = score(lambda i, word: word if word in wide else "no")
  assert out.values["reading/96x32"] == 1
  assert out.values["reading/64x64"] == out.values["reading/32x96"] == 0
  assert 0 < out.values["reading/exact"] < 1


@pytest.mark.parametrize("said, share", [
  ("t o p", 1), ("TOP", 1), (" t  op ", 1), ("t o", 2 / 3), ("o p t", 0),
  ("t p o", 1 / 3), ("t o p s", 3 / 4), ("x t o p", 0), ("", 0),
])  # fmt: skip
def test_letters_count_in_their_places(said, share):
  assert suite.letter_share(said, "top") == pytest.approx(share)


def test_floors_are_what_guessing_letters_gives():
  rng = np.random.default_rng(0)
  guess = ["".join(rng.choice(list(signs.LETTERS), 3)) for _ in range(20_000)]
  _, out = score(lambda i, word: "")
  shares = [suite.letter_share(g, "top") for g in guess]
  floor = out.floors["reading/letters"]
  assert floor == 1 / 16 == out.floors["reading_held_out/letters"]
  assert abs(np.mean(shares) - floor) < 4 * (floor / 60_000) ** 0.5
  assert out.floors["reading/exact"] == out.floors["reading/64x32"] == 16**-3
  assert set(out.floors) == set(out.values)
