"""Readers of images with texts that JSON files list: JSONL, COCO captions.

A line or entry that cannot be used is a bad record: named, counted, skipped.
"""

import math
import os
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from unifluid_jax.core import files
from unifluid_jax.data import images, json_files, tasks
from unifluid_jax.data.records import BadRecord, Record

_LONGEST = 1 << 20  # bytes of a line
_KEPT = 1000  # bad entries whose names are kept; all are counted
_MORE = "a further one"


class JsonlReader:
  """Lines {"image": path, "prefix": str, "suffix": str}.

  Paths are relative to the file's folder and stay below it or data.root. The
  index holds offsets; a line is parsed again when it is read. A line without
  an image serves text-only training. With `score` only lines whose number of
  that key is at least `min_score` are there.
  """

  def __init__(
    self,
    path: str,
    root: str,
    caption_prefix: str,
    score: str = "",
    min_score: float = 0.0,
  ):
    """Reads all lines, no images.

    Raises:
      ValueError: the file cannot be read, or no line has the score.
    """
    self._file = epath.Path(path)
    self._folder, self._root = os.fspath(self._file.parent), root
    self._caption_prefix = caption_prefix.strip()
    self._score, self._min_score = score, min_score
    index, bad = array("q"), _Faults()
    try:
      files.check_regular(path)
      with self._file.open("rb") as stream:
        for number, (offset, line) in enumerate(_lines(stream), 1):
          self._enter(index, bad, offset, number, line)
    except OSError as error:
      raise ValueError(f"{path} cannot be read: {error}") from error
    if score and not index:
      raise ValueError(
        f"{path}: no line has {score} >= {min_score} (bad lines: {len(bad)})"
      )
    self.bad = tuple(bad)
    table = np.asarray(index, np.int64).reshape(-1, 4)
    self._lines = table[:, :2]
    self._images, self._captions = table[:, 2:].T.astype(bool)

  def _enter(
    self, index: array, bad: "_Faults", offset: int, number: int, line: bytes
  ) -> None:
    """Adds a line to the index or to the bad ones."""
    if not line.strip():
      return
    try:
      image, prefix, _, good = self._parse(line)
      if good:
        index.extend((offset, number, bool(image), not prefix))
    except ValueError as error:
      bad.add(f"{os.fspath(self._file)}:{number}: {error}")

  def __len__(self) -> int:
    return len(self._lines)

  def mask(self, task: str) -> np.ndarray | None:
    """Captions are drawn; questions and captions are asked."""
    if task == tasks.T2I:
      return self._images & self._captions
    if task == tasks.EDIT:
      return np.zeros(len(self), bool)
    return None if task == tasks.TEXT else self._images

  def __getitem__(self, i: int) -> Record:
    offset, number = map(int, self._lines[i])
    name = f"{os.fspath(self._file)}:{number}"
    try:
      with self._file.open("rb") as lines:
        lines.seek(offset)
        image, prefix, suffix, _ = self._parse(lines.readline(_LONGEST + 1))
    except (OSError, ValueError) as error:  # changed since it was indexed
      raise BadRecord(f"{name}: {error}") from error
    data = images.read_file(image) if image else b""
    if prefix:
      return Record(name, data, questions=((prefix, suffix),))
    return Record(name, data, captions=(suffix,))

  def _parse(self, line: bytes) -> tuple[str, str, str, bool]:
    """Image path, question ("" for a caption), answer; whether it is kept."""
    if len(line) > _LONGEST:
      raise ValueError(f"longer than {_LONGEST} bytes")
    entry = json_files.parse(line)
    if not isinstance(entry, dict):
      raise ValueError("not a JSON object")
    image, prefix, suffix = (
      "" if (value := entry.get(key)) is None
      else json_files.text(value, key).strip()
      for key in ("image", "prefix", "suffix")
    )  # fmt: skip
    if not suffix:
      raise ValueError("no suffix")
    if image:
      image = images.resolve_name(image, self._folder, self._root)
    score = entry.get(self._score) if self._score else self._min_score
    if type(score) not in (int, float) or not math.isfinite(score):
      raise ValueError(f"no number {self._score!r} to keep it by")
    question = "" if prefix == self._caption_prefix else prefix
    return image, question, suffix, score >= self._min_score


