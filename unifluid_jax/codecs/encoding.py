"""A data set's images through a frozen codec, in shards that several make."""

import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from unifluid_jax.codecs import cache
from unifluid_jax.core import telemetry
from unifluid_jax.core.config import Config, SourceConfig
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import ImageCodec, Params
from unifluid_jax.data import fields, transforms
from unifluid_jax.data.dialogue import Dialogue
from unifluid_jax.data.records import Marks
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.tasks import DIALOGUE

# Images measured for statistics where none are cached.
_MEASURED = 2048


def check_tasks(name: str, source: SourceConfig, row: Dialogue | None) -> None:
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


def make_encoders(codec: ImageCodec, weights: Params) -> list[cache.Encoder]:
  """`codec.encode`, jitted, on each local device, weights bound."""
  encode = jax.jit(codec.encode)
  return [
    functools.partial(encode, jax.device_put(weights, device))
    for device in jax.local_devices()
  ]


class Job(NamedTuple):
  """What encoding takes, whatever the source.

  Attributes:
    config: whose images are encoded.
    codec: that encodes them.
    encoders: its jitted `encode`, on each device.
    say: takes lines for people.
    batch: images that are encoded at once, on each device.
    shard: images per shard, rounded up to whole windows.
  """

  config: Config
  codec: ImageCodec
  encoders: Sequence[cache.Encoder]
  say: Callable[[str], None]
  batch: int
  shard: int = 4096

  @property
  def window(self) -> int:
    """So many records that images of one size fill batches."""
    return self.batch * max(1, len(self.codec.sizes))

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
    encoded = functools.partial(self.encode, source, row, progress)
    size = -(-self.shard // self.window) * self.window  # whole windows
    several = row is not None
    return cache.write(path, note, len(source), encoded, dtype, several, size)

  def measured(self, config: SourceConfig) -> Iterator[np.ndarray | None]:
    """The first encoded images of a source."""
    source = self.open(config)
    records = range(min(len(source), _MEASURED))
    progress = telemetry.Progress("encode", 0, len(records))
    return self.encode(source, None, progress, records)

  def encode(
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
    made, out = iter(cache.encoded(codec, encode, images, self.batch)), []
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
    given = [(record.image, record.marks)]
    if row is not None:
      given = [(t.image, Marks()) for t in row.coded(record.dialogue)]
    pictures = [{"drawn": fields.Picture((x,), marks)} for x, marks in given]
    examples = [fields.Example({}, p, None, max_pixels) for p in pictures]
    return [transforms.to_float(field.view(e)) for e in examples]
  except sources.BadRecord as error:
    logging.warning("record %d: %s", i, error)
    return None
