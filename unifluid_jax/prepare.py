"""Makes what a run needs before training: embedded data set, tokenizer.

  python -m unifluid_jax.prepare --config=configs/shapes.py

Writes the data set of config.data.world, if any; data.world.kind says of which
world. Beside shapes it writes so many of other kinds as data.world says:
in_context, dialogues that give a rule by examples; dialogues, that draw when
asked; signs, with small words. Emoji are drawn from packages that npm
downloads, or that lie in the folder data.world.packages. Then
trains the text tokenizer on the captions, prompts and questions of
config.data.train where config.text.tokenizer is missing. What is there already
is kept; a tokenizer that was trained here, on other data, is trained anew.
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
    rows, added = systems.text_rows(config), systems.sentences(config)
    say(corpus.make_tokenizer(config, rows, added))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
