"""Readers of images with texts that JSON files list: JSONL, COCO captions.

A line or entry that cannot be used is a bad record: named, counted, skipped.
"""

import math
import os
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath

from unifluid_jax.core import files
from unifluid_jax.data import images, json_files, tasks
from unifluid_jax.data.records import BadRecord, Record, Turn

LONGEST = 1 << 20  # bytes of a line
_KEPT = 1000  # bad entries whose names are kept; all are counted
_MORE = "a further one"


class _Line(NamedTuple):
  """A line of a JSONL file; images are paths."""

  kept: bool  # its score is high enough
  image: str = ""
  question: str = ""  # empty: the suffix is a caption
  suffix: str = ""
  turns: tuple[Turn, ...] = ()


class JsonlReader:
  """Lines {"image": path, "prefix": str, "suffix": str}, or dialogues.

  A dialogue is {"dialogue": [{"image": path}, {"text": str}, ...]}; what is
  given and not to be learned has "target": false beside it.

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
    index, bad = array("q"), Faults()
    try:
      files.check_regular(path)
      with self._file.open("rb") as stream:
        for number, (offset, line) in enumerate(lines(stream), 1):
          self._enter(index, bad, offset, number, line)
    except OSError as error:
      raise ValueError(f"{path} cannot be read: {error}") from error
    if score and not index:
      raise ValueError(
        f"{path}: no line has {score} >= {min_score} (bad lines: {len(bad)})"
      )
    self.bad = tuple(bad)
    table = np.asarray(index, np.int64).reshape(-1, 5)
    self._lines = table[:, :2]
    self._images, self._captions, self._dialogues = table[:, 2:].T.astype(bool)

  def _enter(
    self, index: array, bad: "Faults", offset: int, number: int, line: bytes
  ) -> None:
    """Adds a line to the index or to the bad ones."""
    if not line.strip():
      return
    try:
      found = self._parse(line)
      if found.kept:
        kind = bool(found.image), not found.question, bool(found.turns)
        index.extend((offset, number, *kind))
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
    if task == tasks.DIALOGUE:
      return self._dialogues
    return ~self._dialogues if task == tasks.TEXT else self._images

  def __getitem__(self, i: int) -> Record:
    offset, number = map(int, self._lines[i])
    name = f"{os.fspath(self._file)}:{number}"
    try:
      with self._file.open("rb") as lines:
        lines.seek(offset)
        found = self._parse(lines.readline(LONGEST + 1))
    except (OSError, ValueError) as error:  # changed since it was indexed
      raise BadRecord(f"{name}: {error}") from error
    if found.turns:
      return Record(name, b"", dialogue=tuple(map(_read, found.turns)))
    data = images.read_file(found.image) if found.image else b""
    if found.question:
      return Record(name, data, questions=((found.question, found.suffix),))
    return Record(name, data, captions=(found.suffix,))

  def image_path(self, i: int) -> str:
    """Of a line that was read before."""
    with self._file.open("rb") as stream:
      stream.seek(int(self._lines[i, 0]))
      return self._parse(stream.readline(LONGEST + 1)).image

  def _parse(self, line: bytes) -> _Line:
    """A line's content.

    Raises:
      ValueError: it cannot be used.
    """
    if len(line) > LONGEST:
      raise ValueError(f"longer than {LONGEST} bytes")
    entry = json_files.parse(line)
    if not isinstance(entry, dict):
      raise ValueError("not a JSON object")
    score = entry.get(self._score) if self._score else self._min_score
    if type(score) not in (int, float) or not math.isfinite(score):
      raise ValueError(f"no number {self._score!r} to keep it by")
    kept = score >= self._min_score
    if entry.get("dialogue") is not None:
      return _Line(kept, turns=self._turns(entry))
    image, prefix, suffix = (
      "" if (value := entry.get(key)) is None
      else json_files.text(value, key).strip()
      for key in ("image", "prefix", "suffix")
    )  # fmt: skip
    if not suffix:
      raise ValueError("no suffix")
    if image:
      image = images.resolve_name(image, self._folder, self._root)
    question = "" if prefix == self._caption_prefix else prefix
    return _Line(kept, image, question, suffix)

  def _turns(self, entry: dict[str, Any]) -> tuple[Turn, ...]:
    """The texts and images of a dialogue.

    Raises:
      ValueError: names what is wrong.
    """
    both = [k for k in ("image", "prefix", "suffix") if entry.get(k)]
    if both:
      raise ValueError(
        f"dialogue beside {both[0]}: give each a line of its own"
      )
    listed = entry["dialogue"]
    if not isinstance(listed, list) or not listed:
      raise ValueError(
        'dialogue is no list of {"text": ...} and {"image": ...}'
      )
    return tuple(
      self._turn(turn, f"dialogue[{i}]") for i, turn in enumerate(listed)
    )

  def _turn(self, turn: Any, name: str) -> Turn:
    kinds = isinstance(turn, dict) and [k for k in ("text", "image")
                                        if turn.get(k) is not None]  # fmt: skip
    if not kinds or len(kinds) > 1:
      raise ValueError(f"{name} needs either a text or an image")
    (kind,) = kinds
    value = json_files.text(turn[kind], f"{name}.{kind}").strip()
    if not value:
      raise ValueError(f"{name}.{kind} is empty")
    target = turn.get("target", True)
    if not isinstance(target, bool):
      raise ValueError(f"{name}.target is {target!r}: use true or false"[:200])
    if kind == "text":
      return Turn(value, target=target)
    path = images.resolve_name(value, self._folder, self._root)
    return Turn(image=path, target=target)


def _read(turn: Turn) -> Turn:
  """The same with its image's content.

  Raises:
    BadRecord: an image that cannot be read.
  """
  if turn.image is None:
    return turn
  return turn._replace(image=images.read_file(turn.image))


class Faults(list):
  """Names of bad entries; beyond the first thousand they are only counted."""

  def add(self, name: str) -> None:
    """Counts one more."""
    self.append(name if len(self) < _KEPT else _MORE)


def lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
  """Offset and content of each line; of a very long one the beginning."""
  offset = 0
  while line := stream.readline(LONGEST + 1):
    yield offset, line
    offset += len(line)
    rest = line
    while rest and not rest.endswith(b"\n"):
      rest = stream.readline(LONGEST)
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
    bad, places = Faults(), {}
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
    """All but edits and dialogues, where an image has captions."""
    if task == tasks.IMAGE:
      return None
    use = task not in (tasks.EDIT, tasks.DIALOGUE)
    return np.asarray([use and bool(t) for *_, t in self._records], bool)

  def __getitem__(self, i: int) -> Record:
    key, path, captions = self._records[i]
    return Record(key, images.read_file(path), captions=captions)

  def image_path(self, i: int) -> str:
    """Of an entry."""
    return self._records[i][1]


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
