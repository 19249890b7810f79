r"""An app to play with trained runs, in a browser on this machine.

  python -m unifluid_jax.app --workdir=runs/shapes
  python -m unifluid_jax.app --workdir=runs/shapes,runs/shapes/liquid
  python -m unifluid_jax.app --workdir=runs/shapes@1200,runs/shapes@2400

Without --workdir, with a model that ships with the package, if one does; RUN
may be a folder that unifluid_jax.export wrote.

Needs the extra `app`: pip install "unifluid_jax[app]". Draw, Redraw, Ask and
Edit appear where a run can do it; Compare with several runs, or checkpoints of
one (RUN@STEP). All programs are compiled before the page opens, and kept for
the next start. Only this machine can open the page, unless --host or --share
say otherwise; uploads are deleted when the app ends.
"""

import importlib.util
import time

from absl import flags

from unifluid_jax import boxed
from unifluid_jax.core import cli

_WORKDIR = flags.DEFINE_list(
  "workdir", [], "RUN[@STEP],... to play with; default what ships."
)
_HOST = flags.DEFINE_string(
  "host", "127.0.0.1", "Address; 0.0.0.0 opens the page to your network."
)
_PORT = flags.DEFINE_integer(
  "port", None, "Default: the first free one from 7860.", 1, 65535
)
_SHARE = flags.DEFINE_bool(
  "share", False, "Make a public link through Gradio's servers."
)
_WARM = flags.DEFINE_bool("warm", True, "Compile before the page opens.")


def main(_: list[str]) -> None:
  """Loads the runs, compiles their programs and serves the page."""
  begun, say = time.monotonic(), cli.speaker()
  if importlib.util.find_spec("gradio") is None:
    raise ValueError('the app needs gradio: pip install "unifluid_jax[app]"')
  from unifluid_jax.apps import page, runs

  found = runs.load(_WORKDIR.value or [boxed.default()], say)
  page.abilities(found)  # refuses runs without any before they compile
  for run in found if _WARM.value else ():
    runs.warm(run, say)
  served = page.serve(found, _HOST.value, _PORT.value, _SHARE.value)
  took = time.monotonic() - begun
  say(f"{served.url} ready after {took:.1f} s; Ctrl-C ends it")
  served.wait()


if __name__ == "__main__":
  cli.run(main)
