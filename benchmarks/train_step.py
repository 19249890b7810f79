r"""Times one training step of a configuration, and of variants against it.

  python -m benchmarks.train_step --config=configs/shapes.py \
      --variant=model.scan=True --variant="optim.name='adamw'"

Every variant is built, compiled and timed in this one process; ratios are to
the configuration itself. Data are one real batch, so the loader takes no part.
"""

import ast
import time

import jax
import numpy as np
from absl import flags

from unifluid_jax import systems, train
from unifluid_jax.core import cli, parallel
from unifluid_jax.data import pipeline, text

_CONFIG = cli.define_config()
_VARIANT = flags.DEFINE_multi_string("variant", [], "key=value; repeated.")
_STEPS = flags.DEFINE_integer("steps", 20, "Timed steps of each.")


def main(_: list[str]) -> None:
  """Prints a row a variant: compile seconds, step milliseconds, ratio."""
  base = None
  for variant in ["", *_VARIANT.value]:
    tree = _CONFIG.value.copy_and_resolve_references()
    if variant:
      key, _, value = variant.partition("=")
      tree.update_from_flattened_dict({key: ast.literal_eval(value)})
    compile_s, low, middle = measure(systems.resolve(tree))
    base = base or middle
    print(
      f"{variant or 'as configured':32} compile {compile_s:6.1f} s   step "
      f"min {low:7.1f} median {middle:7.1f} ms   x{middle / base:.2f}",
      flush=True,
    )


def measure(config) -> tuple[float, float, float]:
  """Compile seconds, minimum and median step time in milliseconds."""
  system = systems.build(config)
  job = train.make_job(config, system)
  tokenizer = None
  if pipeline.needs_text(system.inputs):
    tokenizer = text.Tokenizer.load(config.text.tokenizer, config.text.special)
  loader = pipeline.make_loader(config, system.inputs, tokenizer)
  batch = next(loader)
  loader.close()
  with jax.set_mesh(job.mesh):
    state = jax.jit(
      lambda: train.init_state(system, job.optimizer, config),
      out_shardings=job.shardings,
    )()
    frozen = systems.load_frozen(system)
    batch = parallel.to_global(batch, job.mesh)
    times = []
    for _ in range(_STEPS.value + 1):
      begin = time.perf_counter()
      state, metrics = job.step(state, frozen, batch)
      jax.block_until_ready((state, metrics))
      times.append(time.perf_counter() - begin)
  rest = np.asarray(times[1:]) * 1000
  return times[0], float(rest.min()), float(np.median(rest))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
