"""Makes what a run needs before training: embedded data set, tokenizer.

  python -m unifluid_jax.prepare --config=configs/shapes.py

Writes the procedural data set of config.data.world, if any, and trains the
text tokenizer on the captions, prompts and questions of config.data.train
where config.text.tokenizer is missing. What is there already is kept.
"""

import itertools
from collections.abc import Iterator, Mapping

from absl import flags
from etils import epath

from unifluid_jax import cli
from unifluid_jax.config import Config, resolve
from unifluid_jax.data import shapes, shapes_builder, sources, text

_CONFIG = cli.define_config()

# Sentences a tokenizer is trained on at most.
_SENTENCES = 200_000


def main(_: list[str]) -> None:
  """Data set, then tokenizer."""
  config = resolve(_CONFIG.value)
  say = cli.speaker()
  say(f"unifluid_jax.prepare: {config.name}")
  if config.data.world:
    say(write_world(config))
  say(make_tokenizer(config))


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


def make_tokenizer(config: Config) -> str:
  """Loads the tokenizer, or trains it if the configuration allows.

  Raises:
    ValueError: it is missing and config.text.train_vocab is 0.
  """
  path = config.text.tokenizer
  done = "kept"
  if not epath.Path(path).exists() and config.text.train_vocab:
    done = "trained"
    text.train(_sentences(config), path, config.text.train_vocab)
  tokenizer = text.Tokenizer.load(path)
  if tokenizer.vocab_size > config.model.decoder.vocab:
    raise ValueError(
      f"{path} has {tokenizer.vocab_size} pieces, "
      f"config.model.decoder.vocab={config.model.decoder.vocab}: too few"
    )
  return f"{done} the tokenizer: {tokenizer.vocab_size} pieces in {path}"


def _sentences(config: Config) -> list[str]:
  """The corpus: as a list, since SentencePiece hides what iterators raise.

  Raises:
    FileNotFoundError: a source is missing.
    ValueError: one cannot be read, or none has a text.
  """
  opened = {
    f"data.train.{name}": sources.open_source(
      entry, config.data.root, config.data.caption_prefix, f"data.train.{name}"
    )
    for name, entry in config.data.train.items()
  }
  bad: list[str] = []
  texts = _texts(opened, bad)
  found = list(itertools.islice(texts, _SENTENCES - 1))
  if not found:
    where = "; ".join(
      f"{key}.path={config.data.train[key.rpartition('.')[2]].path!r}"
      for key in opened
    )
    raise ValueError(
      f"no text to train a tokenizer on in data.root={config.data.root!r}: "
      f"looked for captions, prompts, questions and instructions in "
      f"{where or 'data.train, which is empty'}; bad records: {len(bad)}"
      + (f", the first: {bad[0]}" if bad else "")
    )
  return [config.data.caption_prefix, *found]


def _texts(
  opened: Mapping[str, sources.Source], bad: list[str]
) -> Iterator[str]:
  """Texts of all sources that hold any; appends the names of bad records."""
  for key, source in opened.items():
    bad += source.bad
    for i in range(len(source)):
      try:
        record = source[i]
      except sources.BadRecord as error:
        # Counted here, judged by the training pipeline.
        bad.append(f"{key}[{i}]: {error}")
        continue
      edit = record.edit[:1] if record.edit is not None else ()
      questions = (text for pair in record.questions for text in pair)
      texts = (*record.prompts, *record.captions, *questions, *edit)
      yield from (text for text in texts if text.strip())


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
