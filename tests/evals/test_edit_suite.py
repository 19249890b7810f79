"""Judging edits: hand-made scenes, and a subject that knows the answers."""

import io
import types

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests.systems.conftest import tiny
from unifluid_jax import api
from unifluid_jax.core.config import ConfigError
from unifluid_jax.data.records import Record
from unifluid_jax.data.worlds import shapes, shapes_builder
from unifluid_jax.data.worlds.shapes import Item, Scene
from unifluid_jax.evals.bench import Bench, Subject
from unifluid_jax.evals.report import data as report_data
from unifluid_jax.evals.report import samples
from unifluid_jax.evals.worlds import edit_suite
from unifluid_jax.evals.worlds.edit_suite import Task, Verdict
from unifluid_jax.evals.worlds.shapes_detector import ShapesDetector

WORLD = shapes.World()
DETECTOR = ShapesDetector(WORLD)


def item(shape, colour, x, y):
  return Item(shape, colour, float(x), float(y), 6.0)


CIRCLE = item("circle", "red", 8, 8)
SQUARE = item("square", "blue", 24, 8)
GREEN = item("circle", "green", 8, 8)


def scene(*items, background="light"):
  return Scene(background, items)


def drawn(*items, background="light"):
  return shapes.draw(WORLD, scene(*items, background=background))


def task(before, after):
  draw = [shapes.draw(WORLD, s) for s in (before, after)]
  return Task("do it", *draw, before, after)


RECOLOUR = task(scene(CIRCLE, SQUARE), scene(GREEN, SQUARE))
REMOVE = task(scene(CIRCLE, SQUARE), scene(SQUARE))
ADD = task(scene(CIRCLE), scene(CIRCLE, SQUARE))


def test_kinds_and_what_is_untouched():
  got = [(t.kind, t.untouched) for t in (RECOLOUR, REMOVE, ADD)]
  assert got == [
    ("recolour", (SQUARE,)),
    ("remove", (SQUARE,)),
    ("add", (CIRCLE,)),
  ]
  alike = item("circle", "red", 24, 24)
  both = task(
    scene(CIRCLE, alike), scene(GREEN, item("circle", "green", 24, 24))
  )
  assert both.kind == "recolour" and both.untouched == ()


@pytest.mark.parametrize(
  "image, success, kept, background",
  [
    (drawn(GREEN, SQUARE), True, (True,), True),
    (drawn(CIRCLE, SQUARE), False, (True,), True),  # nothing done
    (drawn(GREEN), False, (False,), True),  # done, but the square is gone
    (drawn(GREEN, item("square", "pink", 24, 8)), False, (False,), True),
    (drawn(GREEN, item("square", "blue", 24, 24)), False, (False,), True),
    (drawn(GREEN, item("cross", "blue", 24, 8)), False, (False,), True),
    (drawn(GREEN, SQUARE, background="dark"), True, (True,), False),
  ],
)
def test_verdicts(image, success, kept, background):
  got = edit_suite.judge(RECOLOUR, DETECTOR, image)
  assert got == Verdict("recolour", success, kept, background)


def test_scores_by_hand():
  verdicts = [
    Verdict("recolour", True, (True,), True),
    Verdict("recolour", False, (), True),
    Verdict("recolour", False, (False,), False),
    Verdict("remove", True, (True,), True),
  ]
  assert edit_suite.scores(verdicts) == {
    "edits/success": 0.5,
    "edits/success/recolour": pytest.approx(1 / 3),
    "edits/success/remove": 1.0,
    "edits/kept": pytest.approx(2 / 3),
    "edits/kept/recolour": 0.5,
    "edits/kept/remove": 1.0,
    "edits/background": 0.75,
  }


def records(n=24):
  """As the data set's reader gives them."""
  out = []
  for i in range(n):
    row = shapes_builder.record(WORLD, "validation", 0, i)
    edit = row["edit"]
    out.append(
      Record(
        row["id"], row["image"].read(), scene=row["scene"],
        edit=(edit["instruction"], edit["target"].read()),
        edit_scene=edit["scene"],
      )
    )  # fmt: skip
  return out


def decoded(data):
  return np.asarray(Image.open(io.BytesIO(data)))


