"""The reward of the world of shapes: GenEval's rules, and nothing besides."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from unifluid_jax.data.worlds import shapes_text
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.worlds import shapes_detector, world_suite


class ShapesReward:
  """Judges drawings by the analytic detector; see `rewards.Reward`.

  Differs: GenEval lets further objects pass; here an image with any is wrong,
  as scenes hold what their prompts say. Else a model learns to crowd images.
  """

  def __init__(self, bench: Bench):
    """Of the world that the run's data were drawn from.

    Raises:
      ValueError: they are of another.
    """
    self._world = world_suite.world_of(bench)
    self._detector = shapes_detector.ShapesDetector(self._world)

  def prompts(
    self, count: int, rng: np.random.Generator
  ) -> list[dict[str, Any]]:
    """GenEval's six tasks, none of a held-out pair.

    Half are spread evenly over the tasks, half as the square root of how many
    prompts each has: of two coloured objects there are hundreds, of others few.
    So it is on average: of few prompts chance decides which tasks they are.
    """
    tags = shapes_text.TAGS
    sizes = [
      len(shapes_text.geneval_tasks(self._world, tag, "seen")) for tag in tags
    ]
    weights = np.sqrt(sizes) / np.sqrt(sizes).sum() + 1 / len(tags)
    ends = np.cumsum(weights)[:-1] / 2 * count
    # Rounded the same way each time, few prompts would always leave out the
    # same tasks: a step of policy gradients asks a process for a handful.
    ends = [*np.floor(ends + rng.random()).astype(int), count]
    shares = np.diff(ends, prepend=0).tolist()
    return [
      task
      for tag, share in zip(tags, shares, strict=True)
      for task in shapes_text.geneval_prompts(self._world, tag, share, rng)
    ]

  def judge(
    self,
    asked: Sequence[Mapping[str, Any]],
    images: UInt8[np.ndarray, "n H W 3"],
  ) -> Float[np.ndarray, "n"]:
    """1 for exactly the objects asked for, as they are asked for; else 0."""
    return np.asarray(
      [self._right(task, x) for task, x in zip(asked, images, strict=True)],
      np.float32,
    )

  def kind(self, asked: Mapping[str, Any]) -> str:
    """GenEval's task."""
    return asked["tag"]

  def _right(self, task: Mapping[str, Any], image: Any) -> bool:
    found = self._detector.detect(image)
    wanted = sum(clause["count"] for clause in task["include"])
    seen = geneval.confident(found, geneval.MIN_SCORE)
    count = sum(len(objects) for objects in seen.values())
    return count == wanted and geneval.judge(task, found)[0]
