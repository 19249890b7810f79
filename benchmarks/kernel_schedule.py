"""Counts the instructions of mosaic attention's kernels, without a TPU.

  python -m benchmarks.kernel_schedule --topology=v5e:2x2,v5p:2x2x1,v6e:2x2

One program of the kernel, a row and a head of keys of the 2B configuration,
is compiled by libtpu; what it schedules takes a cycle an instruction if
nothing waits. Printed: instructions, and the share of the chip's peak that
they would reach, alone and with a grid step's own time added. The speeds that
`python -m unifluid_jax.compile` assumes are these (`aot/report.py`).
"""

import functools
import os
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from unifluid_jax import cli, presets
from unifluid_jax.aot import topology
from unifluid_jax.ops import attention

_TOPOLOGY = flags.DEFINE_list("topology", ["v5e:2x2"], "Of libtpu.")

_GEMMA = presets.GEMMA["gemma2_2b"]
_LENGTH = 384  # positions of configs/unified_2b.py
_CORES = {"v5p": 2}  # that share a device's programs; elsewhere 1
_GRID_STEP = 0.35e-6  # seconds, as JAX's Pallas documentation gives it
_PRODUCTS = {"forward": 2, "backward": 5}


def main(_: list[str]) -> None:
  """Prints a line a topology and pass, and one for both passes."""
  with tempfile.TemporaryDirectory() as folder:
    # Read once, when libtpu starts.
    os.environ["LIBTPU_INIT_ARGS"] = (
      f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    )
    for place in map(topology.get, _TOPOLOGY.value):
      if place.chip is None:
        raise ValueError(f"--topology={place.name} is no TPU; try v5e:2x2")
      _report(place, Path(folder))


def _report(place: topology.Topology, folder: Path) -> None:
  chip, whole, busy, cost = place.chip, 0.0, 0.0, 0.0
  for name, products in _PRODUCTS.items():
    count = _instructions(place, name, folder)
    group = _GEMMA.heads // _GEMMA.kv_heads
    flops = products * group * 2.0 * _LENGTH**2 * _GEMMA.head_dim
    ideal = flops * _CORES.get(chip.name, 1) / chip.flops * chip.clock
    step = _GRID_STEP * chip.clock
    print(
      f"{place.name:10} {name:8} {count:6,} instructions, "
      f"{ideal / count:.0%} of the peak, {ideal / (count + step):.0%} with a "
      "grid step's own time",
      flush=True,
    )
    whole, busy, cost = whole + ideal, busy + count, cost + count + step
  print(f"{place.name:10} both     {whole / busy:.0%}, {whole / cost:.0%}")


def _instructions(place: topology.Topology, name: str, folder: Path) -> int:
  """Of the one kernel in a program that runs it forward or backward."""
  for old in folder.iterdir():
    old.unlink()
  sharding = jax.sharding.SingleDeviceSharding(place.devices[0])
  array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  t, h = _LENGTH, _GEMMA.head_dim
  counts = (_GEMMA.heads, _GEMMA.kv_heads, _GEMMA.kv_heads)
  heads = [array((4, t, n * h), jnp.bfloat16) for n in counts]
  mask, angle = array((4, t, t), bool), array((4, t, h // 2), jnp.float32)

  def forward(heads, mask, cos, sin):
    qkv = [x.reshape(*x.shape[:2], -1, h) for x in heads]
    angles = attention.Rotation(cos, sin)
    return attention.attend(
      *qkv, mask, angles,
      softcap=_GEMMA.attn_softcap, scale=h**-0.5, kernel="mosaic",
    )  # fmt: skip

  def backward(heads, *rest):
    def total(heads):
      return forward(heads, *rest).astype(jnp.float32).sum()

    return jax.grad(total)(heads)

  run = {"forward": forward, "backward": backward}[name]
  jax.jit(run).lower(heads, mask, angle, angle).compile()
  texts = [
    path.read_text()
    for path in folder.glob("*schedule-analysis_final_bundles.txt")
  ]
  # The program around the kernel names it too, in a few instructions.
  return max(
    int(re.search(r"total scheduled bundles:\s+(\d+)", text)[1])
    for text in texts
    if "tpu_custom_call" in text
  )


if __name__ == "__main__":
  cli.run(main)
