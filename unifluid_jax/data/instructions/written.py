"""Captioned images as lists, and conversations as ShareGPT's JSON on disk."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unifluid_jax.core import files
from unifluid_jax.data import conversation
from unifluid_jax.data.conversation import Message
from unifluid_jax.data.images import file_ending
from unifluid_jax.data.instructions import templates
from unifluid_jax.data.records import BadRecord

IMAGES = "images"  # folder of images that no file held
_A_FOLDER = 1000  # images of one folder


class Captioned(NamedTuple):
  """An image and what one of its captions says of it."""

  index: int  # of the record
  image: str  # file, relative to the folder that is written
  caption: str


class Skipped(list):
  """Names of records that had nothing to use."""


def captioned(
  source: Any, folder: pathlib.Path, seed: int, skipped: Skipped
) -> Iterator[Captioned]:
  """Every image that has a caption, once; of several captions one by chance.

  Of records of the same image, as tables with a row for each caption have
  them, the first counts. Images that lie in files of their own are named where
  they are, others are written below the folder.

  Args:
    source: of `sources/source.py`.
    folder: where the conversations will be.
    seed: record i's choice depends on it and on i alone.
    skipped: takes the names of records that cannot be used.
  """
  seen: dict[bytes, int] = {}
  for i in range(len(source)):
    try:
      record = source[i]
      texts = record.captions or record.prompts
      if not texts or not record.image:
        raise BadRecord("no image with a caption")
      # Else an image of held-out dialogues would be trained on in others.
      first = seen.get(key := hashlib.sha256(record.image).digest())
      if first is not None:
        raise BadRecord(f"the image of record {first}")
      rng = np.random.default_rng([seed, i])
      caption = templates.cleaned(texts[int(rng.integers(len(texts)))])
      file = source.image_path(i)
      if file:
        image = os.path.relpath(file, folder)
      else:
        image = write_image(folder, i, record.image)
    except (BadRecord, ValueError) as error:
      skipped.append(f"record {i}: {error}")
      continue
    seen[key] = i
    yield Captioned(i, image, caption)


def write_image(folder: pathlib.Path, number: int, data: bytes) -> str:
  """Writes an encoded image.

  Returns:
    Its name, relative to the folder.

  Raises:
    BadRecord: no image.
  """
  name = f"{number // _A_FOLDER:04d}/{number:07d}.{file_ending(data)}"
  name = f"{IMAGES}/{name}"
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return name


def entry(messages: Sequence[Message], images: Sequence[str]) -> dict[str, Any]:
  """A conversation as `sources/conversations.py` reads it.

  Raises:
    ValueError: one that it would refuse.
  """
  conversation.turns_of(messages, images)
  return {
    "messages": [m._asdict() for m in messages],
    "images": list(images),
  }


def drawn(prompt: str, answer: str, image: str) -> dict[str, Any]:
  """One request, and the image that answers it."""
  said = Message(conversation.ASSISTANT, f"{answer} {conversation.DRAWN}")
  return entry([Message(conversation.USER, prompt), said], [image])


class ListWriter:
  """A JSON list on disk, one entry a line, in memory one at a time."""

  def __init__(self, stream: Any):
    self._stream, self.count = stream, 0

  def add(self, value: Any) -> None:
    """Appends an entry."""
    text = json.dumps(value, ensure_ascii=False)
    self._stream.write(("[\n" if not self.count else ",\n") + text)
    self.count += 1


@contextlib.contextmanager
def list_file(path: str | os.PathLike[str]) -> Iterator[ListWriter]:
  """A list that takes its place when the block ends."""
  with files.replaced(path) as partial:
    with open(partial, "w", encoding="utf-8") as stream:
      writer = ListWriter(stream)
      yield writer
      stream.write("\n]\n" if writer.count else "[]\n")


def write_lines(path: str | os.PathLike[str], rows: Iterable[Any]) -> int:
  """JSON lines that take their place when all are written; how many."""
  count = 0
  with files.replaced(path) as partial:
    with open(partial, "w", encoding="utf-8") as stream:
      for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += 1
  return count
