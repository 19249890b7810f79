"""Compare: one prompt, drawn by each run."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from unifluid_jax.apps import draw, pictures, widgets
from unifluid_jax.apps.runs import Run


def tab(runs: Sequence[Run]) -> None:
  """The widgets; each run draws with its own sampling options."""
  prompt = gr.Textbox(
    label="Prompt", placeholder="Say what all of them draw", max_length=500,
    elem_id="compare-prompt",
  )  # fmt: skip
  with gr.Row(elem_classes="buttons"):
    go = gr.Button("Draw with all", variant="primary", elem_id="compare")
    more = gr.Button("Another one")
  seed = gr.Number(0, label="Seed", precision=0, minimum=0,
                   maximum=widgets.MOST_SEED)  # fmt: skip
  shown, notes = [], []
  with gr.Row():
    for i, run in enumerate(runs):
      with gr.Column(min_width=300):
        title = f"{run.name} ({run.config.system})"
        shown.append(widgets.picture(title, f"compared-{i}"))
        notes.append(widgets.note(f"compared-note-{i}"))

  def on_draw(text: str, seed: int) -> Iterator[Any]:
    out = [gr.skip()] * (2 * len(runs))
    for i, run in enumerate(runs):
      with widgets.sentences():
        made = draw.draw(run, text, seed, None, None)
      out[2 * i] = made.stages[-1]
      model = run.model
      unread = pictures.marked(model.unknown_words(text), model.is_cut(text))
      out[2 * i + 1] = f"{html.escape(made.note)}<br>{unread}"
      yield out

  out = [x for pair in zip(shown, notes, strict=True) for x in pair]
  for event in (go.click, prompt.submit):
    event(on_draw, [prompt, seed], out)
  following = "(s) => (s + 1) % 2147483648"
  more.click(None, seed, seed, js=following).then(on_draw, [prompt, seed], out)
