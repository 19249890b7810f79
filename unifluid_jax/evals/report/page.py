"""The evaluation report: one HTML file that needs nothing but itself.

Callers fill `ReportData` with plain values; nothing here computes a score.
"""

from collections.abc import Sequence
from html import escape

from etils import epath

from unifluid_jax.core import files
from unifluid_jax.evals.report import charts as charts
from unifluid_jax.evals.report import html as html
from unifluid_jax.evals.report import images as images
from unifluid_jax.evals.report.contact_sheet import contact_sheet
from unifluid_jax.evals.report.types import (
  Answer,
  Caption,
  Chart,
  Curve,
  EditSample,
  Generation,
  ReportData,
  SampleRow,
  ScoreRow,
  TaskBar,
  curve_from_rows,
)

__all__ = [
  "Answer",
  "Caption",
  "Chart",
  "Curve",
  "EditSample",
  "Generation",
  "ReportData",
  "SampleRow",
  "ScoreRow",
  "TaskBar",
  "contact_sheet",
  "curve_from_rows",
  "render_report",
  "write_report",
]


def write_report(path: str | epath.PathLike, data: ReportData) -> None:
  """Writes the page to one file, parent folders included.

  Args:
    path: the .html to write; local, or any file system epath knows.
    data: what to show.

  Raises:
    ValueError: a row without one value per column, or an image that is not
      u8[H, W, 3]; the message names it.
  """
  files.write(path, render_report(data))


def render_report(data: ReportData) -> str:
  """The page as text; see `write_report`."""
  for row in data.scores:
    if len(row.values) != len(data.checkpoints):
      raise ValueError(
        f"score {row.name!r} has {len(row.values)} values for "
        f"{len(data.checkpoints)} checkpoints: use None where one is missing"
      )
  sections = {
    "Scores": _scores(data) if data.scores else "",
    "Training": _training(data.curves),
    "Progress": _progress(data.progress),
    "GenEval": _geneval(data) if data.geneval else "",
    "Generation": images.over_steps(data.sample_steps, data.samples)
    + images.generations(data.generations),
    "Captions": images.captions(data.captions),
    "Questions": images.answers(data.answers),
    "Editing": images.edits(data.edits),
  }
  page = html.page(
    f"{data.name} · step {data.step:,}",
    _header(data),
    sections,
    f"unifluid_jax · {data.name} · step {data.step:,} · {data.date}",
  )
  return page + mark(data.digest)


def mark(digest: str) -> str:
  """The page's last words: which results it shows."""
  return f"<!-- results {digest} -->\n"


# --- parts of the page --------------------------------------------------------


def _header(data: ReportData) -> str:
  tiles = "".join(
    _tile(row, data.checkpoints) for row in data.scores if row.headline
  )
  config = "".join(
    f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>"
    for key, value in data.config.items()
  )
  return (
    '<p class="eyebrow">Evaluation report</p>'
    f"<h1>{escape(data.name)}</h1>"
    f'<p class="lead">Step <b>{data.step:,}</b> · {escape(data.date)}</p>'
    + (f'<div class="tiles">{tiles}</div>' if tiles else "")
    + (f'<dl class="config card">{config}</dl>' if config else "")
  )


def _tile(row: ScoreRow, checkpoints: tuple[int, ...]) -> str:
  known = [
    (step, value)
    for step, value in zip(checkpoints, row.values, strict=True)
    if not html.missing(value)
  ]
  foot = []
  if row.floor is not None:
    foot.append(f"floor {html.number(row.floor, row.digits)}")
  if row.bar is not None:
    foot.append(f"bar {html.number(row.bar, row.digits)} {_reached(row)}")
  if not foot and len(known) > 1 and not html.missing(row.values[-1]):
    change = known[-1][1] - known[-2][1]
    foot.append(
      f"{html.number(change, row.digits, '+')} since step {known[-2][0]:,}"
    )
  latest = row.values[-1] if row.values else None
  shown = " · ".join(f"<span>{text}</span>" for text in foot)
  return (
    f'<div class="tile card"><div class="name">{escape(row.name)}</div>'
    '<div class="row"><div class="value">'
    f"{html.number(latest, row.digits)}</div>"
    f"{charts.sparkline_svg([value for _, value in known])}</div>"
    f'<div class="foot">{shown or "&nbsp;"}</div></div>'
  )


def _scores(data: ReportData) -> str:
  last = len(data.checkpoints) - 1
  floors = any(row.floor is not None for row in data.scores)
  bars = any(row.bar is not None for row in data.scores)
  head = [
    f'<th scope="col"{_latest(i, last)}>{step:,}</th>'
    for i, step in enumerate(data.checkpoints)
  ]
  head += ['<th scope="col">floor</th>'] * floors
  head += ['<th scope="col">bar</th>'] * bars
  rows = [(r.group, _score_row(r, last, floors, bars)) for r in data.scores]
  bar = ", bar the score this run is meant to reach" * bars
  return (
    html.note(
      "By training step. Arrows say which way is better; floor is the score of "
      f"a model that ignores its input{bar}."
    )
    + html.table(head, rows)
    + html.notes(data.notes)
  )


