"""The evaluation report: one HTML file that needs nothing but itself.

Callers fill `ReportData` with plain values; nothing here computes a score.
"""

import base64
import io
import math
from html import escape
from typing import Any

import numpy as np
from etils import epath

from unifluid_jax.evals import report_charts as charts
from unifluid_jax.evals.contact_sheet import contact_sheet, enlarged
from unifluid_jax.evals.report_template import PAGE, STYLE
from unifluid_jax.evals.report_types import (
  Answer,
  Curve,
  EditSample,
  Generation,
  ReportData,
  ScoreRow,
  TaskBar,
  Understanding,
  curve_from_rows,
)

__all__ = [
  "Answer",
  "Curve",
  "EditSample",
  "Generation",
  "ReportData",
  "ScoreRow",
  "TaskBar",
  "Understanding",
  "contact_sheet",
  "curve_from_rows",
  "render_report",
  "write_report",
]

_MISSING = "–"
_PIXELATED_TO = 384  # small canvases are enlarged by whole factors up to this


def write_report(path: str | epath.PathLike, data: ReportData) -> None:
  """Writes the page to one file, parent folders included.

  Args:
    path: the .html to write; local, or any file system epath knows.
    data: what to show.

  Raises:
    ValueError: a score row without one value per checkpoint, or an image
      that is not u8[H, W, 3]; the message names it.
  """
  html = render_report(data)
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(html)


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
    "Training": _curves(data.curves),
    "GenEval": _geneval(data) if data.geneval else "",
    "Generation": _generations(data.generations),
    "Understanding": _understanding(data.understanding),
    "Editing": _edits(data.edits),
  }
  shown = {name: html for name, html in sections.items() if html}
  links = "".join(f'<a href="#{n.lower()}">{n}</a>' for n in shown)
  body = "".join(
    f'<section id="{name.lower()}"><h2>{name}</h2>{html}</section>'
    for name, html in shown.items()
  )
  page = (
    f"{_header(data)}<nav><div>{links}</div></nav><main>{body}</main>"
    f"<footer>unifluid_jax · {escape(data.name)} · step {data.step:,} · "
    f"{escape(data.date)}</footer>"
  )
  title = f"{data.name} · step {data.step:,}"
  return PAGE.format(title=escape(title), style=STYLE, body=page)


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
    '<header><p class="eyebrow">Evaluation report</p>'
    f"<h1>{escape(data.name)}</h1>"
    f'<p class="lead">Step <b>{data.step:,}</b> · {escape(data.date)}</p>'
    + (f'<div class="tiles">{tiles}</div>' if tiles else "")
    + (f'<dl class="config card">{config}</dl>' if config else "")
    + "</header>"
  )


def _tile(row: ScoreRow, checkpoints: tuple[int, ...]) -> str:
  known = [
    (step, value)
    for step, value in zip(checkpoints, row.values, strict=True)
    if not _missing(value)
  ]
  foot = []
  if row.floor is not None:
    foot.append(f"floor {_number(row.floor, row.digits)}")
  if row.bar is not None:
    foot.append(f"bar {_number(row.bar, row.digits)} {_reached(row)}")
  if not foot and len(known) > 1 and not _missing(row.values[-1]):
    change = known[-1][1] - known[-2][1]
    foot.append(f"{change:+.{row.digits}f} since step {known[-2][0]:,}")
  latest = row.values[-1] if row.values else None
  shown = " · ".join(f"<span>{text}</span>" for text in foot)
  return (
    f'<div class="tile card"><div class="name">{escape(row.name)}</div>'
    f'<div class="row"><div class="value">{_number(latest, row.digits)}</div>'
    f"{charts.sparkline_svg([value for _, value in known])}</div>"
    f'<div class="foot">{shown or "&nbsp;"}</div></div>'
  )


