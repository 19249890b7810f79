"""Records by index: prepared TFDS sets, JSON of several forms, transfer tasks.

A source is random-access and picklable, so that any process can read any
record; nothing is decoded here.
"""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from google.protobuf.message import DecodeError
from jaxtyping import Int64
from tensorflow_datasets.proto import tf_example_pb2

from unifluid_jax.core import files
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import tasks
from unifluid_jax.data.records import BadRecord, Record, Turn
from unifluid_jax.data.sources import (
  conversations,
  discover,
  folders,
  json_readers,
  rows,
  shards,
  tables,
  webdataset,
)
from unifluid_jax.data.sources.cached import CachedReader

_THREADS = 16  # that look at shards
_LOGGED = 10  # bad lines named in the log, per source


class Source:
  """A data set as a sequence of records.

  Attributes:
    bad: lines or entries skipped at opening, as "file:line: reason".
    moments: the cached moments, or None.
  """

  def __init__(
    self, reader: Any, limit: int, moments: "CachedReader | None" = None
  ):
    """Keeps the first `limit` records, all if it is 0.

    `reader` has a length, records by index, `bad`, and `mask(task)`: which
    records can serve a task, None for all.
    """
    self._reader = reader
    self._length = min(limit, len(reader)) if limit else len(reader)
    self.bad = reader.bad
    self.moments = moments

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, i: int) -> Record:
    if not 0 <= i < self._length:
      raise IndexError(f"record {i} of {self._length}")
    record = self._reader[i]
    if self.moments is None:
      return record
    return record._replace(moments=self.moments[i])

  def image_path(self, i: int) -> str:
    """The file of record i's image; empty where none of its own holds it."""
    path = getattr(self._reader, "image_path", None)
    return path(i) if path else ""

  def draw(self, i: int, turn: int, rng: np.random.Generator) -> Record:
    """Record i as training shows it for the `turn`-th time, from 0.

    Args:
      i: its index.
      turn: passes over the source before this one.
      rng: of this example.
    """
    del turn, rng  # what is chosen anew each time, `transforms` chooses
    return self[i]

  def indices(self, task: str) -> Int64[np.ndarray, "R"]:
    """Records that can serve a task, as far as the index of the set tells."""
    mask = self._reader.mask(task)
    if mask is None:
      return np.arange(self._length, dtype=np.int64)
    return np.flatnonzero(mask[: self._length]).astype(np.int64)


def open_source(
  config: SourceConfig,
  root: str,
  caption_prefix: str,
  key: str = "data.train.<name>",
  moments: bool = False,
) -> Source:
  """Opens a data set; records are read later.

  Args:
    config: format, path and split. `path` may hold "{split}". For "coco",
      "sharegpt", "llava" and "table" it is "list.json" or
      "list.json:imagedir", the latter relative to the list's folder, as file
      names in JSONL are. For "transfer" it is the name of a task of
      `tasks.ROWS`, for Parquet and tar files a file, a folder of them or a
      pattern, for "big_vision" see there. "auto" is what `discover` finds.
    root: what `path` and `moments` are relative to.
    caption_prefix: a JSONL prefix that only asks for a caption.
    key: the source's place in the configuration, for messages.
    moments: whether records carry the cached moments that `config` names.

  Raises:
    FileNotFoundError: nothing at the path.
    ValueError: not of that format, an unknown split, or moments of another
      data set.
  """
  if config.format == "transfer":
    from unifluid_jax.data.transfers import (
      source as task_source,  # which builds on this module
    )

    if config.moments:
      raise ValueError(
        f"{key}.moments={config.moments!r}: images of transfer tasks are "
        f"changed as they are read: set {key}.moments=''"
      )
    return task_source.TaskSource(config, root, key)
  if config.format == "auto":
    config = discover.resolved(config, root, key)
  reader = open_reader(config, root, caption_prefix, key)
  for entry in reader.bad[:_LOGGED]:
    logging.warning("%s: %d bad; skipped %s", key, len(reader.bad), entry)
  if not moments or not config.moments:
    return Source(reader, config.limit)
  cache = CachedReader(found(root, config.moments, key, "moments"))
  source = Source(reader, config.limit, cache)
  if len(cache) not in (len(reader), len(source)):
    raise ValueError(
      f"{key}.moments holds {len(cache)} records, {key}.path {len(source)}: "
      "cache the moments again from this very source"
    )
  return source


