"""Encoded images and statistics of a codec in files: fresh or stale.

Both are made by `encode` from a data set and a codec, and store the digests of
both, so that they are never used with others.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from unifluid_jax.codecs import copies
from unifluid_jax.core import files, shards
from unifluid_jax.core.config import (
  MAX_PIXELS,
  Config,
  ConfigError,
  SourceConfig,
)
from unifluid_jax.core.types import ImageCodec
from unifluid_jax.data import identity as data_identity
from unifluid_jax.data.dialogue import Dialogue
from unifluid_jax.data.sources import cached
from unifluid_jax.data.tasks import DIALOGUE

_FITS = {"crop": "centre_crop_resize", "squash": "squash_resize"}

Encoder = Callable[[Any], Any]  # images [B, H, W, 3] → encoded [B, ...]


def note_of(
  codec: ImageCodec,
  source: SourceConfig,
  weights: str,
  data: str,
  row: Dialogue | None = None,
  max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
  """What is written beside cached images: all that they depend on.

  Args:
    codec: for the size of the images, and how they become squares.
    source: of the images.
    weights: digest of the codec.
    data: digest of the source.
    row: of a source of dialogues, see `row_of`.
    max_pixels: config.data.max_pixels; larger images are left out.
  """
  note = {
    "weights": weights,
    "data": data,
    "size": codec.size,
    "fit": _FITS[codec.fit],
    "limit": source.limit,
  }
  # Notes of squares are those of versions that knew no other shapes.
  if codec.sizes:
    note["sizes"] = [list(size) for size in codec.sizes]
  if row:
    note["images"] = row.which
  if max_pixels != MAX_PIXELS:
    note["max_pixels"] = max_pixels
  return note


def row_of(
  source: SourceConfig, inputs: Mapping[str, Mapping[str, Any]]
) -> Dialogue | None:
  """The field that reads a source of dialogues; None of other sources.

  Args:
    source: of the run.
    inputs: of the system.
  """
  fields = inputs.get(DIALOGUE, {}) if DIALOGUE in source.tasks else {}
  return next((f for f in fields.values() if isinstance(f, Dialogue)), None)


def path_of(config: Config, source: SourceConfig) -> str:
  """The file that a source's encoded images are kept in."""
  return str(epath.Path(config.data.root) / source.moments)


def check_cached(
  config: Config,
  codec: ImageCodec | None,
  inputs: Mapping[str, Mapping[str, Any]],
  identity: Mapping[str, Any],
) -> None:
  """Refuses cached images of another data set or codec.

  Args:
    config: of the run.
    codec: of its system.
    inputs: of its system.
    identity: its "codec" and "data"; without codec none are read.

  Raises:
    ConfigError: they are of others, or do not say of which.
  """
  made_by, data = identity["codec"], identity["data"]
  for name, source in config.data.train.items():
    path = path_of(config, source)
    if not (made_by and source.moments and name in data):
      continue
    if not epath.Path(path).exists():
      continue  # opening the source names it
    row, digest = row_of(source, inputs), data[name]["digest"]
    most = config.data.max_pixels
    want = note_of(codec, source, made_by["weights"], digest, row, most)
    there = data_identity.read_note(path)
    # Whether another limit fits is seen from the number of records.
    wrong = [k for k in _changed(there, want) if k != "limit"]
    if wrong:
      raise ConfigError(
        f"data.train.{name}.moments={path} were made from other "
        f"{' and '.join(wrong)} than this configuration has: make them anew "
        "with python -m unifluid_jax.encode and the same flags"
      )


def check_stats(codec: ImageCodec, data: Mapping[str, Any]) -> None:
  """Refuses statistics that were measured on other data than a new run's.

  Args:
    codec: of the run's system.
    data: identity of its sources.

  Raises:
    ConfigError: measured on other data.
  """
  if not codec.measured:
    return
  measured = (copies.read_stats(codec.path) or {}).get("data")
  if measured and measured not in [d["digest"] for d in data.values()]:
    raise ConfigError(
      f"{epath.Path(codec.path) / copies.STATS} was measured on other data "
      f"({measured[:8]}) than config.data.train names: measure again with "
      "python -m unifluid_jax.encode; to keep a run's statistics, set "
      f"{codec.path_key}=RUN/codec"
    )