def _scores(data: ReportData) -> str:
  last = len(data.checkpoints) - 1
  floors = any(row.floor is not None for row in data.scores)
  bars = any(row.bar is not None for row in data.scores)
  columns = len(data.checkpoints) + floors + bars
  head = "".join(
    f'<th scope="col"{_latest(i, last)}>{step:,}</th>'
    for i, step in enumerate(data.checkpoints)
  )
  head += '<th scope="col">floor</th>' * floors
  head += '<th scope="col">bar</th>' * bars
  groups: dict[str, list[str]] = {}
  for row in data.scores:
    cells = _score_row(row, last, floors, bars)
    groups.setdefault(row.group, []).append(cells)
  body = []
  for group, lines in groups.items():
    if group:
      body.append(
        f'<tr class="group"><th scope="rowgroup">{escape(group)}</th>'
        f'<td colspan="{columns}"></td></tr>'
      )
    body += lines
  notes = "".join(f"<li>{escape(note)}</li>" for note in data.notes)
  bar = ", bar the score this run is meant to reach" * bars
  return (
    '<p class="note">By training step. Arrows say which way is better; '
    f"floor is the score of a model that ignores its input{bar}.</p>"
    '<div class="card scroll"><table><thead><tr><th scope="col">Metric</th>'
    f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    + (f'<ul class="notes">{notes}</ul>' if notes else "")
  )


def _score_row(row: ScoreRow, last: int, floors: bool, bars: bool) -> str:
  arrow, better = ("↓", "lower") if row.lower_is_better else ("↑", "higher")
  cells = "".join(
    f"<td{_latest(i, last)}>{_number(value, row.digits)}</td>"
    for i, value in enumerate(row.values)
  )
  if floors:
    cells += f'<td class="ref">{_number(row.floor, row.digits)}</td>'
  if bars:
    cells += (
      f'<td class="ref">{_number(row.bar, row.digits)} {_reached(row)}</td>'
    )
  return (
    f'<tr><th scope="row">{escape(row.name)}<span class="dir" '
    f'title="{better} is better">{arrow}</span></th>{cells}</tr>'
  )


def _curves(curves: tuple[Curve, ...]) -> str:
  panels = []
  for curve in curves:
    svg = charts.curve_svg(curve.steps, curve.values)
    if svg:
      latest = _number(charts.last_average(curve.values), 4)
      panels.append(
        f'<figure class="panel card"><figcaption>{escape(curve.title)}'
        f"<span>now {latest}</span></figcaption>{svg}</figure>"
      )
  if not panels:
    return ""
  return (
    '<p class="note">Loss against training step; faint as logged, strong as '
    f'moving average.</p><div class="pair">{"".join(panels)}</div>'
  )


def _geneval(data: ReportData) -> str:
  rows = []
  for bar in sorted(data.geneval, key=lambda bar: not bar.overall):
    width = 0.0 if _missing(bar.score) else 100 * min(max(bar.score, 0.0), 1.0)
    floor = ""
    if not _missing(bar.floor):
      floor = (
        f'<div class="floor" style="left:{100 * bar.floor:.1f}%" '
        f'title="floor {bar.floor:.2f}"></div>'
      )
    rows.append(
      f'<div class="bar{" overall" * bar.overall}">'
      f"<span>{escape(bar.name)}</span>"
      f'<div class="track"><div class="fill" style="width:{width:.1f}%"></div>'
      f'{floor}</div><span class="value">{_number(bar.score, 2)}</span></div>'
    )
  key = ""
  if any(not _missing(bar.floor) for bar in data.geneval):
    key = f'<p class="key"><i></i>{escape(data.floor_name)}</p>'
  return (
    '<p class="note">Share of images that show what the prompt asks for; '
    "overall is the unweighted mean of the tasks.</p>"
    f'<div class="bars card">{"".join(rows)}{key}</div>'
  )


