"""The page of several runs; it needs nothing but itself.

Beside means over seeds and differences it computes no score.
"""

from collections.abc import Sequence
from html import escape

from etils import epath

from unifluid_jax.core import files
from unifluid_jax.evals.report import charts as charts
from unifluid_jax.evals.report import html as html
from unifluid_jax.evals.report import images as images
from unifluid_jax.evals.report import intervals, page
from unifluid_jax.evals.report.types import (
  Chart,
  ComparedRow,
  Comparison,
  Curve,
  RunGroup,
  SampleRow,
)

_OPENING = {2: 8}  # prompts that open the page, by the number of runs
_OPENING_MORE = 4  # of more runs, which need a row each
_TILES = 6
_COUNTS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}


def write(path: str | epath.PathLike, data: Comparison) -> None:
  """Writes the page to one file, parent folders included."""
  files.write(path, render(data))


def render(data: Comparison) -> str:
  """The page as text."""
  names = " and ".join(group.name for group in data.groups)
  opening = _opening(data)
  sections = {
    "Curves": _charts(data, data.training, losses=True)
    + _charts(data, data.progress, losses=False),
    "Scores": _scores(data) if data.scores else "",
    "Each run": _each_run(data),
    "Configuration": _config(data) if data.config else "",
    "Samples": _samples(data) if len(opening) < len(data.samples) else "",
    "What ran": page.starts(data.starts),
  }
  return html.page(
    names,
    _header(data, opening),
    sections,
    html.footer(f"unifluid_jax · {names} · {data.date}", data.attribution),
  )


def difference(row: ComparedRow, index: int) -> intervals.Estimate | None:
  """A group minus the first; None where one is missing or not alike."""
  a, b = known(row.values[0]), known(row.values[index])
  if not a or not b or any(_objections(row, index)):
    return None
  return intervals.difference(a, b)


def known(values: Sequence[float | None]) -> list[float]:
  """The scores of the runs that have one."""
  return [v for v in values if not html.missing(v)]


def _objections(row: ComparedRow, index: int) -> tuple[str, ...]:
  """Of the first group and of another."""
  if not row.objections:
    return ()
  return row.objections[0], row.objections[index]


# --- parts of the page --------------------------------------------------------


def _header(data: Comparison, opening: Sequence[SampleRow]) -> str:
  count = sum(len(group.runs) for group in data.groups)
  runs = "".join(
    _run(
      i,
      group.name,
      f"<small>step {group.step:,}"
      + f" · {len(group.runs)} seeds" * (len(group.runs) > 1)
      + "</small>",
    )
    for i, group in enumerate(data.groups)
  )
  tiles = "".join(
    _tile(row, data.groups)
    for row in [r for r in data.scores if r.headline][:_TILES]
  )
  return (
    f'<p class="eyebrow">{_COUNTS.get(count, count)} runs</p>'
    f'<h1 class="runs">{runs}</h1><p class="lead">{escape(data.date)}</p>'
    + _pictures(data, opening)
    + (f'<div class="tiles">{tiles}</div>' if tiles else "")
  )


def _opening(data: Comparison) -> list[SampleRow]:
  """The rows of samples before any number, one of each task in turn."""
  runs = sum(len(group.runs) for group in data.groups)
  count = _OPENING.get(runs, _OPENING_MORE)
  return images.spread(data.samples, images.task_of, count)


def _pictures(data: Comparison, rows: Sequence[SampleRow]) -> str:
  parts = []
  if rows:
    beside = images.beside(_names(data), _series(data), rows)
    note = "The same prompts and seeds in all runs."
    parts += [f'<div class="first">{beside}</div>', html.note(note)]
  if data.unpaired:
    parts.append(html.note(f"{data.unpaired}."))
  return "".join(parts)


def _tile(row: ComparedRow, groups: Sequence[RunGroup]) -> str:
  """One headline score of all groups, a line each."""
  scale, lines = row.headline, []
  for i, (group, values) in enumerate(zip(groups, row.values, strict=True)):
    shown = [None if v is None else v * scale.factor for v in values]
    text = _estimate(shown, scale.digits)
    lines.append(
      f'<li>{_run(i, group.name)}<span class="value">{text}</span></li>'
    )
  unit = f"<small>{escape(scale.unit)}</small>" if scale.unit else ""
  return (
    f'<div class="tile card"><div class="name">{escape(scale.title)}'
    f"{html.better(row.lower_is_better)}{unit}</div>"
    f"<ul>{''.join(lines)}</ul></div>"
  )


def _scores(data: Comparison) -> str:
  head, floors = [], any(row.floor is not None for row in data.scores)
  for i, group in enumerate(data.groups):
    n = len(group.runs)
    seeds = f"<small>n = {n}</small>" if n > 1 else ""
    head.append(f'<th scope="col">{_run(i, group.name, seeds)}</th>')
    if i:
      head.append('<th scope="col" class="delta">Δ</th>')
  head += ['<th scope="col" class="ref">chance</th>'] * floors
  rows = [(row.group, _score_row(row, floors)) for row in data.scores]
  return (
    html.note(_explained(data))
    + html.table(head, rows, "versus")
    + html.notes(data.notes)
  )


