"""Tables that name image files: CSV, TSV, JSON lines, metadata of imagefolders.

  table        photos.csv, .tsv or .jsonl; columns by data.train.NAME.image,
               .text and, where texts are answers, .question
  imagefolder  a folder with metadata.csv or metadata.jsonl, whose column
               file_name names images (Hugging Face's convention)

Names of files are relative to the table's folder, or to another one:
"photos.csv:images". A row that cannot be used is a bad record: named by its
line, counted, skipped. The index holds offsets; a row is parsed again when it
is read.
"""

import csv
import os
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from unifluid_jax.core import files
from unifluid_jax.data import images, json_files
from unifluid_jax.data.records import BadRecord, Record
from unifluid_jax.data.sources import json_readers, rows

ENDINGS = (".csv", ".tsv", ".jsonl")
METADATA = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"  # the column of images in an imagefolder
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST = json_readers.LONGEST


class TableReader:
  """Rows of a table, each with its images and texts.

  Attributes:
    bad: rows that cannot be used, by file and line.
  """

  def __init__(self, path: str, folder: str, root: str, columns: rows.Columns):
    """Reads all rows, no images.

    Args:
      path: of the file, by whose ending it is parsed.
      folder: that names of images are relative to; itself relative to the
        file's, which it is by default.
      root: config.data.root; images stay below it or below `folder`.
      columns: which are read.

    Raises:
      ValueError: the file cannot be read, or lacks a column.
    """
    self._file, self._columns, self._root = path, columns, root
    base = os.path.dirname(path)
    self.folder = os.path.join(base, folder) if folder else base
    self._header = header(path)
    missing = [c for c in columns.names if c not in self._header]
    if missing:
      raise ValueError(
        f"{path} lacks {', '.join(missing)}: expected the columns "
        f"{', '.join(columns.names)}, found {', '.join(self._header)}"
      )
    twice = [c for c in columns.names if self._header.count(c) > 1]
    if twice:
      raise ValueError(f"{path} has several columns {twice[0]!r}: rename them")
    index, bad = array("q"), json_readers.Faults()
    for offset, number, row in self._rows():
      try:
        if isinstance(row, ValueError):
          raise row
        self._names_of(row)
        captions, asked = rows.texts(row, columns)
        if not any(t.strip() for t in (*captions, *(a for _, a in asked))):
          raise ValueError(f"no {columns.text}")
        index.extend((offset, number))
      except ValueError as error:
        bad.add(f"{path}:{number}: {error}")
    self.bad = tuple(bad)
    self._index = np.asarray(index, np.int64).reshape(-1, 2)

  def __len__(self) -> int:
    return len(self._index)

  def mask(self, task: str) -> np.ndarray | None:
    """Captions all tasks but edits and dialogues; answers no generation."""
    if rows.mask(task, bool(self._columns.question)):
      return None
    return np.zeros(len(self), bool)

  def __getitem__(self, i: int) -> Record:
    name, row = self._row(i)
    return rows.record(name, row, self._columns, self._open)

  def image_path(self, i: int) -> str:
    """Of the first image of a row."""
    return self._path(self._names_of(self._row(i)[1])[0])

  def image_names(self) -> list[str]:
    """Names of all images, relative to `folder`."""
    return [
      name for i in range(len(self)) for name in self._names_of(self._row(i)[1])
    ]

  @property
  def shards(self) -> list[str]:
    """Files that hold records."""
    return [self._file]

  def _row(self, i: int) -> tuple[str, Mapping[str, Any]]:
    """A row and its name.

    Raises:
      BadRecord: the file has changed since it was indexed.
    """
    offset, number = map(int, self._index[i])
    name = f"{self._file}:{number}"
    try:
      _, _, row = next(self._rows(offset, number))
    except (OSError, StopIteration) as error:
      raise BadRecord(f"{name}: {error or 'no longer there'}") from error
    if isinstance(row, ValueError):
      raise BadRecord(f"{name}: {row}") from row
    return name, row

  def _rows(
    self, offset: int = 0, number: int = 1
  ) -> Iterator[tuple[int, int, Mapping[str, Any] | ValueError]]:
    """Offset, line and content of the rows from one on."""
    with epath.Path(self._file).open("rb") as stream:
      stream.seek(offset)
      ending = ending_of(self._file)
      if ending in _DELIMITERS:
        found = _csv_rows(stream, offset, number, _DELIMITERS[ending])
        if not offset:
          next(found)
        for start, line, values in found:
          yield start, line, _named(self._header, values)
        return
      for where, (start, line) in enumerate(json_readers.lines(stream), number):
        if line.strip():
          yield offset + start, where, _json_row(line)

  def _names_of(self, row: Mapping[str, Any]) -> list[str]:
    """The image files that a row names.

    Raises:
      ValueError: none, or one that lies elsewhere.
    """
    cell = row.get(self._columns.image)
    listed = cell if isinstance(cell, list) else [cell]
    names = [
      json_files.text(name, self._columns.image).strip() for name in listed
    ]
    if not names or not all(names):
      raise ValueError(f"no {self._columns.image}")
    for name in names:
      self._path(name)
    return names

  def _path(self, name: str) -> str:
    return images.resolve_name(name, self.folder, self._root)

  def _open(self, name: str) -> bytes:
    return images.read_file(self._path(name))