def write(
  path: str,
  note: dict[str, Any],
  total: int,
  encoded: Callable[[range], Iterator[np.ndarray | None]],
  dtype: Any = np.float16,
  several: bool = False,
  shard: int = 4096,
) -> str:
  """Writes a file of encoded images, unless one with this note exists.

  Shards of it are divided among the processes, which all call this alike; the
  file is the same, bit by bit, however many there are.

  Args:
    path: the file, on a disk that all processes share.
    note: what it depends on, see `note_of`; kept beside it.
    total: records of the source.
    encoded: makes the content of some of them, consecutive ones.
    dtype: of the file.
    several: of dialogues, see `cached.write_cached`.
    shard: records of a shard; a multiple of those encoded together.

  Returns:
    What was done, for the log.
  """
  path = files.local(path, "cached moments", "config.data.root")
  there, old = epath.Path(path).exists(), data_identity.read_note(path)

  def made() -> bool:
    return epath.Path(path).exists() and data_identity.read_note(path) == note

  if made():
    return "kept"

  def write_shard(number: int, part: str) -> None:
    records = range(number * shard, min((number + 1) * shard, total))
    cached.write_cached(part, encoded(records), dtype, several)

  def join(parts: Sequence[str]) -> None:
    # First, so that no interruption leaves a note beside other images.
    epath.Path(path + ".json").unlink(missing_ok=True)
    cached.join_cached(path, parts)
    files.write(path + ".json", json.dumps(note))

  made_of = note | {"total": total, "shard": shard}
  count = max(1, -(-total // shard))
  shards.make(path, made_of, count, write_shard, join, made)
  if not there:
    return "written"
  return f"made anew, as {' and '.join(_changed(old, note))} changed"


def _changed(old: Mapping[str, Any], note: Mapping[str, Any]) -> list[str]:
  """What a cache's note says otherwise; some keys are not in all notes."""
  keys = {**note, "sizes": (), "images": (), "max_pixels": ()}
  return [k for k in keys if old.get(k) != note.get(k)]


def encoded(
  codec: ImageCodec,
  encode: Encoder,
  images: Sequence[np.ndarray | None],
  width: int,
) -> list[np.ndarray | None]:
  """Images encoded `width` at a time, those of one size together.

  Args:
    codec: says what sizes there are.
    encode: `codec.encode` with its weights.
    images: f32[H, W, 3] each; None stays None.
    width: rows of a batch.

  Returns:
    In the order of the images, [*cache] each; codes of images of several
    sizes in rows and columns.
  """
  made: list[np.ndarray | None] = [None] * len(images)
  for size in codec.sizes or ((codec.size, codec.size),):
    places = [i for i, x in enumerate(images) if x is not None
              and x.shape[:2] == size]  # fmt: skip
    for start in range(0, len(places), width):
      batch = places[start : start + width]
      padded = np.zeros((width, *size, 3), np.float32)
      padded[: len(batch)] = [images[i] for i in batch]
      for i, m in zip(batch, np.asarray(encode(padded)), strict=False):
        made[i] = m.reshape(codec.grid(size)) if codec.sizes else m
  return made


def write_stats(
  path: str,
  made: dict[str, Any],
  measure: Callable[[], dict[str, Any]],
) -> str:
  """Measures a codec's statistics, unless done for these weights and data.

  Statistics that do not say what they were measured on came with the weights,
  converted or copied, and are kept.

  Args:
    path: of the codec.
    made: digests of "weights" and "data".
    measure: gives the statistics, and "values", how many were measured.

  Returns:
    The statistics, for the log.
  """
  file, done = epath.Path(path) / copies.STATS, "kept"
  stats = copies.read_stats(path)
  ours = stats is None or "values" in stats
  if ours and any((stats or {}).get(k) != v for k, v in made.items()):
    done, stats = "measured", dict(measure()) | made
    files.write(file, json.dumps(stats))
  rest = {k: v for k, v in stats.items() if k not in (*made, "values")}
  said = ", ".join(f"{k} {v:.4f}" for k, v in rest.items())
  return f"latents: {said} ({done}): {file}"
