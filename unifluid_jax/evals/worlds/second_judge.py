"""The scene classifier as a second judge of GenEval's tasks.

A model that is trained on one judge's verdicts may come to please that judge
alone. The classifier was trained on true scenes and names what each of their
cells holds; a model never sees it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from unifluid_jax.data.worlds import shapes, shapes_text
from unifluid_jax.evals.bench import Bench, Outcome, Subject
from unifluid_jax.evals.metrics import geneval as rules
from unifluid_jax.evals.worlds import (
  scene_classifier,
  shapes_detector,
  world_suite,
)


def geneval_classified(subject: Subject, bench: Bench) -> Outcome:
  """GenEval's six tasks, judged by the scene classifier.

  "detector_agrees": the share of images of which the analytic detector says
  the same. The floor judges unrelated real images by the same prompts.

  Raises:
    ValueError: data that are not of the embedded world.
  """
  world, rng = world_suite.world_of(bench), np.random.default_rng(0)
  n, net = bench.config.eval.prompts_per_task, world_suite.classifier(bench)
  tasks = [
    task
    for tag in shapes_text.TAGS
    for task in shapes_text.geneval_prompts(world, tag, n, rng)
  ]
  images = subject.images([t["prompt"] for t in tasks], range(len(tasks)))
  real = bench.pixels(bench.splits[0])
  unrelated = np.stack([real[i % len(real)] for i in range(len(tasks))])

  def right(images):
    cells = net.predict(scene_classifier.scaled(images))
    found = [detections(world, np.asarray(row)) for row in cells]
    return _right(tasks, found)

  detector = shapes_detector.ShapesDetector(world)
  first = _right(tasks, [detector.detect(image) for image in images])
  second = right(images)
  values = _named(tasks, second)
  same = np.mean([a == b for a, b in zip(first, second, strict=True)])
  values["geneval_classified/detector_agrees"] = float(same)
  settings = {"prompts_per_task": n, "detector": "scene classifier",
              **bench.sampled("images"),
              **bench.skipped(bench.splits[0])}  # fmt: skip
  return Outcome(values, _named(tasks, right(unrelated)), settings)


def detections(
  world: shapes.World, labels: Int[np.ndarray, "S"]
) -> list[rules.Detection]:
  """What cells hold, as a detector says it; see `world_suite.labels_of`."""
  grid = world.grid or 2
  side, found = world.canvas / grid, []
  for cell, label in enumerate(labels[:-1]):  # the last is the background
    if label:
      shape, colour = divmod(int(label) - 1, len(world.colours))
      y, x = (side * place for place in divmod(cell, grid))
      box = x, y, x + side, y + side
      found.append(
        rules.Detection(world.shapes[shape], 1.0, box, world.colours[colour])
      )
  return found


def _right(
  tasks: Sequence[dict], found: Sequence[list[rules.Detection]]
) -> list[bool]:
  return [rules.judge(t, x)[0] for t, x in zip(tasks, found, strict=True)]


def _named(tasks: Sequence[dict], right: Sequence[bool]) -> dict[str, float]:
  """Accuracy of each task, and their mean first."""
  scores = rules.aggregate([
    rules.Result(t["tag"], t["prompt"], x)
    for t, x in zip(tasks, right, strict=True)
  ])  # fmt: skip
  tags = ("overall", *(tag for tag in shapes_text.TAGS if tag in scores))
  return {f"geneval_classified/{tag}": scores[tag] for tag in tags}
