"""Curves and sparklines as inline SVG, styled by the report's sheet.

A line is drawn in a group of class "s<i>", which has its colour: i is the
curve's `series`, or its place in the chart.
"""

import math
from collections.abc import Sequence

import numpy as np

from unifluid_jax.evals.report.types import Chart, Curve

_WIDE, _SMALL = (500, 250), (300, 130)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 8, 30
_POINTS = 400  # most of a drawn line
_MARKED = 30  # a line of more points has no mark on each
_LOG_RATIO = 20  # losses that fall further than this are drawn on a log axis


def loss_svg(curves: Sequence[Curve]) -> str:
  """Logged losses: raw values faint, their moving average on top.

  Values that are not finite are left out. The axis is logarithmic where an
  average falls by more than a factor of 20.

  Args:
    curves: of one loss, steps ascending; a run each.

  Returns:
    An `<svg>` element, or an empty string if no curve has two finite values.
  """
  lines = {}
  for i, (x, y) in enumerate(map(_finite, curves)):
    if len(x) > 1:
      lines[i] = (_thinned(x), _thinned(y), _thinned(_average(y)))
  if not lines:
    return ""
  log = all(y.min() > 0 for _, y, _ in lines.values()) and any(
    smooth.max() > _LOG_RATIO * smooth.min() for _, _, smooth in lines.values()
  )
  ranges = [_limits(y, smooth, log) for _, y, smooth in lines.values()]
  frame = _Frame(
    _span([x for x, _, _ in lines.values()]),
    (min(low for low, _ in ranges), max(high for _, high in ranges)),
    log,
  )
  parts = [frame.axes()]
  for i, (x, y, smooth) in lines.items():
    px = frame.x(x)
    parts.append(
      f'<g class="{_colour(curves, i)}">'
      f'<path class="raw" d="{_path(px, frame.y(y))}"/>'
      f'<path class="smooth" d="{_path(px, frame.y(smooth))}"/>'
      f"{_dot(px[-1], frame.y(smooth[-1]))}</g>"
    )
  ends = (f"from {s[0]:.4g} to {s[-1]:.4g}" for _, _, s in lines.values())
  return frame.svg(parts, "; ".join(ends))


def score_svg(
  chart: Chart, limits: tuple[float, float] | None = None, small: bool = False
) -> str:
  """Scores at checkpoints, as they are, and the floor as a dashed line.

  Args:
    chart: its curves may lack values and steps.
    limits: of the axis; None: those of the values.
    small: as one of many beside each other.

  Returns:
    An `<svg>` element, or an empty string if no curve has two finite values.
  """
  lines = {i: xy for i, xy in enumerate(map(_finite, chart.curves))}
  lines = {i: (x, y) for i, (x, y) in lines.items() if len(x)}
  if not any(len(x) > 1 for x, _ in lines.values()):
    return ""
  floor = chart.floor
  known = [y for _, y in lines.values()]
  if floor is not None and math.isfinite(floor):
    known.append(np.array([floor]))
  values = np.concatenate(known)
  frame = _Frame(
    _span([x for x, _ in lines.values()]),
    limits or _padded(float(values.min()), float(values.max())),
    size=_SMALL if small else _WIDE,
  )
  parts = [frame.axes(2 if small else 4)]
  if len(known) > len(lines):
    parts.append(frame.rule(floor))
  for i, (x, y) in lines.items():
    px, py = frame.x(x), frame.y(y)
    every = list(zip(px, py, strict=True))
    marked = every if len(every) <= _MARKED else every[-1:]
    dots = "".join(_dot(a, b) for a, b in marked)
    path = f'<path class="smooth" d="{_path(px, py)}"/>'
    parts.append(f'<g class="{_colour(chart.curves, i)}">{path}{dots}</g>')
  ends = (f"from {y[0]:.4g} to {y[-1]:.4g}" for _, y in lines.values())
  return frame.svg(parts, "; ".join(ends))


