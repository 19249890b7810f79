"""The report's sections of examples: what the model drew, said and changed."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from unifluid_jax.evals.report import html as html
from unifluid_jax.evals.report.types import (
  Answer,
  Caption,
  EditSample,
  Generation,
  SampleRow,
)

_NEVER = float("inf")


def over_steps(steps: Sequence[int], rows: Sequence[SampleRow]) -> str:
  """One seed a prompt over training: a row a prompt, a column a step.

  Raises:
    ValueError: a row without one entry per step.
  """
  if not rows:
    return ""
  head = "".join(f'<th scope="col">{step:,}</th>' for step in steps)
  body = []
  for row in rows:
    if len(row.drawn) != len(steps):
      raise ValueError(
        f"prompt {row.prompt!r} has {len(row.drawn)} images for {len(steps)} "
        "steps: use None where one is missing"
      )
    cells = "".join(f"<td>{_cell(drawn)}</td>" for drawn in row.drawn)
    body.append(f'<tr><th scope="row">{escape(row.prompt)}</th>{cells}</tr>')
  return (
    "<h3>Over training</h3>"
    + html.note("The same prompts and seeds, drawn at several checkpoints.")
    + '<div class="card scroll fit"><table class="grid" '
    f'style="--columns: {len(steps)}"><thead><tr>'
    f'<th scope="col">Prompt</th>{head}</tr></thead>'
    f"<tbody>{''.join(body)}</tbody></table></div>"
  )


def pairs(names: tuple[str, str], rows: Sequence[SampleRow]) -> str:
  """The same prompts and seeds of two runs, beside each other, by task."""
  parts = []
  for task, group in _grouped(rows, lambda row: row.drawn[0].task).items():
    cards = []
    for row in group:
      two = "".join(
        f'<div class="s{i}">{_cell(drawn)}<small>{escape(name)}</small></div>'
        for i, (name, drawn) in enumerate(zip(names, row.drawn, strict=True))
      )
      cards.append(
        f'<figure class="card"><div class="two">{two}</div>'
        f"<figcaption>{escape(row.prompt)}</figcaption></figure>"
      )
    counts = [
      f"{sum(judged)} of {len(judged)}"
      for i in range(2)
      if (judged := [c for r in group if (c := r.drawn[i].correct) is not None])
    ]
    small = " against ".join(counts) + " correct" * bool(counts)
    parts.append(
      f"<h3>{escape(task)}<small>{small}</small></h3>"
      f'<div class="pairs">{"".join(cards)}</div>'
    )
  return "".join(parts)


def generations(samples: Sequence[Generation]) -> str:
  """Images of the newest checkpoint by task."""
  parts = []
  for task, group in _grouped(samples, lambda s: s.task).items():
    figures = "".join(
      f"<figure>{html.framed(s.image, s.prompt, s.correct)}<figcaption>"
      f"{escape(s.prompt)}</figcaption></figure>"
      for s in group
    )
    parts.append(html.heading(task, [s.correct for s in group]))
    parts.append(f'<div class="gallery">{figures}</div>')
  return "".join(parts)


def captions(samples: Sequence[Caption]) -> str:
  """Captions by group, those of the lowest score first."""
  groups = _grouped(samples, lambda s: s.group)
  for group in groups.values():
    group.sort(key=lambda s: _NEVER if s.score is None else s.score)
  return _cards(
    "What the model says about images it has not seen, beside the "
    "references, with the CIDEr-D of each image (0 to 10), lowest first.",
    groups,
    _caption,
  )


def _caption(sample: Caption) -> str:
  score, several = "", len(sample.references) > 1
  if not html.missing(sample.score):
    score = f'<p class="score">CIDEr-D <b>{sample.score:.2f}</b></p>'
  lines = [escape(text) for text in sample.references]
  references = "".join(f'<p class="truth">Reference: {x}</p>' for x in lines)
  if several:
    items = "".join(f"<li>{x}</li>" for x in lines)
    references = f'<div class="truth">References:<ul>{items}</ul></div>'
  return _seen(
    sample.image, html.said(sample.text, sample.correct) + score + references
  )


def answers(samples: Sequence[Answer]) -> str:
  """Questions by their kind."""
  return _cards(
    "The first questions of each kind about images the model has not seen.",
    _grouped(samples, lambda s: s.task),
    _answer,
  )


def _answer(sample: Answer) -> str:
  truth = f'<p class="truth">Truth: {escape(sample.truth)}</p>'
  return _seen(
    sample.image,
    f'<p class="q">{escape(sample.question)}</p>'
    f"{html.said(sample.answer, sample.correct)}{truth * bool(sample.truth)}",
  )


def edits(samples: Sequence[EditSample]) -> str:
  """Each edit as source, result and target, by kind."""
  return _cards(
    "The source image, what the model made of it, and the target where there "
    "is one.",
    _grouped(samples, lambda s: s.task),
    _edit,
  )


def _edit(sample: EditSample) -> str:
  arrow = '<span class="arrow" aria-hidden="true">→</span>'
  row = html.figure(sample.source, "source") + arrow
  row += html.figure(sample.result, "result")
  if sample.target is not None:
    row += html.figure(sample.target, "target")
  two = " two" * (sample.target is None)
  return (
    f'<div class="edit card">{html.said(sample.instruction, sample.correct)}'
    f'<div class="row{two}">{row}</div></div>'
  )


def _grouped(samples: Sequence[Any], key: Callable[[Any], str]) -> dict:
  """Lists of samples by their group, in the order of first sight."""
  groups: dict[str, list] = {}
  for sample in samples:
    groups.setdefault(key(sample), []).append(sample)
  return groups


def _cards(
  note: str, groups: Mapping[str, Sequence[Any]], card: Callable[[Any], str]
) -> str:
  """A section of cards by group below a note; empty without samples."""
  parts = []
  for name, group in groups.items():
    parts.append(html.heading(name, [s.correct for s in group]))
    parts.append(f'<div class="cards">{"".join(map(card, group))}</div>')
  return html.note(note) + "".join(parts) if parts else ""


def _seen(image: Any, text: str) -> str:
  return (
    f'<div class="seen card"><div>{html.picture(image, "")}</div>'
    f"<div>{text}</div></div>"
  )


def _cell(drawn: Generation | None) -> str:
  """One image of a grid; a dash where none was drawn."""
  if drawn is None:
    return f'<span class="none">{html.MISSING}</span>'
  return html.framed(drawn.image, drawn.prompt, drawn.correct)
