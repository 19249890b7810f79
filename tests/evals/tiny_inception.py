"""The Inception network shrunk to three layers, for whole commands in seconds.

  python -m tests.evals.tiny_inception --metrics=fid ...

runs `python -m unifluid_jax.evaluate` with it.
"""

import numpy as np

from tests.weights import helpers
from unifluid_jax.models import inception
from unifluid_jax.weights import engine, orbax_files
from unifluid_jax.weights import inception as inception_weights

SMALL = {
  "NETWORK": (
    inception.Conv("Conv2d_1a_3x3", 5, 3, 3, 40, "VALID"),
    inception.Fork(
      "Mixed_7c",
      (
        (inception.Conv("branch1x1", 2),),
        (inception.Pool("max"), inception.Conv("branch_pool", 3)),
      ),
    ),
  ),
  "FEATURES": 5,
}


def write(directory):
  """Random weights as `python -m unifluid_jax.weights` writes them."""
  rng, tensors = np.random.default_rng(0), {}
  for path, shape in inception_weights._like().items():
    name = inception_weights._row(path).source
    if len(shape) == 4:
      shape = (*shape[3:], *shape[2:3], *shape[:2])
    shape = shape[::-1] if name == "fc.weight" else shape
    values = rng.normal(size=shape).astype(np.float32)
    tensors[name] = abs(values) if name.endswith("running_var") else values
  source = helpers.Tensors(tensors)
  plan = engine.make_plan(source, inception_weights.recipe(source))
  orbax_files.write(str(directory), plan.leaves, {}, {})


if __name__ == "__main__":
  for name, value in SMALL.items():
    setattr(inception, name, value)
  from unifluid_jax import cli, evaluate

  cli.run(evaluate.main)
