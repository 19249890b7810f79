"""Parts drawn again, of subjects that do as asked, nothing, or too much."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.systems.conftest import tiny
from unifluid_jax.data.worlds import shapes
from unifluid_jax.data.worlds.shapes import Item, Scene
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.worlds import redraw_suite, shapes_detector

WORLD = {"train": 8, "validation": 8, "held_out": 4, "seed": 0}
COUNT = 12


@pytest.fixture(scope="module")
def bench():
  config = tiny()
  data = dataclasses.replace(config.data, world=WORLD)
  evaluation = dataclasses.replace(config.eval, prompts_per_task=COUNT, seed=1)
  model = dataclasses.replace(config.model, image_size=32)
  return Bench(
    dataclasses.replace(config, model=model, data=data, eval=evaluation), ""
  )


class Painter:
  """Paints the second object of each prompt at the bottom."""

  def __init__(self, change=lambda words: words, spoil=False):
    self.change, self.spoil = change, spoil

  def generate(self, prompt, seed, *, given, redraw):
    assert redraw == (0, 16, 32, 32) and seed == 10**6
    return [self.one(p, x) for p, x in zip(prompt, given, strict=True)]

  def one(self, prompt, image):
    out = np.array(image)
    if self.change:
      colour, shape = self.change(prompt.split()[-2:])
      dark = bool(image[0, 0, 0] < 128)
      scene = Scene("dark" if dark else "light",
                    (Item(shape, colour, 8.0, 24.0, 6.0),))  # fmt: skip
      out[16:] = shapes.draw(shapes.World(), scene)[16:]
    if self.spoil:
      out[0, 0] ^= 1
    return Image.fromarray(out)


def test_images_are_given_with_one_object_above():
  world, rng = shapes.World(), np.random.default_rng(3)
  detector = shapes_detector.ShapesDetector(world)
  sides = set()
  for _ in range(40):
    image, task = redraw_suite.given(world, rng)
    (found,) = detector.detect(image)
    first, second = task["include"]
    assert (found.name, found.colour) == (first["class"], first["color"])
    assert found.box[3] <= 16 and first["class"] != second["class"]
    np.testing.assert_array_equal(image[16:], np.broadcast_to(
      image[0, 0], (16, 32, 3)))  # fmt: skip
    sides.add(found.box[0] < 16)
  assert sides == {False, True}


def test_a_subject_that_does_as_asked(bench):
  outcome = redraw_suite.redrawn(Painter(), bench)
  assert outcome.values == {
    "redrawn/right": 1, "redrawn/new": 1, "redrawn/kept": 1
  }  # fmt: skip
  assert outcome.floors == {"redrawn/right": 0, "redrawn/new": 0}
  assert all(s.correct and s.source is not None for s in outcome.shown)
  assert outcome.settings["images"] == COUNT


def other_colour(words):
  return ("pink" if words[0] != "pink" else "brown", words[1])


@pytest.mark.parametrize("painter, right, kept", [
  (Painter(change=None), 0, 1),
  (Painter(change=other_colour), 0, 1),
  (Painter(spoil=True), 1, 0),
])  # fmt: skip
def test_subjects_that_do_not(bench, painter, right, kept):
  values = redraw_suite.redrawn(painter, bench).values
  assert (values["redrawn/right"], values["redrawn/new"]) == (right, right)
  assert values["redrawn/kept"] == kept


def test_halves_are_those_of_the_drawing(bench):
  """Whose size may be another one than the canvas's."""
  config = bench.config
  model = dataclasses.replace(config.model, image_size=64)
  large = Bench(dataclasses.replace(config, model=model), "")

  class Large(Painter):
    def generate(self, prompt, seed, *, given, redraw):
      assert redraw == (0, 32, 64, 64)
      assert {x.shape for x in given} == {(64, 64, 3)}
      out = [np.array(x) for x in given]
      small = [np.array(Image.fromarray(x).resize((32, 32))) for x in out]
      drawn = super().generate(
        prompt, seed, given=small, redraw=(0, 16, 32, 32)
      )
      for x, y in zip(out, drawn, strict=True):
        x[32:] = np.array(y.resize((64, 64)))[32:]
      return [Image.fromarray(x) for x in out]

  assert redraw_suite.redrawn(Large(), large).values == {
    "redrawn/right": 1, "redrawn/new": 1, "redrawn/kept": 1
  }  # fmt: skip
