"""Tensors of PyTorch checkpoints, without PyTorch and without its risks.

A checkpoint is a pickle, and a pickle may call anything. Here it may call
what rebuilds tensors and dicts; a name that is not in the tables below is
refused, and nothing is ever imported. Formats: the zip of PyTorch 1.6 and
later, and the row of pickles before it (torch/serialization.py).
"""

import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from unifluid_jax.weights.rows import Source, WeightsError

MAGIC = 0x1950A86A20F9469CFC6C  # what the older format begins with

# Where training programs keep the weights, in the order of preference.
NESTING = ("state_dict", "model", "model_ema", "ema")

_DTYPES = {
  "DoubleStorage": np.dtype("<f8"),
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
}

# Found beside the weights in published checkpoints, and of no use: kept as
# objects that remember nothing and do nothing.
_INERT = (
  "argparse.Namespace",
  "numpy.core.multiarray.scalar",
  "numpy._core.multiarray.scalar",
  "numpy.dtype",
  "_codecs.encode",
  "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
)

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
  KeyError,
  IndexError,
  AttributeError,
  NotImplementedError,
)


class _Storage(NamedTuple):
  """A flat run of numbers in the file."""

  key: str
  dtype: Any  # np.dtype
  count: int


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides count numbers, not bytes."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]

  @property
  def span(self) -> int:
    """Numbers from the first to the last, both included."""
    if 0 in self.shape:
      return 0
    pairs = zip(self.shape, self.stride, strict=True)
    return 1 + sum((n - 1) * step for n, step in pairs)


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
    if not os.path.isfile(path):
      raise WeightsError(f"{path}: expected a PyTorch file, found none there")
    try:
      zipped = zipfile.is_zipfile(path)
      self._storages = _Zip(path) if zipped else _Legacy(path)
      tree = self._storages.tree
    except WeightsError:
      raise
    except _DAMAGE as e:
      raise WeightsError(
        f"{path} is no PyTorch checkpoint, or a truncated one "
        f"({type(e).__name__}: {e}): download it again"
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
        f"{e}): download the file again"
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
    self._zip = zipfile.ZipFile(path)
    members = self._zip.namelist()
    pickles = [n for n in members if n.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
      raise ValueError("the zip holds no data.pkl")
    self._root = pickles[0].removesuffix("data.pkl")
    order = f"{self._root}byteorder"
    if order in members and self._zip.read(order) != b"little":
      raise ValueError("big-endian numbers")
    with self._zip.open(pickles[0]) as f:
      self.tree = _Unpickler(io.BytesIO(f.read()), path).load()

  def open(self, storage: _Storage) -> io.BufferedIOBase:
    """The storage's bytes."""
    info = self._zip.getinfo(f"{self._root}data/{storage.key}")
    want = storage.count * storage.dtype.itemsize
    if info.file_size != want:
      raise ValueError(f"expected {want} bytes, found {info.file_size}")
    return self._zip.open(info)


class _Legacy:
  """Five pickles in a row, then each storage as its length and its bytes."""

  def __init__(self, path: str):
    self._path = path
    with open(path, "rb") as f:
      if _Unpickler(f, path).load() != MAGIC:
        raise ValueError("neither a zip nor an older PyTorch file")
      _Unpickler(f, path).load()  # version of the protocol
      system = _Unpickler(f, path).load()
      if not system["little_endian"]:
        raise ValueError("big-endian numbers")
      unpickler = _Unpickler(f, path)
      self.tree = unpickler.load()
      keys = _Unpickler(f, path).load()
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

  def open(self, storage: _Storage) -> io.BufferedIOBase:
    """The file, at the storage's first byte."""
    start = self._starts[storage.key]
    f = open(self._path, "rb")
    f.seek(start)
    return f


class _Inert:
  """Takes whatever a pickle gives it, and keeps nothing."""

  def __init__(self, *_: Any):
    pass

  def __setstate__(self, _: Any):
    pass


class _Admitted:
  """A function that a pickle may call; it cannot be written to."""

  __slots__ = ("_function",)

  def __init__(self, function: Callable[..., Any]):
    self._function = function

  def __call__(self, *args: Any) -> Any:
    return self._function(*args)

  def __setstate__(self, _: Any):
    raise pickle.UnpicklingError("a function has no state")


class _Dict(dict):
  """An OrderedDict, without the attributes PyTorch hangs on it."""

  def __setstate__(self, _: Any):
    pass


class _Unpickler(pickle.Unpickler):
  """Knows the names in its tables, and no other."""

  def __init__(self, file: io.BufferedIOBase, path: str):
    super().__init__(file, encoding="utf-8")
    self._path = path
    self.storages: dict[str, _Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    """An entry of the tables.

    Raises:
      WeightsError: another name.
    """
    if module == "torch" and name in _DTYPES:
      return name
    known = f"{module}.{name}"
    if known in _CALLS:
      return _CALLS[known]
    if known in _INERT:
      return _Inert
    raise WeightsError(
      f"{self._path} refused: its pickle wants {known}, and only tensors and "
      "plain values are read here. If you trust the file, save its tensors "
      "alone: torch.save(model.state_dict(), path)"
    )

  def persistent_load(self, pid: Any) -> _Storage:
    """A storage by its key."""
    kind, name, key, _, count, *view = pid
    if kind != "storage" or name not in _DTYPES or any(view):
      raise pickle.UnpicklingError(f"unknown storage {pid}")
    if type(key) is not str or type(count) is not int or count < 0:
      raise pickle.UnpicklingError(f"unknown storage {pid}")
    return self.storages.setdefault(key, _Storage(key, _DTYPES[name], count))


def _tensor(
  storage: Any, offset: Any, shape: Any, stride: Any, *_: Any
) -> _Tensor:
  """torch._utils._rebuild_tensor_v2, of what lies within its storage."""
  shape, stride = tuple(shape), tuple(stride)
  numbers = (offset, *shape, *stride)
  if not isinstance(storage, _Storage) or len(shape) != len(stride):
    raise pickle.UnpicklingError("a tensor without storage or strides")
  if any(type(n) is not int or n < 0 for n in numbers):
    raise pickle.UnpicklingError(f"a tensor of {shape} by {stride}")
  tensor = _Tensor(storage, offset, shape, stride)
  if offset + tensor.span > storage.count or math.prod(shape) > storage.count:
    raise pickle.UnpicklingError(f"{shape} exceeds its {storage.count} numbers")
  return tensor


_CALLS = {
  "collections.OrderedDict": _Admitted(_Dict),
  "torch.Size": _Admitted(tuple),
  "torch._utils._rebuild_tensor_v2": _Admitted(_tensor),
  "torch._utils._rebuild_parameter": _Admitted(lambda data, *_: data),
}


def _find_tensors(tree: Any, path: str) -> tuple[str, dict[str, _Tensor]]:
  """Where the weights are, and the weights."""
  inside: list[str] = []
  while isinstance(tree, Mapping):
    found = {k: v for k, v in tree.items() if isinstance(v, _Tensor)}
    if found:
      return ".".join(inside), {str(k): v for k, v in found.items()}
    key = next((k for k in NESTING if isinstance(tree.get(k), Mapping)), None)
    if key is None:
      break
    inside.append(key)
    tree = tree[key]
  keys = list(tree)[:5] if isinstance(tree, Mapping) else type(tree).__name__
  raise WeightsError(
    f"{path}: expected tensors by name, at the top or below one of "
    f"{', '.join(NESTING)}; found {keys}"
  )
