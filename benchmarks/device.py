r"""Times a configuration at its real size on the devices at hand.

  python -m benchmarks.device --config=configs/unified_2b.py --what=train \
      --config.batch.t2i=16 --config.batch.i2t=16 --config.mesh.fsdp=1 \
      --config.model.attention=plain
  python -m benchmarks.device --config=configs/unified_2b.py --what=generate

Weights and inputs are random, so that neither data nor checkpoints are needed;
the programs are those of training and of the evaluation loop. A variant is a
configuration of its own: --variant="batch.t2i=32,batch.i2t=32" (repeated).
"""

import ast
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import random_arrays
from unifluid_jax import systems, train
from unifluid_jax.aot import lower
from unifluid_jax.core import cli
from unifluid_jax.core.config import Config, ConfigError

_CONFIG = cli.define_config()
_WHAT = flags.DEFINE_enum("what", "train", ["train", "generate", "answer"], "")
_VARIANT = flags.DEFINE_multi_string("variant", [""], "key=value,…; repeated.")
_CALLS = flags.DEFINE_integer("calls", 10, "Timed calls of each.")
_ROWS = flags.DEFINE_integer("rows", 16, "Images a call of generate, answer.")


def main(_: list[str]) -> None:
  """Prints a row a variant; one that fails says why, the rest go on."""
  device = jax.devices()[0]
  print(f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}")
  for variant in _VARIANT.value:
    tree = _CONFIG.value.copy_and_resolve_references()
    for item in filter(None, variant.split(",")):
      key, _, value = item.partition("=")
      tree.update_from_flattened_dict({key: ast.literal_eval(value)})
    measure = _train if _WHAT.value == "train" else _call
    config = systems.resolve(tree)
    if not hasattr(getattr(config.model, "decoder", None), "vocab"):
      raise ConfigError(
        f"config.system={config.system!r} has no decoder of texts to measure"
      )
    try:
      text = measure(config)
    except jax.errors.JaxRuntimeError as error:
      text = f"failed: {str(error).splitlines()[0][:150]}"
    print(f"{_WHAT.value} {variant or 'as configured'}: {text}", flush=True)


def _train(config: Config) -> str:
  system = systems.build(config)
  job = train.make_job(config, system)
  with jax.set_mesh(job.mesh):
    state = jax.jit(
      lambda: train.init_state(system, job.optimizer, config),
      out_shardings=job.shardings,
    )()
    frozen, batch = (
      random_arrays.like(shapes, config.model.decoder.vocab)
      for shapes in (
        systems.frozen_shapes(system), lower.batch_shapes(config, system)
      )
    )  # fmt: skip
    losses = []

    def call():
      nonlocal state
      state, metrics = job.step(state, frozen, batch)
      losses.append(metrics["loss"])
      return metrics

    first, middle = _time(call)
  assert np.isfinite(losses).all(), losses
  speed = train.speed(job, middle)
  mfu = f"MFU {speed['mfu']:.3f}" if "mfu" in speed else "peak not known"
  return (
    f"first call {first:.1f} s, step {middle * 1000:.1f} ms, "
    f"{speed['tokens_per_second']:,.0f} tokens/s, {mfu}, {_peak()}"
  )


def _call(config: Config) -> str:
  """The function of `api.Model`: weights in float32, products as configured."""
  device, vocab = jax.devices()[0], config.model.decoder.vocab
  (program,) = lower.programs(config, _WHAT.value, [device], _ROWS.value)
  compiled = program.lowered.compile()
  weights = (
    random_arrays.like(program.held[part], vocab)
    for part in ("parameters", "frozen")
  )
  arguments = (*weights, *random_arrays.like(program.held["batch"], vocab))
  first, middle = _time(lambda: compiled(*arguments))
  return (
    f"first call {first:.1f} s, then {middle:.3f} s for {program.rows} rows: "
    f"{program.rows / middle:.2f} a second, {_peak()}"
  )


def _time(call: Callable[[], Any]) -> tuple[float, float]:
  """Seconds of the first call, and the median of the others."""
  times = []
  for _ in range(_CALLS.value + 1):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - begin)
  return times[0], float(np.median(times[1:]))


def _peak() -> str:
  """Most memory the first device held so far in this process."""
  held = jax.devices()[0].memory_stats()
  if not held:
    return "memory not known"
  return f"peak memory {held['peak_bytes_in_use'] / 2**30:.1f} GiB so far"


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
