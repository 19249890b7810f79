"""The world of shapes: scenes and drawings."""

import collections
import functools
import math

import numpy as np
import pytest

from unifluid_jax.data.worlds import shapes, shapes_text

WORLD = shapes.World()


FREE = shapes.World(
  canvas=112,
  grid=0,
  radius=10.0,
  radius_spread=3.0,
  shapes=shapes.SHAPES,
  textures=shapes.TEXTURES,
)


HELD = {
  ("purple", "circle"),
  ("yellow", "square"),
  ("blue", "triangle"),
  ("red", "cross"),
}


@functools.cache
def scenes(n, split="train", world=WORLD, seed=0):
  return [
    shapes.sample_scene(world, np.random.default_rng([seed, i]), split)
    for i in range(n)
  ]


def pairs(scene):
  return [(i.colour, i.shape) for i in scene.items]


def side(a, b):
  """Relation by grid cells, independent of the module's own."""
  (ax, ay), (bx, by) = ((int(i.x // 16), int(i.y // 16)) for i in (a, b))
  assert (ax == bx) != (ay == by)
  if ay == by:
    return "left of" if ax < bx else "right of"
  return "above" if ay < by else "below"


def test_scenes_depend_on_the_seed_alone():
  assert scenes(50) == scenes.__wrapped__(50)
  assert scenes(50) != scenes(50, seed=1)


def test_scene_kinds_have_their_shares():
  all_scenes = scenes(4000)
  kinds = collections.Counter(
    "alike" if s.identical else str(len(s.items)) for s in all_scenes
  )
  assert kinds["1"] / 4000 == pytest.approx(0.25, abs=0.03)
  assert kinds["2"] / 4000 == pytest.approx(0.50, abs=0.03)
  assert kinds["alike"] / 4000 == pytest.approx(0.25, abs=0.03)
  counts = {len(s.items) for s in all_scenes if s.identical}
  assert counts == {2, 3, 4}
  assert {p for s in all_scenes for p in pairs(s)} == set(WORLD.pairs("train"))
  assert len(WORLD.pairs("train")) == 28


def test_two_objects_differ_and_are_aligned():
  for scene in scenes(500):
    if len(scene.items) == 2 and not scene.identical:
      a, b = scene.items
      assert a.shape != b.shape and a.colour != b.colour
      assert shapes.relation(a, b) == side(a, b)
      assert shapes.relation(b, a) == side(b, a)


def test_held_out_pairs_stay_out():
  for split in ("train", "validation"):
    for k, scene in enumerate(scenes(1000, split)):
      rng = np.random.default_rng(k)
      target = shapes_text.edit(WORLD, scene, rng).target
      assert not HELD & {*pairs(scene), *pairs(target)}
      for q in shapes_text.questions(WORLD, scene, rng, split):
        for colour, shape in HELD:
          assert f"{colour} {shape}" not in q.question
  held = scenes(500, "held_out")
  assert all(HELD & set(pairs(s)) for s in held)
  assert {p for s in held for p in pairs(s)} > HELD


@pytest.mark.parametrize("world", [WORLD, FREE])
def test_objects_lie_inside_and_apart(world):
  for scene in scenes(300, world=world):
    boxes = [(i.x, i.y, i.radius) for i in scene.items]
    for k, (x, y, r) in enumerate(boxes):
      assert min(x, y) - r >= 1 and max(x, y) + r <= world.canvas - 1
      for u, v, s in boxes[:k]:
        assert max(abs(x - u), abs(y - v)) - r - s >= 2


def test_json_round_trip():
  for scene in scenes(50, world=FREE):
    assert shapes.scene_from_json(shapes.scene_to_json(scene)) == scene


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"shapes": ("circle", "blob", "star")}, "choose out of circle"),
    ({"colours": ("red", "blue")}, "at least 3"),
    ({"grid": 1}, "World.grid"),
    ({"radius": 7.0}, "would touch"),
    ({"grid": 0}, "World.canvas >="),
  ],
)
def test_impossible_worlds_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    shapes.World(**change)


def test_unknown_split_is_refused():
  with pytest.raises(ValueError, match="split='test'"):
    shapes.sample_scene(WORLD, np.random.default_rng(0), "test")


@pytest.mark.parametrize(
  ("shape", "area"),
  [
    ("circle", math.pi),
    ("square", 4.0),
    ("triangle", 2.0),
    ("cross", 4 - 4 * 0.66**2),
    ("diamond", 2.0),
    ("ring", math.pi * 0.75),
    # Ten triangles between centre, point and notch, times the stretch.
    (
      "star",
      5
      * math.sin(math.pi / 5)
      * math.cos(2 * math.pi / 5)
      / math.cos(math.pi / 5)
      / math.cos(math.pi / 10)
      / ((1 + math.cos(math.pi / 5)) / 2),
    ),
  ],
)
def test_covered_area_is_the_shapes(shape, area):
  mask = shapes.coverage(shape, 5.9, 0.27, 0.5)
  assert mask.sum() == pytest.approx(area * 5.9**2, rel=0.02)
  rows, columns = np.nonzero(mask)
  centre = mask.shape[0] // 2
  # The bounding box is centred at (0.27, 0.5) in the centre pixel.
  assert columns.min() == centre - 6 and columns.max() == centre + 6
  assert rows.min() == centre - 6 and rows.max() == centre + 6


def test_drawing_puts_colours_in_place():
  item = shapes.Item("square", "blue", 8.5, 23.0, 6.0)
  image = shapes.draw(WORLD, shapes.Scene("light", (item,)))
  assert image.shape == (32, 32, 3) and image.dtype == np.uint8
  blue = np.asarray(shapes.COLOURS["blue"])
  light = np.asarray(shapes.BACKGROUNDS["light"])
  expected = np.tile(light, (32, 32, 1)).astype(float)
  expected[17:29, 3:14] = blue
  expected[17:29, [2, 14]] = (blue + light) / 2
  assert np.abs(image - expected).max() <= 0.5
