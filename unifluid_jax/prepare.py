"""Makes what a run needs before training: embedded data set, tokenizer.

  python -m unifluid_jax.prepare --config=configs/shapes.py

Writes the procedural data set of config.data.world, if any (and beside it,
where data.world.in_context is a number, so many dialogues), and trains the
text tokenizer on the captions, prompts and questions of config.data.train
where config.text.tokenizer is missing. What is there already is kept; a
tokenizer that was trained here, on other data, is trained anew.
"""

from absl import flags
from etils import epath

from unifluid_jax import systems
from unifluid_jax.core import cli
from unifluid_jax.core.config import Config
from unifluid_jax.data import corpus, pipeline
from unifluid_jax.data.worlds import in_context, shapes, shapes_builder

_CONFIG = cli.define_config()


def main(_: list[str]) -> None:
  """Data set, then tokenizer."""
  config = systems.resolve(_CONFIG.value)
  say = cli.speaker()
  say(f"unifluid_jax.prepare: {config.name}")
  if config.data.world:
    say(write_world(config))
  if pipeline.needs_text(systems.build(config).inputs):
    say(corpus.make_tokenizer(config, systems.text_rows(config)))


def write_world(config: Config) -> str:
  """The procedural data set, at the path its sources name."""
  options = dict(config.data.world)
  seed = options.pop("seed")
  sizes = {
    split: options.pop(split) for split in ("train", "validation", "held_out")
  }
  dialogues = options.pop("in_context", 0)
  (path,) = {
    s.path
    for s in config.data.train.values()
    if not in_context.is_written(config.data, s)
  }
  where = str(epath.Path(config.data.root) / path)
  done = _done(where)
  world = shapes.World(**options)
  shapes_builder.build(where, world, sizes, seed)
  counts = ", ".join(f"{n:,} {split}" for split, n in sizes.items())
  said = f"{done} the data set: {counts} scenes in {where}"
  if not dialogues:
    return said
  where += in_context.SUFFIX
  done = _done(where)
  in_context.build(where, world, dialogues, seed)
  return f"{said}; {done} {dialogues:,} dialogues in {where}"


def _done(where: str) -> str:
  return "kept" if epath.Path(where).exists() else "wrote"


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