def open_reader(
  config: SourceConfig, root: str, caption_prefix: str, key: str
) -> Any:
  """The reader of a format that is named; see `Source` and `open_source`."""
  path = config.path.replace("{split}", config.split)
  if config.format == "big_vision":
    from unifluid_jax.data.sources import big_vision  # which needs TensorFlow

    return big_vision.BigVisionReader(config, key)
  if config.format in conversations.LISTS or config.format == "table":
    file, folder = conversations.split_path(path)
    place = found(root, file, key)
    if config.format == "table":
      return tables.TableReader(place, folder, root, _columns(config))
    return conversations.LISTS[config.format](place, folder, root)
  place = found(root, path, key)
  if config.format == "array_record":
    return _TfdsReader(place, config.split)
  if config.format == "jsonl":
    return json_readers.JsonlReader(
      place, root, caption_prefix, config.score, config.min_score
    )
  if config.format == "imagefolder":
    columns = _columns(config, tables.FILE_NAME)
    return tables.TableReader(tables.metadata(place), "", root, columns)
  if config.format == "captions_txt":
    return folders.CaptionFiles(place)
  if config.format == "class_folders":
    return folders.ClassFolders(place)
  if config.format == "webdataset":
    return webdataset.WebDataset(place, config.text, config.question)
  from unifluid_jax.data.sources import arrow, parquet  # slow to load

  if config.format == "arrow":
    return arrow.ArrowRows(place, config.split, _columns(config))
  return parquet.open_rows(config, place)


def _columns(config: SourceConfig, image: str = "") -> rows.Columns:
  """The columns that a source names; of images, another default may hold."""
  image = config.image if config.image != "image" else image or config.image
  return rows.Columns(image, config.text, config.question)


def found(root: str, path: str, key: str, field: str = "path") -> str:
  """The joined path, which exists, or is a pattern of files that do."""
  full = epath.Path(root) / path
  if path and "\0" not in path and not full.exists():
    named = shards.matching(os.fspath(full))
    if named and epath.Path(named[0]).exists():
      return os.fspath(full)
  if not path or "\0" in path or not full.exists():
    raise FileNotFoundError(
      f"no data at {os.fspath(full)!r}: change {key}.{field}={path!r} or "
      f"data.root={root!r}, or prepare the data set first"
    )
  if not full.is_dir():
    files.check_regular(full)  # opening a FIFO would wait for ever
  return os.fspath(full)


@contextlib.contextmanager
def opening(folder: str, split: str) -> Iterator[None]:
  """One line for whatever opening a prepared data set raises.

  Raises:
    ValueError: files that are cut, or another's; no such split.
  """
  try:
    yield
  # TFDS raises what its parsers raise.
  except Exception as error:
    what = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(
      f"{folder}, split {split!r}: no data set that TFDS can open ({what}): "
      "prepare it again, or correct path and split"
    ) from error


