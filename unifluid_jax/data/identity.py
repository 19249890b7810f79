"""What a data set holds, as a digest: the same content is the same data.

Whatever is made from data (a tokenizer, cached moments, a trained run)
remembers the digest, so that it is never used with other data unnoticed. It
depends on content and on names below the data set's folder: a folder that is
moved, or copied to an object store, keeps its identity.

What is looked at, so that it costs under a second for what fits a laptop and
seconds for millions of images:

  shards, annotations   all bytes of up to 256 MiB together; beyond that their
                        sizes and evenly spaced blocks, first and last included
  images in files       the names of all; of up to 16,384 of them, evenly
                        spaced, the size and the bytes (three blocks of large
                        ones)
  big_vision            the string that names the data, nothing else

So a data set that was drawn anew is always noticed, and so is a replaced
image or record unless the set is larger than that and its file's size stays
the same.
"""

import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from unifluid_jax.core import files
from unifluid_jax.core.config import DataConfig, SourceConfig
from unifluid_jax.data.sources import conversations, discover
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.transfers import tasks

_BLOCK = 1 << 16  # bytes read at once of what is sampled
_BLOCKS = 4096  # of all shards together: 256 MiB
_IMAGES = 1 << 14  # files looked into
_IMAGE_BLOCK = 1 << 14
_READERS = 32  # at once, of an object store
# Formats whose readers say which files they read, and whether images are files.
_READ = {"imagefolder": True, "captions_txt": True, "class_folders": True,
         "table": True, "webdataset": False, "arrow": False}  # fmt: skip


def of_data(config: DataConfig) -> dict[str, dict[str, Any]]:
  """Identity of every training source that takes part, by its key.

  Raises:
    FileNotFoundError, ValueError: see `of_source`.
  """
  return {
    name: of_source(source, config.root, f"data.train.{name}")
    for name, source in config.train.items()
    if source.weight
  }


def of_source(
  config: SourceConfig, root: str, key: str = "data.train.<name>"
) -> dict[str, Any]:
  """Identity of one data set.

  Args:
    config: what is read of it; settings that choose records count as content.
    root: what paths are relative to.
    key: the source's place in the configuration, for messages.

  Returns:
    "digest", SHA-256 in hexadecimal, and for people "path" and "files", how
    many it consists of.

  Raises:
    FileNotFoundError: nothing at the path.
    ValueError: not of that format.
  """
  if config.format == "auto":
    config = discover.resolved(config, root, key)
  path = config.path.replace("{split}", config.split)
  digest = _Digest(config.format, config.image, config.text, config.score,
                   config.min_score if config.score else 0.0)  # fmt: skip
  if config.question:
    digest.add("question", config.question)
  if config.format == "big_vision":
    digest.add(config.path)
  elif config.format == "transfer":
    _transfer(digest, config, root)
  elif config.format == "jsonl":
    file = _path(root, path, key)
    digest.shards([file])
    digest.images(file.parent, _jsonl_images(file))
  elif config.format in conversations.LAYOUTS:
    name, folder = conversations.split_path(path)
    file = _path(root, name, key)
    digest.shards([file])
    names = conversations.named_images(os.fspath(file), config.format)
    digest.images(file.parent / folder, names)
  elif config.format == "coco":
    name, folder = conversations.split_path(path)
    file = _path(root, name, key)
    digest.shards([file])
    digest.images(file.parent / folder, _coco_images(file))
  elif config.format in _READ:
    reader = sources.open_reader(config, root, "", key)
    digest.shards([epath.Path(shard) for shard in reader.shards])
    if _READ[config.format]:
      digest.images(epath.Path(reader.folder), reader.image_names())
  else:
    found = _path(root, path, key)
    if config.format == "array_record":
      digest.add(config.split)
      digest.shards(_tfds_shards(found, config.split))
    else:
      from unifluid_jax.data.sources import parquet  # slow to load

      digest.shards([epath.Path(f) for f in parquet.shards(os.fspath(found))])
  return {"digest": digest.hex(), "path": path, "files": digest.files}


def read_note(path: str) -> dict[str, Any]:
  """What stands in PATH.json: of what data and how a file was made.

  Empty if there is no such note, or none that can be read.
  """
  try:
    note = json.loads(epath.Path(path + ".json").read_text())
  except (OSError, ValueError):
    return {}
  return note if isinstance(note, dict) else {}


