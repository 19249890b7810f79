"""Folders of image files: texts beside them, or classes as subfolders.

  captions_txt   a.jpg and a.txt, wherever below the folder; each line of the
                 text that is not blank is a caption
  class_folders  CLASS/a.jpg; the caption is the name of the class's folder

Hidden files are left out, links to folders are not followed below the first
level. What cannot be used is a bad record: named, counted, skipped.
"""

import os
from collections.abc import Iterator

import numpy as np

from unifluid_jax.core import files
from unifluid_jax.data import images, json_files, tasks
from unifluid_jax.data.records import BadRecord, Record
from unifluid_jax.data.sources import json_readers

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_LONGEST = 1 << 20  # bytes of a text file


class ImageFiles:
  """Image files of a folder, with what their names say about texts.

  Attributes:
    bad: files that cannot be used.
    folder: that names are relative to.
    shards: files that hold records: none.
  """

  shards: tuple[str, ...] = ()

  def __init__(self, path: str):
    """Lists the files, reads none.

    Raises:
      ValueError: no folder on a local disk, or one without images.
    """
    self.folder = files.local(path, "folders of images", "config.data.root")
    if not os.path.isdir(self.folder):
      raise ValueError(f"{path} is no folder: name one that holds images")
    bad, self._names = json_readers.Faults(), []
    found, self._texts = [], set()
    for name in below(self.folder):
      stem, ending = os.path.splitext(name)
      if ending.lower() in ENDINGS:
        found.append(name)
      elif ending == ".txt":
        self._texts.add(stem)
    for name in found:
      try:
        self._check(name)
        self._names.append(name)
      except ValueError as error:
        bad.add(f"{name!r}: {error}")
    self.bad = tuple(bad)
    if not found:
      raise ValueError(
        f"{path} holds no images: looked for {', '.join(ENDINGS)}"
      )

  def _check(self, name: str) -> None:
    """Refuses a file by its name.

    Raises:
      ValueError: it cannot be used.
    """
    json_files.text(name, "its name")

  def __len__(self) -> int:
    return len(self._names)

  def image_path(self, i: int) -> str:
    """Of an image."""
    return os.path.join(self.folder, self._names[i])


class CaptionFiles(ImageFiles):
  """Images with a .txt of the same name beside them."""

  def __init__(self, path: str):
    """Lists the files, reads none; see `ImageFiles`."""
    super().__init__(path)
    self._captioned = np.asarray(
      [os.path.splitext(name)[0] in self._texts for name in self._names], bool
    )

  @property
  def captioned(self) -> int:
    """How many images have a text."""
    return int(self._captioned.sum())

  def mask(self, task: str) -> np.ndarray | None:
    """All but edits and dialogues, where an image has a text."""
    if task == tasks.IMAGE:
      return None
    if task in (tasks.EDIT, tasks.DIALOGUE):
      return np.zeros(len(self), bool)
    return self._captioned

  def __getitem__(self, i: int) -> Record:
    name, captions = self._names[i], ()
    if self._captioned[i]:
      captions = _captions(f"{os.path.splitext(self.image_path(i))[0]}.txt")
    return Record(name, images.read_file(self.image_path(i)), captions=captions)

  def image_names(self) -> list[str]:
    """Of all images and of their texts."""
    stems = dict.fromkeys(os.path.splitext(n)[0] for n in self._names)
    return [*self._names, *(f"{s}.txt" for s in stems if s in self._texts)]


class ClassFolders(ImageFiles):
  """Images whose folder is named as their class.

  Attributes:
    classes: their names.
  """

  def __init__(self, path: str):
    """Lists the files, reads none; see `ImageFiles`."""
    super().__init__(path)
    self.classes = sorted({_class_of(name) for name in self._names})

  def _check(self, name: str) -> None:
    super()._check(name)
    if not _class_of(name):
      raise ValueError("in no class's folder: move it into one")

  def mask(self, task: str) -> np.ndarray | None:
    """All but edits and dialogues."""
    none = task in (tasks.EDIT, tasks.DIALOGUE)
    return np.zeros(len(self), bool) if none else None

  def __getitem__(self, i: int) -> Record:
    name, data = self._names[i], images.read_file(self.image_path(i))
    return Record(name, data, captions=(_class_of(name),))

  def image_names(self) -> list[str]:
    """Of all images."""
    return self._names


def below(folder: str) -> Iterator[str]:
  """Names of all files below a folder, sorted; hidden ones are left out."""
  top = sorted(os.scandir(folder), key=lambda entry: entry.name)
  for entry in top:
    if entry.name.startswith("."):
      continue
    if not entry.is_dir():
      yield entry.name
      continue
    for parent, folders, names in os.walk(entry.path):
      folders[:] = sorted(f for f in folders if not f.startswith("."))
      for name in sorted(names):
        if not name.startswith("."):
          yield os.path.relpath(os.path.join(parent, name), folder)


def _class_of(name: str) -> str:
  """The first folder of a name; empty for a file of its own."""
  return os.path.dirname(name).split(os.sep)[0]


def _captions(path: str) -> tuple[str, ...]:
  """The lines of a text file that are not blank.

  Raises:
    BadRecord: unreadable, too long, not UTF-8, or blank.
  """
  try:
    data = json_files.read(path, _LONGEST)
    found = data.decode("utf-8-sig").splitlines()
  except UnicodeDecodeError as error:
    raise BadRecord(f"{path} is not in UTF-8 ({error.reason})") from error
  except ValueError as error:
    raise BadRecord(str(error)) from error
  lines = tuple(text for line in found if (text := line.strip()))
  if not lines:
    raise BadRecord(f"{path} is blank")
  return lines
