"""Draw: a prompt becomes a picture, cell by cell or scale by scale."""

import html
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from unifluid_jax.apps import pictures, widgets
from unifluid_jax.apps.runs import Run, drawn

_PAUSE = 0.04  # seconds between stages, so that eyes can follow


class Drawing(NamedTuple):
  """A picture and how it came about."""

  stages: list[Image.Image]  # enlarged; the last is whole
  picture: Image.Image  # as the model draws it
  note: str


def draw(
  run: Run, prompt: str, seed: int, guidance: float | None, steps: int | None
) -> Drawing:
  """Draws a prompt.

  Raises:
    ValueError: an empty prompt, or settings out of range.
  """
  options = run.settings(guidance, steps)
  begun = time.monotonic()
  with run.lock:
    found = drawn(run, prompt.strip(), int(seed or 0), options)
  took = time.monotonic() - begun
  size = f"{found[-1].width} × {found[-1].height}"
  said = f"{size} pixels, seed {int(seed or 0)}, {took:.2f} s"
  return Drawing([pictures.enlarged(x) for x in found], found[-1], said)


def without_redraw(runs: Sequence[Run]) -> str:
  """HTML that names the runs that draw no cells again; "" if all do."""
  names = ", ".join(run.name for run in runs if not run.redraws)
  return names and html.escape(f"No cells can be drawn again with {names}.")


def tab(runs: Sequence[Run], last: gr.State) -> None:
  """The widgets.

  Args:
    runs: those that draw.
    last: receives the newest picture, for other tabs.
  """
  find, shows = widgets.by_name(runs), any(run.stages for run in runs)
  with gr.Row():
    with gr.Column(scale=2, min_width=320):
      model = widgets.run_picker(runs)
      prompt = gr.Textbox(
        label="Prompt", placeholder="Say what to draw", max_length=500,
        elem_id="prompt", autofocus=True,
      )  # fmt: skip
      unknown = widgets.note("unknown")
      with gr.Row(elem_classes="buttons"):
        go = gr.Button("Draw", variant="primary", elem_id="draw")
        more = gr.Button("Another one", elem_id="another")
      chips = _chips(runs)
      seed, guidance, steps = widgets.settings(runs)
    with gr.Column(scale=3, min_width=320):
      shown = widgets.picture("Picture", "drawn")
      stage = gr.Slider(
        1, 2, 1, step=1, label="Stage", info="How the picture appeared.",
        visible=False, elem_id="stage",
      )  # fmt: skip
      said = widgets.note("drawn-note")
      gr.HTML(without_redraw(runs), elem_classes="note")
  stages = gr.State([], time_to_live=3600)

  def on_draw(name: str, *asked: Any) -> Iterator[Any]:
    with widgets.sentences():
      made = draw(find(name), *asked)
    count = len(made.stages)
    for i, frame in enumerate(made.stages[:-1]):
      yield frame, gr.skip(), gr.skip(), gr.skip(), f"Stage {i + 1} of {count}"
      time.sleep(_PAUSE)
    whole = gr.Slider(
      maximum=max(count, 2), value=count, visible=shows and count > 1
    )
    yield made.stages[-1], made.stages, made.picture, whole, made.note

  def on_word(name: str, text: str) -> str:
    model = find(name).model
    return pictures.marked(model.unknown_words(text), model.is_cut(text))

  asked = [model, prompt, seed, guidance, steps]
  out = [shown, stages, last, stage, said]
  how = {"show_progress": "minimal", "show_progress_on": shown}
  for event in (go.click, prompt.submit):
    event(on_draw, asked, out, **how)
  following = "(s) => (s + 1) % 2147483648"
  more.click(None, seed, seed, js=following).then(on_draw, asked, out, **how)
  model.change(
    lambda name: widgets.own_settings(find(name)), model, [guidance, steps],
    **widgets.SILENT,
  )  # fmt: skip
  stage.input(
    lambda at, made: made[int(at) - 1] if made else gr.skip(),
    [stage, stages], shown, **widgets.SILENT,
  )  # fmt: skip
  for event in (prompt.change, model.change):
    event(on_word, [model, prompt], unknown, **widgets.SILENT)
  for chip, example in chips:
    chip.click(
      lambda example=example: (example.prompt, example.seed),
      None, [prompt, seed], **widgets.SILENT,
    ).then(on_draw, asked, out, **how)  # fmt: skip


def _chips(runs: Sequence[Run]) -> list[tuple[gr.Button, Any]]:
  """Prompts of the runs' own evaluations, to be drawn by a click."""
  examples = {x.prompt: x for run in runs for x in run.examples}
  if not examples:
    return []
  gr.Markdown("Examples of the evaluation", elem_classes="label")
  with gr.Row(elem_classes="chips"):
    return [
      (gr.Button(x.prompt, size="sm", min_width=0), x)
      for x in list(examples.values())[:6]
    ]
