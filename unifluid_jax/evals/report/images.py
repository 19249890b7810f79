"""The report's sections of examples: what the model drew, said and changed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from types import MappingProxyType
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
_DRAWN, _SAID, _EDITED = 16, 3, 3  # examples of each kind that open a page


def opening(
  drawn: Sequence[Generation],
  captions: Sequence[Caption],
  answers: Sequence[Answer],
  edits: Sequence[EditSample],
) -> str:
  """A few examples of whatever the model does, before any number."""
  first = spread(drawn, lambda s: s.task, _DRAWN)
  parts = []
  if first:
    figures = "".join(_drawn(s, reason=False) for s in first)
    parts.append(f'<div class="opening">{figures}</div>')
  said = [
    _mini(s.image, s.group, s.text, s.correct)
    for s in spread(captions, lambda s: s.group, _SAID)
  ] + [
    _mini(s.image, s.question, s.answer, s.correct)
    for s in spread(answers, lambda s: s.task, _SAID)
  ]
  if said:
    parts.append(f'<div class="minis">{"".join(said)}</div>')
  changed = spread(edits, lambda s: s.task, _EDITED)
  if changed:
    parts.append(
      f'<div class="cards three">{"".join(map(_edit, changed))}</div>'
    )
  if not parts:
    return ""
  which = (
    "The first examples of each task, good and bad alike; all that are kept "
    "stand below."
  )
  return "".join(parts) + html.note(which)


def spread(
  samples: Sequence[Any], key: Callable[[Any], str], count: int
) -> list[Any]:
  """The first `count`, one of each group in turn, group by group."""
  groups = _grouped(samples, key)
  turns = sorted(
    (place, number)
    for number, group in enumerate(groups.values())
    for place in range(len(group))
  )[:count]
  lists = list(groups.values())
  return [lists[number][place] for place, number in turns]


def _mini(image: Any, asked: str, text: str, correct: bool | None) -> str:
  """An image with what was said about it, in little room."""
  return (
    f'<div class="mini card"><div>{html.picture(image, "")}</div><div>'
    f'<p class="q">{escape(asked)}</p>{html.said(text, correct)}</div></div>'
  )


def _drawn(sample: Generation, reason: bool = True) -> str:
  """A generated image above its prompt, and what is wrong with it."""
  why = ""
  if reason and sample.reason and not sample.correct:
    text = escape(sample.reason).replace("&gt;=", "≥").replace("\n", "<br>")
    why = f"<small>{text}</small>"
  frame = html.framed(sample.image, sample.prompt, sample.correct)
  if reason and sample.truth is not None:
    truth = html.picture(sample.truth, f"true picture: {sample.prompt}")
    frame = f'<div class="truly">{frame}{truth}</div>'
  return (
    f"<figure>{frame}<figcaption>{escape(sample.prompt)}{why}</figcaption>"
    "</figure>"
  )


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
    + _grid(head, body, len(steps), "Samples over training")
  )


def _grid(head: str, rows: Sequence[str], columns: int, label: str) -> str:
  """Images in rows of a prompt."""
  return html.scroll(
    f'<table class="grid" style="--columns: {columns}"><thead><tr>'
    f'<th scope="col">Prompt</th>{head}</tr></thead>'
    f"<tbody>{''.join(rows)}</tbody></table>",
    label,
    "fit",
  )


def pairs(
  names: Sequence[str], series: Sequence[int], rows: Sequence[SampleRow]
) -> str:
  """The same prompts and seeds of several runs beside each other, by task.

  Args:
    names: of the runs, a column each.
    series: of the runs, which colour each has.
    rows: with one image for each run.
  """
  parts = []
  for task, group in _grouped(rows, task_of).items():
    counts = [
      f"{sum(judged)} of {len(judged)}"
      for i in range(len(names))
      if (judged := _judged(r.drawn[i] for r in group))
    ]
    small = " against ".join(counts) + " correct" * bool(counts)
    parts.append(
      f"<h3>{escape(task)}<small>{small}</small></h3>"
      f"{beside(names, series, group)}"
    )
  return "".join(parts)


def task_of(row: SampleRow) -> str:
  """The task that a row's images were drawn for."""
  return next((drawn.task for drawn in row.drawn if drawn is not None), "")


def _judged(drawn: Iterable[Generation | None]) -> list[bool]:
  return [d.correct for d in drawn if d is not None and d.correct is not None]


def beside(
  names: Sequence[str], series: Sequence[int], rows: Sequence[SampleRow]
) -> str:
  """Two runs on a card for each prompt, more in the columns of a table."""
  if len(names) > 2:
    head = "".join(
      f'<th scope="col"><span class="over s{i}">{escape(name)}</span></th>'
      for i, name in zip(series, names, strict=True)
    )
    body = [
      f'<tr><th scope="row">{escape(row.prompt)}</th>'
      + "".join(f"<td>{_cell(drawn)}</td>" for drawn in row.drawn)
      + "</tr>"
      for row in rows
    ]
    return _grid(head, body, len(names), "Samples of all runs")
  cards = []
  for row in rows:
    two = "".join(
      f'<div class="s{i}">{_cell(drawn)}<small>{escape(name)}</small></div>'
      for i, name, drawn in zip(series, names, row.drawn, strict=True)
    )
    cards.append(
      f'<figure class="card"><div class="two">{two}</div>'
      f"<figcaption>{escape(row.prompt)}</figcaption></figure>"
    )
  return f'<div class="pairs">{"".join(cards)}</div>'


def generations(
  samples: Sequence[Generation], rules: Mapping[str, str] = MappingProxyType({})
) -> str:
  """Images of the newest checkpoint by task.

  Args:
    samples: with their verdicts.
    rules: of some tasks, when an image is correct.
  """
  parts = []
  for task, group in _grouped(samples, lambda s: s.task).items():
    parts.append(html.heading(task, [s.correct for s in group]))
    if task in rules and any(s.correct is not None for s in group):
      parts.append(html.note(rules[task]))
    figures, wide = "".join(map(_drawn, group)), ""
    if any(s.truth is not None for s in group):
      parts.append(html.note("Drawn on the left, the true picture beside it."))
      wide = " wide"
    parts.append(f'<div class="gallery{wide}">{figures}</div>')
  return "".join(parts)


def captions(samples: Sequence[Caption]) -> str:
  """Captions by group, those of the lowest score first."""
  groups = _grouped(samples, lambda s: s.group)
  for group in groups.values():
    group.sort(key=lambda s: _NEVER if s.score is None else s.score)
  return _cards(
    "What the model says about images of the evaluation data, beside the "
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
    "The first questions of each kind about images of the evaluation data.",
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
