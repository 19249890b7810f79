"""Small pieces of HTML that all report pages are made of; text is escaped."""

import base64
import functools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from unifluid_jax.data.images import encode_image
from unifluid_jax.evals.report import attribution
from unifluid_jax.evals.report.contact_sheet import enlarged
from unifluid_jax.evals.report.samples import encoded
from unifluid_jax.evals.report.template import PAGE, STYLE

MISSING = "–"
_PIXELATED_TO = 384  # small canvases are enlarged by whole factors up to this


def page(
  title: str, header: str, sections: Mapping[str, str], footer: str
) -> str:
  """A whole page.

  Args:
    title: of the window, plain text.
    header: HTML.
    sections: HTML by heading; empty ones are left out.
    footer: HTML.
  """
  shown = {name: html for name, html in sections.items() if html}
  ids = {name: name.lower().replace(" ", "-") for name in shown}
  links = "".join(f'<a href="#{ids[n]}">{n}</a>' for n in shown)
  body = "".join(
    f'<section id="{ids[name]}"><h2>{name}</h2>{html}</section>'
    for name, html in shown.items()
  )
  return PAGE.format(
    title=escape(title),
    style=STYLE,
    body=f"<header>{header}</header><nav><div>{links}</div></nav>"
    f"<main>{body}</main><footer>{footer}</footer>",
  )


def footer(line: str, text: str) -> str:
  """The last line of a page, after the attribution of its data.

  Args:
    line: plain text.
    text: of an attribution file; may be empty.
  """
  credit = attribution.as_html(text)
  if credit:
    credit = f'<div class="attribution">{credit}</div>'
  return f"{credit}<p>{escape(line)}</p>"


def missing(value: float | None) -> bool:
  """Whether there is no number to show."""
  return value is None or not math.isfinite(value)


def number(value: float | None, digits: int, sign: str = "") -> str:
  """A number, or a dash; `sign` "+" shows it of positive ones too."""
  if missing(value):
    return MISSING
  return f"{value:{sign}.{digits}f}".replace("-", "−")


def better(lower_is_better: bool, constant: bool = False) -> str:
  """An arrow that says which way a metric should go; none of constants."""
  if constant:
    return ""
  arrow, way = ("↓", "lower") if lower_is_better else ("↑", "higher")
  return f'<span class="dir" title="{way} is better">{arrow}</span>'


def mark(correct: bool | None) -> str:
  """A tick, a cross, or nothing where nobody judged."""
  if correct is None:
    return ""
  if correct:
    return '<span class="mark yes" role="img" aria-label="correct">✓</span>'
  return '<span class="mark no" role="img" aria-label="incorrect">✗</span>'


def heading(text: str, correct: Sequence[bool | None]) -> str:
  """Of a group of samples, with how many of the judged ones are right."""
  judged = [c for c in correct if c is not None]
  if not text and not judged:
    return ""
  count = f"{sum(judged)} of {len(judged)} correct" if judged else ""
  return f"<h3>{escape(text)}<small>{count}</small></h3>"


def said(text: str, correct: bool | None) -> str:
  """What a model said, with a mark."""
  shown = escape(text) if text.strip() else MISSING
  return f'<p class="said"><span>{shown}</span>{mark(correct)}</p>'


def note(text: str) -> str:
  """A sentence below a heading."""
  return f'<p class="note">{escape(text)}</p>'


def table(
  head: Sequence[str],
  rows: Sequence[tuple[str, str]],
  kind: str = "",
  label: str = "Scores",
) -> str:
  """Metrics by group, a row each.

  Args:
    head: `<th>` of every column but the first.
    rows: group, plain text, and `<tr>` of each metric; a group's rows are
      brought together.
    kind: class of the table.
    label: of the table, for screen readers.
  """
  groups: dict[str, list[str]] = {}
  for group, row in rows:
    groups.setdefault(group, []).append(row)
  body = []
  for group, lines in groups.items():
    if group:
      body.append(
        f'<tr class="group"><th scope="rowgroup" colspan="{len(head) + 1}">'
        f"<span>{escape(group)}</span></th></tr>"
      )
    body += lines
  return scroll(
    f'<table class="{kind}"><thead><tr><th scope="col">Metric</th>'
    f"{''.join(head)}</tr></thead><tbody>{''.join(body)}</tbody></table>",
    label,
  )


def scroll(table: str, label: str, kind: str = "") -> str:
  """A card on which a wide table scrolls, by touch, wheel and keyboard."""
  return (
    f'<div class="card scroll{kind and f" {kind}"}" tabindex="0" '
    f'role="region" aria-label="{escape(label)}">{table}</div>'
  )


def notes(lines: Sequence[str]) -> str:
  """Remarks below a table; nothing without any."""
  items = "".join(f"<li>{escape(line)}</li>" for line in lines)
  return f'<ul class="notes">{items}</ul>' if items else ""


def facts(rows: Mapping[str, str]) -> str:
  """A card of labels and values; nothing without any."""
  items = "".join(
    f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>"
    for key, value in rows.items()
  )
  return f'<dl class="config card">{items}</dl>' if items else ""


def panel(title: str, remark: str, body: str) -> str:
  """A chart on a card; `remark` and `body` are HTML."""
  return (
    f'<figure class="panel card"><figcaption>{escape(title)}'
    f"<span>{remark}</span></figcaption>{body}</figure>"
  )


def figure(image: Any, caption: str) -> str:
  """An image above its caption."""
  return (
    f"<figure>{picture(image, caption)}<figcaption>{escape(caption)}"
    "</figcaption></figure>"
  )


def framed(image: Any, caption: str, correct: bool | None) -> str:
  """An image with a mark on its corner."""
  return f'<div class="frame">{picture(image, caption)}{mark(correct)}</div>'


def picture(image: Any, alt: str) -> str:
  """An `<img>` that carries its file; small canvases become visible pixels.

  Raises:
    ValueError: not u8[H, W, 3].
  """
  pixels = np.asarray(image)
  src, (width, height) = _source(
    pixels.tobytes(), pixels.shape, pixels.dtype.name
  )
  return (
    f'<img src="{src}" alt="{escape(alt)}" width="{width}" height="{height}">'
  )


@functools.lru_cache(maxsize=256)
def _source(
  data: bytes, shape: tuple[int, ...], dtype: str
) -> tuple[str, tuple[int, int]]:
  """An image's data URL and size; kept, since some stand on a page twice."""
  image = np.frombuffer(data, dtype).reshape(shape)
  scale = max(1, _PIXELATED_TO // max(shape[:2]))
  if scale > 1:
    shown = enlarged(image, scale)
    size, data = shown.size, encode_image(shown, optimize=True)
  else:
    size, data = (shape[1], shape[0]), encoded(image)
  kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
  code = base64.b64encode(data).decode("ascii")
  return f"data:image/{kind};base64,{code}", size
