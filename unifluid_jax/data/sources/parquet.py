"""Records of Parquet files: HQ-Edit, UltraEdit, images with texts.

The layouts are those of the Hugging Face hub (UCSC-VLAA/HQ-Edit,
BleachNick/UltraEdit): one example a row, an image as its encoded file or as a
struct {bytes, path}. A Parquet file can be read by row groups only, so a
record at random costs its whole group; rows in order cost nothing twice.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging
from etils import epath
from jaxtyping import Float64

from unifluid_jax.core import files
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import json_files, tasks
from unifluid_jax.data.records import BadRecord, Record
from unifluid_jax.data.sources import arrow, rows
from unifluid_jax.data.sources import shards as shard_files

# KeyError: of a column that comes twice. ValueError: texts that are not UTF-8.
_ERRORS = (OSError, pa.ArrowException, KeyError, ValueError)
_HELD = 2  # row groups kept in memory, all files together


class Rows:
  """Rows of one or several files, some of their columns; picklable."""

  bad: tuple[str, ...] = ()

  def __init__(self, path: str, columns: Sequence[str]):
    """Reads every file's footer, no rows.

    Args:
      path: a file, or a folder: of its .parquet files (else those of its
        subfolder "data") all, by name.
      columns: those that rows shall have.

    Raises:
      FileNotFoundError: no .parquet file in the folder.
      ValueError: a file of another format, or one that lacks a column.
    """
    self.columns = tuple(columns)
    self.files = shards(path)
    places, ends = [], [0]
    for file in self.files:
      sizes = _sizes(file, self.columns)
      first, stamp = 0, _stamp(file)
      for group, size in enumerate(sizes):
        places.append((file, stamp, group, first))
        ends.append(ends[-1] + size)
        first += size
    self._places = places
    self._ends = np.asarray(ends, np.int64)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    """A row's values by column, and as "id" its file and number there.

    Raises:
      BadRecord: its group cannot be read.
    """
    k = int(np.searchsorted(self._ends, i, side="right")) - 1
    file, stamp, group, first = self._places[k]
    row = i - int(self._ends[k])
    name = f"{os.path.basename(file)}:{first + row}"
    try:
      table = _read_group(file, stamp, group, self.columns)
      values = {c: table.column(c)[row].as_py() for c in self.columns}
    except (*_ERRORS, IndexError) as error:
      raise BadRecord(f"{name}: unreadable: {_line(error)}") from error
    return values | {"id": name}


class EditRows:
  """Editing examples; `directions` of them a row.

  A direction names the columns (source, instruction, target).
  """

  bad: tuple[str, ...] = ()

  def __init__(self, path: str, directions: Sequence[tuple[str, str, str]]):
    self._directions = tuple(directions)
    columns = dict.fromkeys(c for names in directions for c in names)
    self._rows = Rows(path, tuple(columns))

  def __len__(self) -> int:
    return len(self._rows) * len(self._directions)

  def mask(self, task: str) -> np.ndarray | None:
    """Edits, and images for the autoencoder."""
    return (
      None if task in (tasks.EDIT, tasks.IMAGE) else np.zeros(len(self), bool)
    )

  def __getitem__(self, i: int) -> Record:
    where, k = divmod(i, len(self._directions))
    row, (source, instruction, target) = self._rows[where], self._directions[k]
    edit = (_text(row, instruction), _image(row, target))
    name = f"{row['id']}:{instruction}"
    return Record(name, _image(row, source), edit=edit)


class CaptionRows:
  """Images with captions, or questions and answers; of a high enough score."""

  bad: tuple[str, ...] = ()

  def __init__(
    self, path: str, columns: rows.Columns, score: str, min_score: float
  ):
    self._rows = Rows(path, columns.names)
    self._kept = np.arange(len(self._rows), dtype=np.int64)
    if score:
      self._keep(path, score, min_score)
    first = self._rows.files[0]
    labels = arrow.class_names(features(first), columns.text)
    self._columns = columns._replace(labels=labels)
    self._asks = arrow.asks(schema(first), columns)

  def _keep(self, path: str, score: str, min_score: float) -> None:
    """Keeps the rows of a high enough score.

    Raises:
      ValueError: none has it, or it is no number.
    """
    scored = Rows(path, (*self._rows.columns, score))
    values = np.concatenate([_scores(file, score) for file in scored.files])
    # A row without a score compares as false: nobody found it good.
    self._kept = np.flatnonzero(values >= min_score).astype(np.int64)
    if not len(self._kept):
      raise ValueError(
        f"{path}: none of {len(scored)} rows has {score} >= {min_score}, the "
        f"highest is {np.nanmax(values, initial=-np.inf)}: lower min_score"
      )
    logging.info(
      "%s: %d of %d rows have %s >= %g",
      path, len(self._kept), len(scored), score, min_score,
    )  # fmt: skip

  def __len__(self) -> int:
    return len(self._kept)

  def mask(self, task: str) -> np.ndarray | None:
    """Captions all tasks but edits and dialogues; answers no generation."""
    if rows.mask(task, self._asks):
      return None
    return np.zeros(len(self), bool)

  def __getitem__(self, i: int) -> Record:
    row = self._rows[int(self._kept[i])]
    return rows.record(row["id"], row, self._columns)


def open_rows(config: SourceConfig, path: str) -> EditRows | CaptionRows:
  """The reader of one of this module's formats.

  "hq_edit" gives two examples a row: the edit and, from the output image back
  to the input image, its inverse. "ultra_edit" ignores the masks of its
  region-based part, which the instruction does without.

  Raises:
    FileNotFoundError, ValueError: see `Rows`; or no row of the score asked.
  """
  if config.format == "hq_edit":
    there = ("input_image", "edit", "output_image")
    back = ("output_image", "inverse_edit", "input_image")
    return EditRows(path, (there, back))
  if config.format == "ultra_edit":
    return EditRows(path, (("source_image", "edit_prompt", "edited_image"),))
  columns = rows.Columns(config.image, config.text, config.question)
  return CaptionRows(path, columns, config.score, config.min_score)


def shards(path: str) -> list[str]:
  """The files that a path stands for, sorted; see `shards.listed`."""
  return shard_files.listed(path, ".parquet")


def schema(file: str) -> pa.Schema:
  """The columns of a file.

  Raises:
    ValueError: another format, or incomplete; names the file.
  """
  return _footer(file)[0]


def features(file: str) -> Mapping[str, Any]:
  """What Hugging Face's `datasets` notes of the columns; may be nothing."""
  noted = (schema(file).metadata or {}).get(b"huggingface")
  try:
    found = json_files.parse(noted)["info"]["features"] if noted else {}
  except (ValueError, KeyError, TypeError):
    return {}  # another's key of that name
  return found if isinstance(found, dict) else {}


