"""Rows of tables as records: cells with images, texts and questions.

A cell of images is an encoded file, a struct {bytes, path}, the name of a file
where a table can name one, or a list of these. A cell of texts is a text, a
list of texts, the number of a named class, or turns {user, assistant} as The
Cauldron (arXiv 2405.02246) has them. Of several images the first is what is
drawn; questions speak of all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from unifluid_jax.data import images, json_files, tasks
from unifluid_jax.data.records import BadRecord, Record

_TURN = {"user", "assistant"}  # keys of a turn


class Columns(NamedTuple):
  """Which columns are read."""

  image: str
  text: str
  question: str = ""  # that the text answers; empty: the text is a caption
  labels: Sequence[str] = ()  # names of the classes that `text` numbers

  @property
  def names(self) -> tuple[str, ...]:
    """Those that a table must have."""
    return tuple(c for c in (self.image, self.text, self.question) if c)


def record(
  name: str,
  row: Mapping[str, Any],
  columns: Columns,
  open_file: Callable[[str], bytes] | None = None,
) -> Record:
  """The record of one row.

  Args:
    name: of the row, for messages.
    row: column → value.
    columns: which are read.
    open_file: reads an image file by its name; None where cells hold the
      files themselves.

  Raises:
    BadRecord: a cell that cannot be used.
  """
  try:
    found = _images(row[columns.image], columns.image, open_file)
    captions, questions = texts(row, columns)
  except ValueError as error:
    raise BadRecord(f"{name}: {error}") from error
  return Record(
    name, found[0], captions=captions, questions=questions,
    more=tuple(found[1:]),
  )  # fmt: skip


def texts(
  row: Mapping[str, Any], columns: Columns
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
  """Captions, or questions with their answers; a null is a blank text.

  Raises:
    ValueError: something else than texts.
  """
  said = _listed(row[columns.text]) or [""]
  if all(isinstance(turn, Mapping) and turn.keys() >= _TURN for turn in said):
    return (), tuple(_turn(turn, columns.text) for turn in said)
  said = [_text(value, columns.text, columns.labels) for value in said]
  if not columns.question:
    return tuple(said), ()
  asked = [
    _text(value, columns.question) for value in _listed(row[columns.question])
  ]
  if len(asked) != len(said):
    raise ValueError(
      f"{len(asked)} {columns.question} but {len(said)} {columns.text}: give "
      "one for each"
    )
  return (), tuple(zip(asked, said, strict=True))


def mask(task: str, asks: bool) -> bool:
  """Whether the rows of a table serve a task.

  Args:
    task: one of `tasks.TASKS`.
    asks: whether their texts are questions with answers.
  """
  if task == tasks.T2I:
    return not asks
  return task not in (tasks.EDIT, tasks.DIALOGUE)


def _listed(cell: Any) -> list[Any]:
  if cell is None:
    return []
  return list(cell) if isinstance(cell, list | tuple) else [cell]


def _images(
  cell: Any, column: str, open_file: Callable[[str], bytes] | None
) -> list[bytes]:
  """The encoded files of a cell, one at least."""
  found = []
  for value in _listed(cell):
    data, path = value, None
    if isinstance(value, Mapping):
      data, path = value.get("bytes"), value.get("path")
    if open_file and isinstance(data, str):
      data, path = None, data.strip()
    if data is None and open_file and path:
      data = open_file(path)
    if not isinstance(data, bytes) or not data:
      only = f", only the path {path!r}: embed the files" if path else ""
      raise ValueError(f"no encoded image in {column}{only}"[:200])
    if len(data) > images.MAX_BYTES:
      raise ValueError(
        f"{len(data)} bytes in {column}, images have {images.MAX_BYTES} at most"
      )
    found.append(data)
  if not found:
    raise ValueError(f"no encoded image in {column}")
  return found


def _turn(turn: Mapping[str, Any], column: str) -> tuple[str, str]:
  """Question and answer."""
  asked, said = (
    json_files.text(turn[key], f"{column}.{key}").strip()
    for key in ("user", "assistant")
  )
  if not said:
    raise ValueError(f"{column}.assistant is empty")
  return asked, said


def _text(value: Any, column: str, labels: Sequence[str] = ()) -> str:
  """A text, or the name of a class by its number."""
  if labels and type(value) is int:
    if not 0 <= value < len(labels):
      raise ValueError(f"{column} {value} is none of {len(labels)} classes")
    return labels[value]
  return json_files.text(value, column)
