"""Loss curves and sparklines as inline SVG, styled by the report's sheet."""

import math
from collections.abc import Sequence

import numpy as np

_WIDTH, _HEIGHT = 500, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 8, 30
_POINTS = 400  # most of a drawn line
_LOG_RATIO = 20  # losses that fall further than this are drawn on a log axis


def curve_svg(steps: Sequence[int], values: Sequence[float]) -> str:
  """One loss curve: raw values faint, their moving average on top.

  Values that are not finite are left out. The axis is logarithmic where the
  average falls by more than a factor of 20.

  Args:
    steps: training steps, ascending.
    values: the loss at each.

  Returns:
    An `<svg>` element, or an empty string without two finite values.
  """
  x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
  finite = np.isfinite(x) & np.isfinite(y)
  x, y = x[finite], y[finite]
  if len(x) < 2:
    return ""
  smooth = _average(y)
  x, y, smooth = _thinned(x), _thinned(y), _thinned(smooth)
  log = bool(y.min() > 0 and smooth.max() > _LOG_RATIO * smooth.min())
  low, high = _limits(y, smooth, log)
  x_low, x_high = float(x[0]), float(max(x[-1], x[0] + 1))

  def px(value):
    share = (value - x_low) / (x_high - x_low)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

  def py(value):
    a, b, v = (low, high, value)
    if log:
      a, b, v = math.log(low), math.log(high), np.log(value)
    share = np.clip((v - a) / (b - a), 0, 1)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

  parts = [_y_axis(_log_ticks(low, high) if log else _ticks(low, high), py)]
  parts.append(_x_axis(_ticks(x_low, x_high), px))
  if log:
    parts.append(
      f'<text class="tag" x="{_WIDTH - _RIGHT}" y="{_TOP + 4}" '
      'text-anchor="end">log scale</text>'
    )
  parts.append(f'<path class="raw" d="{_path(px(x), py(y))}"/>')
  parts.append(f'<path class="smooth" d="{_path(px(x), py(smooth))}"/>')
  parts.append(
    f'<circle class="dot" cx="{px(x[-1]):.1f}" cy="{py(smooth[-1]):.1f}" '
    'r="4.5"/>'
  )
  return (
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
    f'aria-label="from {smooth[0]:.4g} to {smooth[-1]:.4g}">'
    f"{''.join(parts)}</svg>"
  )


def sparkline_svg(values: Sequence[float]) -> str:
  """A word-sized line of scores; empty without two finite values."""
  y = np.asarray(values, np.float64)
  x = np.arange(len(y), dtype=np.float64)[np.isfinite(y)]
  y = y[np.isfinite(y)]
  if len(y) < 2:
    return ""
  span = (y.max() - y.min()) or 1.0
  xs = 4 + (x - x[0]) / (x[-1] - x[0]) * 80
  ys = 30 - (y - y.min()) / span * 24
  return (
    '<svg viewBox="0 0 88 36" aria-hidden="true">'
    f'<path class="smooth" d="{_path(xs, ys)}"/>'
    f'<circle class="dot" cx="{xs[-1]:.1f}" cy="{ys[-1]:.1f}" r="4"/></svg>'
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


def _limits(y: np.ndarray, smooth: np.ndarray, log: bool) -> tuple:
  """Range of the axis: lone spikes of the raw curve may leave it."""
  low = min(smooth.min(), np.percentile(y, 1))
  high = max(smooth.max(), np.percentile(y, 99))
  if log:
    return float(low) / 1.1, float(high) * 1.1
  pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
  return float(low - pad), float(high + pad)


def _ticks(low: float, high: float) -> list[float]:
  """Round values inside the range, about four of them."""
  raw = (high - low) / 4
  size = 10 ** math.floor(math.log10(raw))
  step = min((m * size for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
  first, last = math.ceil(low / step), math.floor(high / step)
  return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """1, 2, 5 of every decade, or only 1 where those would crowd."""
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  marks = (1, 2, 5) if high / low < 300 else (1,)
  ticks = [float(f"{m}e{d}") for d in decades for m in marks]
  return [t for t in ticks if low <= t <= high]


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
  points = (f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
  return "M" + "L".join(points)


def _y_axis(ticks: list[float], py) -> str:
  return "".join(
    f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
    f'y1="{py(t):.1f}" y2="{py(t):.1f}"/>'
    f'<text x="{_LEFT - 8}" y="{py(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
    for t in ticks
  )


def _x_axis(ticks: list[float], px) -> str:
  return "".join(
    f'<text x="{px(t):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">'
    f"{short_count(t)}</text>"
    for t in ticks
  )