class _TfdsReader:
  """A prepared TensorFlow Datasets directory in ArrayRecord format.

  The known features are taken from the tf.Example itself: TFDS's own decoding
  costs ten times as much, and its PartialDecoding needs TensorFlow.
  """

  bad: tuple[str, ...] = ()

  def __init__(self, path: str, split: str):
    path = files.local(path, "ArrayRecord files", "config.data.root")
    folder = version_dir(path)
    with opening(folder, split):
      builder = tfds.builder_from_directory(folder)
      raw = tfds.decode.DeserializeMethod.RAW_BYTES
      self._data = builder.as_data_source(split, deserialize_method=raw)
      shards = builder.info.splits[split].file_instructions
      features = sorted(builder.info.features)
    if "image" not in features:
      raise ValueError(f"{path}: no feature 'image' in {features}")
    with ThreadPoolExecutor(_THREADS) as pool:
      for _ in pool.map(_check_shard, shards):
        pass  # what one raises is raised here
    self._path, self._features = path, features

  def __len__(self) -> int:
    return len(self._data)

  def mask(self, task: str) -> np.ndarray | None:
    """Dialogues are all that a set of dialogues has beside images."""
    dialogues = "dialogue" in self._features
    lacking = task == tasks.EDIT and "edit" not in self._features
    if task != tasks.IMAGE:
      lacking |= dialogues != (task == tasks.DIALOGUE)
    return np.zeros(len(self), bool) if lacking else None

  def __getitem__(self, i: int) -> Record:
    try:
      return self._record(i)
    # IndexError: a feature without its value. RuntimeError: a corrupt shard.
    except (DecodeError, IndexError, RuntimeError, ValueError) as error:
      raise BadRecord(f"{self._path}, record {i}: {error}") from error

  def _record(self, i: int) -> Record:
    fields = tf_example_pb2.Example.FromString(self._data[i]).features.feature

    def texts(*names: str) -> tuple[str, ...]:
      found = [n for n in names if n in fields]
      values = fields[found[0]].bytes_list.value if found else ()
      return tuple(v.decode(errors="replace") for v in values)

    edit = None  # TFDS has no optional features: a blank one means none
    if "".join(instruction := texts("edit/instruction")).strip():
      edit = (instruction[0], fields["edit/target"].bytes_list.value[0])
    asked = zip(
      texts("questions/question"), texts("questions/answer"), strict=True
    )
    return Record(
      id="".join(texts("id")) or str(i),
      image=fields["image"].bytes_list.value[0],
      prompts=texts("prompts"),
      captions=texts("captions", "captions/text"),
      questions=tuple(asked),
      edit=edit,
      kinds=texts("questions/kind"),
      scene="".join(texts("scene")),
      edit_scene="".join(texts("edit/scene")),
      dialogue=_dialogue(fields),
    )


def _dialogue(fields: Any) -> tuple[Turn, ...]:
  """The turns of a tf.Example, if any; a text's image is empty."""
  if "dialogue/text" not in fields:
    return ()
  texts, images = (
    fields[f"dialogue/{k}"].bytes_list.value for k in ("text", "image")
  )
  targets = fields["dialogue/target"].int64_list.value
  return tuple(
    Turn(text.decode(errors="replace"), image or None, bool(target))
    for text, image, target in zip(texts, images, targets, strict=True)
  )


def _check_shard(shard: Any) -> None:
  """Refuses a shard that was lost or cut: reading beyond its end may crash.

  Args:
    shard: TFDS's instruction to read a file.

  Raises:
    ValueError: names the file.
  """
  path, needed = shard.filename, shard.examples_in_shard
  try:
    reader = ArrayRecordReader(path)
    found = reader.num_records()
    reader.close()
  except (OSError, RuntimeError, ValueError) as error:
    raise ValueError(
      f"{path} is no whole shard ({str(error) or 'cut'}): prepare the data "
      "set again"
    ) from error
  if found < needed:
    raise ValueError(
      f"{path} has {found} records, its data set says {needed}: prepare the "
      "data set again"
    )


def version_dir(path: str) -> str:
  """The folder with the metadata: `path`, or the only one below it."""
  base = epath.Path(path)
  for depth in ("", "*/", "*/*/"):
    files = base.glob(depth + "dataset_info.json")
    if found := sorted(os.fspath(file.parent) for file in files):
      break
  if len(found) != 1:
    raise ValueError(
      f"{path} holds {len(found)} prepared data sets {found}: the path must "
      "name the folder of one dataset_info.json"
    )
  return found[0]
