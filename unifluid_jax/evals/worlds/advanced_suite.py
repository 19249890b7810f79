"""GenAI-Bench's advanced kinds of prompts on the embedded world."""

from collections.abc import Sequence

import numpy as np

from unifluid_jax.data.worlds import shapes_advanced
from unifluid_jax.data.worlds.shapes_advanced import Advanced, Condition
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.metrics import geneval as rules
from unifluid_jax.evals.worlds import shapes_detector, world_suite

_SHOWN = 4  # images of each kind


def geneval_advanced(subject: Subject, bench: Bench) -> Outcome:
  """Share of images that fulfil their prompts, by kind; their mean first.

  The floor judges unrelated real images by the same prompts: a thing that is
  not to be there is missing from many of them.

  Raises:
    ValueError: data that are not of the embedded world.
  """
  world = world_suite.world_of(bench)
  n, rng = bench.config.eval.prompts_per_task, np.random.default_rng(0)
  tasks = [
    task
    for kind in shapes_advanced.KINDS
    for task in shapes_advanced.prompts(world, kind, n, rng)
  ]
  detector = shapes_detector.ShapesDetector(world)
  seeds = bench.seeds(len(tasks))
  images = subject.images([t.prompt for t in tasks], seeds)
  reasons = [
    judge(t, detector.detect(image))
    for t, image in zip(tasks, images, strict=True)
  ]
  real = bench.pixels(bench.splits[0])
  unrelated = [
    judge(t, detector.detect(real[i % len(real)])) for i, t in enumerate(tasks)
  ]
  kinds = range(len(shapes_advanced.KINDS))
  picked = [k * n + i for i in range(min(_SHOWN, n)) for k in kinds]
  shown = [
    Shown("generated", images[i], tasks[i].prompt, correct=not reasons[i],
          output=reasons[i], task=tasks[i].kind, seed=seeds[i])
    for i in picked
  ]  # fmt: skip
  settings = {"prompts_per_task": n, "detector": "analytic",
              **bench.sampled("images"),
              **bench.skipped(bench.splits[0])}  # fmt: skip
  return Outcome(
    _named(tasks, reasons), _named(tasks, unrelated), settings, shown
  )


def judge(task: Advanced, detections: Sequence[rules.Detection]) -> str:
  """What is wrong with an image, one line each; empty if nothing is.

  Numbers that are compared need GenEval's confidence for counting, all else
  that of its other tasks.

  Args:
    task: what it must show.
    detections: everything the detector found in it.
  """
  tag = "counting" if task.kind == "compare" else ""
  above = rules.threshold(tag)
  found = [d for d in detections if d.score > above]
  reasons = [r for c in task.conditions if (r := _unmet(c, found))]
  if task.relation and not reasons:
    first, where, second = task.relation
    a, b = (
      next(d for d in found
           if (d.name, d.colour) == (task.conditions[0].shape, colour))
      for colour in (first, second)
    )  # fmt: skip
    seen = rules.relations(a.box, b.box)
    if where not in seen:
      named = " and ".join(sorted(seen)) or "no relation"
      reasons.append(f"expected {first} {where} {second}, found {named}")
  return "\n".join(reasons)


def _unmet(condition: Condition, found: Sequence[rules.Detection]) -> str:
  """Why a condition is not met; empty if it is."""
  low, high, shape, colour, other = condition
  count = sum(
    (not shape or d.name == shape)
    and (not colour or (d.colour == colour) != other)
    for d in found
  )
  if count >= low and (high is None or count <= high):
    return ""
  what = " ".join(
    x for x in ("not" if other else "", colour, shape or "object") if x
  )
  wanted = f">= {low}" if high is None else f"{low}"
  return f"expected {what} {wanted}, found {count}"


def _named(
  tasks: Sequence[Advanced], reasons: Sequence[str]
) -> dict[str, float]:
  """Share of each kind without a reason against it, and their mean first."""
  right = {
    kind: float(np.mean([
      not reason
      for task, reason in zip(tasks, reasons, strict=True)
      if task.kind == kind
    ]))
    for kind in shapes_advanced.KINDS
  }  # fmt: skip
  overall = float(np.mean(list(right.values())))
  return {"geneval_advanced/overall": overall} | {
    f"geneval_advanced/{kind}": value for kind, value in right.items()
  }
