"""Figure 3 of UniFluid (arXiv 2503.13436): scores over λ, as one SVG.

A panel a score: those of images above, those of text below.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unifluid_jax.evals.published import paper_tables

# Rows of panels: column of a table, and which way is better.
_ROWS = (
  {"FID": "↓", "GenEval": "↑"},
  {"CIDEr": "↑", paper_tables.COCO_CIDER: "↑", "QA": "↑"},
)
_WIDE, _HIGH = 380, 230
_EDGE, _TOP, _BOTTOM = 44, 44, 68  # around the marks
_LEAST_SPAN = 0.1  # of an axis, in shares of its values: no noise as a trend
_BLUE = "#2a6fdb"


class _Mark(NamedTuple):
  x: float
  y: float
  weight: float
  value: float


def render(
  weights: Sequence[float], results: Sequence[Mapping[str, float]]
) -> str:
  """The figure; empty if no score is known of two runs, which a curve needs.

  Args:
    weights: λ of each run, positive and distinct.
    results: their scores by column, as `paper_tables` reads them.
  """
  panels, rows = [], 0
  for row in _ROWS:
    drawn = [c for c in row if sum(c in r for r in results) > 1]
    for i, column in enumerate(drawn):
      pairs = zip(weights, results, strict=True)
      known = {w: r[column] for w, r in pairs if column in r}
      place = f"translate({i * _WIDE},{rows * _HIGH})"
      reach = min(weights), max(weights)
      panel = _panel(f"{column} {row[column]}", known, reach)
      panels.append(f'<g transform="{place}">{panel}</g>')
    rows += bool(drawn)
  if not panels:
    return ""
  size = f'width="{2 * _WIDE}" viewBox="0 0 {2 * _WIDE} {rows * _HIGH}"'
  style = 'font-family="sans-serif" font-size="11" fill="#333"'
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    f'<rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
  )


def _panel(
  title: str, known: Mapping[float, float], reach: tuple[float, float]
) -> str:
  """One curve with a mark, a weight and a value at every run."""
  marks = _marks(known, reach)
  line = " ".join(f"{m.x:.1f},{m.y:.1f}" for m in marks)
  ground, middle = _HIGH - _BOTTOM + 26, _WIDE / 2
  return (
    f'<text x="{middle}" y="16" text-anchor="middle" font-weight="bold">'
    f'{title}</text><path d="M{_EDGE - 14} {ground}H{_WIDE - _EDGE + 14}" '
    f'stroke="#bbb"/><polyline points="{line}" fill="none" stroke="{_BLUE}" '
    f'stroke-width="2"/>{"".join(_labels(marks, ground))}'
    f'<text x="{middle}" y="{_HIGH - 6}" text-anchor="middle">λ</text>'
  )


def _marks(
  known: Mapping[float, float], reach: tuple[float, float]
) -> list[_Mark]:
  """Where runs lie: λ on a log axis, values on an axis that fits them."""
  low, high = min(known.values()), max(known.values())
  middle, size = (low + high) / 2, max(abs(low), abs(high)) or 1.0
  span = max(high - low, _LEAST_SPAN * size)
  wide, high = _WIDE - 2 * _EDGE, _HIGH - _TOP - _BOTTOM
  first, decades = math.log(reach[0]), math.log(reach[1] / reach[0])
  return [
    _Mark(
      _EDGE + (math.log(weight) - first) / decades * wide,
      _TOP + high / 2 - (value - middle) / span * high,
      weight,
      value,
    )
    for weight, value in sorted(known.items())
  ]


def _labels(marks: Sequence[_Mark], ground: int) -> list[str]:
  """A circle and two texts a mark; the value stands off the line."""
  parts = []
  for i, mark in enumerate(marks):
    beside = [m.y for m in (*marks[max(i - 1, 0) : i], *marks[i + 1 : i + 2])]
    below = mark.y > sum(beside) / len(beside) + 1
    x, y = f"{mark.x:.1f}", mark.y + (17 if below else -8)
    parts.append(
      f'<circle cx="{x}" cy="{mark.y:.1f}" r="3.5" fill="{_BLUE}"/>'
      f'<text x="{x}" y="{y:.1f}" text-anchor="middle">'
      f"{paper_tables.number(mark.value)}</text>"
      f'<text x="{x}" y="{ground + 14}" text-anchor="middle">{mark.weight:g}'
      "</text>"
    )
  return parts
