"""Reads a compiled program's HLO text: collectives and estimated cycles.

XLA's own cost analysis counts the body of a loop once; here everything is
multiplied by the trip counts of the loops around it.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_BITS = {
  "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
  "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16,
  "f32": 32, "f64": 64, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# Constants may span lines: only a brace that begins a line ends a computation.
_END = re.compile(r'^\}(, execution_thread="[^"]*")?$')
_INSTRUCTION = re.compile(
  r"^\s+(ROOT )?%?([\w.\-]+) = (.*?[\])}]|token\[\]) ([a-z][\w\-]*)\((.*)$"
)
_COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
  "ragged-all-to-all", "collective-permute", "collective-broadcast",
)  # fmt: skip
# Opcodes that run the computation they call; the others (reduce, sort, ...)
# name a scalar function.
_RUNS = (
  "fusion", "call", "async-start", "conditional", "custom-call", "while",
)  # fmt: skip


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shape: str
  opcode: str
  rest: str  # operands and attributes
  root: bool


class Visit(NamedTuple):
  """An instruction and how often one execution of the program runs it."""

  instruction: Instruction
  times: int
  computation: str
  fused: bool  # inside a fusion
  started: bool  # inside what only starts here, e.g. on the sparse cores


class Collective(NamedTuple):
  """Instructions of one kind and size over like groups of devices."""

  kind: str
  groups: tuple[tuple[int, ...], ...]  # positions in the program's device list
  bytes: int  # of the whole tensor: gathered, or before it is scattered
  times: int
  asynchronous: bool
  op_name: str  # where the program says it comes from


class Module(NamedTuple):
  """A parsed program."""

  computations: dict[str, list[Instruction]]
  entry: str
  devices: int


def parse(text: str, devices: int) -> Module:
  """Splits HLO text into computations.

  Args:
    text: as `Compiled.as_text` or XLA's dumps give it.
    devices: the program runs on.

  Raises:
    ValueError: the text holds no entry computation.
  """
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if _END.match(line):
      current = None
    elif current is None:
      if header := _HEADER.match(line):
        current = computations.setdefault(header[2], [])
        entry = header[2] if header[1] else entry
    elif found := _INSTRUCTION.match(line):
      root, name, shape, opcode, rest = found.groups()
      current.append(Instruction(name, shape, opcode, rest, bool(root)))
  if entry is None:
    raise ValueError("no ENTRY computation: this is no HLO text")
  return Module(computations, entry, devices)


def bytes_of(shape: str) -> int:
  """Bytes of a shape's text, summed over a tuple; layouts are ignored."""
  total = 0
  for dtype, dims in _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", shape)):
    if dtype in _BITS:
      count = math.prod(int(d) for d in dims.split(",") if d)
      total += count * _BITS[dtype]
  return total // 8


def visits(module: Module) -> Iterator[Visit]:
  """All instructions that run, with the product of their trip counts.

  Of a conditional every branch is visited: an upper bound.
  """
  yield from _visit(module, module.entry, 1, False, False)


def _visit(module, computation, times, fused, started) -> Iterator[Visit]:
  for line in module.computations.get(computation, ()):
    yield Visit(line, times, computation, fused, started)
    if line.opcode not in _RUNS:
      continue
    inner = times * (trips(module, line) if line.opcode == "while" else 1)
    inside = fused or line.opcode == "fusion"
    later = started or line.opcode == "async-start"
    for name in _called(line):
      yield from _visit(module, name, inner, inside, later)


def _called(line: Instruction) -> list[str]:
  found = re.findall(r"\b(?:calls|body|to_apply)=%?([\w.\-]+)", line.rest)
  for group in re.findall(
    r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", line.rest
  ):
    found += [n.strip().lstrip("%") for n in group.split(",")]
  found += re.findall(r"\b(?:true|false)_computation=%?([\w.\-]+)", line.rest)
  return found


def trips(module: Module, line: Instruction) -> int:
  """Trip count of a while: annotated, or the bound its condition compares to.

  A loop whose count depends on data counts as one trip.
  """
  known = re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', line.rest)
  if known:
    return int(known[1])
  condition = re.search(r"\bcondition=%?([\w.\-]+)", line.rest)
  lines = module.computations.get(condition[1], []) if condition else []
  bounds = [
    int(found[1])
    for found in (re.match(r"(\d+)\)", c.rest) for c in lines
                  if c.opcode == "constant" and c.shape.startswith("s32[]"))
    if found
  ]  # fmt: skip
  return bounds[0] if len(bounds) == 1 else 1


# ----------------------------------------------------------------- collectives


def collectives(module: Module) -> list[Collective]:
  """All collectives of a program.

  TPU programs spell a reduce-scatter as a fusion of an all-reduce and a
  slice; it is counted as what it is. An asynchronous one fused with products
  appears in three fusions (start, meanwhile, done) of one channel; it is
  counted once.
  """
  out, seen = [], set()
  for line, times, computation, fused, later in visits(module):
    kind = line.opcode.removesuffix("-start")
    if between := _attribute(line, r'_xla_megascale_transfer_type="(\w+)"'):
      if kind == "send":  # the answer, a recv, says the same
        out.append(_between_slices(line, between, times, module.devices))
      continue
    if kind not in _COLLECTIVES:
      continue
    started = line.opcode.endswith("-start")
    chain = fused and not computation.startswith("all-reduce-scatter")
    if chain:
      channel = (kind, _attribute(line, r"channel_id=(\d+)"))
      if channel in seen:
        continue
      seen.add(channel)
    size = bytes_of(line.shape)
    if started and line.shape.startswith("("):
      size = _result_bytes(kind, line.shape)
    groups = _groups(line, module.devices)
    if computation.startswith("all-reduce-scatter"):
      kind = "reduce-scatter"
    elif kind == "reduce-scatter":
      size *= len(groups[0])
    name = _attribute(line, r'op_name="([^"]*)"') or ""
    beside = started or chain or later
    out.append(Collective(kind, groups, size, times, beside, name))
  return out


