"""The evaluation report: one HTML file that needs nothing but itself.

Callers fill `ReportData` with plain values; nothing here computes a score.
"""

from collections.abc import Sequence
from html import escape

from etils import epath

from unifluid_jax.core import files
from unifluid_jax.evals.metrics import geneval as geneval_rules
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
  Start,
  TaskBar,
  Tile,
  curve_from_rows,
)

# As the page names the tasks.
_RULES = {
  tag.replace("_", " "): rule for tag, rule in geneval_rules.RULES.items()
}

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
  "Start",
  "TaskBar",
  "Tile",
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
    "Curves": _training("Losses", data.curves)
    + _training("Rewards", data.rewards)
    + _progress(data.progress),
    "Scores": _scores(data) if data.scores else "",
    "GenEval": _geneval(data) if data.geneval else "",
    "Generation": images.over_steps(data.sample_steps, data.samples)
    + images.generations(data.generations, _RULES),
    "Captions": images.captions(data.captions),
    "Questions": images.answers(data.answers),
    "Editing": images.edits(data.edits),
    "What ran": _what_ran(data),
  }
  page = html.page(
    f"{data.name} · step {data.step:,}",
    _header(data),
    sections,
    html.footer(
      f"unifluid_jax · {data.name} · step {data.step:,} · {data.date}",
      data.attribution,
    ),
  )
  return page + mark(data.digest)


def mark(digest: str) -> str:
  """The page's last words: which results it shows."""
  return f"<!-- results {digest} -->\n"


# --- parts of the page --------------------------------------------------------


def _header(data: ReportData) -> str:
  """What the run is, what it makes, and how good that is."""
  tiles = "".join(map(_tile, data.tiles))
  return (
    '<p class="eyebrow">Evaluation report</p>'
    f"<h1>{escape(data.name)}</h1>"
    f'<p class="lead">Step <b>{data.step:,}</b> · {escape(data.date)}</p>'
    + images.opening(data.generations, data.captions, data.answers, data.edits)
    + (f'<div class="tiles">{tiles}</div>' if tiles else "")
  )


def _tile(tile: Tile) -> str:
  foot = [escape(tile.remark)] if tile.remark else []
  if not html.missing(tile.floor):
    foot.append(f"chance {html.number(tile.floor, tile.digits)}")
  if not html.missing(tile.bar):
    sign = "≤" if tile.lower_is_better else "≥"
    bar = f"target {sign} {html.number(tile.bar, tile.digits)}"
    met = reached(tile.value, tile.bar, tile.lower_is_better)
    kind, word = ("good", "✓") if met else ("bad", "✗")
    foot.append(f'<b class="{kind}">{word} {bar}</b>')
  shown = "".join(f"<span>{text}</span>" for text in foot)
  return (
    f'<div class="tile card"><div class="name">{escape(tile.name)}</div>'
    f'<div class="value">{html.number(tile.value, tile.digits)}'
    f"<small>{escape(tile.unit)}</small></div>{_meter(tile)}"
    f'<div class="foot">{shown or "&nbsp;"}</div></div>'
  )


def _meter(tile: Tile) -> str:
  """Where a score lies between nothing and the end of its scale."""
  if tile.end is None:
    return ""
  marks = "".join(
    f'<i class="{kind}" style="left:{_share(value, tile.end)}%"></i>'
    for kind, value in (("chance", tile.floor), ("target", tile.bar))
    if not html.missing(value)
  )
  return (
    '<div class="meter" aria-hidden="true"><div class="fill" '
    f'style="width:{_share(tile.value, tile.end)}%"></div>{marks}</div>'
  )


def _share(value: float, end: float) -> str:
  return f"{100 * min(max(value / end, 0.0), 1.0):.1f}"


def reached(value: float | None, bar: float, lower_is_better: bool) -> bool:
  """Whether a score is at its target or beyond; one that is missing is not."""
  if html.missing(value):
    return False
  return value <= bar if lower_is_better else value >= bar


