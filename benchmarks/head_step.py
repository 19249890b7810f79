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
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import libtpu_dumps
from configs import unified_2b
from unifluid_jax import systems
from unifluid_jax.aot import hlo, topology
from unifluid_jax.core import cli
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
  with libtpu_dumps.folder() as folder:
    for place in libtpu_dumps.tpus(_TOPOLOGY.value):
      for images in map(int, _IMAGES.value):
        for fused in (False, True):
          libtpu_dumps.clear(folder)
          step = _compile(_trace(place, images, fused), folder)
          print(
            f"{place.name:10} {images:4} images  {('plain', 'fused')[fused]}  "
            f"{step.operations:3} operations, {step.cycles:9,} cycles, "
            f"kernels {step.instructions:9,} instructions",
            flush=True,
          )


def _trace(place: topology.Topology, images: int, fused: bool) -> Any:
  """The drawing of one token."""
  system = systems.build(systems.resolve(unified_2b.get_config()))
  net = system.tokens.net
  net = net.clone(config=dataclasses.replace(net.config, fused=fused))
  sharding = jax.sharding.SingleDeviceSharding(place.devices[0])

  def on_it(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  def arguments():
    z = jnp.zeros((images, system.decoder.config.width))
    return z, z, jax.random.split(jax.random.key(0), images)

  def draw(weights, z, z_null, keys):
    schedule = diffusion.respace(_STEPS)
    return sample_tokens(net, weights, schedule, z, z_null, keys, 2.0, 1.0)

  narrow = functools.partial(diffusion_head.narrow, dtype=jnp.bfloat16)
  weights = jax.eval_shape(narrow, systems.init_shapes(system)["head"])
  given = jax.tree.map(on_it, (weights, *jax.eval_shape(arguments)))
  return jax.jit(draw).trace(*given)


def _compile(traced: Any, dumps: Path) -> _Step:
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
  # Programs around the kernels name them in their texts, not their files.
  kernels = [n for _, n in libtpu_dumps.schedules(dumps, "denoise_fused")]
  return _Step(len(launched), sum(cycles), programs * sum(kernels))


if __name__ == "__main__":
  cli.run(main)
