"""Makes what a run needs before training: embedded data set, tokenizer.

  python -m unifluid_jax.prepare --config=configs/shapes.py

Writes the procedural data set of config.data.world, if any, and beside it,
where data.world.in_context or data.world.dialogues is a number, so many
dialogues that give a rule by examples, or that draw when asked. Then trains the
text tokenizer on the captions, prompts and questions of config.data.train where
config.text.tokenizer is missing. What is there already is kept; a tokenizer
that was trained here, on other data, is trained anew.
"""

from absl import flags

from unifluid_jax import systems
from unifluid_jax.core import cli
from unifluid_jax.data import corpus, pipeline
from unifluid_jax.data.worlds import written

_CONFIG = cli.define_config()


def main(_: list[str]) -> None:
  """Data set, then tokenizer."""
  config = systems.resolve(_CONFIG.value)
  say = cli.speaker()
  say(f"unifluid_jax.prepare: {config.name}")
  if config.data.world:
    say(written.write_world(config))
  if pipeline.needs_text(systems.build(config).inputs):
    say(corpus.make_tokenizer(config, systems.text_rows(config)))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
