"""The scene classifier as a second judge of GenEval's tasks.

A model that is trained on one judge's verdicts may come to please that judge
alone. The classifier was trained on true scenes and names what each of their
cells holds; a model never sees it.
"""

import numpy as np
from jaxtyping import Int, UInt8

from unifluid_jax.data.worlds import shapes, shapes_text
from unifluid_jax.evals.bench import Bench, Outcome, Subject
from unifluid_jax.evals.metrics.geneval import Detection
from unifluid_jax.evals.worlds import (
  scene_classifier,
  shapes_detector,
  world_suite,
)

_NAME = "geneval_classified"


def geneval_classified(subject: Subject, bench: Bench) -> Outcome:
  """GenEval's six tasks, judged by the scene classifier.

  "detector_agrees": the share of images of which the analytic detector says
  the same. The floor judges unrelated real images by the same prompts.

  Raises:
    ValueError: data that are not of the embedded world, or of one without
      cells.
  """
  world, rng = world_suite.world_of(bench), np.random.default_rng(0)
  if not world.grid:
    raise ValueError(
      "the scene classifier names what each cell holds, and with "
      "config.data.world.grid=0 objects stand anywhere: leave "
      f"{_NAME!r} out of config.eval.metrics"
    )
  n, real = bench.config.eval.prompts_per_task, bench.pixels(bench.splits[0])
  tasks = [
    task
    for tag in shapes_text.TAGS
    for task in shapes_text.geneval_prompts(world, tag, n, rng)
  ]
  seeds = bench.seeds(len(tasks))
  images = subject.images([t["prompt"] for t in tasks], seeds)
  unrelated = [real[i % len(real)] for i in range(len(tasks))]
  second = CellDetector(world, world_suite.classifier(bench))
  judged, floor, first = (
    world_suite.judge(detector, tasks, of)[0]
    for detector, of in (
      (second, images),
      (second, unrelated),
      (shapes_detector.ShapesDetector(world), images),
    )
  )
  same = [a.correct == b.correct for a, b in zip(judged, first, strict=True)]
  values = world_suite.named(_NAME, judged)
  values[f"{_NAME}/detector_agrees"] = float(np.mean(same))
  settings = {"prompts_per_task": n, "detector": "scene classifier",
              **bench.sampled("images"),
              **bench.skipped(bench.splits[0])}  # fmt: skip
  return Outcome(values, world_suite.named(_NAME, floor), settings)


class CellDetector:
  """The classifier, in the place of a detector."""

  def __init__(
    self, world: shapes.World, net: scene_classifier.SceneClassifier
  ):
    """Binds a trained classifier to the world whose cells it names."""
    self._world, self._net = world, net

  def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Detection]:
    """An object in each cell that is not empty."""
    image = shapes_detector.on_canvas(self._world, image)
    labels = self._net.predict(scene_classifier.scaled(image[None]))
    return detections(self._world, np.asarray(labels[0]))


def detections(
  world: shapes.World, labels: Int[np.ndarray, "S"]
) -> list[Detection]:
  """What cells hold, as a detector says it; see `world_suite.labels_of`."""
  grid = world.grid or 2
  side, found = world.canvas / grid, []
  for cell, label in enumerate(labels[:-1]):  # the last is the background
    if label:
      shape, colour = divmod(int(label) - 1, len(world.colours))
      y, x = (side * place for place in divmod(cell, grid))
      box = x, y, x + side, y + side
      found.append(
        Detection(world.shapes[shape], 1.0, box, world.colours[colour])
      )
  return found
