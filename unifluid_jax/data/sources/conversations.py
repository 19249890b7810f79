"""Readers of conversations with images: ShareGPT's and LLaVA's JSON.

sharegpt, as VARGPT's instruction data (arXiv 2501.12327 Figure 6):
  {"messages": [{"role": "user", "content": "Draw a dog."},
                {"role": "assistant", "content": "Here it is. <image_gen>"}],
   "images": ["dog.png"]}
llava, as LLaVA-1.5's (arXiv 2310.03744):
  {"id": "7", "image": "coco/7.jpg",
   "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                     {"from": "gpt", "value": "A dog."}]}

A file is a JSON list of such entries, or JSON lines (".jsonl"). An entry that
cannot be used is a bad record: named, counted, skipped.
"""

import functools
import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from unifluid_jax.core import files
from unifluid_jax.data import conversation, images, json_files, tasks
from unifluid_jax.data.conversation import Message
from unifluid_jax.data.records import BadRecord, Record, Turn
from unifluid_jax.data.sources import json_readers

# LLaVA's mixture has 1 GB. A file is held once, while it is indexed.
_LARGEST = 1 << 32
_BLANK = re.compile(r"[ \t\r\n]*")


class _Layout(NamedTuple):
  """How a format names things."""

  messages: str
  role: str
  content: str
  images: str
  roles: Mapping[str, str]  # its names → those of `conversation`


LAYOUTS: Mapping[str, _Layout] = {
  "sharegpt": _Layout(
    "messages", "role", "content", "images",
    {role: role for role in conversation.ROLES},
  ),
  "llava": _Layout(
    "conversations", "from", "value", "image",
    {
      "system": conversation.SYSTEM,
      "human": conversation.USER,
      "gpt": conversation.ASSISTANT,
    },
  ),
}  # fmt: skip


class ConversationReader:
  """Conversations of a file, each a dialogue, with images from a folder.

  One about a single image, shown before the first answer, serves questions
  too: each message of the user with the model's answer to it, by itself.
  The index holds offsets; an entry is parsed again when it is read.
  """

  def __init__(self, path: str, folder: str, root: str, layout: str):
    """Reads and checks all entries, no images.

    Args:
      path: of the file.
      folder: that names of images are relative to; itself relative to the
        file's, which it is by default.
      root: config.data.root; images stay below it or below `folder`.
      layout: a key of LAYOUTS.

    Raises:
      ValueError: the file cannot be read, or is no list of entries.
    """
    self._file, self._layout = epath.Path(path), LAYOUTS[layout]
    base = self._file.parent
    self._folder = os.fspath(base / folder if folder else base)
    self._root = root
    index, bad = array("q"), json_readers.Faults()
    for number, offset, data in entries(path):
      try:
        turns = self._parse(data)
        has_image = any(turn.image is not None for turn in turns)
        asks = bool(_questions(turns))
        index.extend((offset, len(data), number, has_image, asks))
      except ValueError as error:
        bad.add(f"{self._name(number)}: {error}")
    self.bad = tuple(bad)
    table = np.asarray(index, np.int64).reshape(-1, 5)
    self._entries = table[:, :3]
    self._images, self._asks = table[:, 3:].T.astype(bool)

  def __len__(self) -> int:
    return len(self._entries)

  def mask(self, task: str) -> np.ndarray | None:
    """Dialogues all; images, those of entries with one: their first."""
    if task == tasks.DIALOGUE:
      return None
    if task == tasks.I2T:
      return self._asks
    return self._images if task == tasks.IMAGE else np.zeros(len(self), bool)

  def __getitem__(self, i: int) -> Record:
    offset, length, number = map(int, self._entries[i])
    try:
      with self._file.open("rb") as file:
        file.seek(offset)
        found = self._parse(file.read(length))
      turns = tuple(
        t if t.image is None else t._replace(image=images.read_file(t.image))
        for t in found
      )
    except (OSError, ValueError) as error:  # lost, or changed since
      raise BadRecord(f"{self._name(number)}: {error}") from error
    first = next((t.image for t in turns if t.image is not None), b"")
    asked = _questions(turns)
    return Record(self._name(number), first, questions=asked, dialogue=turns)

  def _name(self, number: int) -> str:
    """An entry in words: lists count from 0, lines from 1."""
    path = os.fspath(self._file)
    return f"{path}:{number + 1}" if _has_lines(path) else f"{path}[{number}]"

  def _parse(self, data: bytes) -> tuple[Turn, ...]:
    """An entry's turns; images are paths.

    Raises:
      ValueError: says what is wrong, and the fix.
    """
    if len(data) > json_readers.LONGEST:
      raise ValueError(f"longer than {json_readers.LONGEST} bytes")
    layout, entry = self._layout, json_files.parse(data)
    listed = entry.get(layout.messages) if isinstance(entry, dict) else None
    if not isinstance(listed, list) or not listed:
      raise ValueError(
        f"no {layout.messages}: write a list of "
        f'{{"{layout.role}": ..., "{layout.content}": ...}}'
      )
    messages = [self._message(m, i) for i, m in enumerate(listed)]
    paths = [
      images.resolve_name(name, self._folder, self._root)
      for name in image_names(entry, layout)
    ]
    turns = conversation.turns_of(messages, paths)
    if not conversation.learned(turns):
      raise ValueError("no message of the assistant: nothing to learn")
    return turns

  def _message(self, given: Any, i: int) -> Message:
    layout = self._layout
    where = f"{layout.messages}[{i}]"
    if not isinstance(given, dict):
      raise ValueError(f"{where} is no JSON object")
    role = given.get(layout.role)
    if not isinstance(role, str) or role not in layout.roles:
      raise ValueError(
        f"{where}.{layout.role} is {role!r}: use {', '.join(layout.roles)}"[
          :200
        ]
      )
    content = json_files.text(
      given.get(layout.content), f"{where}.{layout.content}"
    )
    return Message(layout.roles[role], content)