def _score_row(row: ScoreRow, last: int, floors: bool, bars: bool) -> str:
  cells = "".join(
    f"<td{_latest(i, last)}>{html.number(value, row.digits)}</td>"
    for i, value in enumerate(row.values)
  )
  if floors:
    cells += f'<td class="ref">{html.number(row.floor, row.digits)}</td>'
  if bars:
    cells += (
      f'<td class="ref">{html.number(row.bar, row.digits)} {_reached(row)}</td>'
    )
  return (
    f'<tr><th scope="row">{escape(row.name)}'
    f"{html.better(row.lower_is_better)}</th>{cells}</tr>"
  )


def _training(curves: Sequence[Curve]) -> str:
  panels = []
  for curve in curves:
    if svg := charts.loss_svg([curve]):
      latest = html.number(charts.last_average(curve.values), 4)
      panels.append(html.panel(curve.title, f"now {latest}", svg))
  if not panels:
    return ""
  return (
    html.note(
      "Loss against training step; faint as logged, strong as moving average."
    )
    + f'<div class="pair">{"".join(panels)}</div>'
  )


def _progress(drawn: Sequence[Chart]) -> str:
  panels = []
  for chart in drawn:
    if svg := charts.score_svg(chart):
      (curve,) = chart.curves
      remark = f"now {html.number(curve.values[-1], 3)}"
      if not html.missing(chart.floor):
        floor = html.number(chart.floor, 3)
        remark += f' · <i class="dash"></i>{escape(chart.floor_name)} {floor}'
      panels.append(html.panel(chart.title, remark, svg))
  if not panels:
    return ""
  return (
    html.note("Scores against training step, a point a checkpoint.")
    + f'<div class="pair">{"".join(panels)}</div>'
  )


def _geneval(data: ReportData) -> str:
  groups: dict[str, list[TaskBar]] = {}
  for bar in sorted(data.geneval, key=lambda bar: not bar.overall):
    groups.setdefault(bar.group, []).append(bar)
  parts = [
    html.note(
      "Share of images that show what the prompt asks for; overall is the "
      "unweighted mean of the tasks."
    )
  ]
  for group, bars in groups.items():
    floors = any(not html.missing(bar.floor) for bar in bars)
    key = f'<p class="key"><i></i>{escape(data.floor_name)}</p>' * floors
    parts.append(
      html.heading(group, ())
      + f'<div class="bars card">{"".join(map(_bar, bars))}{key}</div>'
      + _facets([bar for bar in bars if not bar.overall])
    )
  return "".join(parts)


def _bar(bar: TaskBar) -> str:
  score = 0.0 if html.missing(bar.score) else min(max(bar.score, 0.0), 1.0)
  floor = ""
  if not html.missing(bar.floor):
    floor = (
      f'<div class="floor" style="left:{100 * bar.floor:.1f}%" '
      f'title="floor {bar.floor:.2f}"></div>'
    )
  return (
    f'<div class="bar{" overall" * bar.overall}"><span>{escape(bar.name)}'
    f'</span><div class="track"><div class="fill" '
    f'style="width:{100 * score:.1f}%"></div>{floor}</div>'
    f'<span class="value">{html.number(bar.score, 2)}</span></div>'
  )


def _facets(bars: Sequence[TaskBar]) -> str:
  """A small chart a task, over steps, all on one scale."""
  parts = []
  for bar in bars:
    if bar.curve:
      chart = Chart(bar.name, (bar.curve,), bar.floor)
      svg = charts.score_svg(chart, limits=(0.0, 1.0), small=True)
      if svg:
        parts.append(
          f"<figure><figcaption>{escape(bar.name)}</figcaption>{svg}</figure>"
        )
  if not parts:
    return ""
  return f'<div class="facets card">{"".join(parts)}</div>'


# --- small pieces -------------------------------------------------------------


def _latest(index: int, last: int) -> str:
  return ' class="latest"' if index == last else ""


def _reached(row: ScoreRow) -> str:
  """Whether the latest score is at the row's bar or beyond."""
  latest = row.values[-1] if row.values else None
  if html.missing(latest) or html.missing(row.bar):
    return ""
  reached = latest <= row.bar if row.lower_is_better else latest >= row.bar
  if reached:
    return '<span class="good" title="reached">✓</span>'
  return '<span class="bad" title="not reached">✗</span>'
