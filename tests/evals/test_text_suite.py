"""Captions and questions that the report shows: which, and with what score."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from tests.systems.conftest import tiny
from unifluid_jax.data.records import Record
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.metrics import captions as metrics
from unifluid_jax.evals.worlds import text_suite

WORDS = "red green blue pink grey brown black white".split()


def png(value):
  file = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, format="PNG")
  return file.getvalue()


def records(count):
  return [
    Record(
      id=f"i{i}",
      image=png(i),
      captions=(f"a {WORDS[i % 8]} thing number n{i}", f"thing n{i} of mine"),
      questions=(("how many?", str(i)), ("which colour?", WORDS[i % 8])),
      kinds=("count", "colour"),
    )
    for i in range(count)
  ]


def bench(rows):
  made = Bench(tiny(), "")
  made.splits = ("test",)
  made.records = {"test": rows}.__getitem__
  made.train_records = lambda count: iter(rows[:count])
  return made


class Speaker:
  """Knows the images up to a number; beyond it, up to four words of each."""

  def __init__(self, rows, known):
    self.rows, self.known = rows, known

  def answers(self, images, questions):
    out = []
    for image, question in zip(images, questions, strict=True):
      i = int(image[0, 0, 0])
      r = self.rows[i]
      text = dict(r.questions).get(question, r.captions[0])
      words = text.split()[: i % 5 if len(text.split()) > 1 else 0]
      out.append(text if i < self.known else " ".join(words))
    return out

  def images(self, *_):
    raise AssertionError("nothing is drawn")

  edits = reconstruct = look = images


def test_lowest_middle_and_highest_captions_are_shown_with_their_score():
  rows = records(31)
  speaker = Speaker(rows, 10)
  out = text_suite.captions(speaker, bench(rows))
  said = speaker.answers([np.full((1, 1, 1), i) for i in range(31)], ["c"] * 31)
  # Each image's score on its own terms: all references, one corpus.
  _, score = metrics.cider_d(
    {r.id: r.captions for r in rows},
    {r.id: text for r, text in zip(rows, said, strict=True)},
  )
  assert len(out.shown) == 12
  for s in out.shown:
    i = int(s.image[0, 0, 0])
    assert s.score == score[f"i{i}"] and s.output == said[i]
    assert s.references == rows[i].captions and s.correct == (i < 10)
  ranked = sorted(score.values())
  by_task = {}
  for s in out.shown:
    by_task.setdefault(s.task, []).append(s.score)
  assert (
    by_task
    == {
      "test, lowest of 31": ranked[:4],
      "test, middle of 31": ranked[13:17],  # between 13 and 14 others
      "test, highest of 31": ranked[-4:],
    }
  )
  assert ranked[3] < ranked[13] < ranked[-1]


def test_few_captions_are_all_shown():
  rows = records(12)
  out = text_suite.captions(Speaker(rows, 12), bench(rows))
  assert [s.task for s in out.shown] == ["test"] * 12
  assert len({int(s.image[0, 0, 0]) for s in out.shown}) == 12


def test_a_split_without_captions_is_named():
  rows = [r._replace(captions=()) for r in records(2)]
  with pytest.raises(ValueError, match="eval.test has no captions"):
    text_suite.captions(Speaker(rows, 2), bench(rows))


def test_captions_of_photographs_are_not_right_or_wrong():
  rows = records(3)
  made = bench(rows)
  data = dataclasses.replace(made.config.data, world={})
  made.config = dataclasses.replace(made.config, data=data)
  shown = text_suite.captions(Speaker(rows, 3), made).shown
  assert [s.correct for s in shown] == [None] * 3
  assert all(s.score > 0 for s in shown)


def test_first_questions_of_each_kind_are_shown():
  rows = records(16)
  out = text_suite.vqa(Speaker(rows, 3), bench(rows))
  # Image i is asked its question i % 2.
  shown = [(s.task, int(s.image[0, 0, 0]), s.correct) for s in out.shown]
  assert shown == [
    ("colour", 1, True), ("colour", 3, False), ("colour", 5, False),
    ("colour", 7, False), ("count", 0, True), ("count", 2, True),
    ("count", 4, False), ("count", 6, False),
  ]  # fmt: skip
  first = out.shown[0]
  assert (first.prompt, first.output, first.truth) == (
    "which colour?", "green", "green"
  )  # fmt: skip


def test_case_counts_neither_in_answers_nor_for_the_floor():
  rows = [
    r._replace(questions=((q, "Two"),), kinds=("count",))
    for q, r in zip(("How many?", "how many", "HOW MANY"), records(3),
                    strict=True)
  ]  # fmt: skip

  class Lower(Speaker):
    def answers(self, images, questions):
      return ["two"] * len(images)

  made = bench(rows)
  asked = rows[0]._replace(questions=(("what is it", "a thing"),) * 2)
  # "how many" has been asked thrice, "what is it" twice: another answer.
  made.train_records = lambda count: iter([*rows, asked])
  out = text_suite.vqa(Lower(rows, 0), made)
  assert out.values["vqa/all"] == 1.0
  assert out.floors["vqa/all"] == 1.0