def _questions(turns: Sequence[Turn]) -> tuple[tuple[str, str], ...]:
  """Questions about the one image of a dialogue, and their answers.

  None where it has no image, several, or one that comes after an answer.
  """
  shown = [i for i, turn in enumerate(turns) if turn.image is not None]
  answered = [i for i, turn in enumerate(turns) if turn.target]
  if len(shown) != 1 or shown[0] > answered[0]:
    return ()
  found, asked = [], []
  for turn in turns:
    if turn.role == conversation.USER and turn.image is None:
      asked.append(turn.text)
    elif turn.target:
      found.append((" ".join(asked), turn.text))
      asked = []
  return tuple(found)


LISTS: Mapping[str, Callable[[str, str, str], Any]] = {
  "coco": json_readers.CocoReader,
  **{
    layout: functools.partial(ConversationReader, layout=layout)
    for layout in LAYOUTS
  },
}  # format → reader of (file, folder of its images, config.data.root)


def image_names(entry: Any, layout: _Layout) -> list[str]:
  """The images that an entry lists; one may stand without a list.

  Raises:
    ValueError: something else than names.
  """
  found = entry.get(layout.images)
  found = [] if found is None else found
  listed = found if isinstance(found, list) else [found]
  return [
    json_files.text(name, f"{layout.images}[{i}]").strip()
    for i, name in enumerate(listed)
  ]


def named_images(path: str, layout: str) -> list[str]:
  """Names of all images of a file; entries that cannot be used have none."""
  names = []
  for *_, data in entries(path):
    try:
      entry = json_files.parse(data)
      if isinstance(entry, dict):
        names += image_names(entry, LAYOUTS[layout])
    except ValueError:
      continue  # counts as a bad record, elsewhere
  return names


def split_path(path: str) -> tuple[str, str]:
  """FILE.json:FOLDER, or another list's FILE:FOLDER, as file and folder."""
  for ending in (".jsonl:", ".json:", ".csv:", ".tsv:"):
    stem, colon, folder = path.partition(ending)
    if colon:
      return stem + ending[:-1], folder
  return path, ""


def _has_lines(path: str) -> bool:
  return path.endswith(".jsonl")


def entries(path: str) -> Iterator[tuple[int, int, bytes]]:
  """Number, offset and bytes of each entry of a file, unparsed.

  Lines are read one by one. A list is walked entry by entry: its text is held
  whole, its objects never.

  Raises:
    ValueError: the file cannot be read, or is no list.
  """
  if not _has_lines(path):
    yield from _list_entries(path)
    return
  try:
    files.check_regular(path)
    with epath.Path(path).open("rb") as stream:
      for number, (offset, line) in enumerate(json_readers.lines(stream)):
        if line.strip():
          yield number, offset, line
  except OSError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error


def _list_entries(path: str) -> Iterator[tuple[int, int, bytes]]:
  """The entries of a JSON list."""
  hint = "expected a JSON list of conversations; JSON lines are named .jsonl"
  try:
    text = json_files.read(path, _LARGEST).decode()
    mark = text[:1] == "\ufeff"  # which some editors put before UTF-8
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not in UTF-8: {hint}") from error
  decoder = json.JSONDecoder()
  # A character, its byte, the entry.
  place, offset, number = int(mark), 3 * mark, 0
  try:
    start = _behind(text, place, "[")
    more = not text.startswith("]", start)
    start += not more
    while more:
      _, end = decoder.raw_decode(text, start)
      data = text[start:end].encode()
      offset += start - place  # blanks and a comma: characters are bytes
      yield number, offset, data
      place, offset, number = end, offset + len(data), number + 1
      more = text.startswith(",", _BLANK.match(text, end).end())
      start = _behind(text, end, ",]")
    if text[start:].strip():
      raise ValueError(f"more follows the list, at character {start}")
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON ({error}): {hint}") from error


def _behind(text: str, place: int, wanted: str) -> int:
  """The first character behind one of those wanted and white space.

  Raises:
    ValueError: another one stands there.
  """
  place = _BLANK.match(text, place).end()
  if place == len(text) or text[place] not in wanted:
    raise ValueError(f"no {' or '.join(wanted)} at character {place}")
  return _BLANK.match(text, place + 1).end()