class _Frame:
  """Where values lie on a chart, and its axes."""

  def __init__(
    self,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    log: bool = False,
    size: tuple[int, int] = _WIDE,
  ):
    self._x, self._y, self._log = x_range, y_range, log
    self._width, self._height = size

  def x(self, value):
    low, high = self._x
    share = (value - low) / (high - low)
    return _LEFT + share * (self._width - _LEFT - _RIGHT)

  def y(self, value):
    (low, high), v = self._y, value
    if self._log:
      low, high, v = math.log(low), math.log(high), np.log(value)
    share = np.clip((v - low) / (high - low), 0, 1)
    return self._height - _BOTTOM - share * (self._height - _TOP - _BOTTOM)

  def axes(self, ticks: int = 4) -> str:
    marks = _log_ticks if self._log else _ticks
    parts = [
      f"{self.rule(t, 'grid')}"
      f'<text x="{_LEFT - 8}" y="{self.y(t) + 4:.1f}" text-anchor="end">'
      f"{t:g}</text>"
      for t in marks(*self._y, ticks)
    ]
    parts += [
      f'<text x="{self.x(t):.1f}" y="{self._height - 8}" '
      f'text-anchor="middle">{short_count(t)}</text>'
      for t in _ticks(*self._x, ticks)
    ]
    if self._log:
      parts.append(
        f'<text class="tag" x="{self._width - _RIGHT}" y="{_TOP + 4}" '
        'text-anchor="end">log scale</text>'
      )
    return "".join(parts)

  def rule(self, value: float, kind: str = "floor") -> str:
    y = f"{self.y(value):.1f}"
    right = self._width - _RIGHT
    return f'<line class="{kind}" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>'

  def svg(self, parts: Sequence[str], label: str) -> str:
    return (
      f'<svg viewBox="0 0 {self._width} {self._height}" role="img" '
      f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def last_average(values: Sequence[float]) -> float:
  """The moving average at the end of a curve; NaN without finite values."""
  y = np.asarray(values, np.float64)
  y = y[np.isfinite(y)]
  return float(_average(y)[-1]) if len(y) else math.nan


def short_count(value: float) -> str:
  """A step count as an axis prints it: 950, 2.5k, 1M."""
  for size, unit in ((1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:g}{unit}"
  return f"{value:g}"


def _colour(curves: Sequence[Curve], index: int) -> str:
  series = curves[index].series
  return f"s{index if series is None else series}"


def _average(y: np.ndarray) -> np.ndarray:
  """Exponential average over a sixtieth of the curve, bias-corrected."""
  decay = 1 - 1 / max(1.0, len(y) / 60)
  result, total, weight = np.empty_like(y), 0.0, 0.0
  for i, value in enumerate(y):
    total = decay * total + (1 - decay) * value
    weight = decay * weight + (1 - decay)
    result[i] = total / weight
  return result


def _thinned(values: np.ndarray) -> np.ndarray:
  """Means of equal runs of points; both ends stay where they are."""
  if len(values) <= _POINTS:
    return values
  inner = np.array_split(values[1:-1], _POINTS - 2)
  return np.array([values[0], *(part.mean() for part in inner), values[-1]])


def _limits(
  y: np.ndarray, smooth: np.ndarray, log: bool
) -> tuple[float, float]:
  """Range of the axis: lone spikes of the raw curve may leave it."""
  low = min(smooth.min(), np.percentile(y, 1))
  high = max(smooth.max(), np.percentile(y, 99))
  if log:
    return float(low) / 1.1, float(high) * 1.1
  return _padded(float(low), float(high))


def _padded(low: float, high: float) -> tuple[float, float]:
  """Some room on either side, also where both ends are one value."""
  pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
  return low - pad, high + pad


def _span(xs: Sequence[np.ndarray]) -> tuple[float, float]:
  """From the first step of all curves to the last; never empty."""
  low, high = (float(f(f(x) for x in xs)) for f in (min, max))
  return low, max(high, low + 1)


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values, without those that are not finite."""
  x = np.asarray(curve.steps, np.float64)
  y = np.asarray(curve.values, np.float64)
  finite = np.isfinite(x) & np.isfinite(y)
  return x[finite], y[finite]


def _ticks(low: float, high: float, count: int) -> list[float]:
  """Round values inside the range, about `count` of them."""
  raw = (high - low) / count
  size = 10 ** math.floor(math.log10(raw))
  step = min((m * size for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
  first, last = math.ceil(low / step), math.floor(high / step)
  return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
  """1, 2, 5 of every decade, or only 1 where those would crowd."""
  del count
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  marks = (1, 2, 5) if high / low < 300 else (1,)
  ticks = [float(f"{m}e{d}") for d in decades for m in marks]
  return [t for t in ticks if low <= t <= high]


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
  points = (f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
  return "M" + "L".join(points)


def _dot(x: float, y: float) -> str:
  return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
