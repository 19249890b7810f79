"""Examples of transfer tasks, and reading the files that hold them.

An example names its images; nothing is decoded here. A file that is missing
or not laid out as published gives one error with the file and the fix.
"""

import csv
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from unifluid_jax.data import images, json_files
from unifluid_jax.data.records import Box

Root = str | os.PathLike[str]
_FARTHEST = 1e6  # pixels that a box may lie from an image's corner
_LARGEST = 1 << 32  # bytes of a JSON file: GQA's questions are some 10^9
_LETTERS = 100  # characters painted over a text: AI2D has single letters


class Example(NamedTuple):
  """One question, or one image to caption; what a task lacks is empty."""

  id: str  # unique within a split
  images: tuple[str | bytes, ...]  # files in order, or their content
  question: str = ""
  answers: tuple[str, ...] = ()  # one per annotator; captions; none if hidden
  choices: tuple[str, ...] = ()
  correct: int = -1  # index of the right choice
  context: str = ""
  kind: str = ""  # of the question, for scores by kind
  box: Box | None = None  # to draw, in units of the image's height
  letters: tuple[tuple[str, Box], ...] = ()  # text to paint over, in pixels
  font: str = ""  # TrueType file of the letters; Pillow's own if empty
  turns: int = 0  # counter-clockwise quarter turns that set it upright

  def load(self) -> tuple[bytes, ...]:
    """The encoded images.

    Raises:
      BadRecord: a file that cannot be read.
    """
    return tuple(
      i if isinstance(i, bytes) else images.read_file(i) for i in self.images
    )


class Folder:
  """The folder of one data set, and how its errors call it."""

  def __init__(self, root: Root, task: str):
    """Looks at nothing yet."""
    self.root = epath.Path(root)
    self.task = task

  def path(self, *parts: str) -> str:
    """A path in the folder, whether or not it exists."""
    return os.path.join(os.fspath(self.root), *parts)

  def find(self, *names: str) -> str:
    """The first of several names that exists.

    Raises:
      FileNotFoundError: none does.
    """
    for name in names:
      if epath.Path(self.path(name)).exists():
        return self.path(name)
    raise FileNotFoundError(
      f"{self.task}: no {' or '.join(names)} in {os.fspath(self.root)}: "
      "download and unpack the data set there, or change the folder"
    )

  def json(self, *names: str) -> tuple[str, Any]:
    """The file's path and what it holds.

    Raises:
      FileNotFoundError: none of the names exists.
      ValueError: not JSON.
    """
    file = self.find(*names)
    return file, json_files.load(file, limit=_LARGEST)

  def rows(self, name: str, *columns: str) -> tuple[str, list[dict[str, str]]]:
    """The path and rows of a CSV file with a header.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a column is missing, or a row has fewer or more fields.
    """
    file = self.find(name)
    # A text stream splits no field at the line breaks within its quotes.
    stream = io.StringIO(_text_of(file), newline="")
    table = csv.DictReader(stream)
    try:
      if lacking := [c for c in columns if c not in (table.fieldnames or ())]:
        raise ValueError(
          f"{file} has columns {table.fieldnames}, not {lacking}: it must be "
          f"{self.task}'s own file, with its header"
        )
      rows = list(table)
    except csv.Error as error:
      raise ValueError(
        f"{file}, after line {table.line_num}: {error}: download it again"
      ) from error
    for i, row in enumerate(rows):
      if None in row or None in (row[c] for c in columns):
        raise ValueError(
          f"{file}: entry {i} has other fields than the header "
          f"{table.fieldnames}: download it again"
        )
    return file, rows

  def lines(self, *names: str) -> tuple[str, list[str]]:
    """The path and non-blank lines of a text file, stripped.

    Raises:
      FileNotFoundError: none of the names exists.
    """
    file = self.find(*names)
    # str.splitlines would also break at U+2028, which JSON leaves bare.
    lines = _text_of(file).split("\n")
    return file, [line.strip() for line in lines if line.strip()]

  def split(self, split: str, *known: str) -> str:
    """The split, once it is one of the known ones.

    Raises:
      ValueError: it is not.
    """
    if split not in known:
      raise ValueError(
        f"{self.task} has no split {split!r}: use one of {', '.join(known)}"
      )
    return split

  def examples(
    self,
    file: str,
    items: Any,
    build: Callable[[Any], Example | None],
  ) -> list[Example]:
    """One example an item; those for which `build` gives None are left out.

    Args:
      file: what the items come from, for messages.
      items: an iterable, which is checked: files may hold something else.
      build: makes an example; a KeyError and the like mean another layout.

    Raises:
      FileNotFoundError: the first example's image is missing.
      ValueError: an item of another shape, no examples at all, an id that
        comes twice, or an image outside of the folder.
    """
    found: dict[str, Example] = {}
    for i, item in _numbered(file, items):
      try:
        example = self._checked(build(item))
      except _MALFORMED as error:
        raise ValueError(
          f"{file}: entry {i} is not as {self.task} publishes it ({error!r}): "
          "download the file again, or convert it to JSONL"
        ) from error
      if example is None:
        continue
      if example.id in found:
        raise ValueError(
          f"{file}: entry {i} repeats the id {example.id!r}: drop one of them"
        )
      found[example.id] = example
    if not found:
      raise ValueError(
        f"{file} has no usable entry: is the split the right one?"
      )
    self._check_image(file, next(iter(found.values())))
    return list(found.values())

  def _checked(self, example: Example | None) -> Example | None:
    """The example, whose texts are text and whose images lie in the folder.

    Raises:
      ValueError: they do not.
    """
    if example is None:
      return None
    texts = (example.id, example.question, example.context, example.kind)
    for text in (*texts, *example.answers, *example.choices):
      json_files.text(text, f"{text!r:.80}")
    for image in example.images:
      if isinstance(image, bytes):
        continue
      if "\0" in image or not images.is_below(image, os.fspath(self.root)):
        raise ValueError(f"image {image!r} lies outside of the folder")
    for text, _ in example.letters:
      if len(json_files.text(text, "a letter")) > _LETTERS:
        raise ValueError(f"{len(text)} characters to paint over a text")
    boxes = [box for _, box in example.letters] + [example.box or ()]
    if not all(abs(v) <= _FARTHEST for box in boxes for v in box):
      raise ValueError(f"no box of pixels among {boxes}"[:200])
    return example

  def _check_image(self, file: str, example: Example) -> None:
    for image in example.images:
      if isinstance(image, str) and not epath.Path(image).exists():
        raise FileNotFoundError(
          f"{file}: its first example's image {image} is missing: unpack "
          f"{self.task}'s images there"
        )