class _Faults(list):
  """Names of bad entries; beyond the first thousand they are only counted."""

  def add(self, name: str) -> None:
    """Counts one more."""
    self.append(name if len(self) < _KEPT else _MORE)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
  """Offset and content of each line; of a very long one the beginning."""
  offset = 0
  while line := stream.readline(_LONGEST + 1):
    yield offset, line
    offset += len(line)
    rest = line
    while rest and not rest.endswith(b"\n"):
      rest = stream.readline(_LONGEST)
      offset += len(rest)


class CocoReader:
  """COCO captions: {images: [...], annotations: [...]}, one record an image.

  Names of images are relative to a folder and stay below it or data.root.
  """

  def __init__(self, path: str, folder: str, root: str):
    """Reads the file, no images.

    Raises:
      ValueError: no JSON, or nothing like COCO's.
    """
    base = epath.Path(path).parent
    folder = os.fspath(base / folder if folder else base)
    content = json_files.load(path, "it is no COCO captions file")
    listed, notes = (
      content.get(key) if isinstance(content, dict) else None
      for key in ("images", "annotations")
    )
    if not isinstance(listed, list) or not isinstance(notes, list):
      raise ValueError(
        f"{path} is no COCO captions file: expected an object with the lists "
        "images and annotations"
      )
    bad, places = _Faults(), {}
    for i, entry in enumerate(listed):
      try:
        key, name = _image_of(entry)
        if key in places:
          raise ValueError(f"repeats the id {key!r}")
        places[key] = images.resolve_name(name, folder, root)
      except ValueError as error:
        bad.add(f"{path}: images[{i}]: {error}")
    texts: dict[Any, list[str]] = {key: [] for key in places}
    for i, entry in enumerate(notes):
      try:
        key, caption = _caption_of(entry, texts)
        texts[key].append(caption)
      except ValueError as error:
        bad.add(f"{path}: annotations[{i}]: {error}")
    self.bad = tuple(bad)
    self._records = [(str(k), p, tuple(texts[k])) for k, p in places.items()]

  def __len__(self) -> int:
    return len(self._records)

  def mask(self, task: str) -> np.ndarray | None:
    """All but edits, where an image has captions."""
    if task == tasks.IMAGE:
      return None
    use = task != tasks.EDIT
    return np.asarray([use and bool(t) for *_, t in self._records], bool)

  def __getitem__(self, i: int) -> Record:
    key, path, captions = self._records[i]
    return Record(key, images.read_file(path), captions=captions)


def _image_of(entry: Any) -> tuple[int | str, str]:
  """Id and file name of an entry of `images`."""
  if not isinstance(entry, dict):
    raise ValueError("not a JSON object")
  name = json_files.text(entry.get("file_name"), "file_name")
  if not name:
    raise ValueError("no file_name")
  return _id_of(entry, "id"), name


def _caption_of(entry: Any, known: Any) -> tuple[int | str, str]:
  """Image id and text of an entry of `annotations`."""
  if not isinstance(entry, dict):
    raise ValueError("not a JSON object")
  key = _id_of(entry, "image_id")
  if key not in known:
    raise ValueError(f"no image has the id {key!r}")
  return key, json_files.text(entry.get("caption"), "caption").strip()


def _id_of(entry: dict[str, Any], name: str) -> int | str:
  """An id: an integer or a text (a NaN is not even equal to itself)."""
  key = entry.get(name)
  if type(key) is not int and not isinstance(key, str):
    raise ValueError(f"{name} {key!r} is neither an integer nor a text"[:200])
  return key
