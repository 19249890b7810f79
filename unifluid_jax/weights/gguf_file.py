"""GGUF files, as llama.cpp reads them: metadata and quantised tensors.

Format: github.com/ggml-org/ggml docs/gguf.md, versions 2 and 3. The header is
read here, within bounds; the package `gguf` makes numbers of quantised blocks.
"""

import math
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from unifluid_jax.weights.rows import Source, WeightsError
from unifluid_jax.weights.untrusted import AGAIN, check_regular, is_shape

MAGIC = b"GGUF"
# Far above any real header: 300,000 tokens with merges take 10 MiB.
_MAX_HEADER = 64 * 2**20
_MAX_ARRAY = 2**21
_ALIGNMENT = 32  # where the file names none
_STRING, _ARRAY = 8, 9
# Types of metadata, by their numbers.
_SCALARS = {
  0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
  7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
# Types of tensors that are plain numbers.
_PLAIN = {
  0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8"),
  30: np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
# Of quantised ones: name, numbers in a block, bytes of a block (ggml-common.h).
QUANTISED = {
  2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
  7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84),
  11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
  14: ("Q6_K", 256, 210),
}  # fmt: skip


class _Tensor(NamedTuple):
  """One tensor's place."""

  shape: tuple[int, ...]  # rows first, as numpy has it
  kind: int
  start: int  # byte of the file

  @property
  def size(self) -> int:
    """Bytes."""
    if self.kind in _PLAIN:
      return math.prod(self.shape) * _PLAIN[self.kind].itemsize
    _, numbers, size = QUANTISED[self.kind]
    return math.prod(self.shape) // numbers * size


class GgufFile(Source):
  """The tensors of a file, dequantised to float32 when they are read.

  Attributes:
    path: of the file.
    fields: its metadata, key to number, text, or list of them.
  """

  def __init__(self, path: str):
    """Reads the header.

    Raises:
      WeightsError: damaged, of another version, with tensors of a type that
        is not read here, or quantised and the package `gguf` is missing.
    """
    self.path = path
    check_regular(path)
    self._size = os.path.getsize(path)
    with open(path, "rb") as file:
      header = _Header(file.read(_MAX_HEADER))
    try:
      self.fields, tensors = header.read()
    except (ValueError, struct.error, OverflowError) as error:
      raise WeightsError(
        f"{path} is damaged or truncated: {error}; {AGAIN}"
      ) from error
    self._tensors = {name: self._check(name, t) for name, t in tensors.items()}
    if any(t.kind in QUANTISED for t in self._tensors.values()):
      _library(path)

  def _check(self, name, tensor):
    if tensor.kind not in _PLAIN and tensor.kind not in QUANTISED:
      known = ", ".join(["F32", "F16", *(q[0] for q in QUANTISED.values())])
      raise WeightsError(
        f"{self.path}: {name} has type {tensor.kind}; expected one of {known}: "
        "choose a file of one of these"
      )
    block = QUANTISED.get(tensor.kind, ("", 1, 0))[1]
    least = 1 + (tensor.kind in QUANTISED)
    if not is_shape(tensor.shape) or len(tensor.shape) < least:
      raise WeightsError(
        f"{self.path} is damaged: {name} has {len(tensor.shape)} axes, "
        f"expected {least} or more; {AGAIN}"
      )
    if tensor.shape[-1] % block:
      raise WeightsError(
        f"{self.path} is damaged: {name}: {tensor.shape[-1]} numbers a row are "
        f"no multiple of a block's {block}; {AGAIN}"
      )
    if tensor.start + tensor.size > self._size:
      raise WeightsError(
        f"{self.path} is truncated: {name} ends at byte "
        f"{tensor.start + tensor.size}, the file has {self._size}; {AGAIN}"
      )
    return tensor

  def names(self) -> list[str]:
    """All tensors."""
    return list(self._tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    """From the header."""
    return self._tensors[name].shape

  def dtype(self, name: str) -> np.dtype:
    """Of the numbers, not of quantised blocks."""
    return _PLAIN.get(self._tensors[name].kind, np.dtype(np.float32))

  def read(self, name: str) -> np.ndarray:
    """All numbers."""
    shape = self.shape(name)
    rows = list(self.blocks(name, max(shape[0], 1)))
    return rows[0] if rows else np.zeros(shape, self.dtype(name))

  def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
    """Reads only the rows asked for."""
    tensor = self._tensors[name]
    total, *inner = tensor.shape
    size = tensor.size // max(total, 1)
    with open(self.path, "rb") as file:
      file.seek(tensor.start)
      for start in range(0, total, rows):
        count = min(rows, total - start)
        data = file.read(count * size)
        if len(data) != count * size:
          raise WeightsError(
            f"{self.path} is truncated: {name}: expected {count * size} bytes, "
            f"found {len(data)}; {AGAIN}"
          )
        yield self._numbers(tensor.kind, data, (count, *inner))

  def _numbers(self, kind, data, shape):
    if kind in _PLAIN:
      return np.frombuffer(data, _PLAIN[kind]).reshape(shape)
    gguf = _library(self.path)
    raw = np.frombuffer(data, np.uint8).reshape(math.prod(shape[:-1]), -1)
    found = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))
    return np.asarray(found, np.float32).reshape(shape)


