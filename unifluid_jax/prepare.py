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
processes (launch/local.sh prepare, --coordinator=...) divide them, --ray gives
them to the workers of Ray Data; the data set is the same. Whoever draws shares
the disk of data.root.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from absl import flags

from unifluid_jax import systems
from unifluid_jax.core import cli, parallel, shards
from unifluid_jax.core.config import Config, SourceConfig
from unifluid_jax.data import corpus, pipeline, survey
from unifluid_jax.data.worlds import written

_CONFIG = cli.define_config()
_VERIFY = flags.DEFINE_bool(
  "verify", False, "Read every record, decode its images, name bad ones."
)
_RAY = flags.DEFINE_bool(
  "ray", False, "Scenes are drawn by Ray Data: RAY_ADDRESS, or this machine."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, or auto on a TPU pod."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes in all.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process.")


def main(_: list[str]) -> None:
  """Data set, what all sources hold, then tokenizer."""
  parallel.start_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  config = systems.resolve(_CONFIG.value)
  say = cli.speaker()
  say(f"unifluid_jax.prepare: {config.name}")
  first = jax.process_index() == 0
  if config.data.world:
    work = shards.on_ray if _RAY.value else None
    spread = functools.partial(shards.make, work=work)
    say(written.write_world(config, spread, first))
  if first:
    _look(config, say)
  if first and pipeline.needs_text(systems.build(config).inputs):
    rows, added = systems.text_rows(config), systems.sentences(config)
    say(corpus.make_tokenizer(config, rows, added))
  shards.wait("all is prepared")


def _look(config: Config, say: Callable[[str], None]) -> None:
  """Says what the sources hold; with --verify, checks it."""
  for key, source in _sources(config).items():
    say(_held(config, key, source))
  if _VERIFY.value:
    _verify(config, say)


def _sources(config: Config) -> dict[str, SourceConfig]:
  """Sources that take part, by key; what serves both purposes stands once."""
  found: dict[str, SourceConfig] = {}
  data = config.data
  for part, listed in (("train", data.train), ("eval", data.eval)):
    for name, source in listed.items():
      if source.weight and not any(_same(source, s) for s in found.values()):
        found[f"data.{part}.{name}"] = source
  return found


def _same(one: SourceConfig, other: SourceConfig) -> bool:
  """Whether both read the same records."""
  return other == dataclasses.replace(
    one, tasks=other.tasks, weight=other.weight, moments=other.moments
  )


def _held(config: Config, key: str, source: SourceConfig) -> str:
  """What a source holds, in lines."""
  data = config.data
  return survey.described(source, data.root, data.caption_prefix, key)


def _verify(config: Config, say: Callable[[str], None]) -> None:
  """Checks every record of every source.

  Raises:
    ValueError: more of a source are bad than training tolerates.
  """
  data, broken = config.data, []
  for key, source in _sources(config).items():
    named, bad, total = survey.verified(
      source, data.root, data.caption_prefix, key, data.max_pixels,
      data.threads,
    )  # fmt: skip
    for name in named:
      say(f"  bad: {name}")
    say(f"{key}: verified {total} records, {bad} bad")
    if bad > data.max_bad_share * total:
      broken.append(f"{bad} of {total} records of {key}")
  if broken:
    raise ValueError(
      f"bad: {'; '.join(broken)}: data.max_bad_share={data.max_bad_share} "
      "allows fewer: mend or remove them, or raise it"
    )


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
