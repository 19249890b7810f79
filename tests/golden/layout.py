"""What becomes of each parameter of the full-size configurations, as text.

  python -m tests.golden.layout

rewrites the tables beside this file: look at the difference before committing
it. `tests/test_golden.py` compares them.
"""

import importlib
import math
from pathlib import Path

from tests import conftest  # before jax: fakes devices

import jax  # isort: skip

from unifluid_jax import systems, train
from unifluid_jax.core import config, optim, parallel

assert conftest

FOLDER = Path(__file__).parent
CONFIGS = (
  "unified_2b", "unified_2b_gemma1", "unified_700m", "vae", "shapes",
  "tokenizer", "tokenizer:var16", "liquid_7b", "unitoken_7b", "var",
  "vargpt_7b:stage3",
)  # fmt: skip
MESHES = ((4, 2, 1), (2, 2, 2))  # data x fsdp x tensor


def file_of(name: str) -> Path:
  """Where the table of a configuration is kept."""
  return FOLDER / f"{name.replace(':', '_')}.txt"


def table(name: str) -> str:
  """A row per parameter, then what one device holds.

  A row has the path, the shape, the mesh axis of each dimension on each of
  MESHES ("whole": replicated), whether weight decay touches it, and which
  optimizer updates it where optim.name is "muon".
  """
  module, _, arg = name.partition(":")
  experiment = importlib.import_module(f"configs.{module}")
  tree = experiment.get_config(*([arg] if arg else []))
  c = systems.resolve(tree)
  system = systems.build(c)
  optimizer = optim.make_optimizer(c.optim, c.steps, system.parts)
  state = jax.eval_shape(lambda: train.init_state(system, optimizer, c))
  meshes = [parallel.make_mesh(config.MeshConfig(*m)) for m in MESHES]
  places = [
    parallel.shardings(state, state.params, system.parts, mesh)
    for mesh in meshes
  ]
  columns = [
    state.params,
    *(p.params for p in places),
    optim.decay_mask(system.parts, "adamw", state.params),
    optim.muon_or_adam(system.parts, state.params),
  ]
  flat = [jax.tree_util.tree_leaves_with_path(column) for column in columns]
  rows = [("parameter", "shape", *map(_by, MESHES), "decays", "under muon")]
  for (path, x), *others in zip(*flat, strict=True):
    *specs, decays, kind = (value for _, value in others)
    axes = [
      " ".join(axis or "-" for axis in s.spec) if any(s.spec) else "whole"
      for s in specs
    ]
    word = "decays" if decays else "-"
    rows.append((parallel.path_str(path), _by(x.shape), *axes, word, kind))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  ]
  for mesh, place in zip(MESHES, places, strict=True):
    held = sum(
      math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
      for x, s in zip(
        jax.tree.leaves(state), jax.tree.leaves(place), strict=True
      )
    )
    lines.append(f"state per device on {_by(mesh)}: {held:,} bytes")
  return "".join(line.rstrip() + "\n" for line in lines)


def _by(sizes: tuple[int, ...]) -> str:
  return "x".join(map(str, sizes))


if __name__ == "__main__":
  for each in CONFIGS:
    file_of(each).write_text(table(each))