class _Digest:
  """SHA-256 of values and of files, each closed off from the next."""

  def __init__(self, *values: Any):
    self._hash = hashlib.sha256()
    self.files = 0
    self.add("unifluid data 1", *values)

  def hex(self) -> str:
    return self._hash.hexdigest()

  def add(self, *values: Any) -> None:
    """Anything that JSON holds."""
    for value in values:
      data = json.dumps(value).encode()
      self._hash.update(b"%d:" % len(data) + data)

  def shards(self, paths: Sequence[epath.Path]) -> None:
    """Files of records, or the annotations of a set."""
    blocks = max(2, _BLOCKS // max(1, len(paths)))
    for path in paths:
      if not files.is_remote(path):
        _regular_size(path)
      with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        self.add(path.name, size)
        for offset, length in _places(size, _BLOCK, blocks):
          file.seek(offset)
          self._hash.update(file.read(length))
    self.files += len(paths)

  def images(self, folder: epath.Path, names: Sequence[str]) -> None:
    """Image files; those that are missing count as such."""
    self.add(len(names))
    for name in names:
      self._hash.update(name.encode(errors="surrogatepass") + b"\0")
    chosen = [names[i] for i in _spread(len(names), _IMAGES)]
    read = functools.partial(_look, folder)
    if files.is_remote(os.fspath(folder)):
      with futures.ThreadPoolExecutor(_READERS) as pool:
        self._feed(pool.map(read, chosen))
    else:
      self._feed(map(read, chosen))
    self.files += len(names)

  def _feed(self, parts: Iterable[bytes]) -> None:
    for part in parts:
      self._hash.update(b"%d:" % len(part) + part)


def _spread(total: int, limit: int) -> Iterator[int]:
  """At most `limit` of `total` indices, evenly spaced, both ends included."""
  if total <= limit:
    return iter(range(total))
  return iter(np.linspace(0, total - 1, limit).round().astype(int).tolist())


def _places(size: int, block: int, count: int) -> list[tuple[int, int]]:
  """(offset, length) of what is read of a file: all, or `count` blocks."""
  if size <= block * count:
    return [(i, min(block, size - i)) for i in range(0, size, block)]
  return [(i, block) for i in _spread(size - block + 1, count)]


def _look(folder: epath.Path, name: str) -> bytes:
  """Size and bytes of an image, three blocks of a large one."""
  try:
    if files.is_remote(os.fspath(folder)):
      data = (folder / name).read_bytes()
      size = len(data)
      parts = [data[i : i + n] for i, n in _places(size, _IMAGE_BLOCK, 3)]
    else:
      path = os.path.join(os.fspath(folder), name)
      size = _regular_size(path)
      with open(path, "rb", buffering=0) as file:
        parts = []
        for offset, length in _places(size, _IMAGE_BLOCK, 3):
          file.seek(offset)
          parts.append(file.read(length))
  except (OSError, ValueError):
    return b"missing"  # a bad record, which the reader counts and names
  return b"%d:" % size + b"".join(parts)


def _regular_size(path: str | os.PathLike[str]) -> int:
  """Bytes of a file; ValueError if it is a pipe or the like, which may hang."""
  found = os.stat(path)
  if not stat.S_ISREG(found.st_mode):
    raise ValueError(f"{os.fspath(path)} is no regular file")
  return found.st_size


def _jsonl_images(path: epath.Path) -> list[str]:
  """Names of the images, those of at most `_IMAGES` lines of a long file."""
  with path.open("rb") as file:
    lines = [line for line in file if line.strip()]
  chosen = (lines[i] for i in _spread(len(lines), _IMAGES))
  return [name for line in chosen for name in _names(line)]


def _names(line: bytes) -> list[str]:
  """The images of a line, or of the turns of its dialogue; see `_name`."""
  try:
    entry = json.loads(line)
  except (ValueError, RecursionError):
    return []
  turns = entry.get("dialogue") if isinstance(entry, dict) else None
  entries = turns if isinstance(turns, list) else [entry]
  return [name for e in entries if (name := _name(e, "image"))]


def _coco_images(path: epath.Path) -> list[str]:
  try:
    images = json.loads(path.read_bytes())["images"]
    found = [_name(entry, "file_name") for entry in images]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f"{path} is no COCO captions file (images, annotations): {error!r}"
    ) from error
  return [name for name in found if name]


def _name(entry: Any, key: str) -> str:
  """An image's name; "" where there is none.

  Such a line or entry counts by its bytes, and as a bad record elsewhere.
  """
  try:
    entry = json.loads(entry) if isinstance(entry, bytes) else entry
    return entry[key].strip()
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return ""


def _tfds_shards(path: epath.Path, split: str) -> list[epath.Path]:
  """The files of a prepared data set's split."""
  folder = sources.version_dir(os.fspath(path))
  with sources.opening(folder, split):
    info = tfds.builder_from_directory(folder).info
    instructions = info.splits[split].file_instructions
  return [epath.Path(i.filename) for i in instructions]


def _transfer(digest: _Digest, config: SourceConfig, root: str) -> None:
  """Examples of a task as they are read, and their images."""
  examples = tasks.read(tasks.named(config.path), root, config.split)
  digest.add(config.path, config.split)
  names = []
  for example in examples:
    plain = example._replace(images=(), font="")
    digest.add(plain)
    for image in example.images:
      if isinstance(image, bytes):
        digest.add(hashlib.sha256(image).hexdigest())
      else:
        names.append(os.path.relpath(image, root))
  digest.images(epath.Path(root), names)


def _path(root: str, path: str, key: str) -> epath.Path:
  return epath.Path(sources.found(root, path, key))
