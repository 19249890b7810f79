"""WebDataset: samples in tar files, read in any order.

The members of a sample stand one after another and share a name up to its
first dot: 000007.jpg, 000007.txt, 000007.json. Names that begin with a dot
count as absent: a Mac's tar puts ._000007.jpg before each. What is read:

  images   .jpg .jpeg .png .webp .gif .bmp .tif .tiff; several, as 7.0.jpg and
           7.1.jpg, in their order, but 7.jpg before 7.depth.png
  texts    .txt (or .text, .caption), else the key `text` (by default also
           caption or captions) of .json, else the class of .cls; with
           `question`, both keys of .json

An index of offsets is built in memory when the shards are opened, from their
headers alone (some 20 s per million members); nothing is unpacked or written,
and names of members are never paths. Compressed tars have no access by offset
and are refused.
"""

import functools
import os
import tarfile
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unifluid_jax.core import files
from unifluid_jax.data import images, json_files
from unifluid_jax.data.records import BadRecord, Record
from unifluid_jax.data.sources import folders, json_readers, rows, shards

_TEXTS = ("txt", "text", "caption")
_JSON, _CLASS = "json", "cls"
_KEYS = ("text", "caption", "captions")  # of .json, where none is named
_LONGEST = 1 << 20  # bytes of a text
_KINDS = (*folders.ENDINGS, *(f".{k}" for k in (*_TEXTS, _JSON, _CLASS)))
_IMAGES = len(folders.ENDINGS)  # kinds below this number are images
_KEPT = 2  # indices of recently opened sets
_AGAIN = "download the shard again"

_Member = tuple[int, int, int]  # offset, size, kind


class _Index(NamedTuple):
  """Members of samples that have an image.

  Sample s has the members `first[s]` to `first[s + 1]`.
  """

  files: tuple[str, ...]
  keys: tuple[str, ...]  # of the samples
  shard: np.ndarray  # i64[S], of each sample
  first: np.ndarray  # i64[S + 1]
  members: np.ndarray  # i64[M, 3]: offset, size, kind
  bad: tuple[str, ...]


class WebDataset:
  """Samples of tar files, by index.

  Attributes:
    bad: samples and shards that cannot be used.
  """

  def __init__(self, path: str, text: str = "text", question: str = ""):
    """Reads the headers of all members.

    Args:
      path: a .tar file, a folder of them, or a pattern, see `shards`.
      text: the key of texts in .json members.
      question: the key of questions that the texts answer; empty: captions.

    Raises:
      FileNotFoundError: no .tar file.
      ValueError: a file that is no tar, or a compressed one.
    """
    path = files.local(path, "tar shards", "config.data.root")
    named = shards.listed(path, ".tar")
    stamps = tuple(os.stat(name).st_mtime_ns for name in named)
    self._index = _read_index(tuple(named), stamps)
    self._text, self._question = text, question
    self.bad = self._index.bad
    self.shards = list(self._index.files)
    if not len(self) and not self.bad:
      raise ValueError(f"{path}: no member is an image")

  def __len__(self) -> int:
    return len(self._index.keys)

  def mask(self, task: str) -> np.ndarray | None:
    """Captions all tasks but edits and dialogues; answers no generation."""
    if not rows.mask(task, bool(self._question)):
      return np.zeros(len(self), bool)
    return None

  def __getitem__(self, i: int) -> Record:
    index, shard = self._index, self.shards[self._index.shard[i]]
    name = f"{os.path.basename(shard)}:{index.keys[i]}"
    found: dict[str, list[bytes]] = {}
    try:
      with open(shard, "rb") as file:
        for offset, size, kind in index.members[
          index.first[i] : index.first[i + 1]
        ].tolist():
          file.seek(offset)
          data = file.read(size)
          if len(data) < size:
            raise ValueError(f"cut: {len(data)} of {size} bytes")
          group = "image" if kind < _IMAGES else _KINDS[kind][1:]
          found.setdefault(group, []).append(data)
      captions, questions = self._texts(found)
    except (OSError, ValueError) as error:
      raise BadRecord(f"{name}: {error}") from error
    image, *more = found["image"]
    return Record(
      name, image, captions=captions, questions=questions, more=tuple(more)
    )

  def _texts(self, found: dict[str, list[bytes]]) -> tuple[tuple, tuple]:
    """Captions, and questions with answers.

    Raises:
      ValueError: texts that cannot be read.
    """
    plain = [_decoded(d) for kind in _TEXTS for d in found.get(kind, ())]
    if plain and not self._question:
      return tuple(plain), ()
    entry = json_files.parse(found[_JSON][0]) if _JSON in found else {}
    if not isinstance(entry, dict):
      raise ValueError(".json is no JSON object")
    keys = (self._text, *(_KEYS if self._text == _KEYS[0] else ()))
    key = next((k for k in keys if entry.get(k) is not None), "")
    if key:
      return rows.texts(entry, rows.Columns("", key, self._question))
    if self._question:
      raise ValueError(f"no {self._question} and {self._text} in .json")
    return tuple(_decoded(d) for d in found.get(_CLASS, ())), ()


