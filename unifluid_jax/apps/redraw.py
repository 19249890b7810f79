"""Redraw: cells of a picture that are chosen are drawn again."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from unifluid_jax.apps import pictures, widgets
from unifluid_jax.apps.runs import Run

_BLANK = {"picture": "", "cells": "", "rows": 1, "columns": 1, "tail": False}
# `value` is what `board` makes; strings of it come from this program alone.
_HTML = """
<div class="cells" style="--columns: ${value.columns}; --rows: ${value.rows}">
  ${value.picture ? '<img alt="" src="' + value.picture + '">' : ''}
  <div class="grid">${[...value.cells].map(
    (c) => '<span class="' + (c == '1' ? 'on' : '') + '"></span>').join('')}
  </div>
  ${value.picture ? '' : '<p>Draw or choose a picture first.</p>'}
</div>
"""

_CSS = """
.cells { position: relative; width: 100%; max-width: 512px;
  aspect-ratio: var(--columns) / var(--rows);
  border-radius: 8px; overflow: hidden;
  background: var(--block-background-fill);
  border: 1px solid var(--border-color-primary); }
.cells img { width: 100%; height: 100%; margin: 0; image-rendering: pixelated; }
.cells p { position: absolute; inset: 0; display: grid; place-items: center;
  margin: 0; color: var(--body-text-color-subdued); }
.grid { position: absolute; inset: 0; display: grid; touch-action: none;
  grid-template-columns: repeat(var(--columns), 1fr); cursor: crosshair; }
.grid span { box-shadow: inset 0 0 0 .5px rgb(128 128 128 / .45); }
.grid span.on { background: rgb(37 99 235 / .2);
  box-shadow: inset 0 0 0 2px rgb(37 99 235), inset 0 0 0 3px white; }
.grid span.at { outline: 3px solid rgb(245 158 11); outline-offset: -3px; }
"""

_JS = """
let at = 0, painting = null;
element.tabIndex = 0;
element.setAttribute('role', 'application');
element.setAttribute('aria-label', 'Cells of the picture. Arrow keys ' +
  'move, Space chooses, Escape chooses none.');
const cells = () => [...element.querySelectorAll('.grid span')];
const commit = () => {
  props.value = {...props.value, cells: cells().map(
    (c) => c.classList.contains('on') ? '1' : '0').join('')};
  trigger('change');
};
const set = (i, on) => {
  const all = cells();
  if (!(i in all)) return;
  if (!props.value.tail) return all[i].classList.toggle('on', on);
  all.forEach((c, k) => c.classList.toggle('on', on ? k >= i : k > i));
};
const show = () => cells().forEach(
  (c, k) => c.classList.toggle('at', k == at));
const under = (e) => cells().indexOf(document.elementFromPoint(
  e.clientX, e.clientY));
element.addEventListener('pointerdown', (e) => {
  const i = under(e);
  if (i < 0) return;
  e.preventDefault();
  painting = !cells()[i].classList.contains('on');
  set(i, painting);
});
element.addEventListener('pointermove', (e) => {
  if (painting !== null) set(under(e), painting);
});
window.addEventListener('pointerup', () => {
  if (painting === null) return;
  painting = null;
  commit();
});
element.addEventListener('focus', show);
element.addEventListener('blur', () => cells().forEach(
  (c) => c.classList.remove('at')));