def ending_of(path: str) -> str:
  """By which a table is parsed.

  Raises:
    ValueError: it is none.
  """
  ending = os.path.splitext(path)[1].lower()
  if ending not in ENDINGS:
    raise ValueError(f"{path} is no table: its name ends in none of {ENDINGS}")
  return ending


def metadata(folder: str) -> str:
  """The metadata file of an imagefolder.

  Raises:
    FileNotFoundError, ValueError: none, or both.
  """
  found = [m for m in METADATA if os.path.isfile(os.path.join(folder, m))]
  if not found:
    raise FileNotFoundError(f"no {' and no '.join(METADATA)} in {folder}")
  if len(found) > 1:
    raise ValueError(f"{folder} has both {' and '.join(found)}: remove one")
  return os.path.join(folder, found[0])


def header(path: str) -> list[str]:
  """The columns of a table: of JSON lines, the keys of the first.

  Raises:
    ValueError: it cannot be read, or begins otherwise.
  """
  ending = ending_of(path)
  try:
    files.check_regular(path)
    with epath.Path(path).open("rb") as stream:
      if ending in _DELIMITERS:
        rows_ = _csv_rows(stream, 0, 1, _DELIMITERS[ending])
        _, _, first = next(rows_, (0, 0, ValueError("it is empty")))
      else:
        lines = (line for _, line in json_readers.lines(stream))
        first = _json_row(next((x for x in lines if x.strip()), b""))
  except OSError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  if isinstance(first, ValueError):
    raise ValueError(f"{path}: no names of columns: {first}") from first
  return [name.strip() for name in first]


def _named(
  names: list[str], values: list[str] | ValueError
) -> Mapping[str, Any] | ValueError:
  """Values by their columns."""
  if isinstance(values, ValueError):
    return values
  if len(values) != len(names):
    return ValueError(
      f"{len(values)} values, the first line names {len(names)} columns"
    )
  return dict(zip(names, values, strict=True))


def _json_row(line: bytes) -> Mapping[str, Any] | ValueError:
  """The object of a line; a missing key is a null."""
  if len(line) > _LONGEST:
    return ValueError(f"longer than {_LONGEST} bytes")
  try:
    entry = json_files.parse(line)
  except ValueError as error:
    return error
  if not isinstance(entry, dict):
    return ValueError("not a JSON object")
  return _Nulls(entry)


class _Nulls(dict):
  """A row of JSON: keys that it lacks are null."""

  def __missing__(self, key: str) -> None:
    return None


class _Lines:
  """Decoded lines of a stream, for csv.reader; knows where it is."""

  def __init__(self, stream: BinaryIO, offset: int, number: int):
    self._stream, self.offset, self.number = stream, offset, number

  def __iter__(self) -> "_Lines":
    return self

  def __next__(self) -> str:
    first = self.offset == 0
    line = self._stream.readline(_LONGEST + 1)
    if not line:
      raise StopIteration
    self.offset += len(line)
    self.number += 1
    if len(line) > _LONGEST:
      raise ValueError(f"longer than {_LONGEST} bytes")
    try:
      return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(f"not in UTF-8 ({error.reason})") from error


def _csv_rows(
  stream: BinaryIO, offset: int, number: int, delimiter: str
) -> Iterator[tuple[int, int, list[str] | ValueError]]:
  """Offset, line and values of each row, or why it cannot be used.

  A row may go over several lines where a value is quoted. After a bad one
  reading goes on behind its first line: one quote that is never closed costs
  one row.
  """
  lines = _Lines(stream, offset, number)
  reader = csv.reader(lines, delimiter=delimiter, strict=True)
  while True:
    start, line = lines.offset, lines.number
    try:
      values = next(reader)
    except StopIteration:
      return
    except (csv.Error, ValueError) as error:
      yield start, line, ValueError(str(error))
      stream.seek(start)
      size = 0
      while part := stream.readline(_LONGEST):
        size += len(part)
        if part.endswith(b"\n"):
          break
      lines = _Lines(stream, start + size, line + 1)
      reader = csv.reader(lines, delimiter=delimiter, strict=True)
      continue
    if values:
      yield start, line, values