def _between_slices(
  line: Instruction, kind: str, times: int, devices: int
) -> Collective:
  """What goes through the hosts to like devices of all slices, and back.

  The program is that of one slice; it sends, does other things and receives.
  """
  slices = len(
    _attribute(line, r'_xla_megascale_target="{([\d,]+)}').split(",")
  )
  group = tuple(range(0, devices, devices // slices))
  size = max(map(bytes_of, _elements(line.shape)))
  name = _attribute(line, r'op_name="([^"]*)"') or ""
  kind = kind.lower().replace("_", "-")
  return Collective(kind, (group,), size, times, True, name)


def _result_bytes(kind: str, shape: str) -> int:
  """Bytes that a started collective results in.

  An all-reduce has its results alone, the others (operands, results, ...). The
  compiler may have combined several arrays: then both are tuples.
  """
  sizes = [bytes_of(element) for element in _elements(shape)]
  if kind == "all-reduce":
    return sum(sizes)
  combined = re.match(r"\(\((.*?)\)", re.sub(r"\{[^{}]*\}", "", shape))
  if not combined:
    return max(sizes)
  n = len(_elements(combined[1]))
  return sum(sizes[n : 2 * n])


def _attribute(line: Instruction, pattern: str) -> str | None:
  found = re.search(pattern, line.rest)
  return found[1] if found else None


def _elements(shape: str) -> list[str]:
  """Arrays of a tuple's text, nested ones flattened."""
  bare = re.sub(r"\{[^{}]*\}", "", shape)
  return [m[0] for m in _SHAPE.finditer(bare)]


def _groups(line: Instruction, devices: int) -> tuple[tuple[int, ...], ...]:
  """Device groups; three notations and a permute's pairs."""
  text = line.rest
  if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", text):
    return _lists(pairs[1])
  if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
    return _lists(listed[1])
  if iota := re.search(
    r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
  ):
    ids = _iota(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))
    return _tuples(ids)
  if mesh := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]"
    r"(?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}",
    text,
  ):
    return _tuples(_mesh_groups(*mesh.groups()))
  return (tuple(range(devices)),)


def _lists(text: str) -> tuple[tuple[int, ...], ...]:
  rows = re.findall(r"\{([\d,\s]+)\}", text)
  return tuple(tuple(int(n) for n in row.split(",")) for row in rows)


def _tuples(ids: Any) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(int(i) for i in row) for row in ids)


def _iota(dims: str, transposed: str | None) -> Any:
  sizes = [int(d) for d in dims.split(",")]
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  if transposed:
    ids = ids.transpose([int(d) for d in transposed.split(",")])
  return ids


def _mesh_groups(axes, dims, transposed, names) -> Any:
  """Groups along the named axes: mesh['x'=4,'y'=2] ... {'y'}.

  A part of an axis is written 'y':(before)size.
  """
  sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", axes)}
  ids = np.arange(math.prod(sizes.values()))
  if dims:
    ids = _iota(dims, transposed).reshape(-1)
  picked = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", names)
  shape, along = [], []
  for name, size in sizes.items():
    parts = sorted((int(b), int(s)) for n, b, s in picked if n == name and s)
    if not parts:
      along += [len(shape)] * any(n == name for n, _, _ in picked)
      shape.append(size)
      continue
    before = 1
    for start, width in parts:
      shape += [start // before, width]
      along.append(len(shape) - 1)
      before = start * width
    shape.append(size // before)
  rest = [i for i in range(len(shape)) if i not in along]
  width = math.prod(shape[i] for i in along)
  return ids.reshape(shape).transpose(rest + along).reshape(-1, width)


# ---------------------------------------------------------------------- cycles


class Cycles(NamedTuple):
  """The compiler's estimates, summed by trip count."""

  total: int
  by_kind: dict[str, int]  # products, copies, other
  by_part: dict[str, int]  # networks, by the names in op_name
  unknown: int  # kernels without an estimate (Pallas), by trip count


def cycles(module: Module, parts: dict[str, str] | None = None) -> Cycles:
  """Sums `estimated_cycles` of instructions outside fusions.

  Args:
    module: of a TPU program; others carry no estimates and give 0.
    parts: part → regular expression on op_name; the first that is found
      names an instruction's part, else "other".
  """
  kinds = {"products": 0, "copies": 0, "other": 0}
  by_part = dict.fromkeys([*(parts or {}), "other"], 0)
  unknown = 0
  for line, times, _, fused, _ in visits(module):
    if fused:
      continue
    if line.opcode == "custom-call" and "tpu_custom_call" in line.rest:
      unknown += times
    found = _attribute(line, r'"estimated_cycles":"(\d+)"')
    if not found:
      continue
    count = int(found) * times
    kinds[_kind(module, line)] += count
    name = _attribute(line, r'op_name="([^"]*)"') or ""
    hits = (p for p, rule in (parts or {}).items() if re.search(rule, name))
    by_part[next(hits, "other")] += count
  return Cycles(sum(kinds.values()), kinds, by_part, unknown)


def _kind(module: Module, line: Instruction) -> str:
  if line.opcode.startswith("copy") or line.name.startswith("copy"):
    return "copies"
  inner = [i for n in _called(line) for i in module.computations.get(n, ())]
  if any(i.opcode in ("convolution", "dot") for i in (line, *inner)):
    return "products"
  return "other"
