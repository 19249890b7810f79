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

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from unifluid_jax import systems
from unifluid_jax.codecs import cache, encoding
from unifluid_jax.core import cli, parallel, shards
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import ImageCodec
from unifluid_jax.data import identity as data_identity
from unifluid_jax.data.sources import discover
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.sources.cached import CachedReader

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
  encoders = encoding.make_encoders(codec, weights)
  job = encoding.Job(config, codec, encoders, say, _BATCH.value, _SHARD.value)
  cached = []
  for name, source in config.data.train.items():
    if source.moments and name in data:
      row = cache.row_of(source, system.inputs)
      encoding.check_tasks(name, source, row)
      note = cache.note_of(
        codec, source, digest, data[name]["digest"], row, config.data.max_pixels
      )
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


def _measure(
  codec: ImageCodec, encoded: Callable[[], Iterator[np.ndarray | None]]
) -> dict[str, Any]:
  return codec.measure(encoded())


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