def _decoded(data: bytes) -> str:
  """A text member.

  Raises:
    ValueError: not UTF-8.
  """
  try:
    return data.decode("utf-8-sig").strip()
  except UnicodeDecodeError as error:
    raise ValueError(f"its text is not in UTF-8 ({error.reason})") from error


@functools.lru_cache(_KEPT)
def _read_index(named: tuple[str, ...], stamps: tuple[int, ...]) -> _Index:
  """The index of shards; `stamps` tells a changed one from what is kept."""
  del stamps
  keys, bad = [], json_readers.Faults()
  shard, first, members = array("q"), array("q", [0]), array("q")
  for number, path in enumerate(named):
    before = len(keys)
    for key, found in _samples(path, bad):
      if not any(kind < _IMAGES for *_, kind in found):
        bad.add(f"{path}: {key}: no image")
        continue
      keys.append(key)
      for member in found:
        members.extend(member)
      first.append(len(members) // 3)
    shard.extend([number] * (len(keys) - before))
  return _Index(
    named, tuple(keys), np.asarray(shard, np.int64),
    np.asarray(first, np.int64),
    np.asarray(members, np.int64).reshape(-1, 3), tuple(bad),
  )  # fmt: skip


def _samples(
  path: str, bad: json_readers.Faults
) -> Iterator[tuple[str, list[_Member]]]:
  """Key and members of each sample of a shard; appends the bad ones.

  Raises:
    ValueError: the file is no tar.
  """
  key, found, faults = "", {}, []  # members by their endings
  for name, ending, member, fault in (*_members(path), ("", "", None, "")):
    if name != key:
      if found and not faults:
        # `sorted` keeps the order of what is alike.
        yield key, [found[e] for e in sorted(found, key=_is_beside)]
      for text in faults:
        bad.add(f"{path}: {text}")
      key, found, faults = name, {}, []
    if fault:
      faults.append(fault)
    elif member and ending in found:
      faults.append(f"'{name}.{ending}' comes twice in a row")
    elif member:
      found[ending] = member
  for text in faults:
    bad.add(f"{path}: {text}")


def _is_beside(ending: str) -> bool:
  """Whether a member lies beside others of its kind: "depth.png"."""
  return "." in ending


def _members(path: str) -> Iterator[tuple[str, str, _Member | None, str]]:
  """Key, ending, place and fault of each; what is not read has no place.

  What comes behind damage cannot be found: one fault without a key says so.

  Raises:
    ValueError: the file is no tar.
  """
  try:
    files.check_regular(path)
    end = os.stat(path).st_size
    tar = tarfile.open(path, "r:")  # closed below
  except (OSError, tarfile.TarError, ValueError) as error:
    raise ValueError(
      f"{path} is no tar file, or a compressed one ({error}): unpack it with "
      "gunzip, or remove it"
    ) from error
  before = -1  # offset of the last header
  with tar:
    while True:
      try:
        info = tar.next()
      except tarfile.TarError as error:
        yield "", "", None, f"damaged behind byte {before} ({error}): {_AGAIN}"
        return
      if info is None:
        if lost := _behind(path, tar.offset, end):
          yield "", "", None, lost
        return
      if info.offset <= before:  # a negative size leads back, for ever
        yield "", "", None, f"damaged behind byte {before}: {_AGAIN}"
        return
      before, tar.members = info.offset, []  # else it keeps them all
      if not info.isdir() and not _is_hidden(info.name):
        yield _member(info, end)


def _is_hidden(name: str) -> bool:
  return name.rpartition("/")[2].startswith(".")


def _member(
  info: tarfile.TarInfo, end: int
) -> tuple[str, str, _Member | None, str]:
  """Key, ending, place and fault of a member."""
  folder, slash, name = info.name.rpartition("/")
  stem, _, ending = name.partition(".")
  suffix = f".{ending.rpartition('.')[2].lower()}"
  key = folder + slash + stem
  if suffix not in _KINDS:
    return key, ending, None, ""
  kind = _KINDS.index(suffix)
  place = info.offset_data, info.size, kind
  return key, ending, place, _fault(info, kind, end)


def _fault(info: tarfile.TarInfo, kind: int, end: int) -> str:
  """What is wrong with a member; empty: nothing."""
  if not info.isreg() or info.issparse():
    return f"{info.name!r} is no plain file"
  limit = images.MAX_BYTES if kind < _IMAGES else _LONGEST
  if not 0 <= info.size <= limit:
    return f"{info.name!r} has {info.size} bytes, at most {limit} are read"
  if info.offset_data + info.size > end:
    return f"{info.name!r} is cut: {_AGAIN}"
  return ""


def _behind(path: str, offset: int, end: int) -> str:
  """What is wrong where the members of a tar end; empty: nothing.

  tarfile takes a damaged header for the end of the file.
  """
  with open(path, "rb") as file:
    file.seek(min(offset, end))
    block = file.read(tarfile.BLOCKSIZE)
  if any(block):
    return (
      f"no header at byte {offset}, {end - offset} bytes are lost: {_AGAIN}"
    )
  return ""
