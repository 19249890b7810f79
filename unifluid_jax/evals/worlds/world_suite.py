"""Metrics of the embedded world: GenEval's tasks, Fréchet distance, tokenizer.

The detector is analytic and the feature network a small classifier of drawn
scenes, both behind the protocols that the real ones share.
"""

import functools
from typing import Any

import numpy as np
from etils import epath

from unifluid_jax.core import files
from unifluid_jax.data.worlds import shapes, shapes_text, written
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.metrics import fid
from unifluid_jax.evals.metrics import geneval as rules
from unifluid_jax.evals.worlds import scene_classifier, shapes_detector

_CLASSIFIER_SCENES = 4096


def world_of(bench: Bench) -> shapes.World:
  """The world that the configuration's data were drawn from.

  Raises:
    ValueError: the data are not of the embedded world.
  """
  options = dict(bench.config.data.world)
  if not options or written.kind_of(bench.config.data) != written.SHAPES:
    raise ValueError(
      "this metric is defined on the world of shapes: set config.data.world, "
      "or leave it out of config.eval.metrics"
    )
  options.pop("kind", None)
  for key in ("train", "validation", "held_out", "seed"):
    options.pop(key)
  for key in written.BESIDE:
    options.pop(key, None)
  return shapes.World(**options)


def geneval(subject: Subject, bench: Bench) -> Outcome:
  """GenEval's six tasks, and its attribute tasks on held-out pairs.

  The floor judges unrelated real images by the same prompts.
  """
  world = world_of(bench)
  n = bench.config.eval.prompts_per_task
  rng = np.random.default_rng(0)
  tasks = [
    task
    for tag in shapes_text.TAGS
    for task in shapes_text.geneval_prompts(world, tag, n, rng)
  ]
  held_out = [
    task
    for tag in ("colors", "color_attr")
    for task in shapes_text.geneval_prompts(world, tag, n, rng, "held_out")
  ]
  detector = shapes_detector.ShapesDetector(world)
  prompts = [t["prompt"] for t in tasks + held_out]
  seeds = bench.seeds(len(prompts))
  images = subject.images(prompts, seeds)
  judged, reasons = judge(detector, tasks + held_out, images)
  values = named("geneval", judged[: len(tasks)])
  values |= named("geneval_held_out", judged[len(tasks) :], overall=False)
  real = bench.pixels(bench.splits[0])
  unrelated = [real[i % len(real)] for i in range(len(tasks))]
  floors = named("geneval", judge(detector, tasks, unrelated)[0])
  picked = [t * n + i for i in range(min(4, n)) for t in range(6)]
  shown = [
    Shown("generated", images[i], prompts[i], correct=judged[i].correct,
          output=reasons[i], task=judged[i].tag, seed=seeds[i])
    for i in picked
  ]  # fmt: skip
  settings = {"prompts_per_task": n, "detector": "analytic",
              **bench.sampled("images"),
              **bench.skipped(bench.splits[0])}  # fmt: skip
  return Outcome(values, floors, settings, shown)


def geneval_overall(world: shapes.World, tasks: Any, images: Any) -> float:
  """GenEval's overall score of one image a task."""
  judged, _ = judge(shapes_detector.ShapesDetector(world), tasks, images)
  return rules.aggregate(judged)["overall"]


def judge(
  detector: Any, tasks: Any, images: Any
) -> tuple[list[rules.Result], list[str]]:
  """Verdicts and their reasons."""
  verdicts = [
    rules.judge(task, detector.detect(image))
    for task, image in zip(tasks, images, strict=True)
  ]
  results = [
    rules.Result(task["tag"], task["prompt"], correct)
    for task, (correct, _) in zip(tasks, verdicts, strict=True)
  ]
  return results, [reason for _, reason in verdicts]


def named(
  prefix: str, results: list[rules.Result], overall: bool = True
) -> dict[str, float]:
  """Accuracy of each tag, and their mean first."""
  scores = rules.aggregate(results)
  tags = {f"{prefix}/{t}": scores[t] for t in shapes_text.TAGS if t in scores}
  return {f"{prefix}/overall": scores["overall"], **tags} if overall else tags


