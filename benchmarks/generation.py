r"""Seconds an image by head steps, passes and batch, as shares of the bound.

  python -m benchmarks.generation --config=configs/shapes.py
  python -m benchmarks.generation --config=configs/unified_2b.py \
      --steps=100,10,4 --passes=0,32 --batches=1,32,256

Weights are random; programs are those of `model.generate`, image tokenizer
included. The bound is what this device needs at least for the products of
decoder and head: each reads its weights once a pass, or a step, or computes,
whichever takes longer. The device's two limits are measured first, by a large
product in the configuration's dtype and by reading an array as large as these
weights, which small ones may do from a cache. Runs that draw tokens one by one
in raster order take --passes=0 alone.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from unifluid_jax import systems
from unifluid_jax.core import cli
from unifluid_jax.core.config import Config
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import UNK
from unifluid_jax.data import tasks
from unifluid_jax.ops import order

_CONFIG = cli.define_config()
_STEPS = flags.DEFINE_list("steps", ["50", "10", "4"], "Of the head.")
_PASSES = flags.DEFINE_list("passes", ["0"], "Of the decoder; 0: one a token.")
_BATCHES = flags.DEFINE_list("batches", ["1", "32"], "Images a call.")
_CALLS = flags.DEFINE_integer("calls", 3, "Timed calls of each.", 1)


class Device(NamedTuple):
  """What a device can do."""

  flops: float  # a second, of large products
  bandwidth: float  # bytes a second, read

  def seconds(self, weights: float, rows: float, itemsize: int) -> float:
    """Least time to multiply rows with so many weights."""
    read = weights * itemsize / self.bandwidth
    return max(read, 2 * weights * rows / self.flops)


def main(_: list[str]) -> None:
  """Prints the device's limits, then a line for every combination."""
  config = systems.resolve(_CONFIG.value)
  if not hasattr(config.model, "head"):
    raise ConfigError(
      f"config.system={config.system!r} draws codes: this benchmark is of "
      "heads that draw continuous tokens"
    )
  system = systems.build(config)
  shapes = systems.init_shapes(system)
  weights = _elements((shapes["decoder"]["layers"], shapes["head"]))
  device = measured(jnp.dtype(config.model.dtype), weights)
  print(
    f"{jax.devices()[0].device_kind}, jax {jax.__version__}: "
    f"{device.flops / 1e12:.3g} TFLOP/s in {config.model.dtype}, "
    f"{device.bandwidth / 1e9:.3g} GB/s"
  )
  params = jax.jit(system.init)(jax.random.key(0))
  frozen = jax.tree.map(
    lambda x: jnp.ones(x.shape, x.dtype), systems.frozen_shapes(system)
  )
  for batch in map(int, _BATCHES.value):
    for passes in map(int, _PASSES.value):
      for steps in map(int, _STEPS.value):
        sampling = dataclasses.replace(
          # Every token takes so many evaluations, as the bound assumes.
          config.sampling, steps=steps, passes=passes, last_steps=0,
          solver="euler",
        )  # fmt: skip
        name = f"images {batch:4}  passes {passes:4}  steps {steps:4}  "
        try:
          systems.spec(config.system).check_sampling(
            config, sampling, tasks.T2I
          )
        except ValueError as error:
          print(name + str(error), flush=True)
          continue
        took = _timed(system, params, frozen, batch, sampling)
        least = bound(config, system, sampling, batch, device)
        print(
          f"{name}{1e3 * took / batch:9.3f} ms an image  "
          f"bound {1e3 * least / batch:9.3f}  {100 * least / took:5.1f} %",
          flush=True,
        )


def measured(dtype: Any, weights: int) -> Device:
  """The limits of the first device, from its best of many tries."""
  size = 2048 if jax.default_backend() == "cpu" else 8192
  a = jnp.ones((size, size), dtype)
  product = jax.jit(lambda a: a @ a)
  x, total = jnp.ones(weights, dtype), jax.jit(jnp.sum)
  return Device(
    2 * size**3 / _best(lambda: product(a), 10),
    x.nbytes / _best(lambda: total(x), 50),
  )


def bound(
  config: Config, system: Any, sampling: Any, batch: int, device: Device
) -> float:
  """Least seconds of a call; see above."""
  m, n = config.model, config.model.image_tokens
  itemsize = jnp.dtype(m.dtype).itemsize
  shapes = systems.init_shapes(system)
  layers = _elements(shapes["decoder"]["layers"])
  head = _elements(shapes["head"])
  told = (3 * m.head.depth + 2) * m.head.width**2  # modulations
  rows = batch * (1 if sampling.cfg == 1 else 2)
  sizes = order.group_sizes(n, sampling.passes, sampling.order)
  prompt = config.text.prompt
  seconds = device.seconds(layers, rows * prompt, itemsize)
  before = 1
  for size in sizes:
    # A group's tokens, and all but one of the group before it.
    tokens = size + before - 1
    seconds += device.seconds(layers, rows * tokens, itemsize)
    drawn, before = rows * size, size
    seconds += device.seconds(told, drawn * sampling.steps, itemsize)
    step = device.seconds(head - told, drawn, itemsize)
    seconds += sampling.steps * step
  return seconds


def _elements(tree: Any) -> int:
  """Of its matrices."""
  return sum(
    math.prod(x.shape) for x in jax.tree.leaves(tree) if len(x.shape) > 1
  )


def _timed(
  system: Any, params: Any, frozen: Any, batch: int, sampling: Any
) -> float:
  """Seconds of the best call."""
  length = system.config.text.prompt
  prompts = {tasks.T2I: {"prompt": jnp.full((batch, length), UNK, jnp.int32)}}
  keys = jax.random.split(jax.random.key(1), batch)

  @jax.jit
  def run(params, frozen, prompts, keys):
    return system.generate(params, frozen, prompts, keys, sampling)

  return _best(lambda: run(params, frozen, prompts, keys), _CALLS.value)


def _best(call: Callable[[], Any], times: int) -> float:
  jax.block_until_ready(call())
  found = []
  for _ in range(times):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    found.append(time.perf_counter() - begin)
  return float(np.min(found))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
