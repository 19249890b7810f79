"""Safetensors files, one or sharded, read and written without a library.

Format: 8 bytes of header size, a JSON header, raw little-endian numbers.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unifluid_jax.weights.rows import Source, WeightsError
from unifluid_jax.weights.untrusted import (
  AGAIN,
  MAX_JSON,
  check_regular,
  is_shape,
  parse_json,
  read_json,
)

_SAFETENSORS = {
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "BOOL": np.dtype("?"),
  **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
  **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
  "U8": np.dtype("u1"),
}


class Safetensors(Source):
  """One safetensors file."""

  def __init__(self, path: str):
    """Reads and checks the header.

    Raises:
      WeightsError: damaged, or shorter or longer than its header says.
    """
    self.path = path
    check_regular(path)
    try:
      with open(path, "rb") as file:
        self._start, header = self._read_header(file)
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
      raise WeightsError(
        f"{path} cannot be read: {error.strerror}; correct --from, or {AGAIN}"
      ) from error
    self._header = header
    for name in header:
      self._check(name, size)
    self._check_apart()

  def _read_header(self, file):
    """Where the numbers begin, and tensors by name."""
    path, size = self.path, os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if first == b"version ":
      raise WeightsError(
        f"{path} is a Git LFS pointer of {size} bytes, expected the weights "
        "that it stands for: run git lfs pull, or download them"
      )
    if length > MAX_JSON and size >= 8:
      raise WeightsError(
        f"{path} is no safetensors file: expected the size of a header, found "
        f"{first!r}; {AGAIN}"
      )
    if size < 8 or length > size - 8:
      wanted = 8 if size < 8 else 8 + length
      raise WeightsError(
        f"{path} is truncated: expected {wanted} bytes at least, found {size}; "
        f"{AGAIN}"
      )
    try:
      header = parse_json(file.read(length))
    except ValueError:
      header = None
    if not isinstance(header, dict):
      raise WeightsError(
        f"{path} is damaged: its header is not JSON, no table, or names "
        f"a tensor twice; {AGAIN}"
      )
    header.pop("__metadata__", None)
    return 8 + length, header

  def _check(self, name, size):
    entry = self._header[name]
    if not _is_entry(entry):
      raise WeightsError(
        f"{self.path} is damaged: {name}: expected dtype, shape and "
        f"data_offsets, found {str(entry)[:80]}; {AGAIN}"
      )
    if entry["dtype"] not in _SAFETENSORS:
      raise WeightsError(
        f"{self.path}: {name} has dtype {entry['dtype']}; expected one of "
        f"{', '.join(_SAFETENSORS)}: save it unquantised"
      )
    begin, end = entry["data_offsets"]
    want = math.prod(entry["shape"]) * self.dtype(name).itemsize
    if end - begin != want:
      raise WeightsError(
        f"{self.path}: {name} {tuple(entry['shape'])} {entry['dtype']}: "
        f"expected {want} bytes, found {end - begin}; {AGAIN}"
      )
    if self._start + end > size:
      raise WeightsError(
        f"{self.path} is truncated: {name} ends at byte {self._start + end}, "
        f"the file has {size}; {AGAIN}"
      )

  def _check_apart(self):
    """No two tensors have a byte in common."""
    ranges = sorted(
      (*entry["data_offsets"], name) for name, entry in self._header.items()
    )
    last, before = 0, ""
    for begin, end, name in ranges:
      if begin < last and begin < end:
        raise WeightsError(
          f"{self.path} is damaged: {name} and {before} overlap; {AGAIN}"
        )
      if end > last:
        last, before = end, name

  def names(self) -> list[str]:
    """All tensors."""
    return list(self._header)

  def shape(self, name: str) -> tuple[int, ...]:
    """From the header."""
    return tuple(self._header[name]["shape"])

  def dtype(self, name: str) -> np.dtype:
    """From the header."""
    return _SAFETENSORS[self._header[name]["dtype"]]

  def read(self, name: str) -> np.ndarray:
    """Read, not mapped: mapped pages would count as this process's memory."""
    return self._read(name, 0, math.prod(self.shape(name))).reshape(
      self.shape(name)
    )

  def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
    """Reads only the rows asked for."""
    total, *inner = self.shape(name)
    row = math.prod(inner)
    for start in range(0, total, rows):
      count = min(rows, total - start)
      block = self._read(name, start * row, count * row)
      yield block.reshape(count, *inner)

  def _read(self, name, first, count):
    dtype = self.dtype(name)
    begin = self._start + self._header[name]["data_offsets"][0]
    x = np.fromfile(
      self.path, dtype, count, offset=begin + first * dtype.itemsize
    )
    if x.size != count:
      raise WeightsError(
        f"{self.path} is truncated: {name}: expected {count} numbers, found "
        f"{x.size}; {AGAIN}"
      )
    return x


