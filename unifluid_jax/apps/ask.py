"""Ask: questions about a picture, and what the encoder sees of it."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from unifluid_jax import arguments
from unifluid_jax.apps import pictures, widgets
from unifluid_jax.apps.runs import Run
from unifluid_jax.data import tasks

DESCRIBE = "Describe the picture"


def ask(run: Run, image: np.ndarray, question: str) -> str:
  """Answers a question about an image, or describes it.

  Raises:
    ValueError: no question.
  """
  if not question.strip():
    raise ValueError("Ask a question first.")
  arguments.check_text(question)
  with run.lock:
    if question == DESCRIBE:
      return run.model.caption(image)
    return run.model.answer(image, question.strip())


def tab(runs: Sequence[Run], last: gr.State) -> None:
  """The widgets.

  Args:
    runs: those that answer.
    last: the newest picture of the tab Draw.
  """
  find = widgets.by_name(runs)
  with gr.Row():
    with gr.Column(scale=2, min_width=320):
      model = widgets.run_picker(runs)
      place = widgets.upload("asked")
      take = gr.Button("Use last drawing", elem_id="ask-take")
      eye = widgets.picture("What the encoder sees", "seen")
    with gr.Column(scale=3, min_width=320):
      chat = gr.Chatbot(
        label="Answers", elem_id="chat", height=380, feedback_options=None,
        buttons=["copy_all"], render_markdown=False,
        placeholder="Choose a picture and ask about it",
      )  # fmt: skip
      question = gr.Textbox(
        label="Question", placeholder="Ask about the picture", max_length=500,
        elem_id="question",
        info="Each question is answered by itself, without the ones before.",
      )  # fmt: skip
      unknown = widgets.note("unknown-question")
      with gr.Row(elem_classes="buttons"):
        go = gr.Button("Ask", variant="primary", elem_id="ask")
        describe = gr.Button(DESCRIBE, elem_id="describe")
      chips = _chips(runs)

  def on_ask(name: str, path: str | None, text: str, said: list[Any]) -> Any:
    with widgets.sentences():
      run = find(name)
      image = pictures.read(path, run.config.data.max_pixels)
      answer = ask(run, image, text)
    reply = {"role": "assistant", "content": answer or "(no words)"}
    return [*said, {"role": "user", "content": text}, reply], ""

  def on_picture(name: str, path: str | None) -> Any:
    run = find(name)
    image = widgets.uploaded(run, path)
    if image is None:
      return None, None, []
    seen = pictures.enlarged(pictures.seen(run.model, image))
    return gr.skip(), seen, []

  def on_word(name: str, text: str) -> str:
    model = find(name).model
    cut = model.is_cut(text, tasks.I2T)
    return pictures.marked(model.unknown_words(text), cut)

  asked = [model, place, question, chat]
  for event in (go.click, question.submit):
    event(on_ask, asked, [chat, question])
  for button, text in [(describe, DESCRIBE), *chips]:
    button.click(
      lambda name, path, said, text=text: on_ask(name, path, text, said),
      [model, place, chat], [chat, question],
    )  # fmt: skip
  for event in (place.change, model.change):
    event(on_picture, [model, place], [place, eye, chat], **widgets.QUIET)
  for event in (question.change, model.change):
    event(on_word, [model, question], unknown, **widgets.SILENT)
  take.click(widgets.taken, last, place, **widgets.QUIET)


def _chips(runs: Sequence[Run]) -> list[tuple[gr.Button, str]]:
  """Questions of the runs' own evaluations."""
  questions = list(dict.fromkeys(q for run in runs for q in run.questions))
  if not questions:
    return []
  gr.Markdown("Questions of the evaluation", elem_classes="label")
  with gr.Row(elem_classes="chips"):
    return [(gr.Button(q, size="sm", min_width=0), q) for q in questions[:6]]
