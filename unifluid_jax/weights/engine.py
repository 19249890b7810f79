"""The engine that reads a table of rows.

It checks that every tensor of the source is read or named as dropped, that
every target is filled and every shape is right, and streams the numbers.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unifluid_jax.weights import axes as notation
from unifluid_jax.weights.rows import (
  Recipe,
  Row,
  Source,
  WeightsError,
  regex,
)

# Most bytes of a tensor held at once where it can be moved row by row.
BLOCK = 64 * 2**20
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class _Piece:
  """One source tensor's part in a leaf."""

  name: str
  row: Row
  slot: int | None  # place along the leading axis; None: all of it
  sizes: Mapping[str, int]

  @property
  def move(self) -> notation.Axes:
    return notation.parse(self.row.axes)


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A target array that is made while it is read."""

  shape: tuple[int, ...]
  dtype: Any  # np.dtype
  source: Source
  pieces: tuple[_Piece, ...]

  @property
  def rowwise(self) -> bool:
    """Whether it comes one entry of the leading axis at a time."""
    return self.pieces[0].slot is not None

  def blocks(self, multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces and where they start along the leading axis.

    Args:
      multiple: of entries in a piece where the engine may choose.
    """
    for piece in self.pieces:
      if piece.slot is not None:
        yield piece.slot, self._whole(piece)[None]
      elif self.shape and piece.move.streams and piece.row.after is None:
        yield from self._stream(piece, multiple)
      else:
        yield 0, self._whole(piece)

  def _whole(self, piece):
    whole = self._finite(piece.name, self.source.read(piece.name))
    x = piece.move.forward(whole, piece.sizes)
    if piece.row.after:
      x = piece.row.after(x)
    want = self.shape if piece.slot is None else self.shape[1:]
    if x.shape != want:
      raise WeightsError(
        f"{self.source.path}: {piece.name} becomes {x.shape}, the target "
        f"needs {want}"
      )
    return x.astype(self.dtype, copy=False)

  def _finite(self, name, x):
    # A sum is ten times as fast as looking at every number, and also infinite
    # where finite numbers overflow it.
    with np.errstate(over="ignore"):
      total = x.sum(dtype=np.float32)
    if not np.isfinite(total) and not np.isfinite(x).all():
      raise WeightsError(
        f"{self.source.path}: {name}: expected finite numbers, found "
        f"{int((~np.isfinite(x)).sum())} NaN or infinite ones; download it "
        "again, or ask who trained it"
      )
    return x

  def _stream(self, piece, multiple):
    (axis,) = piece.move.left[0].names
    row_bytes = math.prod(self.source.shape(piece.name)[1:])
    row_bytes *= self.source.dtype(piece.name).itemsize
    rows = max(BLOCK // max(row_bytes, 1) // multiple, 1) * multiple
    start = 0
    for block in self.source.blocks(piece.name, rows):
      block = block[: self.shape[0] - start]
      if not len(block):
        return
      sizes = {**piece.sizes, axis: len(block)}
      moved = piece.move.forward(self._finite(piece.name, block), sizes)
      yield start, moved.astype(self.dtype, copy=False)
      start += len(block)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a conversion reads, writes and leaves out; nothing is read yet."""

  leaves: Mapping[str, Leaf]
  dropped: Sequence[tuple[str, str]]  # name, reason
  cut: Sequence[tuple[str, str]]  # rows of a tensor, reason
  table: Sequence[tuple[str, str, int]]  # source pattern, target, tensors


def make_plan(source: Source, recipe: Recipe, dtype: Any = None) -> Plan:
  """Matches names, checks shapes and kinds of numbers.

  Args:
    source: the tensors.
    recipe: what they should be.
    dtype: of all targets; None keeps the source's.

  Raises:
    WeightsError: tensors missing, left over, of the wrong shape, or whole
      numbers.
  """
  problems: list[str] = []
  dropped = _dropped(source, recipe, problems)
  lost = {name for name, _ in dropped}
  names = [name for name in source.names() if name not in lost]
  pieces, table = _match(source, recipe, names, problems)
  for path, shape in recipe.like.items():
    _check_filled(path, shape, pieces.get(path, []), recipe, problems)
  if problems:
    raise WeightsError(_report(source, recipe, problems))
  leaves, cut = {}, []
  for path, shape in recipe.like.items():
    parts = tuple(sorted(pieces[path], key=lambda p: p.slot or 0))
    kept = dtype or _common_dtype(source, [p.name for p in parts])
    leaves[path] = Leaf(tuple(shape), np.dtype(kept), source, parts)
    cut += _cut_rows(source, parts)
  return Plan(leaves, dropped, cut, table)


def coverage(plan: Plan) -> list[str]:
  """The plan as lines of a table."""
  width = max((len(name) for name, _, _ in plan.table), default=0)
  tensors = {p.name for leaf in plan.leaves.values() for p in leaf.pieces}
  lines = []
  for name, target, count in plan.table:
    leaf = plan.leaves[target]
    times = f" x{count}" if count > 1 else ""
    lines.append(
      f"  {name:<{width}} -> {target}  {leaf.shape} {leaf.dtype}{times}"
    )
  left_out = [*plan.dropped, *plan.cut]
  for reason in dict.fromkeys(reason for _, reason in left_out):
    names = [name for name, why in left_out if why == reason]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    lines.append(f"  dropped: {names[0]}{more}: {reason}")
  values = sum(math.prod(leaf.shape) for leaf in plan.leaves.values())
  lines.append(
    f"  {len(tensors)} tensors read, {len(plan.dropped)} dropped, none left "
    f"over; {len(plan.leaves)} arrays, {values:,} parameters"
  )
  return lines


def _match(source, recipe, names, problems):
  """Pieces by target, and the table; `names` that no row knows are told."""
  pieces: dict[str, list[_Piece]] = {}
  table, used = [], set()
  for row in recipe.rows:
    pattern = regex(row.source)
    counts: dict[str, int] = {}
    for name in names:
      match = pattern.fullmatch(name)
      if not match:
        continue
      used.add(name)
      numbers = {k: int(v) for k, v in match.groupdict().items()}
      slot = numbers.get(row.stacks)
      target = row.target.format(**numbers)
      counts[target] = counts.get(target, 0) + 1
      sizes = _sizes(row, target, recipe)
      piece = _Piece(name, row, slot, sizes)
      pieces.setdefault(target, []).append(piece)
      if target not in recipe.like:
        problems.append(f"{name} {source.shape(name)}: no place for {target}")
      else:
        _check_tensor(source, piece, problems)
    table += [(row.source, t, n) for t, n in counts.items()]
  problems += [
    f"{name} {source.shape(name)}: unknown tensor"
    for name in names
    if name not in used
  ]
  return pieces, table


def _sizes(row, target, recipe):
  sizes = dict(recipe.sizes)
  if target in recipe.like and row.after is None:
    shape = tuple(recipe.like[target])
    sizes |= notation.parse(row.axes).sizes_of(shape[bool(row.stacks) :])
  return sizes


def _check_tensor(source, piece, problems):
  dtype, found = source.dtype(piece.name), source.shape(piece.name)
  if dtype.kind in "iub":
    problems.append(
      f"{piece.name}: expected floating-point numbers, found {dtype}: save it "
      "unquantised"
    )
  if not piece.move.fits(found, piece.sizes):
    want = piece.move.source_shape(piece.sizes)
    layout = piece.row.axes.split("->")[0].strip()
    problems.append(f"{piece.name}: expected {want} ({layout}), found {found}")


def _dropped(source, recipe, problems):
  """Names that a drop matches, whether or not a row does too."""
  out = []
  for name in source.names():
    match = (d for d in recipe.drops if fnmatch.fnmatchcase(name, d.pattern))
    drop = next(match, None)
    if drop is None:
      continue
    if drop.same_as and not _same(source, name, drop.same_as):
      problems.append(f"{name}: expected a copy of {drop.same_as}, it differs")
    out.append((name, drop.reason))
  return out


def _cut_rows(source, parts):
  """Names the rows that a `+` leaves out."""
  out = []
  for piece in parts:
    first = next(iter(piece.move.left), None)
    if first is None or not first.longer:
      continue
    have, keep = source.shape(piece.name)[0], first.size(piece.sizes)
    if have > keep:
      rows = f"{piece.name}[{keep}:{have}]"
      out.append((rows, f"unused rows, {keep} are kept"))
  return out


def _same(source, name, other):
  if other not in source.names() or source.shape(name) != source.shape(other):
    return False
  rows = max(BLOCK // max(math.prod(source.shape(name)[1:]) * 4, 1), 1)
  pairs = zip(
    source.blocks(name, rows), source.blocks(other, rows), strict=True
  )
  return all(np.array_equal(a, b) for a, b in pairs)


def _check_filled(path, shape, parts, recipe, problems):
  """A target has its pieces, each once."""
  if not parts:
    rows = [r.source for r in recipe.rows if regex(r.target).fullmatch(path)]
    wanted = f", expected from {rows[0]}" if rows else ""
    problems.append(f"{path} {tuple(shape)}: missing{wanted}")
    return
  row, slots = parts[0].row, [p.slot for p in parts]
  if len(set(slots)) != len(slots):
    both = [p.name for p in parts if slots.count(p.slot) > 1]
    problems.append(f"{path}: filled twice, by {both[0]} and {both[1]}")
  if parts[0].slot is None:
    return
  for slot in sorted(set(range(shape[0])) - set(slots)):
    lost = row.source.replace("{" + row.stacks + "}", str(slot))
    problems.append(f"{lost}: missing, {path} needs {shape[0]} of them")
  for slot in sorted(set(slots) - set(range(shape[0])))[-1:]:
    problems.append(f"{path}: expected {shape[0]} layers, found layer {slot}")


def _common_dtype(source, names):
  kept = source.dtype(names[0])
  for name in names[1:]:
    kept = np.promote_types(kept, source.dtype(name))
  return kept


def _report(source, recipe, problems):
  shown = "; ".join(problems[:_SHOWN])
  more = len(problems) - _SHOWN
  tail = f"; and {more} more" if more > 0 else ""
  return (
    f"{source.path} is not a whole {recipe.found} ({len(problems)} "
    f"problem{'s' if len(problems) > 1 else ''}): {shown}{tail}. Check that "
    f"--from names the right kind (now {recipe.kind}) and that the download "
    "is complete"
  )
