"""Is what is drawn into an image what was asked for, and the rest untouched?

Half of an image is given: one object above. The half below is drawn again, by
a prompt that names this object and another one.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from unifluid_jax.data import transforms
from unifluid_jax.data.worlds import shapes, shapes_text
from unifluid_jax.data.worlds.shapes import Item
from unifluid_jax.evals.bench import Bench, Outcome, Redrawing, Shown
from unifluid_jax.evals.metrics import geneval as rules
from unifluid_jax.evals.worlds import shapes_detector, world_suite

_SHOWN = 8


class Given(NamedTuple):
  """An image with an object above, and what it is to become."""

  image: UInt8[np.ndarray, "S S 3"]
  task: dict[str, Any]  # as GenEval's: the object above, and another


def redrawn(subject: Redrawing, bench: Bench) -> Outcome:
  """By GenEval's rules: both objects, each in its colour.

  "right": both; "new": the one that was asked for anew; "kept": the share of
  images whose given half is the same, byte by byte. The floor leaves images as
  they were.

  Raises:
    ValueError: data that are not of the world of shapes.
  """
  world = world_suite.world_of(bench)
  rng = np.random.default_rng(0)
  found = [given(world, rng) for _ in range(bench.config.eval.prompts_per_task)]
  # Both halves are those of the drawing, which may have another size.
  side = bench.config.model.image_size
  prompts = [g.task["prompt"] for g in found]
  before = np.stack([
    transforms.centre_crop_resize(g.image, side) for g in found
  ])  # fmt: skip
  seeds = bench.seeds(len(prompts))
  pictures = subject.generate(
    prompts, seeds[0], given=list(before),
    redraw=(0, side // 2, side, side),
  )  # fmt: skip
  images = np.stack([np.asarray(p) for p in pictures])
  half = slice(0, side // 2)
  kept = (images[:, half] == before[:, half]).all(axis=(1, 2, 3))
  detector = shapes_detector.ShapesDetector(world)
  verdicts = [_verdict(detector, g.task, x)
              for g, x in zip(found, images, strict=True)]  # fmt: skip
  floors = np.mean([_verdict(detector, g.task, g.image) for g in found], axis=0)
  right, new = np.mean(verdicts, axis=0)
  shown = [
    Shown("edit", images[i], prompts[i], correct=bool(verdicts[i][0]),
          source=before[i], task="drawn again", seed=seeds[i])
    for i in range(min(_SHOWN, len(found)))
  ]  # fmt: skip
  return Outcome(
    {"redrawn/right": float(right), "redrawn/new": float(new),
     "redrawn/kept": float(kept.mean())},
    {"redrawn/right": float(floors[0]), "redrawn/new": float(floors[1])},
    {"images": len(found), "detector": "analytic", **bench.sampled("images")},
    shown,
  )  # fmt: skip


def given(world: shapes.World, rng: np.random.Generator) -> Given:
  """A scene of one object in its upper half, and a prompt of it and another."""
  tasks = shapes_text.geneval_tasks(world, "color_attr", "seen")
  task = tasks[int(rng.integers(len(tasks)))]
  above = task["include"][0]
  while True:
    scene = shapes.arrange(
      world, rng, [(above["color"], above["class"])], False, world.textures[0]
    )
    if _is_above(world, scene.items[0]):
      return Given(shapes.draw(world, scene), task)


def _is_above(world: shapes.World, item: Item) -> bool:
  return item.y + item.radius + 1 <= world.canvas / 2


def _verdict(detector: Any, task: Any, image: Any) -> tuple[bool, bool]:
  """Whether the whole task is met, and its second object alone."""
  found = detector.detect(image)
  alone = dict(task, include=task["include"][1:])
  return rules.judge(task, found)[0], rules.judge(alone, found)[0]
