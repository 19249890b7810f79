r"""A head step as the TPU compiler schedules it, plain and fused.

  python -m benchmarks.head_step --topology=v5e:2x2,v5p:2x2x1,v6e:2x2

No TPU is needed. Draws one token of `--images` images with guidance by the head
of configs/unified_2b.py, 100 steps. Printed of one step: operations in the body
of the loop; cycles that the compiler estimates, fused kernels apart; and of
these the instructions of all programs, a cycle each if nothing waits.
`config.model.head.fused` chooses between the two.
"""

import dataclasses
import functools
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from configs import unified_2b
from unifluid_jax import systems
from unifluid_jax.aot import hlo, topology
from unifluid_jax.models import diffusion_head
from unifluid_jax.models.ddpm_head import sample_tokens
from unifluid_jax.ops import diffusion

_TOPOLOGY = flags.DEFINE_list("topology", ["v5e:2x2"], "Of libtpu.")
_IMAGES = flags.DEFINE_list("images", ["1", "32"], "Drawn at once.")
_STEPS = 100
# These launch nothing, or fetch weights while something else runs.
_FREE = (
  r"^(bitcast|constant|get-tuple-element|parameter|tuple|.*-(start|done))$"
)
_CYCLES = r'"estimated_cycles":"(\d+)"'


class _Step(NamedTuple):
  operations: int
  cycles: int  # outside kernels
  instructions: int  # of all programs of all kernels


def main(_: list[str]) -> None:
  """Prints a line a topology, number of images and form."""
  with tempfile.TemporaryDirectory() as folder:
    # Read once, when libtpu starts.
    os.environ["LIBTPU_INIT_ARGS"] = (
      f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    )
    for place in map(topology.get, _TOPOLOGY.value):
      for images in map(int, _IMAGES.value):
        for fused in (False, True):
          step = _compile(place, images, fused, Path(folder))
          print(
            f"{place.name:10} {images:4} images  {('plain', 'fused')[fused]}  "
            f"{step.operations:3} operations, {step.cycles:9,} cycles, "
            f"kernels {step.instructions:9,} instructions",
            flush=True,
          )


def _compile(
  place: topology.Topology, images: int, fused: bool, folder: Path
) -> _Step:
  for old in folder.iterdir():
    old.unlink()
  system = systems.build(systems.resolve(unified_2b.get_config()))
  net = system.tokens.net
  net = net.clone(config=dataclasses.replace(net.config, fused=fused))
  sharding = jax.sharding.SingleDeviceSharding(place.devices[0])

  def on_it(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  weights = systems.init_shapes(system)["head"]
  narrow = functools.partial(diffusion_head.narrow, dtype=jnp.bfloat16)
  z = jax.ShapeDtypeStruct(
    (images, weights["cond"]["kernel"].shape[0]), jnp.float32
  )
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))
  arguments = (jax.eval_shape(narrow, weights), z, z, keys)

  def draw(weights, z, z_null, keys):
    schedule = diffusion.respace(_STEPS)
    return sample_tokens(net, weights, schedule, z, z_null, keys, 2.0, 1.0)

  traced = jax.jit(draw).trace(*jax.tree.map(on_it, arguments))
  module = hlo.parse(traced.lower().compile().as_text(), 1)
  lines = [
    visit.instruction
    for visit in hlo.visits(module)
    if visit.times == _STEPS and not visit.fused
  ]
  cycles = [int(n) for x in lines for n in re.findall(_CYCLES, x.rest)]
  launched = [x for x in lines if not re.search(_FREE, x.opcode)]
  # Of one platform every kernel has the same grid; a TPU's is the smallest.
  grids = re.findall(r"grid=\((\d+), (\d+)\)", str(traced.jaxpr))
  programs = min((int(a) * int(b) for a, b in grids), default=0)
  scheduled = [
    int(re.search(r"total scheduled bundles:\s+(\d+)", path.read_text())[1])
    for path in folder.glob("*denoise_fused*schedule-analysis_final_bundles*")
  ]
  return _Step(len(launched), sum(cycles), programs * sum(scheduled))


if __name__ == "__main__":
  app.run(main)
