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

An interrupted job goes on at the shard where it stopped. Several processes
(launch/local.sh encode, --coordinator=...) divide the shards, each with all of
its devices; data.root lies on a disk that they share.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging

from unifluid_jax import systems
from unifluid_jax.codecs import cache
from unifluid_jax.core import cli, parallel, shards, telemetry
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
_BATCH = flags.DEFINE_integer(
  "batch", 64, "Images encoded at once, on each device."
)
_SHARD = flags.DEFINE_integer(
  "shard", 4096, "Images per shard: what one process encodes at a time."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, or auto on a TPU pod."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes in all.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process.")

# Images measured for statistics where none are cached.
_MEASURED = 2048


def main(_: list[str]) -> None:
  """Every training source that names a file, then the statistics."""
  parallel.start_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
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
  job = _Job(config, codec, make_encoders(codec, weights), say)
  cached = []
  for name, source in config.data.train.items():
    if source.moments and name in data:
      row = cache.row_of(source, system.inputs)
      _check_tasks(name, source, row)
      note = cache.note_of(codec, source, digest, data[name]["digest"], row)
      path = cache.path_of(config, source)
      done = job.cache(path, note, source, row)
      say(f"moments of {name}: {done}: {path}")
      if row is None:
        cached.append((name, path))
  if codec.measured:
    first = cached[0][0] if cached else next(iter(data))
    made = {"weights": digest, "data": data[first]["digest"]}

    def encoded():
      if cached:
        return _read(cached[0][1])
      return job.measured(config.data.train[first])

    if jax.process_index() == 0:
      measure = functools.partial(_measure, codec, encoded)
      say(cache.write_stats(codec.path, made, measure))
    shards.wait("statistics are measured")


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


def _measure(
  codec: ImageCodec, encoded: Callable[[], Iterator[np.ndarray | None]]
) -> dict[str, Any]:
  return codec.measure(encoded())


def make_encoders(codec: ImageCodec, weights: Params) -> list[cache.Encoder]:
  """`codec.encode`, jitted, on each local device, weights bound."""
  encode = jax.jit(codec.encode)
  return [
    functools.partial(encode, jax.device_put(weights, device))
    for device in jax.local_devices()
  ]


class _Job(NamedTuple):
  """What encoding takes, whatever the source."""

  config: Config
  codec: ImageCodec
  encoders: Sequence[cache.Encoder]
  say: Callable[[str], None]

  @property
  def window(self) -> int:
    """So many records that images of one size fill batches."""
    return _BATCH.value * max(1, len(self.codec.sizes))

  def open(self, source: SourceConfig) -> sources.Source:
    """The records of a source."""
    data = self.config.data
    return sources.open_source(source, data.root, data.caption_prefix)

  def cache(
    self,
    path: str,
    note: dict[str, Any],
    config: SourceConfig,
    row: Dialogue | None,
  ) -> str:
    """Writes the encoded images of a source; returns what was done."""
    source, dtype = self.open(config), self.codec.file_dtype
    progress = telemetry.Progress("encode", 0, len(source))
    encoded = functools.partial(self._encode, source, row, progress)
    size = -(-_SHARD.value // self.window) * self.window  # whole windows
    several = row is not None
    return cache.write(path, note, len(source), encoded, dtype, several, size)

  def measured(self, config: SourceConfig) -> Iterator[np.ndarray | None]:
    """The first encoded images of a source."""
    source = self.open(config)
    records = range(min(len(source), _MEASURED))
    progress = telemetry.Progress("encode", 0, len(records))
    return self._encode(source, None, progress, records)

  def _encode(
    self,
    source: sources.Source,
    row: Dialogue | None,
    progress: telemetry.Progress,
    records: range,
  ) -> Iterator[np.ndarray | None]:
    """Images in order, encoded; None for unreadable ones.

    Of dialogues all at once that `row` has codes of, which may be none.
    Windows of records go round the devices, so that what is encoded with what
    does not depend on how many there are; two threads a device read images
    and wait for it in turns.
    """
    windows = [records[i : i + self.window]
               for i in range(0, len(records), self.window)]  # fmt: skip
    workers = 2 * len(self.encoders)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      read = functools.partial(self._window, source, row)
      found = pool.map(read, windows, range(len(windows)))
      for number, (window, made) in enumerate(zip(windows, found, strict=True)):
        yield from made
        if number % 32 == 31:
          self.say(progress.line(window.stop)[0])

  def _window(
    self,
    source: sources.Source,
    row: Dialogue | None,
    places: range,
    number: int,
  ) -> list[np.ndarray | None]:
    codec, most = self.codec, self.config.data.max_pixels
    field = fields.Pixels("drawn", codec.size, codec.fit, sizes=codec.sizes)
    records = [_pixels(source, i, field, most, row) for i in places]
    images = [image for found in records for image in found or ()]
    encode = self.encoders[number % len(self.encoders)]
    made, out = iter(cache.encoded(codec, encode, images, _BATCH.value)), []
    for found in records:
      codes = None if found is None else [next(made) for _ in found]
      if row is None or codes is None:
        out.append(codes and codes[0])
      else:
        out.append(np.reshape(codes, (len(codes), *codec.cache.shape)))
    return out


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