def _generations(samples: tuple[Generation, ...]) -> str:
  groups = {}
  for sample in samples:
    groups.setdefault(sample.task, []).append(sample)
  html = []
  for task, group in groups.items():
    judged = [s.correct for s in group if s.correct is not None]
    if task or judged:
      count = f"{sum(judged)} of {len(judged)} correct" if judged else ""
      html.append(f"<h3>{escape(task)}<small>{count}</small></h3>")
    figures = "".join(
      f'<figure><div class="frame">{_image(s.image, s.prompt)}'
      f"{_mark(s.correct)}</div><figcaption>{escape(s.prompt)}</figcaption>"
      "</figure>"
      for s in group
    )
    html.append(f'<div class="gallery">{figures}</div>')
  return "".join(html)


def _understanding(samples: tuple[Understanding, ...]) -> str:
  cards = []
  for sample in samples:
    lines = []
    if sample.caption is not None:
      lines.append(_said(sample.caption, sample.correct))
      lines += [
        f'<p class="truth">Reference: {escape(text)}</p>'
        for text in sample.references
      ]
    for a in sample.answers:
      truth = f'<p class="truth">Truth: {escape(a.truth)}</p>' * bool(a.truth)
      lines.append(
        f'<div class="qa"><p class="q">{escape(a.question)}</p>'
        f"{_said(a.answer, a.correct)}{truth}</div>"
      )
    cards.append(
      f'<div class="seen card"><div>{_image(sample.image, "")}</div>'
      f"<div>{''.join(lines)}</div></div>"
    )
  if not cards:
    return ""
  return (
    '<p class="note">What the model says about images it has not seen, beside '
    f'the ground truth.</p><div class="cards">{"".join(cards)}</div>'
  )


def _edits(samples: tuple[EditSample, ...]) -> str:
  cards = []
  for s in samples:
    arrow = '<span class="arrow" aria-hidden="true">→</span>'
    row = _figure(s.source, "source") + arrow + _figure(s.result, "result")
    if s.target is not None:
      row += _figure(s.target, "target")
    two = " two" * (s.target is None)
    cards.append(
      f'<div class="edit card">{_said(s.instruction, s.correct)}'
      f'<div class="row{two}">{row}</div></div>'
    )
  if not cards:
    return ""
  return (
    '<p class="note">The source image, what the model made of it, and the '
    f'target where there is one.</p><div class="cards">{"".join(cards)}</div>'
  )


# --- small pieces -------------------------------------------------------------


def _missing(value: float | None) -> bool:
  return value is None or not math.isfinite(value)


def _number(value: float | None, digits: int) -> str:
  return _MISSING if _missing(value) else f"{value:.{digits}f}"


def _latest(index: int, last: int) -> str:
  return ' class="latest"' if index == last else ""


def _reached(row: ScoreRow) -> str:
  """Whether the latest score is at the row's bar or beyond."""
  latest = row.values[-1] if row.values else None
  if _missing(latest) or _missing(row.bar):
    return ""
  reached = latest <= row.bar if row.lower_is_better else latest >= row.bar
  if reached:
    return '<span class="good" title="reached">✓</span>'
  return '<span class="bad" title="not reached">✗</span>'


def _mark(correct: bool | None) -> str:
  if correct is None:
    return ""
  if correct:
    return '<span class="mark yes" role="img" aria-label="correct">✓</span>'
  return '<span class="mark no" role="img" aria-label="incorrect">✗</span>'


def _said(text: str, correct: bool | None) -> str:
  shown = escape(text) if text.strip() else _MISSING
  return f'<p class="said"><span>{shown}</span>{_mark(correct)}</p>'


def _figure(image: Any, caption: str) -> str:
  return (
    f"<figure>{_image(image, caption)}<figcaption>{escape(caption)}"
    "</figcaption></figure>"
  )


def _image(image: Any, alt: str) -> str:
  """An `<img>` that carries its PNG; small canvases become visible pixels."""
  scale = max(1, _PIXELATED_TO // max(np.shape(image)[:2]))
  picture = enlarged(image, scale)
  file = io.BytesIO()
  picture.save(file, format="PNG", optimize=True)
  code = base64.b64encode(file.getvalue()).decode("ascii")
  return (
    f'<img src="data:image/png;base64,{code}" alt="{escape(alt)}" '
    f'width="{picture.width}" height="{picture.height}">'
  )
