"""What the tabs share: pickers, uploads, errors in one sentence."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np

from unifluid_jax.apps import pictures
from unifluid_jax.apps.runs import Run
from unifluid_jax.core import cli

MOST_SEED = 2**31 - 1
SILENT: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
# Only what is queued can tell that something is wrong.
QUIET: dict[str, Any] = {"show_progress": "hidden"}


@contextlib.contextmanager
def sentences() -> Iterator[None]:
  """Shows what people can fix as one sentence."""
  try:
    yield
  except cli.USER_ERRORS as error:
    said = cli.one_line(error)
    said = said[:1].upper() + said[1:] + ("" if said.endswith(".") else ".")
    raise gr.Error(said, title="Not done", print_exception=False) from error


def by_name(runs: Sequence[Run]) -> Callable[[str], Run]:
  """Finds a run that `run_picker` names."""
  return {run.name: run for run in runs}.__getitem__


def run_picker(runs: Sequence[Run]) -> gr.Dropdown:
  """Chooses a run; invisible where there is one only."""
  called = [run.name for run in runs]
  return gr.Dropdown(
    called, value=called[0], label="Model", visible=len(called) > 1
  )


def picture(label: str, name: str) -> gr.Image:
  """A place for a picture that the model makes."""
  return gr.Image(
    label=label, format="png", interactive=False, elem_id=name,
    elem_classes="picture", buttons=["download", "fullscreen"],
  )  # fmt: skip


def upload(name: str, label: str = "Picture") -> gr.Image:
  """A place to drop a picture; handlers receive its path.

  Gradio would decode it first, and answer what cannot be decoded with a
  traceback: `pictures.read` does, within its limits.
  """
  place = gr.Image(
    label=label, type="filepath", format="png", sources=["upload", "clipboard"],
    elem_id=name, elem_classes="picture", buttons=["fullscreen"], height=300,
  )  # fmt: skip
  place.preprocess = lambda payload: payload.path if payload else None
  return place


def uploaded(run: Run, path: str | None) -> np.ndarray | None:
  """The pixels of an upload; None for none, or a bad one, which is told."""
  if not path:
    return None
  try:
    return pictures.read(path, run.config.data.max_pixels)
  except ValueError as error:
    gr.Warning(str(error), title="Not done")
    return None


def settings(runs: Sequence[Run]) -> tuple[gr.Number, gr.Slider, gr.Dropdown]:
  """Seed, guidance and steps; those that no run has are invisible."""
  config = runs[0].config
  steps = sorted({n for run in runs for n in run.steps})
  with gr.Accordion("Settings", open=False):
    seed = gr.Number(0, label="Seed", precision=0, minimum=0,
                     maximum=MOST_SEED)  # fmt: skip
    most = max(getattr(run.config.sampling, "cfg", 1.0) for run in runs)
    guidance = gr.Slider(
      0, max(10.0, most), float(getattr(config.sampling, "cfg", 1.0)), step=0.5,
      label="Guidance", info="How closely the prompt is followed.",
      visible=any(run.guides for run in runs),
    )  # fmt: skip
    chosen = gr.Dropdown(
      steps, value=getattr(config.sampling, "steps", None), label="Steps",
      info="Of the diffusion head.", visible=bool(steps),
    )  # fmt: skip
    gr.Markdown(
      "A new guidance or number of steps is compiled once: its first picture "
      "takes longer.",
      visible=bool(steps) or any(run.guides for run in runs),
    )
  return seed, guidance, chosen


def own_settings(run: Run) -> tuple[Any, Any]:
  """Guidance and steps as the run itself has them, for who chooses it."""
  sampling = run.config.sampling
  return getattr(sampling, "cfg", 1.0), getattr(sampling, "steps", None)


def note(name: str) -> gr.HTML:
  """A line below a widget, read aloud when it changes."""
  return gr.HTML("", elem_id=name, elem_classes="note")


def taken(image: Any) -> Any:
  """A picture from another place, as an upload."""
  with sentences():
    if image is None:
      raise ValueError("Nothing is drawn yet: draw a picture first.")
  return image
