"""The page of two runs; it needs nothing but itself and computes no score."""

from collections.abc import Sequence
from html import escape

from etils import epath

from unifluid_jax.core import files
from unifluid_jax.evals.report import charts as charts
from unifluid_jax.evals.report import html as html
from unifluid_jax.evals.report import images as images
from unifluid_jax.evals.report.types import Chart, Comparison, PairRow


def write(path: str | epath.PathLike, data: Comparison) -> None:
  """Writes the page to one file, parent folders included."""
  files.write(path, render(data))


def render(data: Comparison) -> str:
  """The page as text."""
  names = " and ".join(data.names)
  sections = {
    "Scores": _scores(data) if data.scores else "",
    "Configuration": _config(data) if data.config else "",
    "Training": _charts(data, data.training, losses=True),
    "Progress": _charts(data, data.progress, losses=False),
    "Samples": _samples(data),
  }
  return html.page(
    names, _header(data), sections, f"unifluid_jax · {names} · {data.date}"
  )


def difference(row: PairRow) -> float | None:
  """Second run minus first; None where one is missing or not alike."""
  a, b = row.values
  if html.missing(a) or html.missing(b) or row.objection:
    return None
  return b - a


def _header(data: Comparison) -> str:
  runs = "".join(
    _run(i, name, f"<small>step {step:,}</small>")
    for i, (name, step) in enumerate(zip(data.names, data.steps, strict=True))
  )
  return (
    '<p class="eyebrow">Two runs</p>'
    f'<h1 class="runs">{runs}</h1><p class="lead">{escape(data.date)}</p>'
  )


def _scores(data: Comparison) -> str:
  head = [
    f'<th scope="col">{_run(i, name)}</th>' for i, name in enumerate(data.names)
  ]
  head.append('<th scope="col" class="delta">Δ</th>')
  floors = any(row.floor is not None for row in data.scores)
  head += ['<th scope="col" class="ref">floor</th>'] * floors
  rows = [(row.group, _score_row(row, floors)) for row in data.scores]
  return (
    html.note(
      "Δ is the second run minus the first, green where the second is better; "
      "between single runs a small one may be chance. ≠ stands where the two "
      f"were not measured alike, {html.MISSING} where a run has no such score."
    )
    + html.table(head, rows, "versus")
    + html.notes(data.notes)
  )


def _score_row(row: PairRow, floors: bool) -> str:
  cells = "".join(
    f"<td>{html.number(value, row.digits)}</td>" for value in row.values
  )
  delta = difference(row)
  shown, kind = html.number(delta, row.digits, "+"), ""
  if row.objection:
    shown = f'<span title="{escape(row.objection)}">≠</span>'
  elif delta is not None and not round(delta, row.digits):
    shown = html.number(0.0, row.digits)
  elif delta is not None:
    kind = " good" if (delta < 0) == row.lower_is_better else " bad"
  cells += f'<td class="delta{kind}">{shown}</td>'
  if floors:
    cells += f'<td class="ref">{html.number(row.floor, row.digits)}</td>'
  return (
    f'<tr><th scope="row">{escape(row.name)}'
    f"{html.better(row.lower_is_better)}</th>{cells}</tr>"
  )


def _config(data: Comparison) -> str:
  rows = "".join(
    f'<tr><th scope="row">{escape(key)}</th>'
    + "".join(f"<td>{escape(v) or html.MISSING}</td>" for v in values)
    + "</tr>"
    for key, *values in data.config
  )
  head = "".join(f'<th scope="col">{escape(name)}</th>' for name in data.names)
  return (
    html.note("Values in which the two configurations differ.")
    + '<div class="card scroll"><table class="config"><thead><tr>'
    f'<th scope="col">Key</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    "</div>"
  )


def _charts(data: Comparison, drawn: Sequence[Chart], losses: bool) -> str:
  panels = []
  for chart in drawn:
    svg = charts.loss_svg(chart.curves) if losses else charts.score_svg(chart)
    if svg:
      ends = "".join(
        _run(i, _end(curve, losses))
        for i, curve in enumerate(chart.curves)
        if curve.values
      )
      panels.append(html.panel(chart.title, ends, svg))
  if not panels:
    return ""
  legend = "".join(_run(i, name) for i, name in enumerate(data.names))
  what = "Losses, averaged" if losses else "Scores"
  return (
    f'<p class="note legend"><span>{what}, over training steps</span>{legend}'
    f'</p><div class="pair">{"".join(panels)}</div>'
  )


def _run(index: int, name: str, more: str = "") -> str:
  """A name beside its run's colour; `more` is HTML."""
  return (
    f'<span class="run s{index}"><i class="swatch"></i>'
    f"<span>{escape(name)}</span>{more}</span>"
  )


def _end(curve: charts.Curve, losses: bool) -> str:
  if losses:
    return html.number(charts.last_average(curve.values), 4)
  return html.number(curve.values[-1], 3)


def _samples(data: Comparison) -> str:
  parts = [images.pairs(data.names, data.samples)]
  if data.unpaired:
    parts.insert(0, html.note(f"{data.unpaired}."))
  elif data.samples:
    parts.insert(0, html.note("The same prompts and seeds in both runs."))
  return "".join(parts)
