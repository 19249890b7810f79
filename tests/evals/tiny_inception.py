"""The Inception network shrunk to three layers, for whole commands in seconds.

  python -m tests.evals.tiny_inception evaluate --metrics=fid ...

runs `python -m unifluid_jax.evaluate` with it; `weights` converts it.
"""

import contextlib
import runpy
import sys
from unittest import mock

import numpy as np

from tests.weights import helpers
from unifluid_jax.models import inception
from unifluid_jax.weights import engine, orbax_files, safetensors_file
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


@contextlib.contextmanager
def small():
  """The network is small in this process."""
  with mock.patch.multiple(inception, **SMALL):
    yield


def tensors():
  """A state dict with pytorch-fid's names and random numbers."""
  rng, out = np.random.default_rng(0), {}
  for path, shape in inception_weights._like().items():
    name = inception_weights._row(path).source
    if len(shape) == 4:
      shape = (*shape[3:], *shape[2:3], *shape[:2])
    shape = shape[::-1] if name == "fc.weight" else shape
    values = rng.normal(size=shape).astype(np.float32)
    out[name] = abs(values) if name.endswith("running_var") else values
  return out


def save(file):
  """The file that people download."""
  found = tensors()
  layout = {name: (x.shape, x.dtype) for name, x in found.items()}
  safetensors_file.write(str(file), layout, found.items())


def write(directory):
  """Random weights as `python -m unifluid_jax.weights` writes them."""
  source = helpers.Tensors(tensors())
  plan = engine.make_plan(source, inception_weights.recipe(source))
  orbax_files.write(str(directory), plan.leaves, {}, {})


if __name__ == "__main__":
  entry = f"unifluid_jax.{sys.argv.pop(1)}"
  with small():
    runpy.run_module(entry, run_name="__main__", alter_sys=True)
