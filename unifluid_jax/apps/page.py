"""The page: a tab for everything that the runs can do, and how it is served."""

import html
import os
import signal
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

# Read when gradio is imported: nothing is reported to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from unifluid_jax.apps import ask, compare, draw, edit, redraw
from unifluid_jax.apps.runs import Run
from unifluid_jax.core import interrupt

MOST_UPLOAD = "10mb"
MOST_WAITING = 16  # requests in the queue; more are turned away
_AT_ONCE = 2  # requests that may wait for a model, each model runs one

_TITLE = "unifluid_jax"
_TABS = {
  "Draw": draw.tab,
  "Redraw": redraw.tab,
  "Ask": ask.tab,
  "Edit": edit.tab,
  "Compare": lambda runs, last: compare.tab(runs),
}
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_CSS = """
.gradio-container { width: 100%; max-width: 1180px !important;
  margin: 0 auto !important; }
.head, .note, .head *, .note * { padding-left: 0 !important; }
.note:has(.prose:empty) { display: none; }
.head h1 { font-size: 1.5rem; margin: .25rem 0 0; }
.head p { color: var(--body-text-color-subdued); margin: 0; }
.picture img { image-rendering: pixelated; object-fit: contain;
  width: 100%; height: 100%; max-height: 512px; }
.note { font-size: .9rem; color: var(--body-text-color-subdued); }
.note mark { background: #fde68a; color: #713f12; border-radius: 4px;
  padding: 0 .3em !important; }
.label p { font-size: .85rem; margin: 0;
  color: var(--body-text-color-subdued); }
.chips { gap: 8px; flex-wrap: wrap; }
.chips button { flex: 0 1 auto; min-width: 0; text-align: left;
  white-space: normal; min-height: 32px; padding: 4px 10px; }
.buttons button { min-width: 140px; height: auto; font-size: .95rem; }
:focus-visible { outline: 3px solid #f59e0b !important; outline-offset: 2px; }
@media (max-width: 640px) {
  .gradio-container main, .gradio-container .main { padding: 8px !important; }
  .tab-container button { padding: 0 8px !important; }
  .tabitem { padding-left: 0 !important; padding-right: 0 !important; }
}
"""

# What changes below a widget is read aloud.
_HEAD = """
<script>
addEventListener('load', () => setInterval(() => {
  document.querySelectorAll('.note:not([aria-live])').forEach(
    (e) => e.setAttribute('aria-live', 'polite'));
}, 1000));
</script>
"""


class Served(NamedTuple):
  """A page that answers requests, in threads of its own."""

  url: str
  page: gr.Blocks
  folder: tempfile.TemporaryDirectory[str]

  def wait(self) -> None:
    """Serves until Ctrl-C or SIGTERM, then deletes as `close` does."""
    signal.signal(signal.SIGTERM, lambda *_: interrupt.leave())
    with interrupt.cleanup(self.folder.cleanup):
      try:
        self.page.block_thread()
      finally:
        self.close()

  def close(self) -> None:
    """Ends it and deletes what was uploaded and drawn."""
    self.page.close(verbose=False)
    self.folder.cleanup()


def abilities(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Tab → the runs that can do it; tabs without any are left out.

  Raises:
    ValueError: nothing that a tab shows.
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
  if len(able["Draw"]) > 1:
    able["Compare"] = able["Draw"]
  return {name: found for name, found in able.items() if found}


def serve(
  runs: Sequence[Run], host: str, port: int | None, share: bool
) -> Served:
  """Builds the page of some runs and serves it.

  Args:
    runs: loaded.
    host: address to listen on.
    port: None for the first free one from 7860.
    share: whether Gradio makes a public link.

  Raises:
    ValueError: nothing that a tab shows.
    OSError: the port is taken.
  """
  able = abilities(runs)
  # Widgets read the name of their folder when they are made.
  folder = tempfile.TemporaryDirectory(prefix="unifluid_jax_app_")
  os.environ["GRADIO_TEMP_DIR"] = folder.name
  page = _build(runs, able)
  _, url, _ = page.launch(
    server_name=host, server_port=port, share=share, quiet=True,
    max_file_size=MOST_UPLOAD, allowed_paths=[], ssr_mode=False, pwa=False,
    mcp_server=False, enable_monitoring=False, footer_links=[],
    run_history=False, inbrowser=False, prevent_thread_lock=True,
    show_error=False, theme=_theme(), css=_CSS, head=_HEAD,
  )  # fmt: skip
  return Served(url, page, folder)


def _build(runs: Sequence[Run], able: dict[str, list[Run]]) -> gr.Blocks:
  rows = ", ".join(f"{run.name} ({run.config.system})" for run in runs)
  head = f"<h1>{_TITLE}</h1><p>{html.escape(rows)}</p>"
  with gr.Blocks(title=_TITLE, analytics_enabled=False) as page:
    last = gr.State(None, time_to_live=3600)
    gr.HTML(head, elem_classes="head")
    with gr.Tabs():
      for name, found in able.items():
        with gr.Tab(name):
          _TABS[name](found, last)
  page.queue(
    max_size=MOST_WAITING, default_concurrency_limit=_AT_ONCE, api_open=False
  )
  return page


def _theme() -> gr.themes.Base:
  """Gradio's own look with fonts that every machine has: works offline."""
  return gr.themes.Default(
    primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO
  ).set(
    # Gradio's own greys are too pale to be read by everybody.
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_500",
    block_info_text_color_dark="*neutral_300",
  )
