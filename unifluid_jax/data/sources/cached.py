"""Encoded images in files: written once, read by index.

An ArrayRecord file has one record per record of its source, in their order.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from unifluid_jax.core import files
from unifluid_jax.data.records import BadRecord

_HEADER = struct.Struct("<4s3I")  # magic, then the shape
# Moments f16[h, w, 2c]; codes u16[N], whose header has (N, 1, 1); codes
# u16[rows, columns] of images of several sizes; codes u16[images, N] of all
# images of a record, those of a dialogue.
_MAGIC = {
  b"UFM1": (np.dtype(np.float16), 3),
  b"UFC1": (np.dtype(np.uint16), 1),
  b"UFC2": (np.dtype(np.uint16), 2),
}
_SEVERAL = {b"UFC3": (np.dtype(np.uint16), 2)}
_SHAPES = {1: "[N]", 2: "[rows, columns]", 3: "[h, w, 2c]"}
_UNREADABLE = (IndexError, RuntimeError, ValueError, struct.error)


def write_cached(
  path: str | os.PathLike[str],
  arrays: Iterable[np.ndarray | None],
  dtype: Any = np.float16,
  several: bool = False,
) -> int:
  """Writes what a codec makes of images, in the order of the source's records.

  Args:
    path: a local ArrayRecord file; replaced atomically.
    arrays: moments [h, w, 2c], codes [N], or codes [rows, columns] of any
      grid each; None for a record whose image cannot be decoded, which is
      then a bad one.
    dtype: of the file: float16 for moments, uint16 for codes.
    several: arrays are codes [images, N] of all images of a record, or of none.

  Returns:
    How many were written.

  Raises:
    ValueError: arrays of unequal shape, or values that the type cannot hold.
  """
  shape, count, dtype = None, 0, np.dtype(dtype)
  kinds = _SEVERAL if several else _MAGIC
  magics = {rank: magic for magic, (t, rank) in kinds.items() if t == dtype}
  first = min(magics)
  path = files.local(path, "cached moments", "config.data.root")
  with files.replaced(path) as partial:
    writer = ArrayRecordWriter(partial, "group_size:1")
    try:
      for count, array in enumerate(arrays, 1):
        if array is None:
          writer.write(_HEADER.pack(magics[first], 0, 0, 0))
          continue
        stored = _stored(np.asarray(array), dtype, count - 1)
        shape = shape or stored.shape
        rank = len(shape) if len(shape) in magics else first
        alike = stored.ndim == rank and (rank == 2 or stored.shape == shape)
        if not alike or (several and stored.shape[1] != shape[1]):
          need = "[images, N]" if several else _SHAPES[rank]
          raise ValueError(
            f"image {count - 1} is encoded as {stored.shape}: need "
            f"{need} like the first, {shape}"
          )
        head = _HEADER.pack(magics[rank], *(*stored.shape, 1, 1)[:3])
        writer.write(head + stored.tobytes())
    finally:
      writer.close()
  return count


def join_cached(
  path: str | os.PathLike[str], parts: Sequence[str | os.PathLike[str]]
) -> None:
  """Writes the records of several files of `write_cached` to one.

  It is what `write_cached` would have made of all the arrays.

  Args:
    path: a local ArrayRecord file; replaced atomically.
    parts: files of one codec, in their order.

  Raises:
    ValueError: a part is unreadable, or its arrays have another shape.
  """
  shapes: set[tuple[int | None, ...]] = set()
  with files.replaced(path) as partial:
    writer = ArrayRecordWriter(partial, "group_size:1")
    try:
      for part in parts:
        data = ArrayRecordDataSource([os.fspath(part)])
        for i in range(len(data)):
          head = _Head.of(data[i])
          grid = len(head.like) == 2 and not head.several
          shapes |= {head.like} if head.readable and not grid else set()
          if len(shapes) > 1:
            raise ValueError(f"{part}: images of several shapes: {shapes}")
          writer.write(data[i])
    finally:
      writer.close()


def _stored(array: np.ndarray, dtype: np.dtype, image: int) -> np.ndarray:
  """As the file keeps it.

  Raises:
    ValueError: the type cannot hold a value.
  """
  with np.errstate(over="ignore"):  # checked below
    stored = array.astype(dtype)
  rounded = dtype == np.float16
  if not (np.isfinite(stored).all() if rounded else (stored == array).all()):
    raise ValueError(f"image {image} is encoded as values beyond {dtype}")
  return stored


class _Head(NamedTuple):
  """What a record of a file begins with."""

  dtype: np.dtype
  shape: tuple[int, ...]
  several: bool  # images of one record

  @classmethod
  def of(cls, data: bytes) -> "_Head":
    """Raises ValueError where there is none."""
    magic, *shape = _HEADER.unpack_from(data)
    several = magic in _SEVERAL
    if not several and magic not in _MAGIC:
      raise ValueError("not a record of moments")
    dtype, rank = (_SEVERAL if several else _MAGIC)[magic]
    return cls(dtype, tuple(shape[:rank]), several)

  @property
  def readable(self) -> bool:
    """False of a record whose image could not be decoded."""
    return all(self.shape[1:] if self.several else self.shape)

  @property
  def like(self) -> tuple[int | None, ...]:
    """The shape, as far as records of a file have it in common."""
    return (None, *self.shape[1:]) if self.several else self.shape


class CachedReader:
  """Encoded images by index.

  Attributes:
    shape: of the first; codes in rows and columns may have others each. Of
      all images of a record: (None, N).
  """

  def __init__(self, path: str):
    """Opens a file that `write_cached` made.

    Raises:
      ValueError: another kind of file, or one without any image.
    """
    path = files.local(path, "cached moments", "config.data.root")
    try:
      self._data = ArrayRecordDataSource([path])
      heads = (_Head.of(self._data[i]) for i in range(len(self)))
      self.shape = next(head.like for head in heads if head.readable)
    except (*_UNREADABLE, StopIteration) as error:
      raise ValueError(
        f"{path} holds no cached moments; write_cached makes them"
      ) from error

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, i: int) -> np.ndarray:
    """f16[h, w, 2c], u16[N], u16[rows, columns] or u16[images, N]."""
    try:
      data = self._data[i]
      head = _Head.of(data)
      values = np.frombuffer(data, head.dtype, offset=_HEADER.size)
      array = values.reshape(head.shape)
    except _UNREADABLE as error:
      raise BadRecord(f"cached moments {i}: {error}") from error
    if not head.readable:
      raise BadRecord("its image could not be decoded for the cached moments")
    grids = len(head.like) == len(self.shape) == 2 and None not in self.shape
    if head.like != self.shape and not grids:
      raise BadRecord(
        f"cached moments {i} are {head.like}, others {self.shape}"
      )
    return array
