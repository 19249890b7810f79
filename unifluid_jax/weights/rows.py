"""The vocabulary of conversions: sources of tensors, rows, recipes, errors."""

import abc
import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from unifluid_jax.core import files

# Orbax writes it into a step on an object store when all else is there.
COMPLETE = "commit_success.txt"
_LONGEST = 2000  # characters of an error message


class WeightsError(ValueError):
  """Weights that cannot be used; one line says which, why and the fix.

  Names come from the files of strangers: what does not print is escaped, and
  what is very long is cut.
  """

  def __init__(self, message: str):
    """Makes one line of the message."""
    shown = "".join(
      c if c.isprintable() else c.encode("unicode_escape").decode()
      for c in message[: 2 * _LONGEST]
    )
    if len(shown) > _LONGEST:
      half = _LONGEST // 2
      shown = f"{shown[:half]} ... {shown[-half:]}"
    super().__init__(shown)


class Source(abc.ABC):
  """Named tensors of one file or directory, read only when asked for.

  Attributes:
    path: as the user gave it, for messages.
  """

  path: str

  @abc.abstractmethod
  def names(self) -> list[str]:
    """All tensors."""

  @abc.abstractmethod
  def shape(self, name: str) -> tuple[int, ...]:
    """Of one tensor, without reading it."""

  @abc.abstractmethod
  def dtype(self, name: str) -> np.dtype:
    """Of one tensor, without reading it; bfloat16 is ml_dtypes'."""

  @abc.abstractmethod
  def read(self, name: str) -> np.ndarray:
    """The numbers."""

  def blocks(self, name: str, rows: int) -> Iterator[np.ndarray]:
    """`read` in pieces of at most `rows` along the leading axis, in order."""
    whole = self.read(name)
    for start in range(0, len(whole), rows):
      yield whole[start : start + rows]


@dataclasses.dataclass(frozen=True)
class Row:
  """Where tensors of one name go.

  Attributes:
    source: name; `{i}` stands for a number and may occur several times under
      different names.
    target: path below "params", "/" between keys. Numbers that occur only in
      `source` (at most one) are the place along the target's leading axis:
      "layers.{i}.mlp.up" fills "decoder/layers/mlp/up" layer by layer.
    axes: layout of one source tensor and of what it fills, see `axes`.
    after: changes the moved numbers (a resize, say); not undone on the way
      back.
  """

  source: str
  target: str
  axes: str
  after: Callable[[np.ndarray], np.ndarray] | None = None

  @property
  def stacks(self) -> str:
    """Name of the number that is a place in the target; "" if none."""
    rest = set(_numbers(self.source)) - set(_numbers(self.target))
    return rest.pop() if rest else ""


