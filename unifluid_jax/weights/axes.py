"""How a tensor is laid out in two places, as a line: `(n h) d -> d n h`.

The notation names axes, whose sizes a table gives, so that it both checks a
shape and moves the numbers, in either direction:

  d f        an axis each; without an arrow both sides are the same
  (n h)      axes merged into one
  1          an axis of size one
  [1/2]      entry 1 of 2 along an axis that only the left side has
  v+         the left side may be longer: what lies beyond `v` is left out
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

_TOKEN = re.compile(r"\(([\w ]+)\)|\[(\d+)/(\d+)\]|(\w+)(\+?)|(\S)")


@dataclasses.dataclass(frozen=True)
class _Axis:
  """One axis of one side."""

  names: tuple[str, ...] = ()  # several when merged; none: size one or entry
  entry: tuple[int, int] | None = None  # (which, of how many)
  longer: bool = False

  def size(self, sizes: Mapping[str, int]) -> int:
    if self.entry:
      return self.entry[1]
    return math.prod(sizes[name] for name in self.names)


@dataclasses.dataclass(frozen=True)
class Axes:
  """A parsed line; see `parse`."""

  left: tuple[_Axis, ...]
  right: tuple[_Axis, ...]

  def source_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape on the left, without what lies beyond a `+`."""
    return tuple(axis.size(sizes) for axis in self.left)

  def fits(self, shape: tuple[int, ...], sizes: Mapping[str, int]) -> bool:
    """Whether a left side of this shape can be read."""
    want = self.source_shape(sizes)
    return len(shape) == len(want) and all(
      have >= size if axis.longer else have == size
      for have, size, axis in zip(shape, want, self.left, strict=True)
    )

  def sizes_of(self, target: tuple[int, ...]) -> dict[str, int]:
    """Sizes of the axes that stand alone on the right, from its shape.

    Raises:
      ValueError: the shape has another number of axes.
    """
    if len(target) != len(self.right):
      raise ValueError(f"{target} has not {len(self.right)} axes")
    return {
      axis.names[0]: size
      for axis, size in zip(self.right, target, strict=True)
      if len(axis.names) == 1
    }

  @property
  def streams(self) -> bool:
    """Whether rows of the leading axis can be moved one after another."""
    if not self.left or not self.right:
      return False
    first, other = self.left[0].names, self.right[0].names
    return first == other and len(first) == 1

  def forward(self, x: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    """Left to right; a view where possible."""
    cut = tuple(
      axis.entry[0] if axis.entry
      else slice(0, axis.size(sizes)) if axis.longer
      else slice(None)
      for axis in self.left
    )  # fmt: skip
    return self._move(np.asarray(x[cut]), self.left, self.right, sizes)

  def backward(self, x: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    """Right to left.

    Raises:
      ValueError: the left side holds more than the right one.
    """
    if any(axis.entry for axis in self.left):
      raise ValueError("an entry of an axis cannot be written back alone")
    return self._move(x, self.right, self.left, sizes)

  @staticmethod
  def _move(x, here, there, sizes):
    names = [name for axis in here for name in axis.names]
    order = [names.index(name) for axis in there for name in axis.names]
    x = x.reshape([sizes[name] for name in names]).transpose(order)
    return x.reshape([axis.size(sizes) for axis in there])


@functools.cache
def parse(line: str) -> Axes:
  """Reads a line such as `l [0/2] k d h -> l d k h`.

  Raises:
    ValueError: not the notation, or the sides name different axes.
  """
  left, arrow, right = line.partition("->")
  a, b = _side(left, line), _side(right if arrow else left, line)
  if not arrow:
    b = tuple(dataclasses.replace(axis, longer=False) for axis in b)
  names = [sorted(n for axis in side for n in axis.names) for side in (a, b)]
  if names[0] != names[1] or len(set(names[0])) != len(names[0]):
    raise ValueError(f"{line!r}: both sides must name the same axes once")
  return Axes(a, b)


def _side(text: str, line: str) -> tuple[_Axis, ...]:
  out = []
  for merged, which, many, name, longer, other in _TOKEN.findall(text):
    if other:
      raise ValueError(f"{line!r}: {other!r} is not part of the notation")
    if merged:
      out.append(_Axis(tuple(merged.split())))
    elif which:
      out.append(_Axis(entry=(int(which), int(many))))
    else:
      out.append(_Axis(() if name == "1" else (name,), longer=bool(longer)))
  return tuple(out)