class Sharded(Source):
  """Several files and the index that names them."""

  def __init__(
    self, path: str, index: Path, open_shard: Callable[[str], Source]
  ):
    """Opens every shard.

    Args:
      path: as the user gave it.
      index: the JSON file.
      open_shard: `Safetensors`, or another kind of file.

    Raises:
      WeightsError: the index is damaged, or shards or tensors are missing.
    """
    self.path = path
    try:
      where = read_json(index)["weight_map"]
      files = sorted(set(where.values()))
      outside = [f for f in files if f != os.path.basename(f)]
    except WeightsError:
      raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise WeightsError(
        f"{index} is damaged: expected JSON with a weight_map; {AGAIN}"
      ) from error
    if outside:
      raise WeightsError(
        f"{index} names {outside[0]}, which is not beside it; {AGAIN}"
      )
    lost = [f for f in files if not (index.parent / f).is_file()]
    if lost:
      raise WeightsError(
        f"{index}: missing {len(lost)} of {len(files)} shards: "
        f"{', '.join(lost[:3])}{' ...' if len(lost) > 3 else ''}; expected "
        "them beside the index: download them too"
      )
    shards = {f: open_shard(str(index.parent / f)) for f in files}
    held = {f: set(shard.names()) for f, shard in shards.items()}
    for name, file in where.items():
      if name not in held[file]:
        raise WeightsError(
          f"{index}: expected {name} in {file}, not found there; {AGAIN}"
        )
    # Tensors the index does not name are still the file's: engine judges.
    self._of: dict[str, Source] = {}
    for file, shard in shards.items():
      for name in shard.names():
        if name in self._of:
          raise WeightsError(
            f"{index}: {name} is in {Path(self._of[name].path).name} and in "
            f"{file}, expected it once; {AGAIN}"
          )
        self._of[name] = shard

  def names(self) -> list[str]:
    """Of all shards."""
    return list(self._of)

  def shape(self, name: str) -> tuple[int, ...]:
    """From the shard's header."""
    return self._of[name].shape(name)

  def dtype(self, name: str) -> np.dtype:
    """From the shard's header."""
    return self._of[name].dtype(name)

  def read(self, name: str) -> np.ndarray:
    """From its shard."""
    return self._of[name].read(name)

  def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
    """From its shard."""
    return self._of[name].blocks(name, rows)


def _is_entry(entry: Any) -> bool:
  """Whether a header says of a tensor what it has to."""
  if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
    return False
  lists = entry.get("shape"), entry.get("data_offsets")
  return (
    all(isinstance(numbers, list) for numbers in lists)
    and all(map(is_shape, lists))
    and len(lists[1]) == 2
  )


def write(
  path: str,
  layout: Mapping[str, tuple[tuple[int, ...], Any]],
  tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
  """Writes a file; tensors may come in any order.

  Args:
    path: of the file.
    layout: name to shape and dtype of every tensor.
    tensors: name and numbers, each once.

  Raises:
    WeightsError: a dtype that the format does not have.
  """
  header, data = _header(layout)
  with open(path, "wb") as file:
    file.write(len(header).to_bytes(8, "little") + header)
    start = file.tell()
    for name, x in tensors:
      file.seek(start + data[name])
      file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def write_shards(
  folder: Path, name: str, tensors: Mapping[str, np.ndarray], most: int
) -> list[str]:
  """Writes one file, or several and the index that `Sharded` reads.

  Args:
    folder: to write into.
    name: of the files, without number and ending.
    tensors: by name; their order decides which share a file.
    most: bytes of one file, but for its header; a larger tensor has its own.

  Returns:
    Names of the files of tensors.
  """
  shards: list[dict[str, np.ndarray]] = [{}]
  size = 0
  for key, x in tensors.items():
    if shards[-1] and size + x.nbytes > most:
      shards.append({})
      size = 0
    shards[-1][key] = x
    size += x.nbytes
  count = len(shards)
  files = [f"{name}-{i:05d}-of-{count:05d}.safetensors"
           for i in range(1, count + 1)]  # fmt: skip
  if count == 1:
    files = [f"{name}.safetensors"]
  for file, shard in zip(files, shards, strict=True):
    layout = {key: (x.shape, x.dtype) for key, x in shard.items()}
    write(str(folder / file), layout, shard.items())
  if count > 1:
    where = {key: f for f, s in zip(files, shards, strict=True) for key in s}
    total = sum(x.nbytes for x in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    path = folder / f"{name}.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n")
  return files


def _header(layout):
  """The header's bytes, padded to 8, and where each tensor's data begins."""
  codes = {dtype: code for code, dtype in _SAFETENSORS.items()}
  entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  begins, at = {}, 0
  for name in sorted(layout):
    shape, dtype = layout[name]
    if np.dtype(dtype) not in codes:
      raise WeightsError(f"{name}: safetensors has no {dtype}")
    end = at + math.prod(shape) * np.dtype(dtype).itemsize
    entries[name] = {
      "dtype": codes[np.dtype(dtype)],
      "shape": list(shape),
      "data_offsets": [at, end],
    }
    begins[name], at = at, end
  text = json.dumps(entries, separators=(",", ":")).encode()
  return text + b" " * (-len(text) % 8), begins
