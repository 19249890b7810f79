"""The compiled loop over tokens: no weights and no cache are moved in it."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from unifluid_jax import systems
from unifluid_jax.aot import hlo
from unifluid_jax.core import config_files
from unifluid_jax.models import key_cache
from unifluid_jax.systems.common import embed

ROWS = 3
# What moves numbers and computes none.
MOVES = {
  "copy", "copy-start", "copy-done", "slice", "dynamic-slice", "transpose",
  "concatenate", "pad", "reshape", "gather", "reverse",
}  # fmt: skip
CASES = [
  ("shapes.py", "generate"), ("shapes.py", "answer"),
  ("liquid_shapes.py", "generate"), ("liquid_shapes.py", "answer"),
  ("unitoken_shapes.py", "generate"), ("unitoken_shapes.py", "answer"),
  ("vargpt_shapes.py", "answer"),
]  # fmt: skip


def dims(text):
  """Of a shape, without ones, in any order: what a transposed copy has too."""
  found = re.search(r"\[([\d,]*)\]", text)
  sides = found[1].split(",") if found else []
  return tuple(sorted(int(side) for side in sides if side not in ("", "1")))


def program(config, what, **changes):
  """The optimised program of one batch, and the system."""
  tree = config_files.load(f"configs/{config}")
  if "steps" in tree.sampling:
    tree.sampling.steps = 2
  tree.update_from_flattened_dict({"model.decoder.depth": 2} | changes)
  system = systems.build(systems.resolve(tree))
  task = "t2i" if what == "generate" else "i2t"
  batch = {
    f"{name}.{part}" if part else name: jax.ShapeDtypeStruct(
      (ROWS, *shape.shape), shape.dtype
    )
    for name, field in system.inputs[task].items()
    if not field.target
    for part, shape in field.shapes().items()
  }

  def run(params, frozen, batch, seeds):
    keys = jax.vmap(jax.random.key)(seeds)
    sampling = system.config.sampling
    return getattr(system, what)(params, frozen, {task: batch}, keys, sampling)

  seeds = jax.ShapeDtypeStruct((ROWS,), jnp.uint32)
  shapes = systems.init_shapes(system), systems.frozen_shapes(system)
  compiled = jax.jit(run).lower(*shapes, batch, seeds).compile()
  return hlo.parse(compiled.as_text(), 1), system


def looped(module):
  """What runs in loops, fusions as one instruction."""
  bodies, todo = set(), [module.entry]
  for name in todo:  # grows
    for line in module.computations[name]:
      called = hlo._called(line) if line.opcode != "fusion" else []
      if line.opcode == "while" or name in bodies:
        bodies.update(called)
      todo += [c for c in called if c not in todo]
  return [line for name in bodies for line in module.computations[name]]


def moved(module):
  """Shapes of all that is moved in loops."""
  found = []
  for line in looped(module):
    inner = [line]
    if line.opcode == "fusion":
      name = re.search(r"calls=%?([\w.\-]+)", line.rest)[1]
      inner = module.computations[name]
    kinds = {i.opcode for i in inner if dims(i.shape)}  # scalars: indices
    kinds -= {"parameter", "constant", "bitcast", "get-tuple-element"}
    if kinds and kinds <= MOVES:
      found.append(dims(line.shape))
  return found


def weights_of(system):
  """Numbers of elements of a layer's matrices: no batch has as many.

  As these are powers of two, and batches and their caches have multiples of 3.
  """
  stacked = systems.init_shapes(system)["decoder"]["layers"]
  sizes = [math.prod(x.shape[1:]) for x in jax.tree.leaves(stacked)]
  sizes = {size for size in sizes if size >= 128 * 128}
  assert sizes and all(size & (size - 1) == 0 for size in sizes) and ROWS == 3
  return sizes


def caches_of(system, module):
  """Dimensions of a layer's keys or values in the loop."""
  config = system.config.model.decoder
  heads = {config.kv_heads, config.head_dim}
  written = {
    dims(line.shape)
    for line in looped(module)
    if "dynamic-update-slice" in (line.name + line.opcode)
  }
  found = {shape for shape in written if heads <= set(shape)}
  assert found
  return found


@pytest.mark.parametrize("config, what", CASES)
@pytest.mark.parametrize("scan", [False, True])
def test_nothing_is_copied_for_each_token(config, what, scan):
  module, system = program(config, what, **{"model.scan": scan})
  found = moved(module)
  assert not {math.prod(shape) for shape in found} & weights_of(system)
  assert not set(found) & caches_of(system, module)


def test_a_stack_is_seen_to_be_copied(monkeypatch):
  """What the other test looks for is there without what it tests."""
  monkeypatch.setattr(embed, "cast_for_decoding", lambda params, _: params)
  module, system = program("shapes.py", "generate")
  found = {math.prod(shape) for shape in moved(module)}
  assert found & weights_of(system)


def test_a_cache_in_another_order_is_seen_to_be_copied(monkeypatch):
  def slots_first(cache, k, v, index):
    turned = key_cache.LayerCache(
      cache.k.transpose(0, 1, 3, 2), cache.v.transpose(0, 1, 3, 2)
    )
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 3, 1)
    k = jax.lax.dynamic_update_slice(turned.k, keys, (0, 0, index, 0))
    v = jax.lax.dynamic_update_slice(turned.v, values, (0, 0, 0, index))
    return key_cache.LayerCache(k.swapaxes(2, 3), v.swapaxes(2, 3))

  monkeypatch.setattr(key_cache, "write", slots_first)
  module, system = program("shapes.py", "generate")
  assert set(moved(module)) & caches_of(system, module)
