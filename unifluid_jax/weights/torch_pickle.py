"""The pickle of a PyTorch checkpoint, read in bounded time and memory.

A pickle is a program. This machine knows the opcodes that PyTorch writes,
the names in its tables and keys that are plain values; what it copies and
what it reads is metered.
"""

import io
import math
import pickle
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from unifluid_jax.weights.rows import WeightsError
from unifluid_jax.weights.untrusted import is_shape

# Bytes of a pickle: twenty thousand tensors. One byte can make a list.
MAX_PICKLE = 2 * 2**20
# Entries that calls may copy in all.
_MAX_COPIED = 10**5
_MAX_NUMBERS = 2**48  # of a storage

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

# Of pickletools; without buffers, extensions and ways to make objects that
# PyTorch does not use.
_OPCODES = """
  PROTO FRAME STOP MARK POP POP_MARK DUP
  NONE NEWTRUE NEWFALSE FLOAT BINFLOAT
  INT BININT BININT1 BININT2 LONG LONG1 LONG4
  STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
  UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
  EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS
  EMPTY_DICT SETITEM SETITEMS
  GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
  GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ BINPERSID
""".split()


class Storage(NamedTuple):
  """A flat run of numbers in the file."""

  key: str
  dtype: Any  # np.dtype
  count: int


class Tensor(NamedTuple):
  """A view of a storage; offset and strides count numbers, not bytes."""

  storage: Storage
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


class _Metered:
  """A stream of which a pickle may read so many bytes."""

  def __init__(self, file: Any):
    self._file, self._left = file, MAX_PICKLE

  def read(self, size: int) -> bytes:
    data = self._file.read(self._take(size))
    if len(data) != size:
      raise EOFError("the pickle ends too early")
    return data

  def readline(self) -> bytes:
    line = self._file.readline(self._left)
    self._take(len(line))
    return line

  def _take(self, size):
    if not 0 <= size <= self._left:
      raise pickle.UnpicklingError(f"a pickle of more than {MAX_PICKLE} bytes")
    self._left -= size
    return size


class Unpickler(pickle._Unpickler):
  """Knows the opcodes and names in its tables, and no other.

  In Python, where memos are dicts: in C, a memo grows to its highest number.

  Attributes:
    storages: that were named so far, by key.
  """

  dispatch = {
    getattr(pickle, name)[0]: pickle._Unpickler.dispatch[
      getattr(pickle, name)[0]
    ]
    for name in _OPCODES
  }

  def __init__(self, file: io.BufferedIOBase, path: str):
    """Reads `file` from where it stands; `path` is for messages."""
    super().__init__(_Metered(file), encoding="utf-8")
    self._path, self._copied = path, 0
    self.storages: dict[str, Storage] = {}
    self._calls = {
      "collections.OrderedDict": _Admitted(self._ordered),
      "torch.Size": _Admitted(lambda sizes=(): _sizes(sizes)),
      "torch._utils._rebuild_tensor_v2": _Admitted(_tensor),
      "torch._utils._rebuild_parameter": _Admitted(lambda data, *_: data),
    }

  def find_class(self, module: str, name: str) -> Any:
    """An entry of the tables.

    Raises:
      WeightsError: another name.
    """
    if module == "torch" and name in _DTYPES:
      return name
    known = f"{module}.{name}"
    if known in self._calls:
      return self._calls[known]
    if known in _INERT:
      return _Inert
    raise WeightsError(
      f"{self._path} refused: its pickle wants {known[:200]}, and only tensors "
      "and plain values are read here. If you trust the file, save its tensors "
      "alone: torch.save(model.state_dict(), path)"
    )

  def persistent_load(self, pid: Any) -> Storage:
    """A storage by its key."""
    if type(pid) is not tuple or len(pid) < 5:
      raise pickle.UnpicklingError("a storage without size")
    kind, name, key, _, count, *view = pid
    plain = type(kind) is type(name) is type(key) is str and type(count) is int
    if not plain or kind != "storage" or name not in _DTYPES or any(view):
      raise pickle.UnpicklingError("an unknown kind of storage")
    if not 0 <= count < _MAX_NUMBERS:
      raise pickle.UnpicklingError(f"storage {key[:80]} has no size")
    storage = Storage(key, _DTYPES[name], count)
    if self.storages.setdefault(key, storage) != storage:
      raise pickle.UnpicklingError(f"storage {key[:80]} is two things")
    return storage

  def _ordered(self, pairs: Any = ()) -> _Dict:
    if type(pairs) not in (tuple, list):
      raise pickle.UnpicklingError("a dict made of something else")
    self._copied += len(pairs)
    if self._copied > _MAX_COPIED:
      raise pickle.UnpicklingError("too many copies")
    out = _Dict()
    for pair in pairs:
      key, value = pair
      out[_plain_key(key)] = value
    return out

  def _set_item(self):
    value, key = self.stack.pop(), self.stack.pop()
    self._fill([(key, value)])

  def _set_items(self):
    items = self.pop_mark()
    self._fill(zip(items[::2], items[1::2], strict=True))

  def _fill(self, items: Iterable[tuple[Any, Any]]):
    table = self.stack[-1]
    if type(table) not in (dict, _Dict):
      raise pickle.UnpicklingError("items of what is no dict")
    for key, value in items:
      table[_plain_key(key)] = value

  dispatch[pickle.SETITEM[0]] = _set_item
  dispatch[pickle.SETITEMS[0]] = _set_items


def _plain_key(key: Any) -> Any:
  """A key that is hashed at once: tuples of tuples may take for ever."""
  if key is None or type(key) in (str, int, float, bool, bytes):
    return key
  raise pickle.UnpicklingError("a key that is no plain value")


def _sizes(sizes: Any) -> tuple[int, ...]:
  """torch.Size of what is one."""
  if type(sizes) not in (tuple, list) or not is_shape(sizes):
    raise pickle.UnpicklingError("a shape that is none")
  return tuple(sizes)


def _tensor(
  storage: Any, offset: Any, shape: Any, stride: Any, *_: Any
) -> Tensor:
  """torch._utils._rebuild_tensor_v2, of what lies within its storage."""
  shape, stride = _sizes(shape), _sizes(stride)
  if not isinstance(storage, Storage) or len(shape) != len(stride):
    raise pickle.UnpicklingError("a tensor without storage or strides")
  if not is_shape((offset,)):
    raise pickle.UnpicklingError(f"a tensor of {shape} by {stride}")
  tensor = Tensor(storage, offset, shape, stride)
  if offset + tensor.span > storage.count or math.prod(shape) > storage.count:
    raise pickle.UnpicklingError(f"{shape} exceeds its {storage.count} numbers")
  return tensor
