"""Folders that `datasets.save_to_disk` writes, read through pyarrow alone.

A folder holds dataset_info.json, state.json, which lists the data files, and
these, data-00000-of-00001.arrow: streams of record batches, mapped into memory,
so that a row costs what it holds and nothing is decoded before. A folder of
several splits has dataset_dict.json and one such folder for each. The names of
a ClassLabel column are the texts of its numbers.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from unifluid_jax.core import files
from unifluid_jax.data import json_files
from unifluid_jax.data.records import BadRecord, Record
from unifluid_jax.data.sources import rows

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_ERRORS = (OSError, pa.ArrowException, KeyError, ValueError, IndexError)
_OPEN = 64  # files mapped at once
_HINT = "save the data set again"


class ArrowRows:
  """Rows of a saved data set, by index; picklable."""

  bad: tuple[str, ...] = ()

  def __init__(self, path: str, split: str, columns: rows.Columns):
    """Maps the files, reads no rows.

    Args:
      path: a folder with state.json, or one with dataset_dict.json.
      split: of the latter.
      columns: which are read; the names of classes are looked up here.

    Raises:
      FileNotFoundError: no such folder or split.
      ValueError: a file that is damaged, or lacks a column.
    """
    path = files.local(path, "Arrow files", "config.data.root")
    self._folder = folder = split_folder(path, split)
    self.shards = data_files(folder)
    places, ends = [], [0]
    for file in self.shards:
      batches = _batches(file)
      _check_columns(file, batches, columns)
      for k, batch in enumerate(batches):
        places.append((file, k))
        ends.append(ends[-1] + batch.num_rows)
    self._places, self._ends = places, np.asarray(ends, np.int64)
    labels = class_names(features(folder), columns.text)
    self._columns = columns._replace(labels=labels)
    self._asks = asks(schema(folder), columns)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def mask(self, task: str) -> np.ndarray | None:
    """Captions all tasks but edits and dialogues; answers no generation."""
    if rows.mask(task, self._asks):
      return None
    return np.zeros(len(self), bool)

  def __getitem__(self, i: int) -> Record:
    k = int(np.searchsorted(self._ends, i, side="right")) - 1
    file, number = self._places[k]
    name = f"{os.path.basename(self._folder)}:{i}"
    row = i - int(self._ends[k])
    try:
      batch = _batches(file)[number]
      cells = {c: _cell(batch, c, row) for c in self._columns.names}
    except _ERRORS as error:
      what = " ".join(str(error).split())
      raise BadRecord(f"{name}: unreadable: {what}") from error
    return rows.record(name, cells, self._columns)


def split_folder(path: str, split: str) -> str:
  """The folder of one split's files.

  Raises:
    FileNotFoundError: no saved data set, or no such split.
  """
  if os.path.isfile(os.path.join(path, STATE)):
    return path
  known = splits(path)
  if split not in known:
    found = f"it has {', '.join(known)}" if known else f"no {STATE} in it"
    raise FileNotFoundError(
      f"{path} holds no saved data set with the split {split!r}: {found}"
    )
  return os.path.join(path, split)


def splits(path: str) -> list[str]:
  """Names of the splits of a folder with several; empty without any.

  Raises:
    ValueError: their list cannot be read.
  """
  listed = os.path.join(path, SPLITS)
  if not os.path.isfile(listed):
    return []
  content = json_files.load(listed, _HINT)
  found = content.get("splits") if isinstance(content, dict) else None
  if not isinstance(found, list) or not all(map(_is_name, found)):
    raise ValueError(f"{listed} lists no splits: {_HINT}")
  return found


def data_files(folder: str) -> list[str]:
  """The data files of a folder, in their order.

  Raises:
    ValueError: state.json does not list them, or names others.
  """
  state = os.path.join(folder, STATE)
  content = json_files.load(state, _HINT)
  content = content if isinstance(content, dict) else {}
  if content.get("_indices_data_files") or content.get("_indices_files"):
    raise ValueError(
      f"{state} chooses among the rows: call flatten_indices() and {_HINT}"
    )
  listed = content.get("_data_files")
  names = [
    entry.get("filename") if isinstance(entry, dict) else None
    for entry in (listed if isinstance(listed, list) else ())
  ]
  if not names or not all(map(_is_name, names)):
    raise ValueError(f"{state} lists no data files: {_HINT}")
  return [os.path.join(folder, name) for name in names]


def features(folder: str) -> Mapping[str, Any]:
  """What dataset_info.json says of the columns; may be nothing.

  Raises:
    ValueError: it cannot be read.
  """
  info = os.path.join(folder, INFO)
  content = json_files.load(info, _HINT) if os.path.isfile(info) else {}
  found = content.get("features") if isinstance(content, dict) else None
  return found if isinstance(found, dict) else {}


def class_names(described: Mapping[str, Any], column: str) -> tuple[str, ...]:
  """The names of a ClassLabel column; empty for others."""
  feature = described.get(column)
  names = feature.get("names") if isinstance(feature, dict) else None
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    return ()
  return tuple(names)


def asks(found: pa.Schema, columns: rows.Columns) -> bool:
  """Whether texts are answers to questions, which they may hold themselves."""
  kind = found.field(columns.text).type
  turns = is_listed(kind) and pa.types.is_struct(kind.value_type)
  return bool(columns.question) or turns


def is_listed(kind: pa.DataType) -> bool:
  """Whether cells are lists, with offsets of whichever width."""
  return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def schema(folder: str) -> pa.Schema:
  """The columns of a folder's data.

  Raises:
    ValueError: see `data_files`; or the first file cannot be read.
  """
  file = data_files(folder)[0]
  try:
    with pa.OSFile(file) as stream, pa.ipc.open_stream(stream) as reader:
      return reader.schema
  except _ERRORS as error:
    raise ValueError(f"{file} is no Arrow stream ({error}): {_HINT}") from error


def _cell(batch: pa.RecordBatch, column: str, row: int) -> Any:
  """A value, whose offsets are checked first: a false one would crash."""
  cell = batch.column(column).slice(row, 1)
  cell.validate(full=True)
  return cell[0].as_py()


def _is_name(name: Any) -> bool:
  """Whether it is a name in a folder, which leads nowhere else."""
  return (
    isinstance(name, str)
    and "\0" not in name
    and os.path.basename(name) == name not in ("", ".", "..")
  )


def _check_columns(
  file: str, batches: list[pa.RecordBatch], columns: rows.Columns
) -> None:
  """Raises ValueError: the file lacks a column."""
  names = batches[0].schema.names if batches else list(columns.names)
  missing = [c for c in columns.names if c not in names]
  if missing:
    raise ValueError(
      f"{file} lacks {', '.join(missing)}: expected the columns "
      f"{', '.join(columns.names)}, found {', '.join(names)}"
    )


@functools.lru_cache(_OPEN)
def _mapped(file: str, stamp: tuple[int, int]) -> list[pa.RecordBatch]:
  """The record batches of a file, mapped into memory."""
  del stamp  # tells a changed file from the one that is kept
  with pa.ipc.open_stream(pa.memory_map(file)) as reader:
    return list(reader)


def _batches(file: str) -> list[pa.RecordBatch]:
  """The same, of the file as it is now.

  Raises:
    ValueError: it is missing, damaged, or no Arrow stream.
  """
  try:
    files.check_regular(file)
    found = os.stat(file)
    return _mapped(file, (found.st_size, found.st_mtime_ns))
  except _ERRORS as error:
    what = " ".join(str(error).split())
    raise ValueError(f"{file} is no Arrow stream ({what}): {_HINT}") from error
