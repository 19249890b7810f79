"""Metric of editing on the embedded world.

The scene that an instruction leads to is known, so the analytic detector can
say whether it was reached and whether everything else was left alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from unifluid_jax.data.images import decode_image
from unifluid_jax.data.records import Record
from unifluid_jax.data.worlds import shapes
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.metrics.geneval import MIN_SCORE
from unifluid_jax.evals.worlds import shapes_detector
from unifluid_jax.evals.worlds.world_suite import world_of

KINDS = ("recolour", "remove", "add")
_SHOWN = 4  # of each kind


class Task(NamedTuple):
  """An edit with the scenes before and after it."""

  instruction: str
  image: Any  # u8[H, W, 3] before
  target: Any  # u8[H, W, 3] after
  before: shapes.Scene
  after: shapes.Scene

  @property
  def kind(self) -> str:
    """One of KINDS, by the number of objects."""
    change = len(self.after.items) - len(self.before.items)
    return KINDS[0] if not change else KINDS[1] if change < 0 else KINDS[2]

  @property
  def untouched(self) -> tuple[shapes.Item, ...]:
    """Objects that are the same before and after."""
    return tuple(i for i in self.before.items if i in self.after.items)


class Verdict(NamedTuple):
  """What became of one edit."""

  kind: str
  success: bool  # the objects are those of the scene after, no others
  kept: tuple[bool, ...]  # whether each untouched object is still there
  background: bool  # whether it is still the same


def edits(subject: Subject, bench: Bench) -> Outcome:
  """Success and what was left alone, over all edits and by kind.

  The floor returns the source image: it keeps everything and succeeds never,
  so the shares of what is kept mean something beside the success only.

  Raises:
    ValueError: data that are not of the embedded world, hold no edits, or
      were written before their scenes were stored.
  """
  detector = shapes_detector.ShapesDetector(world_of(bench))
  split = bench.splits[0]
  tasks = tasks_of(bench.records(split), f"config.data.eval.{split}")
  images = [t.image for t in tasks]
  results = subject.edits(
    images, [t.instruction for t in tasks], bench.seeds(len(tasks))
  )
  judged = [judge(t, detector, x) for t, x in zip(tasks, results, strict=True)]
  idle = [judge(t, detector, t.image) for t in tasks]
  settings = {"edits": len(tasks), "detector": "analytic",
              **bench.sampled("images", "edits"),
              "floor": "the source image, unchanged",
              **bench.skipped(split)}  # fmt: skip
  return Outcome(
    scores(judged), scores(idle), settings, _shown(tasks, results, judged)
  )


def tasks_of(records: Sequence[Record], name: str) -> list[Task]:
  """The records' edits.

  Args:
    records: of the embedded world.
    name: how errors call them.

  Raises:
    ValueError: no record has an edit, or one lacks its scenes.
  """
  with_edit = [r for r in records if r.edit is not None]
  if not with_edit:
    raise ValueError(f"{name} has no edits: leave 'edits' out of eval.metrics")
  for r in with_edit:
    if not (r.scene and r.edit_scene):
      raise ValueError(
        f"{name}: record {r.id} does not say which scene its edit leads to: "
        "delete this data set and run unifluid_jax.prepare again, or leave "
        "'edits' out of eval.metrics"
      )
  return [
    Task(
      r.edit[0],
      decode_image(r.image),
      decode_image(r.edit[1]),
      shapes.scene_from_json(r.scene),
      shapes.scene_from_json(r.edit_scene),
    )
    for r in with_edit
  ]


def judge(
  task: Task,
  detector: shapes_detector.ShapesDetector,
  image: UInt8[np.ndarray, "H W 3"],
) -> Verdict:
  """Compares an image with the scene that the edit leads to."""
  found = detector.detect(image)
  sure = [d for d in found if d.score > MIN_SCORE]
  return Verdict(
    kind=task.kind,
    success=shapes_detector.scene_agreement(task.after, found),
    kept=tuple(
      any(shapes_detector.shows(d, item) for d in sure)
      for item in task.untouched
    ),
    background=_background(image) == task.after.background,
  )


def _background(image: UInt8[np.ndarray, "H W 3"]) -> str:
  """The nearest background to the border's median colour."""
  middle = shapes_detector.ground_of(image)
  return min(
    shapes.BACKGROUNDS,
    key=lambda name: np.linalg.norm(middle - shapes.BACKGROUNDS[name]),
  )


def scores(verdicts: Sequence[Verdict]) -> dict[str, float]:
  """Shares over all edits, then by kind; kinds that do not occur are left out.

  "kept" is the share of untouched objects, not of images.
  """
  groups = {"": list(verdicts)}
  for kind in KINDS:
    groups[f"/{kind}"] = [v for v in verdicts if v.kind == kind]
  out = {}
  for tail, group in groups.items():
    if group:
      out[f"edits/success{tail}"] = float(np.mean([v.success for v in group]))
  for tail, group in groups.items():
    if kept := [k for v in group for k in v.kept]:
      out[f"edits/kept{tail}"] = float(np.mean(kept))
  out["edits/background"] = float(np.mean([v.background for v in verdicts]))
  return out


def _shown(
  tasks: Sequence[Task], results: Any, judged: Sequence[Verdict]
) -> list[Shown]:
  """The first of each kind."""
  rows = list(zip(tasks, results, judged, strict=True))
  return [
    Shown("edit", image, task.instruction, correct=verdict.success,
          source=task.image, target=task.target, task=kind)
    for kind in KINDS
    for task, image, verdict in [r for r in rows if r[2].kind == kind][:_SHOWN]
  ]  # fmt: skip
