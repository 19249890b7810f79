"""The analytic detector on drawings, blurred drawings and rubbish."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from unifluid_jax.data import transforms
from unifluid_jax.data.worlds import shapes, shapes_text
from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.worlds.shapes_detector import (
  ShapesDetector,
  scene_agreement,
)

WORLD = shapes.World()
DETECTOR = ShapesDetector(WORLD)


def agreement(world, n, spoil=lambda image, rng: image, split="validation"):
  detector = ShapesDetector(world)
  rng = np.random.default_rng(11)
  hits = []
  for _ in range(n):
    scene = shapes.sample_scene(world, rng, split)
    image = spoil(shapes.draw(world, scene), rng)
    hits.append(scene_agreement(scene, detector.detect(image)))
  return np.mean(hits)


def blurred(image, rng):
  smooth = ndimage.gaussian_filter(image.astype(np.float64), (0.8, 0.8, 0))
  noisy = smooth + 6 * rng.standard_normal(image.shape)
  return noisy.round().clip(0, 255).astype(np.uint8)


def test_finds_every_drawn_scene():
  assert agreement(WORLD, 300) >= 0.99
  assert agreement(WORLD, 50, split="held_out") >= 0.99


def test_survives_blur_and_noise():
  assert agreement(WORLD, 150, blurred) >= 0.97


@pytest.mark.parametrize(
  "world",
  [
    shapes.World(canvas=64, grid=4),
    shapes.World(canvas=64, grid=0, radius=7.0, radius_spread=1.0),
    shapes.World(
      canvas=112,
      grid=0,
      radius=10.0,
      radius_spread=3.0,
      shapes=shapes.SHAPES,
      textures=shapes.TEXTURES,
    ),
  ],
)
def test_finds_scenes_of_larger_worlds(world):
  assert agreement(world, 40) >= 0.95


def test_rubbish_gives_no_errors_and_no_scenes():
  def noise(image, rng):
    return rng.integers(0, 256, image.shape, dtype=np.uint8)

  def clouds(image, rng):
    smooth = ndimage.gaussian_filter(rng.random(image.shape), (2, 2, 0))
    return (255 * (smooth - 0.3) / 0.4).clip(0, 255).astype(np.uint8)

  assert agreement(WORLD, 60, noise) <= 0.02
  assert agreement(WORLD, 60, clouds) <= 0.02
  for value in (0, 255, 128):
    assert DETECTOR.detect(np.full((32, 32, 3), value, np.uint8)) == []
  split = np.zeros((32, 32, 3), np.uint8)
  split[:, 16:] = 255
  DETECTOR.detect(split)


def test_boxes_are_the_objects():
  item = shapes.Item("triangle", "green", 8.5, 23.0, 6.0)
  image = shapes.draw(WORLD, shapes.Scene("dark", (item,)))
  (only,) = DETECTOR.detect(image)
  assert (only.name, only.colour) == ("triangle", "green")
  assert only.score > 0.9
  np.testing.assert_allclose(only.box, (2.5, 17.0, 14.5, 29.0), atol=0.5)


def test_touching_objects_come_apart():
  left = shapes.Item("square", "red", 9.0, 16.0, 6.0)
  for colour in ("blue", "yellow"):
    right = shapes.Item("circle", colour, 21.0, 16.0, 6.0)
    scene = shapes.Scene("light", (left, right))
    found = DETECTOR.detect(shapes.draw(WORLD, scene))
    assert scene_agreement(scene, found)


def test_agreement_means_shape_colour_place_and_number():
  a = shapes.Item("square", "red", 8.0, 8.0, 6.0)
  b = shapes.Item("circle", "blue", 24.0, 8.0, 6.0)
  found = DETECTOR.detect(shapes.draw(WORLD, shapes.Scene("light", (a, b))))

  def agrees(*items):
    return scene_agreement(shapes.Scene("light", items), found)

  assert agrees(a, b) and agrees(b, a)
  assert not agrees(a)
  assert not agrees(a, b, dataclasses.replace(a, y=24.0))
  assert not agrees(a, dataclasses.replace(b, colour="green"))
  assert not agrees(a, dataclasses.replace(b, shape="cross"))
  assert not agrees(a, dataclasses.replace(b, y=24.0))
  assert not agrees(dataclasses.replace(a, x=24.0),
                    dataclasses.replace(b, x=8.0))  # fmt: skip


def scene_of(task, wrong=False):
  """A scene that fulfils a GenEval task, or misses it narrowly."""
  include = [c for c in task["include"] for _ in range(c["count"])]
  places = [(8.0, 8.0), (24.0, 8.0), (8.0, 24.0), (24.0, 24.0)]
  where = include[-1].get("position", ["right of"])[0]
  if wrong and "position" in include[-1]:
    where = shapes_text.OPPOSITE[where]
  if where in ("left of", "above"):
    places[0], places[1] = places[1], places[0]
  if where in ("above", "below"):
    places = [(y, x) for x, y in places]
  colours = [c.get("color", "green") for c in include]
  names = [c["class"] for c in include]
  if wrong and task["tag"] in ("colors", "color_attr"):
    colours = [*colours[1:], "brown" if colours[0] == "pink" else "pink"]
  elif wrong and task["tag"] in ("single_object", "two_object"):
    names = [*names[1:], "star"]
  items = [
    shapes.Item(n, c, *xy, 6.0)
    for n, c, xy in zip(names, colours, places, strict=False)
  ]
  if wrong and task["tag"] == "counting":
    items = items[1:]
  return shapes.Scene("light", tuple(items))


@pytest.mark.parametrize("tag", geneval.TAGS)
def test_detector_and_rules_accept_right_scenes_only(tag):
  rng = np.random.default_rng(0)
  for task in shapes_text.geneval_prompts(WORLD, tag, 20, rng):
    for wrong in (False, True):
      image = shapes.draw(WORLD, scene_of(task, wrong))
      correct, reason = geneval.judge(task, DETECTOR.detect(image))
      assert correct != wrong, (task["prompt"], reason)


@pytest.mark.parametrize("size", [64, 96, 24])
def test_images_of_another_size_than_the_canvas_are_judged(size):
  rng = np.random.default_rng(0)
  right = []
  for _ in range(50):
    scene = shapes.sample_scene(WORLD, rng)
    image = transforms.centre_crop_resize(shapes.draw(WORLD, scene), size)
    right.append(scene_agreement(scene, DETECTOR.detect(image)))
  assert np.mean(right) > 0.95
