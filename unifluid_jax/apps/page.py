"""The page: a tab for everything that the runs can do, and how it is served."""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

# Read when gradio is imported: nothing is reported to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr  # noqa: E402

from unifluid_jax.apps import ask, compare, draw, edit, redraw, widgets  # noqa: E402, I001
from unifluid_jax.apps.runs import Run  # noqa: E402

MOST_UPLOAD = "10mb"
MOST_WAITING = 16  # requests in the queue; more are turned away
_AT_ONCE = 2  # requests that may wait for a model, each model runs one

_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.head h1 { font-size: 1.5rem; margin: .25rem 0 0; }
.head p { color: var(--body-text-color-subdued); margin: 0 0 .5rem; }
.picture img { image-rendering: pixelated; object-fit: contain;
  width: 100%; max-height: 512px; }
.note { min-height: 1.4em; font-size: .9rem;
  color: var(--body-text-color-subdued); }
.note mark { background: #fde68a; color: #713f12; border-radius: 4px;
  padding: 0 .3em; }
.label { font-size: .85rem; color: var(--body-text-color-subdued); }
.label p { margin: .25rem 0 0; }
.chips { gap: 8px; flex-wrap: wrap; }
.chips button { flex: 0 1 auto; min-width: 0; text-align: left;
  white-space: normal; }
.buttons button { min-width: 120px; }
:focus-visible { outline: 3px solid #f59e0b !important; outline-offset: 2px; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  .tabs, .tabitem { padding-left: 0 !important; padding-right: 0 !important; }
}
"""

# Notes are read aloud, and pictures get their captions as descriptions.
_HEAD = """
<script>
addEventListener('load', () => setInterval(() => {
  document.querySelectorAll('.note:not([aria-live])').forEach(
    (e) => e.setAttribute('aria-live', 'polite'));
}, 1000));
</script>
"""


def build(runs: Sequence[Run], title: str = "unifluid_jax") -> gr.Blocks:
  """The page of some runs.

  Raises:
    ValueError: runs that can do nothing that a tab shows.
  """
  able = {
    "Draw": [run for run in runs if run.draws],
    "Redraw": [run for run in runs if run.redraws],
    "Ask": [run for run in runs if run.answers],
    "Edit": [run for run in runs if run.edits],
  }
  if not any(able.values()):
    raise ValueError(
      "--workdir: these runs neither draw, answer nor edit: name a run that "
      "was trained on t2i, i2t or edit"
    )
  tabs = {"Draw": draw, "Redraw": redraw, "Ask": ask, "Edit": edit}
  with gr.Blocks(title=title, analytics_enabled=False) as page:
    last = gr.State(None, time_to_live=3600)
    gr.HTML(_head(runs, title), elem_classes="head")
    with gr.Tabs():
      for name, module in tabs.items():
        if able[name]:
          with gr.Tab(name):
            module.tab(able[name], last)
      if len(able["Draw"]) > 1:
        with gr.Tab("Compare"):
          compare.tab(able["Draw"])
  page.queue(
    max_size=MOST_WAITING, default_concurrency_limit=_AT_ONCE, api_open=False
  )
  return page


def _head(runs: Sequence[Run], title: str) -> str:
  rows = ", ".join(f"{run.name} ({run.config.system})" for run in runs)
  return f"<h1>{widgets.escaped(title)}</h1><p>{widgets.escaped(rows)}</p>"


def serve(
  page: gr.Blocks,
  host: str,
  port: int | None,
  share: bool,
  wait: bool = True,
) -> tuple[str, Callable[[], Any]]:
  """Serves a page; uploads lie in a temporary folder, deleted at the end.

  Args:
    page: of `build`.
    host: address to listen on.
    port: None for the first free one from 7860.
    share: whether Gradio makes a public link.
    wait: until Ctrl-C.

  Returns:
    Where it is, and how to close it.
  """
  # Gradio asks the environment, when a request comes.
  folder = tempfile.TemporaryDirectory(prefix="unifluid_jax_app_")
  os.environ["GRADIO_TEMP_DIR"] = folder.name
  _, url, _ = page.launch(
    server_name=host, server_port=port, share=share, quiet=True,
    max_file_size=MOST_UPLOAD, allowed_paths=[], ssr_mode=False, pwa=False,
    mcp_server=False, enable_monitoring=False, footer_links=[],
    run_history=False, inbrowser=False, prevent_thread_lock=True,
    show_error=False, theme=_theme(), css=_CSS, head=_HEAD,
  )  # fmt: skip

  def close() -> None:
    page.close(verbose=False)
    folder.cleanup()

  if wait:
    try:
      page.block_thread()
    finally:
      close()
  return url, close


def _theme() -> gr.themes.Base:
  """Gradio's own look with fonts that every machine has: works offline."""
  return gr.themes.Default(
    primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO
  )
