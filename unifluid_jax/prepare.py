"""Makes what a run needs before training: embedded data set, tokenizer.

  python -m unifluid_jax.prepare --config=configs/shapes.py

Writes the data set of config.data.world, if any; data.world.kind says of which
world. Beside shapes it writes so many of other kinds as data.world says:
in_context, dialogues that give a rule by examples; dialogues, that draw when
asked; signs, with small words. Emoji are drawn from packages that npm
downloads, or that lie in the folder data.world.packages. Says what the sources
of config.data.train and config.data.eval hold. Then trains the text tokenizer
on the captions, prompts and questions of config.data.train where
config.text.tokenizer is missing. What is there already is kept; a tokenizer
that was trained here, on other data, is trained anew. Nothing is written into
the folders of one's own data.

Scenes are drawn in shards: an interrupted job goes on where it stopped, several
processes (launch/local.sh prepare, --coordinator=...) divide them; the data set
is the same. Whoever draws shares the disk of data.root.

  python -m unifluid_jax.prepare --config=configs/folder.py --verify --ray=auto

The workers of a Ray cluster draw the scenes and verify the records
(pip install -e ".[ray]"); --ray=local starts one on this machine's cores.
"""

import contextlib
import functools
from collections.abc import Callable

import jax
from absl import flags

from unifluid_jax import systems
from unifluid_jax.core import cli, parallel, shards, workers
from unifluid_jax.core.config import Config
from unifluid_jax.data import corpus, pipeline, survey
from unifluid_jax.data.worlds import written

_CONFIG = cli.define_config()
_VERIFY = flags.DEFINE_bool(
  "verify", False, "Read every record, decode its images, name bad ones."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, or auto on a TPU pod."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes in all.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process.")
_RAY = flags.DEFINE_string(
  "ray", "", "Address of the Ray cluster that works: HOST:PORT, auto or local."
)


def main(_: list[str]) -> None:
  """Data set, what all sources hold, then tokenizer."""
  if _RAY.value and _COORDINATOR.value:
    raise ValueError("--ray and --coordinator: one of them divides the work")
  parallel.start_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  config = systems.resolve(_CONFIG.value)
  say = cli.speaker()
  say(f"unifluid_jax.prepare: {config.name}")
  with contextlib.ExitStack() as stack:
    each = workers.here
    if _RAY.value:
      each = stack.enter_context(workers.on_ray(_RAY.value))
    _prepare(config, each, say)
  shards.wait("all is prepared")


def _prepare(
  config: Config, each: workers.Each, say: Callable[[str], None]
) -> None:
  first = jax.process_index() == 0
  if config.data.world:
    spread = functools.partial(shards.make, each=each)
    say(written.write_world(config, spread, first))
  if first:
    for text in survey.described_all(config.data):
      say(text)
    if _VERIFY.value:
      survey.verify(config.data, say, each)
  if first and pipeline.needs_text(systems.build(config).inputs):
    rows, added = systems.text_rows(config), systems.sentences(config)
    say(corpus.make_tokenizer(config, rows, added))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