_MALFORMED = (
  KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError,
)  # fmt: skip


def _text_of(file: str) -> str:
  """The content of a text file.

  Raises:
    ValueError: unreadable, or not in UTF-8; names the file.
  """
  try:
    text = json_files.read(file, _LARGEST).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{file} is not in UTF-8 ({error.reason} at byte {error.start}): "
      "download it again"
    ) from error
  return text.replace("\r\n", "\n").replace("\r", "\n")


def _numbered(file: str, items: Any) -> Iterator[tuple[int, Any]]:
  """The items with their numbers from 0."""
  if isinstance(items, str) or not isinstance(items, Iterable):
    raise ValueError(
      f"{file} holds {type(items).__name__}, not a list of entries: it must "
      "be the published file"
    )
  return enumerate(items)


def member(file: str, content: Any, *keys: str) -> Any:
  """A value inside a JSON object.

  Raises:
    ValueError: a key is missing; the message names the file.
  """
  for key in keys:
    if not isinstance(content, dict) or key not in content:
      raise ValueError(f"{file} has no {key!r}: it must be the published file")
    content = content[key]
  return content


def pairs(file: str, content: Any) -> list[tuple[str, Any]]:
  """Keys and values of a file that is one JSON object.

  Raises:
    ValueError: it is not; the message names the file.
  """
  if not isinstance(content, dict):
    raise ValueError(
      f"{file} holds {type(content).__name__}, not an object by id: it must "
      "be the published file"
    )
  return list(content.items())


def grouped(file: str, rows: Any, key: str, value: str) -> dict[str, list[str]]:
  """Values of rows by their key's text, in order.

  Raises:
    ValueError: a row lacks either; the message names the file.
  """
  result: dict[str, list[str]] = {}
  for i, row in _numbered(file, rows):
    try:
      if row[key] is None or row[value] is None:
        raise KeyError("null")
      result.setdefault(str(row[key]), []).append(str(row[value]))
    except (KeyError, TypeError) as error:
      raise ValueError(
        f"{file}: entry {i} lacks {key!r} or {value!r}: it must be the "
        "published file"
      ) from error
  return result


def strings(values: Sequence[Any]) -> tuple[str, ...]:
  """A list's values as text.

  Raises:
    TypeError: a single text where a list belongs.
  """
  if isinstance(values, str):
    raise TypeError(f"{values!r} is one string, not a list")
  return tuple(str(v) for v in values)


def share(text: str) -> float:
  """A number in [0, 1) that depends on the text alone, for hold-outs."""
  return zlib.crc32(text.encode()) / 2**32
