"""Bounds on what files of strangers may cost: time, memory, kinds of files.

A damaged or malicious file is refused in one line, before it is believed.
"""

import io
import json
import math
import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from unifluid_jax.weights.rows import WeightsError

AGAIN = "copy or download it again"  # fixes damage
# Far above any real header or configuration. Parsed JSON takes up to 25 times
# its bytes: lists in lists.
MAX_JSON = 16 * 2**20
# Bytes of a zip's directory: 100,000 members and more.
_MAX_DIRECTORY = 16 * 2**20
# Weights hardly shrink; what does, and is large, is there to fill memory.
_BOMB, _BOMB_RATIO = 64 * 2**20, 200
_MAX_RANK = 32
_TORN = (NotImplementedError, OverflowError, UnicodeError, struct.error)
_ENCRYPTED = 0x1
_KINDS = {
  stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
  stat.S_IFSOCK: "a socket",
}  # fmt: skip


def check_regular(path: str | Path) -> None:
  """Refuses what would wait for ever or never end when it is read.

  Directories and missing files are left to whoever opens them.

  Raises:
    WeightsError: a pipe, a device or a socket.
  """
  try:
    kind = stat.S_IFMT(os.stat(path).st_mode)
  except (OSError, ValueError):
    return
  if kind in _KINDS:
    raise WeightsError(
      f"{path} is {_KINDS[kind]}, not a file: copy the weights to a file"
    )


def read_json(path: str | Path) -> Any:
  """A JSON file.

  Raises:
    WeightsError: it is no file, or larger than any configuration.
    ValueError: it is no JSON, nests too deep or says a key twice.
  """
  check_regular(path)
  with open(path, "rb") as file:
    data = file.read(MAX_JSON + 1)
  if len(data) > MAX_JSON:
    raise WeightsError(
      f"{path} has more than {MAX_JSON} bytes: too many for JSON beside "
      "weights; download it again"
    )
  return parse_json(data)


def parse_json(data: bytes) -> Any:
  """JSON without duplicate keys.

  Raises:
    ValueError: it is none, nests too deep or says a key twice.
  """
  try:
    return json.loads(data, object_pairs_hook=_once)
  except RecursionError as error:
    raise ValueError("it nests too deep") from error


def _once(pairs):
  table = dict(pairs)
  if len(table) != len(pairs):
    raise ValueError("a key occurs twice")
  return table


def is_shape(shape: Any) -> bool:
  """Whether a list or tuple holds sizes that an array can have."""
  return len(shape) <= _MAX_RANK and all(
    type(n) is int and 0 <= n < 2**48 for n in shape
  )


def check_shape(shape: Any, size: int, dtype: np.dtype) -> None:
  """Refuses an array that does not take the bytes it has.

  Args:
    shape: as it is written.
    size: bytes that are there.
    dtype: of its numbers.

  Raises:
    ValueError: another size, or no shape.
  """
  if not is_shape(shape):
    raise ValueError("its shape is none")
  want = math.prod(shape) * dtype.itemsize
  if want != size:
    raise ValueError(f"{shape} needs {want} bytes, {size} are there")


def is_zip(path: str | Path) -> bool:
  """Whether a file ends as a zip does, however damaged it is."""
  try:
    return zipfile.is_zipfile(path)
  except zipfile.BadZipFile:
    return True


def open_zip(stream: io.BufferedIOBase, path: str) -> zipfile.ZipFile:
  """A zip archive whose members can be read in bounded memory.

  Args:
    stream: of its bytes; closed if it is refused.
    path: for messages.

  Raises:
    WeightsError: encrypted, packed in a way that weights never are, or it
      names a member twice.
    zipfile.BadZipFile: no zip, or a damaged one.
  """
  bounded = _Bounded(stream)
  try:
    archive = zipfile.ZipFile(bounded)
    bounded.limit = None
    _check_members(archive, path)
  except _TORN as error:
    stream.close()
    raise zipfile.BadZipFile(str(error)) from error
  except BaseException:
    stream.close()
    raise
  return archive


def _check_members(archive, path):
  seen = set()
  for info in archive.infolist():
    problem = ""
    if info.flag_bits & _ENCRYPTED:
      problem = "is encrypted: decrypt it first"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      problem = f"is packed by method {info.compress_type}: save it anew"
    elif info.filename in seen:
      problem = "is there twice: download it again"
    elif info.file_size > max(_BOMB, _BOMB_RATIO * info.compress_size):
      problem = (
        f"claims {info.file_size} bytes in {info.compress_size}: refused, "
        "weights do not shrink so far"
      )
    if problem:
      raise WeightsError(f"{path}: {info.filename} {problem}")
    seen.add(info.filename)


class _Bounded(io.BufferedIOBase):
  """A stream that hands out no more at once than a zip's directory takes."""

  def __init__(self, stream: io.BufferedIOBase):
    self._stream = stream
    self.limit: int | None = _MAX_DIRECTORY

  def read(self, size: int | None = -1) -> bytes:
    if self.limit is not None and size is not None and size > self.limit:
      raise zipfile.BadZipFile(f"a directory of {size} bytes")
    return self._stream.read(size)

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    return self._stream.seek(offset, whence)

  def tell(self) -> int:
    return self._stream.tell()

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def close(self) -> None:
    self._stream.close()
    super().close()
