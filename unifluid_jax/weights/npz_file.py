"""Numpy archives of big_vision: bfloat16 stored as `V2`, maybe in parts."""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from unifluid_jax.weights.rows import Source, WeightsError
from unifluid_jax.weights.untrusted import (
  AGAIN,
  check_regular,
  check_shape,
  open_zip,
)

PART = re.compile(r"(.*)\.part(\d{1,6})")
_BF16 = np.dtype(ml_dtypes.bfloat16)
_BROKEN = (
  EOFError, OSError, RecursionError, MemoryError, RuntimeError, SyntaxError,
  TypeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_HEADER = 2**16  # bytes; numpy itself believes 10,000


class Npz(Source):
  """A numpy archive, whole or in parts; pickles are refused."""

  def __init__(self, path: str, files: list[Path]):
    """Reads the headers of all arrays.

    Raises:
      WeightsError: damaged, or an array that is no array of numbers.
    """
    self.path = path
    try:
      stream = io.BufferedReader(_Joined(files), 2**20)
      self._zip = open_zip(stream, path)
    except (zipfile.BadZipFile, struct.error) as error:
      names = ", ".join(f.name for f in files)
      raise WeightsError(
        f"{path} is damaged or truncated: no zip directory at the end of "
        f"{names}; {AGAIN}"
      ) from error
    self._members = {}
    for info in self._zip.infolist():
      name = info.filename.removesuffix(".npy")
      if name in self._members:
        raise WeightsError(f"{path}: {name} is there twice; {AGAIN}")
      self._members[name] = (info, *self._header(name, info))

  def _header(self, name, info):
    """Shape, Fortran order, dtype, and bytes before the numbers."""
    formats = np.lib.format
    try:
      with self._zip.open(info) as stream:
        start = io.BytesIO(stream.read(_HEADER))
      version = formats.read_magic(start)
      if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the format")
      read = (formats.read_array_header_1_0 if version == (1, 0)
              else formats.read_array_header_2_0)  # fmt: skip
      shape, fortran, dtype = read(start)
      dtype = self._real(name, dtype)
      check_shape(shape, info.file_size - start.tell(), dtype)
      return shape, fortran, dtype, start.tell()
    except WeightsError:
      raise
    except _BROKEN as error:
      raise WeightsError(
        f"{self.path}: {name} is damaged, expected a .npy header and numbers "
        f"that agree with their checksum ({error}); {AGAIN}"
      ) from error

  def _real(self, name, dtype):
    if dtype == np.dtype("V2"):  # how numpy stores bfloat16
      return _BF16
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
      raise WeightsError(
        f"{self.path}: {name}: expected numbers, found {dtype}; save it as "
        "float32 or bfloat16 (pickled objects are not read)"
      )
    return dtype

  def names(self) -> list[str]:
    """All arrays."""
    return list(self._members)

  def shape(self, name: str) -> tuple[int, ...]:
    """From the array's header."""
    return self._members[name][1]

  def dtype(self, name: str) -> np.dtype:
    """From the array's header; `V2` is bfloat16."""
    return self._members[name][3]

  def read(self, name: str) -> np.ndarray:
    """The array; zip's checksum is verified."""
    _, shape, fortran, _, _ = self._members[name]
    (x,) = self._stream(name, [math.prod(shape)])
    return x.reshape(shape, order="F" if fortran else "C")

  def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
    """Decompresses no more than the rows asked for."""
    _, (total, *inner), fortran, _, _ = self._members[name]
    if fortran:
      yield from super().blocks(name, rows)
      return
    counts = [min(rows, total - i) for i in range(0, total, rows)]
    row = math.prod(inner)
    for x in self._stream(name, [n * row for n in counts]):
      yield x.reshape(-1, *inner)

  def _stream(self, name, counts):
    info, _, _, dtype, skip = self._members[name]
    try:
      with self._zip.open(info) as stream:
        stream.read(skip)
        for count in counts:
          data = stream.read(count * dtype.itemsize)
          if len(data) != count * dtype.itemsize:
            raise EOFError
          yield np.frombuffer(data, dtype)
        # zipfile compares the sum once it meets the end.
        if stream.read(1):
          raise EOFError
    except _BROKEN as error:
      raise WeightsError(
        f"{self.path}: {name} is damaged or truncated, expected "
        f"{sum(counts)} numbers; {AGAIN}"
      ) from error


class _Joined(io.RawIOBase):
  """Files read as if they were one."""

  def __init__(self, files: list[Path]):
    for f in files:
      check_regular(f)
    self._files = [open(f, "rb") for f in files]
    sizes = [f.stat().st_size for f in files]
    self._ends = np.cumsum(sizes)
    self._at = 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._at

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}
    self._at = max(offset + base.get(whence, int(self._ends[-1])), 0)
    return self._at

  def readinto(self, buffer) -> int:
    which = int(np.searchsorted(self._ends, self._at, side="right"))
    if which == len(self._files):
      return 0
    file = self._files[which]
    file.seek(self._at - (int(self._ends[which - 1]) if which else 0))
    count = file.readinto(buffer)
    self._at += count
    return count

  def close(self) -> None:
    for file in self._files:
      file.close()
    super().close()


def find_parts(whole: Path) -> list[Path]:
  """`whole.part0`, `whole.part1`, ... in order; [] if there is none.

  Raises:
    WeightsError: one is missing before or between them.
  """
  found = {}
  for p in whole.parent.iterdir():
    match = PART.fullmatch(p.name)
    if match and match[1] == whole.name:
      found[int(match[2])] = p
  if not found:
    return []
  first, last = min(found), max(found)
  lost = next((i for i in range(min(first, 1), last) if i not in found), None)
  if lost is not None:
    raise WeightsError(
      f"{whole}: part {lost} is missing, found up to part {last}; expected "
      "all parts side by side: download it too"
    )
  return [found[i] for i in sorted(found)]
