"""Encodes training images with a frozen codec, once, and measures it.

  python -m unifluid_jax.encode --config=configs/shapes.py

Writes what the codec makes of every training image (moments of a VAE's
posterior, codes of a quantiser) to the `moments` file of its source, where one
is named, so that training need not encode; of dialogues, of those images that
the system has codes of, which may be the drawn ones alone. And, where the
configuration leaves them open, the codec's statistics (mean and scale of
latents) beside its weights. Both remember the data and the weights they were
made from: what is there already is kept, and made anew when either has changed.
MAR does the same (main_cache.py); its scale is 1/std, ours too, of latents
whose mean is subtracted.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import flags, logging

from unifluid_jax import systems
from unifluid_jax.codecs import cache
from unifluid_jax.core import cli, telemetry
from unifluid_jax.core.config import Config, SourceConfig
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import ImageCodec, Params
from unifluid_jax.data import fields, transforms
from unifluid_jax.data import identity as data_identity
from unifluid_jax.data.dialogue import Dialogue
from unifluid_jax.data.sources import discover
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.sources.cached import CachedReader
from unifluid_jax.data.tasks import DIALOGUE

_CONFIG = cli.define_config()
_BATCH = flags.DEFINE_integer("batch", 64, "Images encoded at once.")

# Images measured for statistics where none are cached.
_MEASURED = 2048


def main(_: list[str]) -> None:
  """Every training source that names a file, then the statistics."""
  config = systems.resolve(_CONFIG.value)
  say = cli.speaker()
  say(f"unifluid_jax.encode: {config.name}")
  for line in discover.lines(config.data):
    say(line)
  system = systems.build(config)
  codec = system.codec
  if codec is None:
    raise ConfigError(
      f"config.system={config.system!r} has no frozen codec to encode with"
    )
  weights = codec.weights()
  digest = codec.digest(weights)
  data = data_identity.of_data(config.data)
  encode = make_encoder(codec, weights)
  cached = []
  for name, source in config.data.train.items():
    if source.moments and name in data:
      row = cache.row_of(source, system.inputs)
      _check_tasks(name, source, row)
      note = cache.note_of(codec, source, digest, data[name]["digest"], row)
      path = cache.path_of(config, source)
      done = cache.write(
        path,
        note,
        lambda source=source, row=row: _encode(
          config, codec, source, encode, say, row=row
        ),
        codec.file_dtype,
        several=row is not None,
      )
      say(f"moments of {name}: {done}: {path}")
      if row is None:
        cached.append((name, path))
  if codec.measured:
    first = cached[0][0] if cached else next(iter(data))
    made = {"weights": digest, "data": data[first]["digest"]}

    def encoded():
      if cached:
        return _read(cached[0][1])
      source = config.data.train[first]
      return _encode(config, codec, source, encode, say, _MEASURED)

    say(cache.write_stats(codec.path, made, lambda: codec.measure(encoded())))


def _check_tasks(name: str, source: SourceConfig, row: Dialogue | None) -> None:
  """Refuses a file that could not be read, for one task or another.

  Raises:
    ConfigError: names the source.
  """
  tasks = list(source.tasks)
  if DIALOGUE in tasks and (row is None or len(tasks) > 1):
    raise ConfigError(
      f"data.train.{name} has moments, and tasks {tasks}: encoded dialogues "
      "serve no other task, and need text.dialogue; name a source for each, "
      "or drop its moments"
    )


def make_encoder(codec: ImageCodec, weights: Params) -> cache.Encoder:
  """`codec.encode`, jitted, weights bound."""
  return jax.jit(lambda images: codec.encode(weights, images))


def _encode(
  config: Config,
  codec: ImageCodec,
  source_config: SourceConfig,
  encode: cache.Encoder,
  say: Callable[[str], None],
  limit: int = 0,
  row: Dialogue | None = None,
) -> Iterator[np.ndarray | None]:
  """A source's images in order, encoded; None for unreadable ones.

  Of dialogues all at once that `row` has codes of, which may be none.
  """
  source = sources.open_source(
    source_config, config.data.root, config.data.caption_prefix
  )
  total = min(len(source), limit or len(source))
  progress = telemetry.Progress("encode", 0, total)
  field = fields.Pixels("drawn", codec.size, codec.fit, sizes=codec.sizes)
  # So many that images of one size fill batches.
  window = _BATCH.value * max(1, len(codec.sizes))
  for start in range(0, total, window):
    records = [_pixels(source, i, field, config.data.max_pixels, row)
               for i in range(start, min(start + window, total))]  # fmt: skip
    images = [image for found in records for image in found or ()]
    made = iter(cache.encoded(codec, encode, images, _BATCH.value))
    for found in records:
      codes = None if found is None else [next(made) for _ in found]
      if row is None or codes is None:
        yield codes and codes[0]
      else:
        yield np.reshape(codes, (len(codes), *codec.cache.shape))
    if (start // window) % 32 == 31:
      say(progress.line(start + len(records))[0])


def _pixels(
  source: sources.Source,
  i: int,
  field: fields.Pixels,
  max_pixels: int,
  row: Dialogue | None,
) -> list[np.ndarray] | None:
  """A record's images as the codec sees them; None where one is unreadable."""
  try:
    record = source[i]
    given = [record.image]
    if row is not None:
      given = [turn.image for turn in row.coded(record.dialogue)]
    pictures = [{"drawn": fields.Picture((image,))} for image in given]
    examples = [fields.Example({}, p, None, max_pixels) for p in pictures]
    return [transforms.to_float(field.view(e)) for e in examples]
  except sources.BadRecord as error:
    logging.warning("record %d: %s", i, error)
    return None


def _read(path: str) -> Iterator[np.ndarray | None]:
  reader = CachedReader(path)
  for i in range(len(reader)):
    try:
      yield reader[i]
    except sources.BadRecord:
      yield None


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
