"""Edit: a picture before and after an instruction."""

import time
from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from unifluid_jax.apps import pictures, widgets
from unifluid_jax.apps.runs import Run
from unifluid_jax.data import tasks


def edit(
  run: Run, image: np.ndarray, instruction: str, seed: int
) -> tuple[Any, str]:
  """An image changed as told, and how long it took.

  Raises:
    ValueError: an empty instruction.
  """
  begun = time.monotonic()
  with run.lock:
    made = run.model.edit(image, instruction.strip(), int(seed or 0))
  return made, f"Seed {int(seed or 0)}, {time.monotonic() - begun:.2f} s"


def tab(runs: Sequence[Run], last: gr.State) -> None:
  """The widgets.

  Args:
    runs: those trained with edits.
    last: the newest picture of the tab Draw.
  """
  find = widgets.by_name(runs)
  model = widgets.run_picker(runs)
  with gr.Row():
    with gr.Column(min_width=300):
      place = widgets.upload("before", "Before")
    with gr.Column(min_width=300):
      after = widgets.picture("After", "after")
  said = widgets.note("edit-note")
  instruction = gr.Textbox(
    label="Instruction", placeholder="Say what to change", max_length=500,
    elem_id="instruction",
  )  # fmt: skip
  unknown = widgets.note("unknown-instruction")
  with gr.Row(elem_classes="buttons"):
    go = gr.Button("Edit", variant="primary", elem_id="edit")
    take = gr.Button("Use last drawing", elem_id="edit-take")
    again = gr.Button("Go on with the result")
  with gr.Accordion("Settings", open=False):
    seed = gr.Number(0, label="Seed", precision=0, minimum=0,
                     maximum=widgets.MOST_SEED)  # fmt: skip
  made = gr.State(None, time_to_live=3600)

  def on_edit(name: str, path: str | None, text: str, seed: int) -> Any:
    with widgets.sentences():
      run = find(name)
      image = pictures.read(path, run.config.data.max_pixels)
      result, note = edit(run, image, text, seed)
    return pictures.enlarged(result), result, note

  def on_picture(name: str, path: str | None) -> Any:
    good = widgets.uploaded(find(name), path) is not None
    return gr.skip() if good else None

  def on_word(name: str, text: str) -> str:
    model = find(name).model
    cut = model.is_cut(text, tasks.EDIT)
    return pictures.marked(model.unknown_words(text), cut)

  for event in (go.click, instruction.submit):
    event(on_edit, [model, place, instruction, seed], [after, made, said])
  for event in (instruction.change, model.change):
    event(on_word, [model, instruction], unknown, **widgets.SILENT)
  place.change(on_picture, [model, place], place, **widgets.QUIET)
  take.click(widgets.taken, last, place, **widgets.QUIET)
  again.click(widgets.taken, made, place, **widgets.QUIET)