class Knowing:
  """Returns the target image of every other edit, else the source."""

  def __init__(self, records):
    self.targets = {
      (decoded(r.image).tobytes(), r.edit[0]): decoded(r.edit[1])
      for r in records
    }

  def images(self, *_):
    raise AssertionError("not an edit")

  answers = reconstruct = look = images

  def edits(self, images, instructions, seeds):
    assert seeds == range(10**6, 10**6 + len(images))
    return np.stack(
      [
        x if i % 2 else self.targets[x.tobytes(), text]
        for i, (x, text) in enumerate(zip(images, instructions, strict=True))
      ]
    )


def bench(records):
  made = Bench(tiny(eval__seed=1), "")
  made.records = lambda split: {"validation": records}[split]
  return made


def test_the_metric_on_the_world():
  rows = records()
  out = edit_suite.edits(Knowing(rows), bench(rows))
  assert out.values["edits/success"] == 0.5
  assert out.values["edits/kept"] == out.values["edits/background"] == 1
  assert {k for k in out.values if k.startswith("edits/success/")} == {
    f"edits/success/{kind}" for kind in edit_suite.KINDS
  }
  assert set(out.floors) == set(out.values)
  assert out.floors["edits/success"] == 0 and out.floors["edits/kept"] == 1
  assert 3 < len(out.shown) <= 12
  assert {s.task for s in out.shown} == set(edit_suite.KINDS)
  truth = {
    (r.edit[0], decoded(r.image).tobytes()): decoded(r.edit[1]) for r in rows
  }
  for s in out.shown:
    assert (s.target == truth[s.prompt, s.source.tobytes()]).all()
    assert s.correct == (s.image == s.target).all()


def test_shown_edits_reach_the_report(tmp_path, monkeypatch):
  rows = records(6)
  shown = edit_suite.edits(Knowing(rows), bench(rows)).shown
  samples.write(str(tmp_path), 1, shown)
  pages = []
  monkeypatch.setattr(
    report_data.report, "write_report", lambda path, data: pages.append(data)
  )
  path = epath.Path(tmp_path / "report.html")
  report_data.write(path, str(tmp_path), "tiny", {}, {})
  (page,) = pages
  assert len(page.edits) == len(shown) > 1
  for sample, s in zip(page.edits, shown, strict=True):
    assert sample.instruction == s.prompt and sample.correct is s.correct
    assert sample.task == s.task
    np.testing.assert_array_equal(sample.source, s.source)
    np.testing.assert_array_equal(sample.result, s.image)
    np.testing.assert_array_equal(sample.target, s.target)


def test_a_model_is_a_subject_and_refuses_what_it_never_saw():
  assert issubclass(api.Model, Subject)
  with pytest.raises(ConfigError, match="needs edits without their source"):
    tiny(batch__edit=4, sampling__image_cfg=2.0)
  unasked = dict(
    batch__edit=4,
    sampling__cfg=1.0,
    loss__image_dropout=0.1,
    loss__prompt_dropout=0.0,
  )
  with pytest.raises(ConfigError, match="edits without their instruction"):
    tiny(sampling__image_cfg=2.0, **unasked)
  with pytest.raises(ConfigError, match="image_dropout=0.6 must be in"):
    tiny(loss__image_dropout=0.6)
  words = types.SimpleNamespace(prompt_row=lambda text, n: np.zeros(n, int))

  def model(**changes):
    return api.Model(tiny(**changes), None, words, lambda function: None)

  image = drawn(CIRCLE)
  with pytest.raises(ValueError, match="not trained on 'edit'"):
    model().edit(image, "do it")
  with pytest.raises(ValueError, match=r"image_dropout=0\): use image_cfg=1"):
    model(batch__edit=4).edit(image, "do it", image_cfg=2.0)
  with pytest.raises(ValueError, match=r"prompt_dropout=0\): use image_cfg=1"):
    model(**unasked).edit(image, "do it", image_cfg=2.0)


def test_data_without_what_the_metric_needs():
  with pytest.raises(ValueError, match=r"data.eval.v has no edits"):
    edit_suite.tasks_of([Record("a", b"")], "config.data.eval.v")
  old = [r._replace(edit_scene="") for r in records(1)]
  with pytest.raises(ValueError, match="run unifluid_jax.prepare again"):
    edit_suite.tasks_of(old, "config.data.eval.v")
