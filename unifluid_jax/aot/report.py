"""What a compiled program needs and how long it may take, as one tree.

Time is a band: collectives hidden behind the products as far as they fit, or
not at all; between them, as the compiler scheduled it, those that are
asynchronous. None of it is a measurement.
"""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from unifluid_jax.aot import advice, hlo, topology
from unifluid_jax.aot.compiled import Compiled
from unifluid_jax.aot.lower import Program
from unifluid_jax.core import telemetry
from unifluid_jax.core.config import Config

# Of a chip's peak, assumed of fused attention: the program's text estimates
# nothing inside such a kernel. What the compiler schedules inside mosaic's, for
# the 2B model's heads, is counted by `python -m benchmarks.kernel_schedule`; of
# the 95 % it says of the decoder's on v5e and v5p, 75 are assumed.
_KERNEL_SPEED = 0.4
_MOSAIC_SPEED = {
  "v5e": {"decoder": 0.75, "vit": 0.33},
  "v5p": {"decoder": 0.75, "vit": 0.33},
  "v6e": {"decoder": 0.45, "vit": 0.1},
}

# Networks by the names Flax leaves in the program.
_PARTS = {
  "codec": r"KlVae",  # first: its own decoder lies within
  "decoder": r"\bDecoder\b",
  "vit": r"\bVit\b",
  "head": r"DiffusionHead",
}


def report(
  config: Config,
  program: Program,
  compiled: Compiled,
  place: topology.Topology,
  memory: int | None = None,
) -> dict[str, Any]:
  """Everything that is known of a program on a topology.

  Args:
    config: the experiment.
    program: what was compiled.
    compiled: the compiler's answer.
    place: the devices.
    memory: bytes a device has; default the chip's.

  Returns:
    A tree for JSON; bytes, seconds and FLOPs without prefixes. "fits" is
    None where no limit is known, times are absent where the compiler
    estimates no cycles.
  """
  limit = memory or (place.chip.memory if place.chip else None)
  held = {k: _bytes_by_part(k, v) for k, v in program.held.items()}
  out = {
    "program": program.name,
    "config": config.name,
    "topology": place.name,
    "chips": topology.count(place) if program.mesh else 1,
    "devices": program.mesh.size if program.mesh else 1,
    "mesh": dict(program.mesh.shape) if program.mesh else {},
    "rows": program.rows,
    "batch": {k: v for k, v in config.batch.items() if v},
    "accumulate": config.accumulate,
    "remat": program.cost.remat if program.cost else "none",
    "parameters": dict(telemetry.parameter_table(program.held["parameters"])),
    "bytes_held": {k: sum(v.values()) for k, v in held.items() if v},
    "parameter_bytes": held["parameters"],
    "memory": compiled.memory | {"limit": limit},
    "compile_seconds": compiled.seconds,
    "versions": compiled.versions,
  }
  out["fits"] = compiled.memory["used"] <= limit if limit else None
  if compiled.error:
    out |= {"fits": False, "error": compiled.error}
  if compiled.text is not None:
    module = hlo.parse(compiled.text, out["devices"])
    out["collectives"] = communication(module, program.mesh, place)
    if place.chip:
      out |= _times(config, program, module, place, out["collectives"])
  out["advice"] = advice.advice(config, program, out)
  return out


def _bytes_by_part(name: str, tree: Any) -> dict[str, int]:
  """Bytes a device holds of each top-level part of a tree."""
  parts = tree if isinstance(tree, dict) else {name: tree}
  return {
    key: telemetry.bytes_per_device(
      part, jax.tree.map(lambda x: x.sharding, part)
    )
    for key, part in parts.items()
    if jax.tree.leaves(part)
  }


# --------------------------------------------------------------- communication


def communication(
  module: hlo.Module, mesh: Mesh | None, place: topology.Topology
) -> list[dict[str, Any]]:
  """Collectives summed by kind and mesh axes, the costliest first.

  Args:
    module: the compiled program.
    mesh: whose devices it numbers; None: one device, no rows.
    place: gives bandwidths; without a chip, rows carry no seconds.
  """
  if mesh is None:
    return []
  rows = collections.defaultdict(lambda: np.zeros(6))
  devices = list(mesh.devices.flat)
  for c in hlo.collectives(module):
    group = c.groups[0]
    wire = topology.wire_bytes(c.kind, c.bytes, len(group))
    seconds = 0.0
    if place.chip:
      seconds = wire / topology.bandwidth(place, [devices[i] for i in group])
    key = (c.kind, axes_of(group, mesh))
    moved = np.array([c.bytes, wire, seconds])
    beside = c.asynchronous * moved[[0, 2]]
    rows[key] += c.times * np.array([1, *moved, *beside])
  out = [
    {
      "kind": kind,
      "axes": axes,
      "count": int(count),
      "bytes": int(size),
      "wire_bytes": int(wire),
      "asynchronous_bytes": int(beside),
    }
    | (
      {"seconds": seconds, "asynchronous_seconds": hidden} if place.chip else {}
    )
    for (kind, axes), (
      count,
      size,
      wire,
      seconds,
      beside,
      hidden,
    ) in rows.items()
  ]
  return sorted(out, key=lambda row: -row["wire_bytes"])


def axes_of(group: Sequence[int], mesh: Mesh) -> str:
  """Mesh axes along which the members of a group differ, e.g. "fsdp"."""
  places = np.unravel_index(np.array(group), tuple(mesh.shape.values()))
  names = [
    name
    for name, where in zip(mesh.shape, places, strict=True)
    if len(set(where.tolist())) > 1
  ]
  return " x ".join(names) or "none"


# ------------------------------------------------------------------------ time


def _times(config, program, module, place, rows) -> dict[str, Any]:
  """Compute, communication and what follows from both."""
  cycles = hlo.cycles(module, _PARTS)
  if not cycles.total:
    return {}
  kernels = 0.0
  cost = program.cost
  if cycles.unknown and program.mesh and cost and cost.kernel != "plain":
    speeds = {}
    if cost.kernel == "mosaic":
      speeds = _MOSAIC_SPEED.get(place.chip.name, speeds)
    peak = place.chip.flops * program.mesh.size
    kernels = sum(
      flops / (speeds.get(network, _KERNEL_SPEED) * peak)
      for network, flops in cost.fused.items()
    )
  compute = cycles.total / place.chip.clock + kernels
  talk = sum(row["seconds"] for row in rows)
  waits = talk - sum(row["asynchronous_seconds"] for row in rows)
  band = {
    "exposed": compute + talk,
    "scheduled": max(compute + waits, talk),
    "hidden": max(compute, talk),
  }

  def seconds(tree):
    return {k: v / place.chip.clock for k, v in tree.items()}

  out = {
    "compute_seconds": compute,
    "compute_by_kind": seconds(cycles.by_kind),
    "compute_by_part": seconds(cycles.by_part),
    "kernels_without_estimate": cycles.unknown,
    "kernel_seconds": kernels,
    "communication_seconds": talk,
    "communication_model": topology.MODEL,
    "seconds": band,
    "rows_per_second": {k: program.rows / s for k, s in band.items()},
  }
  if program.mesh is None or cost is None:
    return out
  tokens, flops = cost.tokens, cost.flops
  peak = place.chip.flops * program.mesh.size
  return out | {
    "model_flops": flops,
    "tokens": tokens,
    "mfu": {k: flops / s / peak for k, s in band.items()},
    "tokens_per_second": {k: tokens / s for k, s in band.items()},
  }