element.addEventListener('keydown', (e) => {
  const w = props.value.columns, n = props.value.cells.length;
  const moves = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -w, ArrowDown: w};
  if (e.key in moves) at = Math.min(n - 1, Math.max(0, at + moves[e.key]));
  else if (e.key == ' ') set(at, !cells()[at].classList.contains('on'));
  else if (e.key == 'Escape') cells().forEach((c) => c.classList.remove('on'));
  else return;
  e.preventDefault();
  if (!(e.key in moves)) commit();
  setTimeout(show);
});
"""


def board(run: Run, image: np.ndarray) -> dict[str, Any]:
  """The value of the grid of cells over an image, none of them chosen."""
  rows, columns = run.model.drawings.grid
  picture = pictures.data_uri(_fitted(run, image))
  return {
    "picture": picture, "cells": "0" * (rows * columns), "rows": rows,
    "columns": columns, "tail": tail_only(run),
  }  # fmt: skip


def _fitted(run: Run, image: np.ndarray) -> np.ndarray:
  """An image in the size that the run draws."""
  return run.model.drawings.fitted(image, run.config.sampling)


def tail_only(run: Run) -> bool:
  """Whether a cell is drawn again only with all cells after it."""
  first = np.zeros(run.model.drawings.grid, bool)
  first[0, 0] = True
  try:
    run.model.drawings.check(first, run.config.sampling)
  except ValueError:
    return True
  return False


def chosen(run: Run, value: Any) -> np.ndarray:
  """Chosen cells as bool[rows, columns], from what a browser sends.

  Raises:
    ValueError: nothing is chosen, or it is no such grid.
  """
  rows, columns = run.model.drawings.grid
  cells = value.get("cells") if isinstance(value, Mapping) else None
  if not isinstance(cells, str) or not cells:
    raise ValueError("Choose a picture first.")
  if len(cells) != rows * columns or set(cells) - {"0", "1"}:
    raise ValueError("These are cells of another picture: choose it again.")
  again = np.asarray([c == "1" for c in cells]).reshape(rows, columns)
  if not again.any():
    raise ValueError("Choose the cells that are to be drawn again.")
  return again


def redraw(
  run: Run,
  image: np.ndarray,
  again: np.ndarray,
  prompt: str,
  seed: int,
  guidance: float | None,
  steps: int | None,
) -> tuple[Image.Image, str]:
  """An image with the chosen cells drawn again, and what was done.

  Raises:
    ValueError: an empty prompt, or cells that the run's order forbids.
  """
  options, begun = run.settings(guidance, steps), time.monotonic()
  with run.lock:
    made = run.model.generate(
      prompt.strip(), int(seed or 0), given=image, redraw=again, **options
    )
  took = time.monotonic() - begun
  said = f"{again.sum()} of {again.size} cells drawn again"
  return made, f"{said}, seed {int(seed or 0)}, {took:.2f} s"


def tab(runs: Sequence[Run], last: gr.State) -> None:
  """The widgets.

  Args:
    runs: those that draw cells again.
    last: the newest picture of the tab Draw.
  """
  find = widgets.by_name(runs)
  with gr.Row():
    with gr.Column(scale=2, min_width=320):
      model = widgets.run_picker(runs)
      prompt = gr.Textbox(
        label="Prompt", placeholder="Say what the cells are to show",
        max_length=500, elem_id="redraw-prompt",
      )  # fmt: skip
      unknown = widgets.note("unknown-redraw")
      with gr.Row(elem_classes="buttons"):
        go = gr.Button("Draw again", variant="primary", elem_id="redraw")
        take = gr.Button("Use last drawing", elem_id="redraw-take")
      place = widgets.upload("redrawn-source", "Or a picture of yours")
      seed, guidance, steps = widgets.settings(runs)
    with gr.Column(scale=3, min_width=320):
      gr.Markdown(_how(runs), elem_id="redraw-how")
      cells = gr.HTML(
        _BLANK, html_template=_HTML, css_template=_CSS, js_on_load=_JS,
        elem_id="cells",
      )  # fmt: skip
      said = widgets.note("redraw-note")
  source = gr.State(None, time_to_live=3600)  # uint8 [H, W, 3]

  def on_source(name: str, image: Any) -> Any:
    run = find(name)
    image = _fitted(run, np.asarray(image))
    return image, board(run, image), ""

  def on_model(name: str, image: Any) -> Any:
    # Cells are the run's own: their number, and which may be chosen alone.
    return gr.skip() if image is None else board(find(name), image)

  def on_upload(name: str, path: str | None) -> Any:
    image = widgets.uploaded(find(name), path)
    if image is None:
      return None, gr.skip(), gr.skip(), gr.skip()
    return gr.skip(), *on_source(name, image)

  def on_take(name: str, image: Any) -> Any:
    return on_source(name, widgets.taken(image))

  def on_redraw(name: str, image: Any, value: Any, *asked: Any) -> Any:
    with widgets.sentences():
      run = find(name)
      again = chosen(run, value)
      if image is None:
        raise ValueError("Choose a picture first.")
      made, note = redraw(run, image, again, *asked)
    made = np.asarray(made)
    return made, board(run, made) | {"cells": value["cells"]}, note

  def on_word(name: str, text: str) -> str:
    model = find(name).model
    return pictures.marked(model.unknown_words(text), model.is_cut(text))

  for event in (go.click, prompt.submit):
    event(
      on_redraw, [model, source, cells, prompt, seed, guidance, steps],
      [source, cells, said],
    )  # fmt: skip
  model.change(
    lambda name: widgets.own_settings(find(name)), model, [guidance, steps],
    **widgets.SILENT,
  )  # fmt: skip
  model.change(on_model, [model, source], cells, **widgets.SILENT)
  out = [source, cells, said]
  take.click(on_take, [model, last], out, **widgets.QUIET)
  place.change(on_upload, [model, place], [place, *out], **widgets.QUIET)
  for event in (prompt.change, model.change):
    event(on_word, [model, prompt], unknown, **widgets.SILENT)


def _how(runs: Sequence[Run]) -> str:
  """How cells are chosen."""
  said = "Click or drag over the cells that are to be drawn again."
  if any(tail_only(run) for run in runs):
    said += (
      " This model was trained to draw row by row: a cell is drawn again "
      "together with all cells after it."
    )
  return said