def _explained(data: Comparison) -> str:
  """What the table of scores means, as far as these runs need it."""
  sizes = [len(group.runs) for group in data.groups]
  words = []
  if len(sizes) > 1:
    words.append(
      f"Δ is the difference to {data.groups[0].name}, green where it is "
      "better. ≠ stands where the two were not measured alike, "
      f"{html.MISSING} where a run has no such score."
    )
  if max(sizes) > 1:
    words.append(
      "± is half of a 95 % interval (Student's t) of the mean over n runs "
      "that differ in their seed alone."
    )
  if sum(n > 1 for n in sizes) > 1:
    words.append(
      "Intervals of differences are Welch's; where they hold zero, Δ has no "
      "colour, and of twenty rows without any difference about one has some."
    )
  if len(sizes) > 1 and min(sizes) == 1:
    words.append(
      "Of one seed there is no interval: a small difference may be chance."
    )
  return " ".join(words)


def _score_row(row: ComparedRow, floors: bool) -> str:
  cells = ""
  for i, values in enumerate(row.values):
    cells += f"<td>{_estimate(values, row.digits)}</td>"
    if i:
      cells += _delta(row, i)
  if floors:
    cells += f'<td class="ref">{html.number(row.floor, row.digits)}</td>'
  return (
    f'<tr><th scope="row">{escape(row.name)}'
    f"{html.better(row.lower_is_better, row.constant)}</th>{cells}</tr>"
  )


def _delta(row: ComparedRow, index: int) -> str:
  found, kind = difference(row, index), ""
  objection = "; ".join(filter(None, _objections(row, index)))
  if objection and known(row.values[index]):
    shown = f'<span title="{escape(objection)}">≠</span>'
  elif found is None:
    shown = html.MISSING
  else:
    zero = not round(found.value, row.digits)
    shown = html.number(0.0 if zero else found.value, row.digits,
                        "" if zero else "+")  # fmt: skip
    shown += _half(found, row.digits)
    clear = found.half is None or found.excludes_zero
    if not zero and clear and not row.constant:
      better = (found.value < 0) == row.lower_is_better
      kind = " good" if better else " bad"
  return f'<td class="delta{kind}">{shown}</td>'


def _estimate(values: Sequence[float | None], digits: int) -> str:
  """A mean with its interval, a single value, or a dash."""
  scored = known(values)
  if not scored:
    return html.MISSING
  found = intervals.mean(scored)
  fewer = f" (n = {len(scored)})" if len(scored) < len(values) else ""
  return html.number(found.value, digits) + _half(found, digits) + fewer


def _half(found: intervals.Estimate, digits: int) -> str:
  if found.half is None:
    return ""
  return f'<span class="half"> ± {html.number(found.half, digits)}</span>'


def _each_run(data: Comparison) -> str:
  """What the means are of; only where runs share a group."""
  if all(len(group.runs) == 1 for group in data.groups):
    return ""
  head = [
    f'<th scope="col">{_run(i, name)}</th>'
    for i, name in zip(_series(data), _names(data), strict=True)
  ]
  rows = []
  for row in data.scores:
    cells = ""
    for values in row.values:
      shown = [html.number(v, row.digits) for v in values]
      cells += "".join(f"<td>{text}</td>" for text in shown)
    line = (
      f'<tr><th scope="row">{escape(row.name)}'
      f"{html.better(row.lower_is_better, row.constant)}</th>{cells}</tr>"
    )
    rows.append((row.group, line))
  return html.table(head, rows, "versus", "Scores of each run")


def _config(data: Comparison) -> str:
  rows = "".join(
    f'<tr><th scope="row">{escape(key)}</th>'
    + "".join(f"<td>{escape(v) or html.MISSING}</td>" for v in values)
    + "</tr>"
    for key, *values in data.config
  )
  head = "".join(
    f'<th scope="col">{escape(group.name)}</th>' for group in data.groups
  )
  return html.note("Values in which the configurations differ.") + html.scroll(
    '<table class="config"><thead><tr>'
    f'<th scope="col">Key</th>{head}</tr></thead><tbody>{rows}</tbody></table>',
    "Configuration",
  )


def _charts(data: Comparison, drawn: Sequence[Chart], losses: bool) -> str:
  panels = []
  for chart in drawn:
    svg = charts.loss_svg(chart.curves) if losses else charts.score_svg(chart)
    if svg:
      panels.append(html.panel(chart.title, _ends(chart, losses), svg))
  if not panels:
    return ""
  legend = "".join(_run(i, group.name) for i, group in enumerate(data.groups))
  what = "Losses" if losses else "Scores"
  return (
    f'<h3>{what}</h3><p class="note legend"><span>Against training step</span>'
    f'{legend}</p><div class="pair">{"".join(panels)}</div>'
  )


def _run(index: int, name: str, more: str = "") -> str:
  """A name beside the colour of its group; `more` is HTML."""
  return (
    f'<span class="run s{index}"><i class="swatch"></i>'
    f"<span>{escape(name)}</span>{more}</span>"
  )


def _ends(chart: Chart, losses: bool) -> str:
  """Where the curves of each group end, on average."""
  ends: dict[int, list[float]] = {}
  for curve in chart.curves:
    end = _end(curve, losses)
    if not html.missing(end):
      ends.setdefault(curve.series or 0, []).append(end)
  digits = 4 if losses else 3
  return "".join(
    _run(i, html.number(sum(values) / len(values), digits))
    for i, values in ends.items()
  )


def _end(curve: Curve, losses: bool) -> float | None:
  if not curve.values:
    return None
  return charts.last_average(curve.values) if losses else curve.values[-1]


def _samples(data: Comparison) -> str:
  return images.pairs(_names(data), _series(data), data.samples)


def _names(data: Comparison) -> list[str]:
  """Of all runs, group by group."""
  return [name for group in data.groups for name in group.runs]


def _series(data: Comparison) -> list[int]:
  """The colour of each run: its group's."""
  return [i for i, group in enumerate(data.groups) for _ in group.runs]
