"""How often a prompt is obeyed where the cells of an image are drawn apart.

  python -m benchmarks.parallel_cells

Next-scale models draw all tokens of a scale at once: given the coarser scales,
each cell is independent of the others. In the embedded world objects stand in
four cells, so that the 2 x 2 scale decides what stands where. This script
judges scenes whose cells are drawn apart, but otherwise perfectly: each from
the true distribution of what stands there, given the prompt, or given the
prompt and all objects of the scene, which is the most that the coarser scale,
one token of the image's mean, may tell. What comes out bounds GenEval-shapes
of such a model where it samples as it was trained, at temperature 1.
"""

from collections import defaultdict

import numpy as np

from unifluid_jax.data.worlds import shapes, shapes_text
from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.worlds import shapes_detector

_SCENES, _PROMPTS, _DRAWS, _ARRANGEMENTS = 6000, 64, 4, 24


def main() -> None:
  """Prints both bounds, by task and overall."""
  world = shapes.World()  # as configs/shapes.py has it
  detector = shapes_detector.ShapesDetector(world)
  rng, prompts = np.random.default_rng(1), np.random.default_rng(0)

  def seen(scene):
    return detector.detect(shapes.draw(world, scene))

  scenes = [shapes.sample_scene(world, rng) for _ in range(_SCENES)]
  pool = [(scene, seen(scene)) for scene in scenes]
  right = defaultdict(lambda: defaultdict(list))
  for tag in shapes_text.TAGS:
    for task in shapes_text.geneval_prompts(world, tag, _PROMPTS, prompts):
      true = [s for s, found in pool if geneval.judge(task, found)[0]]
      for _ in range(_DRAWS if true else 0):
        scene = true[rng.integers(len(true))]
        same = _same_objects(world, rng, scene)
        if tag == "position":
          same = [s for s in same if geneval.judge(task, seen(s))[0]]
        for name, options in (("prompt", true), ("objects", same or [scene])):
          drawn = _drawn_apart(world, rng, options)
          right[name][tag].append(geneval.judge(task, seen(drawn))[0])
  for name, tags in right.items():
    shares = {tag: float(np.mean(values)) for tag, values in tags.items()}
    shown = " ".join(f"{tag} {share:.3f}" for tag, share in shares.items())
    print(f"given {name}: overall {np.mean([*shares.values()]):.3f}; {shown}")


def _same_objects(world, rng, scene):
  """Scenes of the same objects in other places."""
  pairs = [item.pair for item in scene.items]
  aligned = len(pairs) == 2 and pairs[0] != pairs[1]
  return [
    shapes.arrange(world, rng, pairs, aligned, "solid")
    for _ in range(_ARRANGEMENTS)
  ]


def _drawn_apart(world, rng, options):
  """A scene whose cells come from scenes that are chosen one by one."""
  items = []
  for cell in np.ndindex(world.grid, world.grid):
    source = options[rng.integers(len(options))]
    items += [
      item for item in source.items
      if (item.y // world.cell, item.x // world.cell) == cell
    ]  # fmt: skip
  return shapes.Scene(options[0].background, tuple(items))


if __name__ == "__main__":
  main()
