"""Tensors of PyTorch checkpoints, without PyTorch and without its risks.

A checkpoint is a pickle, and a pickle may call anything. Here it may call
what rebuilds tensors and dicts (`torch_pickle`), and nothing is ever imported.
Formats: the zip of PyTorch 1.6 and later, and the row of pickles before it
(torch/serialization.py).
"""

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from unifluid_jax.weights.rows import Source, WeightsError
from unifluid_jax.weights.torch_pickle import (
  MAX_PICKLE,
  Storage,
  Tensor,
  Unpickler,
)
from unifluid_jax.weights.untrusted import check_regular, is_zip, open_zip

MAGIC = 0x1950A86A20F9469CFC6C  # what the older format begins with

# Where training programs keep the weights, in the order of preference.
NESTING = ("state_dict", "model", "model_ema", "ema")

# What a damaged stream makes the unpickler raise.
_DAMAGE = (
  pickle.UnpicklingError,
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
  EOFError,
  OSError,
  ValueError,
  TypeError,
  LookupError,
  AttributeError,
  AssertionError,
  OverflowError,
  MemoryError,
  RuntimeError,
)


class TorchFile(Source):
  """The tensors of a .pt, .pth or .ckpt file.

  Attributes:
    path: of the file.
    inside: keys that lead to the weights, "" when they are at the top.
  """

  def __init__(self, path: str):
    """Reads names and shapes; the numbers stay in the file.

    Raises:
      WeightsError: no such file, a damaged one, one that holds anything but
        tensors and plain values, or no tensors at all.
    """
    self.path = path
    check_regular(path)
    if not os.path.isfile(path):
      raise WeightsError(f"{path}: expected a PyTorch file, found none there")
    try:
      zipped = is_zip(path)
      self._storages = _Zip(path) if zipped else _Legacy(path)
      tree = self._storages.tree
    except WeightsError:
      raise
    except _DAMAGE as e:
      raise WeightsError(
        f"{path} is no PyTorch checkpoint, or a truncated one "
        f"({type(e).__name__}: {str(e)[:200]}): download it again"
      ) from e
    self.inside, self._tensors = _find_tensors(tree, path)

  def names(self) -> list[str]:
    """All tensors, in the file's order."""
    return list(self._tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    """Of one tensor, without reading it."""
    return self._tensors[name].shape

  def dtype(self, name: str) -> np.dtype:
    """Of one tensor, without reading it."""
    return self._tensors[name].storage.dtype

  def read(self, name: str) -> np.ndarray:
    """The numbers, C-contiguous.

    Raises:
      WeightsError: the file lacks them or part of them.
    """
    tensor = self._tensors[name]
    size = tensor.storage.dtype.itemsize
    want = tensor.span * size
    try:
      with self._storages.open(tensor.storage) as f:
        f.seek(tensor.offset * size, io.SEEK_CUR)
        data = f.read(want)
    except _DAMAGE as e:
      raise WeightsError(
        f"{self.path}: tensor {name} cannot be read ({type(e).__name__}: "
        f"{str(e)[:200]}): download the file again"
      ) from e
    if len(data) != want:
      raise WeightsError(
        f"{self.path}: tensor {name}: expected {want} bytes, found "
        f"{len(data)}: the file is truncated, download it again"
      )
    flat = np.frombuffer(data, tensor.storage.dtype)
    steps = [step * size for step in tensor.stride]
    view = np.lib.stride_tricks.as_strided(flat, tensor.shape, steps)
    return np.ascontiguousarray(view).reshape(tensor.shape)


class _Zip:
  """`<root>/data.pkl` and one member per storage, `<root>/data/<key>`."""

  def __init__(self, path: str):
    self._zip = open_zip(open(path, "rb"), path)
    members = self._zip.namelist()
    pickles = [n for n in members if n.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
      raise ValueError("the zip holds no data.pkl")
    self._root = pickles[0].removesuffix("data.pkl")
    order = f"{self._root}byteorder"
    if order in members:
      with self._zip.open(order) as f:
        if f.read(8) != b"little":
          raise ValueError("big-endian numbers")
    size = self._zip.getinfo(pickles[0]).file_size
    if size > MAX_PICKLE:
      raise WeightsError(
        f"{path}: {pickles[0]} has {size} bytes, tensors are read with "
        f"{MAX_PICKLE} at most: save them alone, without what they are "
        "trained with"
      )
    with self._zip.open(pickles[0]) as f:
      self.tree = Unpickler(io.BytesIO(f.read()), path).load()

  def open(self, storage: Storage) -> io.BufferedIOBase:
    """The storage's bytes."""
    info = self._zip.getinfo(f"{self._root}data/{storage.key}")
    want = storage.count * storage.dtype.itemsize
    if info.file_size != want:
      raise ValueError(f"expected {want} bytes, found {info.file_size}")
    if info.compress_type != zipfile.ZIP_STORED:
      raise ValueError("its numbers are packed, as PyTorch never does")
    return self._zip.open(info)


class _Legacy:
  """Five pickles in a row, then each storage as its length and its bytes."""

  def __init__(self, path: str):
    self._path = path
    with open(path, "rb") as f:
      if Unpickler(f, path).load() != MAGIC:
        raise ValueError("neither a zip nor an older PyTorch file")
      Unpickler(f, path).load()  # version of the protocol
      system = Unpickler(f, path).load()
      if not isinstance(system, dict) or not system.get("little_endian"):
        raise ValueError("big-endian numbers")
      unpickler = Unpickler(f, path)
      self.tree = unpickler.load()
      keys = Unpickler(f, path).load()
      if not isinstance(keys, list) or not all(
        isinstance(key, str) and key in unpickler.storages for key in keys
      ):
        raise ValueError("storages that no tensor has")
      self._starts = {}
      end = os.path.getsize(path)
      for key in keys:
        storage = unpickler.storages[key]
        (count,) = struct.unpack("<q", f.read(8))
        if count != storage.count:
          raise ValueError(f"storage {key} of {count}, not {storage.count}")
        self._starts[key] = f.tell()
        f.seek(count * storage.dtype.itemsize, io.SEEK_CUR)
        if f.tell() > end:
          raise EOFError(f"storage {key} ends {f.tell() - end} bytes late")

  def open(self, storage: Storage) -> io.BufferedIOBase:
    """The file, at the storage's first byte."""
    start = self._starts[storage.key]
    f = open(self._path, "rb")
    f.seek(start)
    return f


def _find_tensors(tree: Any, path: str) -> tuple[str, dict[str, Tensor]]:
  """Where the weights are, and the weights."""
  inside: list[str] = []
  while isinstance(tree, Mapping):
    found = {k: v for k, v in tree.items() if isinstance(v, Tensor)}
    if found:
      return ".".join(inside), {str(k): v for k, v in found.items()}
    key = next((k for k in NESTING if isinstance(tree.get(k), Mapping)), None)
    if key is None:
      break
    inside.append(key)
    tree = tree[key]
  keys: Any = type(tree).__name__
  if isinstance(tree, Mapping):
    keys = [str(key)[:80] for key in tree if isinstance(key, str)][:5]
  raise WeightsError(
    f"{path}: expected tensors by name, at the top or below one of "
    f"{', '.join(NESTING)}; found {keys}"
  )
