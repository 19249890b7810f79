"""Ratios of paraphrases to plain questions, on subjects that are known."""

import dataclasses

import numpy as np
import pytest

from tests.systems.conftest import tiny
from unifluid_jax.data.records import Record
from unifluid_jax.data.worlds import (
  shapes,
  shapes_builder,
  shapes_text,
  wordings,
)
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.worlds import wording_suite

COUNT = 24


@pytest.fixture(scope="module")
def bench():
  config = tiny(eval__prompts_per_task=8, eval__seed=1)
  made = Bench(config, "")
  records = []
  for i in range(COUNT):
    r = shapes_builder.record(shapes.World(), "validation", 0, i)
    png = r["image"].getvalue()
    records.append(Record(id=r["id"], image=png, scene=r["scene"]))
  made.records = lambda split: records
  return made


class Knower:
  """Looks up what each wording of each scene's questions asks for."""

  def __init__(self, bench, knows):
    records = bench.records("validation")
    scenes = [shapes.scene_from_json(r.scene) for r in records]
    self.asked = wording_suite._questions(
      shapes.World(), scenes, bench.config.data.caption_prefix
    )
    self.knows, self.prompts = knows, None

  def answers(self, images, questions):
    assert list(questions) == [a.text for a in self.asked]
    assert len(images) == len(questions)
    return [a.answer if self.knows(a) else "?" for a in self.asked]

  def images(self, prompts, seeds):
    assert seeds == range(10**6, 10**6 + len(prompts))
    self.prompts = list(prompts)
    return np.zeros((len(prompts), 32, 32, 3), np.uint8)

  def edits(self, *_):
    raise AssertionError("nothing is edited")

  reconstruct = look = edits


def test_each_question_is_asked_plainly_and_in_ten_other_ways(bench):
  asked = Knower(bench, None).asked
  assert len(asked) == 11 * COUNT
  kinds = set()
  for i in range(COUNT):
    each = asked[11 * i : 11 * (i + 1)]
    assert [a.wording for a in each] == (
      ["plain"] + ["trained"] * 7 + ["unseen"] * 3
    )
    assert {a.record for a in each} == {i}
    assert len({(a.answer, a.kind) for a in each}) == 1
    assert len({a.text.lower().rstrip("?") for a in each}) == 11
    kinds.add(each[0].kind)
    if each[0].kind == "description":
      scene = shapes.scene_from_json(bench.records("")[i].scene)
      assert each[0].text == bench.config.data.caption_prefix
      assert each[0].answer == shapes_text.caption(scene)
  assert kinds == {*shapes_text.KINDS, "description"}


def test_a_subject_that_knows_everything(bench):
  subject = Knower(bench, lambda a: True)
  out = wording_suite.paraphrases(subject, bench)
  values = dict(out.values)
  assert values.pop("paraphrases/geneval") == 0.0  # it draws nothing
  assert set(values.values()) == {1.0}
  assert {f"paraphrases/{k}" for k in shapes_text.KINDS} < set(values)
  # A quarter of GenEval's prompts, none of which training shows.
  assert len(subject.prompts) == 2 * len(shapes_text.TAGS)
  leads = wordings._UNSEEN_LEADS
  assert all(p.lower().startswith(leads) for p in subject.prompts)
  assert {s.task for s in out.shown} >= {"colour, unseen wording"}


def test_ratios_are_to_the_plain_question(bench):
  def knows(a):
    if a.kind == "count":
      return a.wording == "plain"
    if a.kind == "relation":
      return a.wording != "plain"
    return a.wording != "unseen"

  out = wording_suite.paraphrases(Knower(bench, knows), bench).values
  assert out["paraphrases/count"] == 0.0
  assert out["paraphrases/colour"] == pytest.approx(0.7)
  assert "paraphrases/relation" not in out  # none of the plain ones is right
  asked = Knower(bench, None).asked
  for name, chosen in (("unseen", ("unseen",)), ("all", ("trained", "unseen"))):
    plain = np.mean([knows(a) for a in asked if a.wording == "plain"])
    other = np.mean([knows(a) for a in asked if a.wording in chosen])
    assert out[f"paraphrases/{name}"] == pytest.approx(other / plain)
  assert out["paraphrases/plain"] == pytest.approx(plain)


def test_a_run_that_does_not_draw_is_not_asked_to(bench):
  reads = Bench(tiny(batch__t2i=0), "")
  reads.records = bench.records
  subject = Knower(bench, lambda a: True)
  out = wording_suite.paraphrases(subject, reads).values
  assert "paraphrases/geneval" not in out and subject.prompts is None
  assert out["paraphrases/all"] == 1.0


def test_other_data_are_refused(bench):
  data = dataclasses.replace(bench.config.data, world={})
  other = Bench(dataclasses.replace(bench.config, data=data), "")
  with pytest.raises(ValueError, match="world of shapes"):
    wording_suite.paraphrases(Knower(bench, None), other)