def _scores(data: ReportData) -> str:
  """The newest step beside the names, where a phone shows it, then others."""
  order = range(len(data.checkpoints) - 1, -1, -1)
  floors = any(row.floor is not None for row in data.scores)
  bars = any(row.bar is not None for row in data.scores)
  steps = [f'<th scope="col">{data.checkpoints[i]:,}</th>' for i in order]
  newest = [s.replace("<th", '<th class="latest"', 1) for s in steps[:1]]
  head = [*newest]
  head += ['<th scope="col">chance</th>'] * floors
  head += ['<th scope="col">target</th>'] * bars
  head += steps[1:]
  rows = [
    (row.group, _score_row(row, order, floors, bars)) for row in data.scores
  ]
  words = [
    "By training step, the newest first.",
    "Arrows say which way is better.",
  ]
  if any(row.constant for row in data.scores):
    words.append(
      "Rows without one are constants of the measurement, which training does "
      "not enter: the detector, real images, the frozen tokenizer."
    )
  if floors:
    words.append("Chance is the score of a model that ignores its input.")
  if bars:
    words.append("Target is what the configuration file asks of this run.")
  return (
    html.note(" ".join(words)) + html.table(head, rows) + html.notes(data.notes)
  )


def _score_row(
  row: ScoreRow, order: Sequence[int], floors: bool, bars: bool
) -> str:
  values = [html.number(row.values[i], row.digits) for i in order]
  cells = "".join(f'<td class="latest">{value}</td>' for value in values[:1])
  if floors:
    cells += f'<td class="ref">{html.number(row.floor, row.digits)}</td>'
  if bars:
    cells += f'<td class="ref">{_target(row)}</td>'
  cells += "".join(f"<td>{value}</td>" for value in values[1:])
  return (
    f'<tr><th scope="row">{escape(row.name)}'
    f"{html.better(row.lower_is_better, row.constant)}</th>{cells}</tr>"
  )


def _target(row: ScoreRow) -> str:
  """A row's target, and whether the newest score has reached it."""
  text = html.number(row.bar, row.digits)
  latest = row.values[-1] if row.values else None
  if html.missing(latest) or html.missing(row.bar):
    return text
  if reached(latest, row.bar, row.lower_is_better):
    return f'{text} <span class="good" title="reached">✓</span>'
  return f'{text} <span class="bad" title="not reached">✗</span>'


def _what_ran(data: ReportData) -> str:
  """Configuration, times and the commands, so that it can be run again."""
  parts = [html.facts(data.config), html.facts(data.times)]
  return "".join(parts) + starts([("", start) for start in data.starts])


def starts(rows: Sequence[tuple[str, Start]]) -> str:
  """Commands with what they ran on; each after a name, which may be empty."""
  parts = []
  for name, start in rows:
    text = " · ".join(x for x in (name, start.when) if x)
    facts = "".join(
      f"<li><b>{escape(key)}</b> {escape(value)}</li>"
      for key, value in start.facts.items()
    )
    parts.append(
      f'<div class="start card"><p>{escape(text)}</p>'
      f"<pre><code>{escape(start.command)}</code></pre><ul>{facts}</ul></div>"
    )
  return "".join(parts)


def _training(title: str, curves: Sequence[Curve]) -> str:
  panels = []
  for curve in curves:
    if svg := charts.loss_svg([curve]):
      latest = html.number(charts.last_average(curve.values), 4)
      panels.append(html.panel(curve.title, f"now {latest}", svg))
  if not panels:
    return ""
  return (
    f"<h3>{title}</h3>"
    + html.note("Against training step; faint as logged, strong as average.")
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
    "<h3>Scores</h3>"
    + html.note("Against training step, one point for each checkpoint.")
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
    ),
    _rules(data.geneval),
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


def _rules(bars: Sequence[TaskBar]) -> str:
  """When an image counts as correct: less, or more, than a glance tells."""
  asked = {bar.name for bar in bars}
  items = "".join(
    f"<li><b>{escape(name)}</b> {escape(rule)}</li>"
    for name, rule in _RULES.items()
    if name in asked
  )
  if not items:
    return ""
  return (
    '<details class="rules"><summary>Where a tick or a cross looks wrong: '
    f"GenEval's rules</summary><ul>{items}</ul></details>"
  )


def _bar(bar: TaskBar) -> str:
  score = 0.0 if html.missing(bar.score) else min(max(bar.score, 0.0), 1.0)
  floor = ""
  if not html.missing(bar.floor):
    floor = (
      f'<div class="floor" style="left:{100 * bar.floor:.1f}%" '
      f'title="chance {bar.floor:.2f}"></div>'
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