def frechet(subject: Subject, bench: Bench) -> Outcome:
  """Fréchet distance of scenes drawn from validation prompts to real ones.

  The other half of the validation scenes gives what real scenes score.
  """
  split = bench.splits[0]
  records, real = bench.records(split), bench.pixels(split)
  half = len(records) // 2
  net = classifier(bench)
  prompts = [r.prompts[0] for r in records[:half]]
  images = subject.images(prompts, bench.seeds(half))
  reference = _statistics(net, real[half : 2 * half])
  drawn = fid.distance(reference, _statistics(net, images))
  same = fid.distance(reference, _statistics(net, real[:half]))
  values = {
    "fid/generated": drawn.value,
    "fid/real": same.value,
    "fid/ratio": drawn.value / max(same.value, 1e-9),
  }
  settings = {"images": half, "features": "scene classifier",
              "warning": drawn.warning, **bench.sampled("images"),
              **bench.skipped(split)}  # fmt: skip
  return Outcome(values, {}, settings)


def _statistics(net: Any, images: np.ndarray) -> fid.Statistics:
  scaled = scene_classifier.scaled(images)
  return fid.gather(
    net, (scaled[i : i + 256] for i in range(0, len(scaled), 256))
  )


@functools.lru_cache(maxsize=1)
def classifier(bench: Bench) -> scene_classifier.SceneClassifier:
  """Trained once per data set, on training scenes; kept beside them.

  The name of its file holds a digest of scenes and labels: the same folder may
  come to hold another data set, whose scenes it would misread.
  """
  world = world_of(bench)
  records = list(bench.train_records(_CLASSIFIER_SCENES))
  images = np.stack([bench.decode(r.image) for r in records])
  labels = np.stack([labels_of(world, r.scene) for r in records])
  digest = files.digest(images.tobytes() + labels.tobytes())[:12]
  root = epath.Path(bench.config.data.root)
  path = root / f"scene_classifier_{digest}.npz"
  if path.exists():
    return scene_classifier.load_classifier(path)
  net = scene_classifier.train_classifier(images, labels, grid=world.grid or 2)
  net.save(path)
  return net


def labels_of(world: shapes.World, text: str) -> np.ndarray:
  """Class of each cell (0 empty, else 1 + its pair) and of the background."""
  scene = shapes.scene_from_json(text)
  grid = world.grid or 2
  side = world.canvas / grid
  labels = np.zeros(grid * grid + 1, np.int32)
  for item in scene.items:
    cell = int(item.y // side) * grid + int(item.x // side)
    shape = world.shapes.index(item.shape)
    colour = world.colours.index(item.colour)
    labels[cell] = 1 + shape * len(world.colours) + colour
  labels[-1] = world.backgrounds.index(scene.background)
  return labels


def tokenizer(subject: Subject, bench: Bench) -> Outcome:
  """How much of a scene survives as image tokens, and the detector itself."""
  split = bench.splits[0]
  real = bench.pixels(split)
  scenes = [shapes.scene_from_json(r.scene) for r in bench.records(split)]
  detector = shapes_detector.ShapesDetector(world_of(bench))

  def agreement(images):
    return float(np.mean([
      shapes_detector.scene_agreement(scene, detector.detect(image))
      for scene, image in zip(scenes, images, strict=True)
    ]))  # fmt: skip

  rebuilt = subject.reconstruct(real)
  error = np.mean((rebuilt.astype(np.float64) - real) ** 2, axis=(1, 2, 3))
  values = {
    "detector/truth": agreement(real),
    "tokenizer/agreement": agreement(rebuilt),
    "tokenizer/psnr": float(np.mean(10 * np.log10(255**2 / (error + 1e-9)))),
  }
  return Outcome(values, {}, {"images": len(real), **bench.skipped(split)})
