"""Devices that are not there: TPU slices through libtpu, and fake CPUs.

Peaks: Google Cloud's pages on TPU versions. Memory: libtpu 0.0.42's refusals.
Bandwidth of a link: "How to Scale Your Model" (jax-ml.github.io/scaling-book,
2025); between slices: that book (v4) and the pages. Clocks follow from a peak
and the number and width of matrix units.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

GIB = 2**30


class Chip(NamedTuple):
  """One device as JAX counts them; v4 and v7x show two a chip."""

  name: str  # what libtpu calls it
  flops: float  # peak dense bf16 FLOP/s
  memory: int  # bytes that the compiler lets a program use
  clock: float  # Hz
  link: float  # bytes/s of one link between chips, one direction
  dcn: float  # bytes/s of a chip's share in the network between slices
  torus: int  # dimensions of the network
  wraps: int  # a dimension closes to a ring where its size divides by this
  per_chip: int = 1


CHIPS = {
  "v4": Chip("v4", 137.5e12, int(15.25 * GIB), 1.05e9, 45e9, 6.25e9, 3, 4, 2),
  "v5e": Chip("v5e", 197e12, int(15.75 * GIB), 1.5e9, 45e9, 3.125e9, 2, 16),
  "v5p": Chip("v5p", 459e12, int(95.74 * GIB), 1.75e9, 90e9, 6.25e9, 3, 4),
  "v6e": Chip("v6e", 918e12, int(31.25 * GIB), 1.75e9, 90e9, 12.5e9, 2, 16),
  "v7x": Chip(
    "tpu7x", 1153.5e12, int(94.75 * GIB), 2.2e9, 90e9, 12.5e9, 3, 4, 2
  ),
}


class Topology(NamedTuple):
  """Devices a program is compiled for."""

  name: str
  devices: list[Any]
  chip: Chip | None  # None: a CPU, of which nothing is estimated


class TopologyError(ValueError):
  """A topology that cannot be had; the message says how to fix it."""


def get(name: str) -> Topology:
  """The devices of "v5p:4x4x4", of two slices "v5p:4x4x4*2", or "cpu:8".

  Raises:
    TopologyError: unknown kind or shape, or libtpu is not installed.
  """
  kind, _, shape = name.partition(":")
  known = (
    f"{', '.join(f'{k}:{_example(c)}' for k, c in CHIPS.items())}, cpu:8, "
  )
  known += "and *2 behind a TPU for two slices"
  if kind == "cpu" and shape.isdigit() and int(shape):
    return Topology(name, _cpus(int(shape)), None)
  if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)+(\*[1-9]\d*)?", shape):
    raise TopologyError(f"unknown topology {name!r}; known, e.g.: {known}")
  chip = CHIPS[kind]
  shape, _, slices = shape.partition("*")
  sizes = tuple(map(int, shape.split("x")))
  if len(sizes) != chip.torus:
    raise TopologyError(
      f"topology {name!r}: {kind} has {chip.torus} dimensions, e.g. "
      f"{kind}:{_example(chip)}"
    )
  return Topology(name, _tpus(name, chip, shape, int(slices or 1)), chip)


def _example(chip: Chip) -> str:
  return "x".join("4" if chip.torus == 3 else "16" for _ in range(chip.torus))


def _cpus(count: int) -> list[Any]:
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:
    pass  # Already started: what is there may suffice.
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise TopologyError(
      f"topology cpu:{count}: this process has {len(devices)} CPU devices; set "
      f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
    )
  return devices[:count]


def _tpus(name: str, chip: Chip, shape: str, slices: int) -> list[Any]:
  if importlib.util.find_spec("libtpu") is None:
    raise TopologyError(
      f"topology {name!r} needs the TPU compiler, libtpu (Linux, no TPU): "
      'pip install "unifluid_jax[tpu]"; cpu:8 works without'
    )
  # Without these libtpu asks the cloud's metadata server which TPU it is on.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # No device is opened, so a training beside this one is not disturbed.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    found = topologies.get_topology_desc(
      platform="tpu",
      topology_name=f"{chip.name}:{shape}",
      num_slices=slices,
    )
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise TopologyError(f"topology {name!r}: libtpu says: {reason}") from error
  return list(found.devices)


# --------------------------------------------------------------- communication

MODEL = (
  "each collective runs as a ring on every torus axis its group spans: two "
  "links an axis, one where it does not close; bytes x (n-1)/n, twice for an "
  "all-reduce; one at a time; no latency; between slices the devices of one "
  "share the bytes, each as fast as its chip's share of the network"
)


def bandwidth(topology: Topology, group: Sequence[Any]) -> float:
  """Bytes/s a device can send to its group, by `MODEL`.

  Args:
    topology: the devices' network.
    group: devices that take part in a collective.
  """
  slices = {getattr(d, "slice_index", 0) for d in group}
  if len(slices) == 1:
    return _within(topology, group)
  # Within each slice, then between equal parts of all slices, and back.
  n, s = len(group), len(slices)
  here = [d for d in group if getattr(d, "slice_index", 0) == min(slices)]
  dcn = topology.chip.dcn / topology.chip.per_chip
  seconds = (s - 1) / s / (n // s) / dcn
  if len(here) > 1:
    seconds += (len(here) - 1) / len(here) / _within(topology, here)
  return (n - 1) / n / seconds


def _within(topology: Topology, group: Sequence[Any]) -> float:
  """`bandwidth` of devices of one slice."""
  chip = topology.chip
  here = np.array([d.coords for d in group])
  whole = np.array([d.coords for d in topology.devices])
  total = 0.0
  for axis in range(here.shape[1]):
    size = len(set(whole[:, axis]))
    if len(set(here[:, axis])) > 1:
      ring = size % chip.wraps == 0 and len(set(here[:, axis])) == size
      total += chip.link * (2 if ring else 1)
  # Cores of one chip share its links and need none among themselves.
  return (total or chip.link * 2 * chip.torus) / chip.per_chip


def wire_bytes(kind: str, size: int, group: int) -> float:
  """Bytes a device sends in a collective over `group` devices.

  Args:
    kind: HLO opcode.
    size: bytes of the whole tensor, see `hlo.Collective`.
    group: number of devices.
  """
  if kind == "collective-permute":
    return float(size)
  share = size * (group - 1) / group
  if kind.endswith("all-to-all"):
    # Rings pass blocks on: half the way round on average, either direction.
    return share * max(group, 4) / 4
  return share * (2 if kind == "all-reduce" else 1)


def count(topology: Topology) -> int:
  """Chips of the topology."""
  per_chip = topology.chip.per_chip if topology.chip else 1
  return math.ceil(len(topology.devices) / per_chip)
