"""Makes what a run needs before training: embedded data set, tokenizer.

  python -m unifluid_jax.prepare --config=configs/shapes.py

Writes the procedural data set of config.data.world, if any, and trains the
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
from unifluid_jax.data.worlds import shapes, shapes_builder

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
  (path,) = {s.path for s in config.data.train.values()}
  where = str(epath.Path(config.data.root) / path)
  done = "kept" if epath.Path(where).exists() else "wrote"
  shapes_builder.build(where, shapes.World(**options), sizes, seed)
  counts = ", ".join(f"{n:,} {split}" for split, n in sizes.items())
  return f"{done} the data set: {counts} scenes in {where}"


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