def _sizes(file: str, columns: Sequence[str]) -> list[int]:
  """Rows of each row group, after a look at the columns."""
  found, meta = _footer(file)
  names = found.names
  twice = [c for c in columns if names.count(c) > 1]
  if twice:
    raise ValueError(f"{file} has several columns {twice[0]!r}: rename them")
  missing = [c for c in columns if c not in names]
  if missing:
    raise ValueError(
      f"{file} lacks {', '.join(missing)}: expected the columns "
      f"{', '.join(columns)}, found {', '.join(names)}"
    )
  return [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]


def _footer(file: str) -> tuple[pa.Schema, pq.FileMetaData]:
  """Columns and row groups.

  Raises:
    ValueError: another format, or incomplete; names the file.
  """
  try:
    files.check_regular(file)
    with epath.Path(file).open("rb") as f:
      parquet = pq.ParquetFile(f)
      return parquet.schema_arrow, parquet.metadata
  except _ERRORS as error:
    raise ValueError(
      f"{file} is no Parquet file, or an incomplete one ({_line(error)}): "
      "download it again or remove it"
    ) from error


def _stamp(file: str) -> tuple[int, int]:
  """What tells a file from another that stood at its place before."""
  if files.is_remote(file):
    found = epath.Path(file).stat()
    return found.length, found.mtime
  local = os.stat(file)
  return local.st_size, local.st_mtime_ns


@functools.lru_cache(_HELD)
def _read_group(
  file: str, stamp: tuple[int, int], group: int, columns: tuple[str, ...]
) -> pa.Table:
  """Some columns of one row group."""
  del stamp  # tells a changed file from the one that is kept
  with epath.Path(file).open("rb") as f:
    parquet = pq.ParquetFile(f)
    # Threads of the pipeline read several groups at once already.
    return parquet.read_row_group(group, list(columns), use_threads=False)


def _scores(file: str, column: str) -> Float64[np.ndarray, "R"]:
  """One column as numbers, NaN where there is none."""
  try:
    with epath.Path(file).open("rb") as f:
      values = pq.read_table(f, columns=[column]).column(column)
  except _ERRORS as error:
    raise ValueError(
      f"{file}: the scores {column} cannot be read ({_line(error)}): download "
      "it again or remove it"
    ) from error
  try:
    return values.cast(pa.float64()).to_numpy()
  except pa.ArrowException as error:
    raise ValueError(
      f"{file}: {column} holds {values.type}, a score must be a number"
    ) from error


def _line(error: Exception) -> str:
  """An error's text in one line."""
  return " ".join(str(error).split())


def _text(row: dict[str, Any], column: str) -> str:
  """The text of a cell, "" where it is null."""
  if row[column] is None:
    return ""
  try:
    return json_files.text(row[column], column)
  except ValueError as error:
    raise BadRecord(f"{row['id']}: {error}") from error


def _image(row: dict[str, Any], column: str) -> bytes:
  """The encoded file of a cell."""
  cell = row[column]
  data = cell.get("bytes") if isinstance(cell, dict) else cell
  if not isinstance(data, bytes) or not data:
    raise BadRecord(f"{row['id']}: no encoded image in {column}")
  return data
