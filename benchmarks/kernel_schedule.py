"""Counts the instructions of mosaic attention's kernels, without a TPU.

  python -m benchmarks.kernel_schedule --topology=v5e:2x2,v5p:2x2x1,v6e:2x2

The kernels are compiled by libtpu for the networks of the 2B configuration;
what it schedules takes a cycle an instruction if nothing waits. Printed:
instructions of one program, and the share of the chip's peak that they would
reach, alone and with a grid step's own time added. Where it is about 100 % or
more, the products themselves are waited for. `python -m unifluid_jax.compile`
assumes speeds below these (`aot/report.py`).
"""

import functools
import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import libtpu_dumps
from unifluid_jax.aot import topology
from unifluid_jax.core import cli, presets
from unifluid_jax.ops import attention

_TOPOLOGY = flags.DEFINE_list("topology", ["v5e:2x2"], "Of libtpu.")

_GEMMA, _VIT = presets.GEMMA["gemma2_2b"], presets.VIT["so400m_14"]
_ROWS = 4


class _Network(NamedTuple):
  """What its attention reads."""

  name: str
  length: int
  heads: int
  kv_heads: int
  size: int  # of a head
  softcap: float
  alone: bool  # neither mask nor rotations


_NETWORKS = (
  _Network(
    "decoder", 384,  # of configs/unified_2b.py
    _GEMMA.heads, _GEMMA.kv_heads, _GEMMA.head_dim, _GEMMA.attn_softcap, False,
  ),
  _Network(
    "encoder", (_VIT.image_size // _VIT.patch) ** 2,
    _VIT.heads, _VIT.heads, _VIT.width // _VIT.heads, 0.0, True,
  ),
)  # fmt: skip
_CORES = {"v5p": 2}  # that share a device's programs; elsewhere 1
_GRID_STEP = 0.35e-6  # seconds, as JAX's Pallas documentation gives it
_PRODUCTS = {"forward": 2, "backward": 5}


def main(_: list[str]) -> None:
  """Prints a line a topology, network and pass, and one for both passes."""
  with libtpu_dumps.folder() as folder:
    for place in libtpu_dumps.tpus(_TOPOLOGY.value):
      for network in _NETWORKS:
        _report(place, network, folder)


def _report(place: topology.Topology, of: _Network, folder: Path) -> None:
  chip, whole, busy, cost = place.chip, 0.0, 0.0, 0.0
  for name, products in _PRODUCTS.items():
    count, programs = _instructions(place, of, name, folder)
    flops = products * 2.0 * of.length**2 * of.heads * of.size
    flops *= _ROWS / programs * _CORES.get(chip.name, 1)
    ideal = flops / chip.flops * chip.clock
    step = _GRID_STEP * chip.clock
    print(
      f"{place.name:10} {of.name} {name:8} {count:6,} instructions, "
      f"{ideal / count:.0%} of the peak, {ideal / (count + step):.0%} with a "
      "grid step's own time",
      flush=True,
    )
    whole, busy, cost = whole + ideal, busy + count, cost + count + step
  print(
    f"{place.name:10} {of.name} both     {whole / busy:.0%}, {whole / cost:.0%}"
  )


def _instructions(
  place: topology.Topology, of: _Network, name: str, folder: Path
) -> tuple[int, int]:
  """Of the kernel, forward or backward: instructions, and how often it runs."""
  libtpu_dumps.clear(folder)
  sharding = jax.sharding.SingleDeviceSharding(place.devices[0])
  array = functools.partial(
    jax.ShapeDtypeStruct, dtype=jnp.bfloat16, sharding=sharding
  )
  t = of.length
  qkv = [
    array((_ROWS, t, n * of.size)) for n in (of.heads, of.kv_heads, of.kv_heads)
  ]
  mask, angles = None, None
  if not of.alone:
    mask = array((_ROWS, t, t), dtype=bool)
    angle = array((_ROWS, t, of.size // 2), dtype=jnp.float32)
    angles = attention.Rotation(angle, angle)

  def forward(qkv, mask, angles):
    qkv = [x.reshape(*x.shape[:2], -1, of.size) for x in qkv]
    return attention.attend(
      *qkv, mask, angles,
      softcap=of.softcap, scale=of.size**-0.5, kernel="mosaic",
    )  # fmt: skip

  def backward(qkv, *rest):
    def total(qkv):
      return forward(qkv, *rest).astype(jnp.float32).sum()

    return jax.grad(total)(qkv)

  run = {"forward": forward, "backward": backward}[name]
  traced = jax.jit(run).trace(qkv, mask, angles)
  # Of a gradient's two kernels the second runs backward.
  grids = re.findall(r"grid=\(([\d, ]+)\)", str(traced.jaxpr))
  traced.lower().compile()
  # The program around the kernel names it too, in a few instructions.
  counts = [
    count
    for text, count in libtpu_dumps.schedules(folder)
    if "tpu_custom_call" in text
  ]
  return max(counts), math.prod(map(int, grids[-1].split(",")))


if __name__ == "__main__":
  cli.run(main)