@dataclasses.dataclass(frozen=True)
class Drop:
  """Tensors that are not needed, even where a row knows their names.

  Attributes:
    pattern: of names; * stands for anything.
    reason: shown to the user.
    same_as: name of a tensor this one must equal ("" for none): a tied copy.
  """

  pattern: str
  reason: str
  same_as: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All about converting one file, as its kind detected it.

  Attributes:
    kind: "gemma", ...
    found: what the file holds, for people: "Gemma 2 2B, Hugging Face names".
    rows: of the table.
    like: shapes of all targets, path to shape; they give the axes' sizes.
    sizes: of axes that the targets do not show: of rows with `after`.
    drops: what may be left out.
    meta: stored beside the weights; JSON.
    files: further JSON files of the output directory, name to content.
  """

  kind: str
  found: str
  rows: Sequence[Row]
  like: Mapping[str, tuple[int, ...]]
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  drops: Sequence[Drop] = ()
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  files: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def shape_of(source: Source, name: str, rank: int) -> tuple[int, ...]:
  """The shape of a tensor that tells the size of a model.

  Raises:
    WeightsError: it is missing, or has another number of axes than `rank`.
  """
  if name not in source.names():
    raise WeightsError(
      f"{source.path}: expected a tensor {name}, not found; check that --from "
      "names the right kind and that the download is complete"
    )
  shape = source.shape(name)
  if len(shape) != rank:
    raise WeightsError(
      f"{source.path}: {name}: expected {rank} axes, found {shape}; check "
      "that --from names the right kind"
    )
  if not all(0 < size < 2**31 for size in shape):
    raise WeightsError(
      f"{source.path}: {name}: expected sizes above 0, found {shape}; "
      "download it again"
    )
  return shape


def find(
  source: Source, what: str, *endings: str, without: str | None = None
) -> tuple[str, str]:
  """The tensor by which a kind of file is known.

  Args:
    source: the tensors.
    what: the file should hold, for the error.
    endings: of the tensor's name, of which the first name with any counts.
    without: names that this occurs in do not count.

  Returns:
    What stands before the ending, and the ending.

  Raises:
    WeightsError: no name has one of the endings.
  """
  names = source.names()
  for name in names:
    if without is not None and without in name:
      continue
    for ending in endings:
      if name.endswith(ending):
        return name.removesuffix(ending), ending
  wanted = " or ".join(f"*{ending}" for ending in endings)
  raise WeightsError(
    f"{source.path} holds no {what}: expected a tensor named {wanted}, found "
    f"{', '.join(names[:3]) or 'no tensor'}: correct the kind in --from"
  )


def wrong_kind(source: Source, what: str, expected: str) -> WeightsError:
  """The error of a file that holds something else than --from says."""
  return WeightsError(
    f"{source.path} is no {what}: expected {expected}, found "
    f"{', '.join(sorted(source.names())[:3])}; name the kind it is in --from"
  )


def count_layers(source: Source, before: str, after: str) -> int:
  """How many numbered names `before{number}after...` there are, from 0.

  Raises:
    WeightsError: a number so high that layers before it must be missing.
  """
  pattern = re.compile(rf"{re.escape(before)}(\d{{1,18}}){re.escape(after)}")
  names = source.names()
  found = (pattern.match(name) for name in names)
  count = max((int(m[1]) for m in found if m), default=-1) + 1
  if count > len(names):
    raise WeightsError(
      f"{source.path}: {before}{count - 1}{after}* is there, but only "
      f"{len(names)} tensors: layers are missing, download it again"
    )
  return count


def check_absent(directory: str) -> None:
  """Nothing is ever overwritten.

  Raises:
    WeightsError: `directory` is "", or exists.
  """
  if not directory:
    raise WeightsError("--to is empty: name a directory to write")
  remote = files.is_remote(directory)
  if files.path(directory).exists() if remote else os.path.lexists(directory):
    raise WeightsError(
      f"{directory} exists: choose another --to, or remove it first"
    )


@contextlib.contextmanager
def all_or_nothing(directory: str) -> Iterator[Path]:
  """A temporary directory that becomes `directory` when nothing goes wrong.

  On an object store, where directories cannot be renamed, it is copied there
  in the end, marks of completeness last; so it needs room on the local disk.

  Raises:
    WeightsError: `directory` exists, or its parent cannot be written.
  """
  check_absent(directory)
  if files.is_remote(directory):
    with tempfile.TemporaryDirectory() as folder:
      yield Path(folder)
      files.upload(folder, directory, last=COMPLETE)
    return
  with contextlib.ExitStack() as stack:
    try:
      temporary = stack.enter_context(files.new_folder(directory))
    except OSError as error:
      raise WeightsError(
        f"{directory} cannot be written: {Path(directory).absolute().parent}: "
        f"{error.strerror}; choose another --to"
      ) from error
    yield temporary


def shapes(tree: Any, prefix: str) -> dict[str, tuple[int, ...]]:
  """A nested dict of arrays as path to shape, each path below `prefix`."""
  out = {}
  for key, value in tree.items():
    path = f"{prefix}/{key}"
    if isinstance(value, Mapping):
      out |= shapes(value, path)
    else:
      out[path] = tuple(value.shape)
  return out


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Paths back to a nested dict."""
  out: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, last = path.split("/")
    at = out
    for key in parents:
      at = at.setdefault(key, {})
    at[last] = leaf
  return out


def parameter_shapes(
  network: nn.Module, prefix: str, *inputs: jax.ShapeDtypeStruct
) -> dict[str, tuple[int, ...]]:
  """Path to shape of a network's parameters, each path below `prefix`."""
  abstract = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  return shapes(abstract["params"], prefix)


def regex(pattern: str) -> re.Pattern[str]:
  """What a name or path with numbers, such as "layers.{i}.up", stands for.

  Each number is a group of its name.
  """
  parts = re.split(r"\{(\w+)\}", pattern)
  for i, part in enumerate(parts):
    parts[i] = f"(?P<{part}>\\d{{1,18}})" if i % 2 else re.escape(part)
  return re.compile("".join(parts))


def _numbers(pattern: str) -> list[str]:
  return re.findall(r"\{(\w+)\}", pattern)