def _library(path):
  try:
    import gguf
  except ImportError as error:
    raise WeightsError(
      f"{path} is quantised, and the package gguf is missing: pip install "
      "'unifluid_jax[gguf]', or choose a file of F16 or F32"
    ) from error
  return gguf


class _Header:
  """Walks a header and never beyond its bytes."""

  def __init__(self, data: bytes):
    self._data, self._at = data, 0

  def read(self) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """Metadata and tensors.

    Raises:
      ValueError: the bytes are no header.
    """
    if self._take(4) != MAGIC:
      raise ValueError("it does not begin with GGUF")
    version, tensors, pairs = struct.unpack("<IQQ", self._take(20))
    if version not in (2, 3):
      raise ValueError(f"version {version}, 2 and 3 are read")
    fields: dict[str, Any] = {}
    for _ in range(pairs):
      key = self._text()
      if key in fields:
        raise ValueError(f"{key[:80]!r} is there twice")
      fields[key] = self._value(self._number("<I"))
    found: dict[str, _Tensor] = {}
    for _ in range(tensors):
      name = self._text()
      if name in found:
        raise ValueError(f"{name[:80]!r} is there twice")
      axes = self._number("<I")
      shape = struct.unpack(f"<{axes}Q", self._take(8 * axes))[::-1]
      found[name] = _Tensor(shape, *struct.unpack("<IQ", self._take(12)))
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= 2**16:
      raise ValueError(f"general.alignment of {str(alignment)[:80]}")
    start = -(-self._at // alignment) * alignment
    return fields, {
      name: t._replace(start=start + t.start) for name, t in found.items()
    }

  def _take(self, size):
    if size > len(self._data) - self._at:
      raise ValueError(f"its header ends after {len(self._data)} bytes")
    start, self._at = self._at, self._at + size
    return self._data[start : self._at]

  def _number(self, form):
    (number,) = struct.unpack(form, self._take(struct.calcsize(form)))
    return number

  def _text(self):
    try:
      return self._take(self._number("<Q")).decode()
    except UnicodeDecodeError as error:
      raise ValueError("a text that is no UTF-8") from error

  def _value(self, kind):
    if kind == _STRING:
      return self._text()
    if kind in _SCALARS:
      dtype = np.dtype(_SCALARS[kind])
      return np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()
    if kind != _ARRAY:
      raise ValueError(f"a value of type {kind}")
    kind, count = struct.unpack("<IQ", self._take(12))
    if count > _MAX_ARRAY:
      raise ValueError(f"a list of {count} values")
    if kind == _STRING:
      return [self._text() for _ in range(count)]
    if kind not in _SCALARS:
      raise ValueError(f"a list of values of type {kind}")
    dtype = np.dtype(_SCALARS[kind])
    return np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
