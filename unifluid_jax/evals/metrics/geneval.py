"""GenEval's decision rules: is an image right, given what a detector found?

Ghosh et al., GenEval (arXiv 2310.11513), §3 and evaluation/evaluate_images.py;
the summary follows evaluation/summary_scores.py. Detections come from
`published/geneval_detector.py` or `worlds/shapes_detector.py`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

TAGS = (
  "single_object",
  "two_object",
  "counting",
  "colors",
  "position",
  "color_attr",
)
# What `judge` asks of the prompts of each tag, for those who look at images.
RULES = {
  "single_object": "Correct if the object is found; further objects, of the "
  "same kind too, do not count against it.",
  "two_object": "Correct if both objects are found, wherever they are; further "
  "objects do not count against it.",
  "counting": "Correct only with exactly the number asked for, each found "
  "with a score above 0.9; objects of other kinds do not count.",
  "colors": "Correct if the most certain object of the kind has the colour; "
  "others of the kind may have any.",
  "position": "Correct if the centres of the two most certain boxes stand as "
  "asked, after a tenth of the boxes' sides is taken off their distance; "
  "“left of” and “above” may hold together.",
  "color_attr": "Correct if the most certain object of each kind has its "
  "colour; others of the kind may have any.",
}
MIN_SCORE = 0.3
MIN_SCORE_COUNTING = 0.9
MAX_PER_CLASS = 16
_SHRINK = 0.1  # of the summed box sides, taken off the offset of two centres


@dataclasses.dataclass(frozen=True)
class Detection:
  """One object a detector found.

  Attributes:
    name: class, as `metadata` spells it.
    score: confidence in [0, 1].
    box: x0, y0, x1, y1 in pixels, y down.
    colour: one of GenEval's ten colours, or None if unclassified.
  """

  name: str
  score: float
  box: tuple[float, float, float, float]
  colour: str | None = None

  @property
  def centre(self) -> tuple[float, float]:
    """x, y of the middle of the box."""
    x0, y0, x1, y1 = self.box
    return (x0 + x1) / 2, (y0 + y1) / 2


@dataclasses.dataclass(frozen=True)
class Result:
  """The verdict on one image."""

  tag: str
  prompt: str
  correct: bool


def box_of(mask: Bool[np.ndarray, "H W"]) -> tuple[float, float, float, float]:
  """x0, y0, x1, y1 of a mask that is not empty; the ends are exclusive."""
  ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def judge(
  metadata: Mapping[str, Any], detections: Sequence[Detection]
) -> tuple[bool, str]:
  """Whether an image shows what its prompt asks for.

  Objects beyond those asked for are no mistake unless `exclude` says so.

  Args:
    metadata: one line of GenEval's evaluation_metadata.jsonl: `tag`,
      optionally `include` (clauses of class, count and optionally color or
      position = [relation, index of the target clause]) and `exclude`.
    detections: everything the detector found.

  Returns:
    The verdict, and what is wrong, one line each; empty if correct.
  """
  found = confident(detections, threshold(metadata["tag"]))
  groups: list[list[Detection] | None] = []
  reasons = []
  for clause in metadata.get("include", ()):
    group = found.get(clause["class"], [])[: clause["count"]]
    reason = _mismatch(clause, group, groups)
    groups.append(None if reason else group)
    if reason:
      reasons.append(reason)
  for clause in metadata.get("exclude", ()):
    n = len(found.get(clause["class"], []))
    if n >= clause["count"]:
      reasons.append(
        f"expected {clause['class']} < {clause['count']}, found {n}"
      )
  return not reasons, "\n".join(reasons)


def threshold(tag: str) -> float:
  """The score that an object must exceed."""
  return MIN_SCORE_COUNTING if tag == "counting" else MIN_SCORE


def confident(
  detections: Iterable[Detection], above: float
) -> dict[str, list[Detection]]:
  """The 16 best of each class above a score; overlaps are kept (no NMS)."""
  kept: dict[str, list[Detection]] = {}
  for d in sorted(detections, key=lambda d: -d.score):
    if d.score > above:
      kept.setdefault(d.name, []).append(d)
  return {name: ds[:MAX_PER_CLASS] for name, ds in kept.items()}


def _mismatch(
  clause: Mapping[str, Any],
  group: list[Detection],
  groups: list[list[Detection] | None],
) -> str:
  """Why an include clause is not met; empty if it is."""
  name, count = clause["class"], clause["count"]
  if len(group) < count:
    return f"expected {name} >= {count}, found {len(group)}"
  if "color" in clause:
    colours = [d.colour for d in group]
    if any(c != clause["color"] for c in colours):
      seen = ", ".join(str(c) for c in colours)
      return f"expected {clause['color']} {name}, found {seen}"
  if "position" in clause:
    where, index = clause["position"]
    targets = groups[index]
    if targets is None:
      return f"no target for {name} to be {where}"
    for d in group:
      for target in targets:
        actual = relations(d.box, target.box)
        if where not in actual:
          seen = " and ".join(sorted(actual)) or "no relation"
          return f"expected {name} {where} target, found {seen}"
  return ""


def relations(
  box: tuple[float, float, float, float],
  target: tuple[float, float, float, float],
) -> set[str]:
  """Where a box lies as seen from another; none, one or two relations.

  The offset of the centres loses a tenth of both boxes' sides per axis, then
  each axis counts if it holds more than half the original distance.

  Args:
    box: x0, y0, x1, y1.
    target: the box it is compared with.
  """
  a = np.asarray(box, np.float64).reshape(2, 2)
  b = np.asarray(target, np.float64).reshape(2, 2)
  offset = a.mean(0) - b.mean(0)
  sides = (a[1] - a[0]) + (b[1] - b[0])
  rest = np.maximum(np.abs(offset) - _SHRINK * sides, 0.0)
  if np.all(rest < 1e-3):
    return set()
  dx, dy = np.sign(offset) * rest / np.linalg.norm(offset)
  named = {
    "left of": dx < -0.5,
    "right of": dx > 0.5,
    "above": dy < -0.5,
    "below": dy > 0.5,
  }
  return {name for name, holds in named.items() if holds}


def aggregate(results: Iterable[Result]) -> dict[str, float]:
  """GenEval's scores.

  Args:
    results: one per image.

  Returns:
    Accuracy over the images of each tag that occurs; "overall", the
    unweighted mean of these; "images", the share of correct images; and
    "prompts", the share of distinct prompts with any correct image.

  Raises:
    ValueError: no results, or a tag that is none of GenEval's.
  """
  tags: dict[str, list[bool]] = {}
  prompts: dict[tuple[str, str], bool] = {}
  for r in results:
    if r.tag not in TAGS:
      raise ValueError(f"tag {r.tag!r} is unknown. Known: {', '.join(TAGS)}")
    tags.setdefault(r.tag, []).append(r.correct)
    key = (r.tag, r.prompt)
    prompts[key] = prompts.get(key, False) or r.correct
  if not tags:
    raise ValueError("no GenEval results: generate at least one image")
  scores = {t: float(np.mean(tags[t])) for t in TAGS if t in tags}
  images = [correct for group in tags.values() for correct in group]
  return scores | {
    "overall": float(np.mean(list(scores.values()))),
    "images": float(np.mean(images)),
    "prompts": float(np.mean(list(prompts.values()))),
  }
