"""Liquid's scaling analysis (arXiv 2412.04332 §3): curves, fits and gaps.

Figure 3 is the validation loss of image tokens against compute, here with
power-law fits; figure 5 what texts lose, and figure 6 what drawing loses,
where one model is trained on both.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unifluid_jax.evals.metrics import power_law
from unifluid_jax.evals.published import study_results
from unifluid_jax.evals.published.paper_tables import number
from unifluid_jax.evals.published.sibling_tables import (
  DATA,
  DRAWING,
  IMAGE_LOSS,
  IMAGE_TOP1,
  LANGUAGE,
)

COLUMNS = (IMAGE_LOSS, IMAGE_TOP1, DRAWING, LANGUAGE)
_LOWEST = 4  # runs that a fit needs, of three sizes


class Point(NamedTuple):
  """The scores of one checkpoint of one run."""

  width: int
  data: str  # of sibling_tables.DATA
  seed: int
  step: int
  flops: float  # of training up to it
  parameters: int
  scores: Mapping[str, float]  # of COLUMNS, those that were measured


def as_csv(points: Sequence[Point]) -> str:
  """All curves, a line per checkpoint; empty where nothing was measured."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  names = ("width", "data", "seed", "step", "flops", "parameters")
  writer.writerow([*names, *COLUMNS])
  for p in sorted(points, key=lambda p: (p.width, p.data, p.seed, p.step)):
    values = [p.scores.get(c, "") for c in COLUMNS]
    writer.writerow([*p[:4], f"{p.flops:.6g}", p.parameters, *values])
  return out.getvalue()


def last(points: Sequence[Point]) -> list[Point]:
  """The last checkpoint of each run."""
  found: dict[tuple, Point] = {}
  for p in points:
    key = (p.width, p.data, p.seed)
    if key not in found or p.step > found[key].step:
      found[key] = p
  return list(found.values())


def fits(points: Sequence[Point]) -> str:
  """Power laws of the final image loss in FLOPs, one line per kind of data."""
  lines = ["| L = a C^-b + c | a | b | c | R² |", "| --- " * 5 + "|"]
  for data in DATA:
    runs = [
      p for p in last(points) if p.data == data and IMAGE_LOSS in p.scores
    ]
    if len(runs) < _LOWEST or len({p.flops for p in runs}) < _LOWEST - 1:
      continue
    found = power_law.bootstrap(
      [p.flops for p in runs], [p.scores[IMAGE_LOSS] for p in runs]
    )
    cells = [
      f"{number(x)} [{number(low)}, {number(high)}]"
      for x, low, high in zip(*found, strict=True)
    ]
    lines.append("| " + " | ".join([data, *cells[:3],
                                    number(found.law.r2)]) + " |")  # fmt: skip
  if len(lines) == 2:
    return "No fit: it needs four runs of three sizes.\n"
  return "\n".join([*lines, "", "In brackets 95 % bootstrap intervals.", ""])


def gaps(points: Sequence[Point]) -> str:
  """What training on both costs texts and drawing, per size.

  A gap is the mixture's score less that of the run on one kind alone, of the
  same seed; below 0 the mixture is worse.
  """
  runs = {(p.width, p.data, p.seed): p for p in last(points)}
  head = ("width", "language, text → mix", "gap", "drawing, t2i → mix", "gap",
          "image loss, t2i → mix", "gap")  # fmt: skip
  lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
  for width in sorted({w for w, _, _ in runs}):
    cells = [str(width)]
    for column, data in (
      (LANGUAGE, "text"), (DRAWING, "t2i"), (IMAGE_LOSS, "t2i")
    ):  # fmt: skip
      pairs = [
        (p.scores[column], other.scores[column])
        for (w, kind, seed), p in sorted(runs.items())
        if (w, kind) == (width, data) and column in p.scores
        if (other := runs.get((w, "mix", seed))) and column in other.scores
      ]
      alone, both = ([pair[i] for pair in pairs] for i in range(2))
      change = [b - a for a, b in pairs]
      cells.append(f"{_mean(alone)} → {_mean(both)}")
      cells.append(study_results.cell(change))
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join([*lines, ""])


def _mean(values: Sequence[float]) -> str:
  return number(study_results.mean(values)[0]) if values else "–"
