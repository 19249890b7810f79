"""Compiling for TPUs ahead of time, where libtpu is."""

import collections
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.libtpu import needs_libtpu
from tests.systems import test_decode_program
from tests.systems.conftest import tiny
from unifluid_jax import systems
from unifluid_jax.aot import compiled, hlo, lower, report, topology
from unifluid_jax.core import config_files, parallel, xla_options
from unifluid_jax.core.config import ConfigError, MeshConfig
from unifluid_jax.models import convolutions, stack
from unifluid_jax.ops import attention
from unifluid_jax.ops.weight_product import product

pytestmark = needs_libtpu


@pytest.mark.slow
def test_a_tpu_step_compiles_with_cycles_and_collectives():
  config = tiny(mesh__data=1, mesh__fsdp=-1, model__decoder__depth=3)
  place = topology.get("v5e:2x2")
  (program,) = lower.programs(config, "train", place.devices)
  done = compiled.compile_program(program.lowered, place)
  found = report.report(config, program, done, place)
  assert found["fits"] is True
  assert 0 < found["mfu"]["exposed"] <= found["mfu"]["hidden"] < 1
  assert found["memory"]["used"] < 2**30
  assert {row["axes"] for row in found["collectives"]} == {"fsdp"}
  assert found["compute_by_part"]["decoder"] > 0


def test_two_slices_sum_gradients_over_the_network_between_them():
  """And gather parameters within each."""
  place = topology.get("v5e:2x2*2")
  with pytest.raises(ConfigError, match="set config.mesh.slices=2"):
    parallel.make_mesh(MeshConfig(1, -1, 1), place.devices)
  mesh = parallel.make_mesh(MeshConfig(1, -1, 1, slices=2), place.devices)
  assert [{d.slice_index for d in s.flat} for s in mesh.devices] == [{0}, {1}]
  weights = NamedSharding(mesh, P("fsdp"))
  w = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=weights)
  rows = NamedSharding(mesh, P(parallel.batch_axes(mesh)))
  x = jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=rows)
  step = jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w))),
                 out_shardings=weights)  # fmt: skip
  done = compiled.compile_program(step.lower(w, x), place)
  found = report.communication(hlo.parse(done.text, mesh.size), mesh, place)
  axes = {(row["kind"], row["axes"]) for row in found}
  assert ("all-gather", "fsdp") in axes
  # Each device's share of what its slice has summed.
  assert {("reduce-scatter", "fsdp"), ("all-reduce", "slices")} <= axes
  (row,) = (row for row in found if row["axes"] == "slices")
  assert row["bytes"] == 1024 * 1024 * 4 / 4


@pytest.mark.parametrize("kind", xla_options.OPTIONS)
def test_the_compiler_takes_every_option(kind):
  """With weights split over devices, which the options are about."""
  names = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v7x:2x2x1")
  places = {p.devices[0].device_kind: p for p in map(topology.get, names)}
  place = places[kind]
  mesh = parallel.make_mesh(MeshConfig(1, -1, 1), place.devices)
  split, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
  x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=split)

  def step(w, x):
    y = x @ jax.lax.with_sharding_constraint(w, whole)
    return jax.lax.with_sharding_constraint(x.T @ y, split)

  options = xla_options.of(mesh)
  assert options
  lowered = jax.jit(step, compiler_options=options).lower(x, x)
  done = compiled.compile_program(lowered, place)
  gathers = [
    c for c in hlo.collectives(hlo.parse(done.text, mesh.size))
    if c.kind == "all-gather"
  ]  # fmt: skip
  assert gathers
  if any("sparse_core" in name for name in options):
    assert all(c.asynchronous for c in gathers)


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1"])
def test_few_images_are_not_cut_into_strips(name):
  """On v6e neither, which takes 8 GB to compile."""
  place = topology.get(name)
  mesh = parallel.make_mesh(MeshConfig(-1, 1, 1), place.devices)
  block = convolutions.Resnet(128, 32, jnp.bfloat16)
  x = jax.ShapeDtypeStruct((4, 64, 64, 128), jnp.bfloat16)
  params = jax.eval_shape(block.init, jax.random.key(0), x)

  def run(options):
    run = jax.jit(block.apply, compiler_options=options)
    one = jax.sharding.SingleDeviceSharding(place.devices[0])
    lowered = run.lower(*jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one),
      (params, x),
    ))  # fmt: skip
    done = compiled.compile_program(lowered, place)
    return hlo.cycles(hlo.parse(done.text, 1)).total

  options = xla_options.of(mesh)
  others = {k: v for k, v in options.items() if "space_to_batch" not in k}
  assert len(others) == len(options) - 2
  assert 1.5 * run(options) < run(others)


def test_gradients_of_broken_tiles_are_summed_beside_products():
  """SigLIP's MLP: 36 rows and columns a device."""
  place = topology.get("v6e:16x16")
  mesh = parallel.make_mesh(MeshConfig(8, 32, 1), place.devices)

  def array(shape, *axes):
    sharding = NamedSharding(mesh, P(*axes))
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

  weights = (
    array((3, 1152, 4304), None, "fsdp"),
    array((3, 4304, 1152), None, None, "fsdp"),
  )
  x = array((1024, 256, 1152), parallel.BATCH_AXES)

  def layer(x, weights):
    up, down = weights
    hidden = jax.nn.gelu(product(x, up, "DF"))
    return parallel.constrain(x + product(hidden, down, "FD"), "BTD")

  def loss(weights, x):
    y = stack.fold_layers(layer, x, weights, remat="dots", scan=True)
    return jnp.sum(y.astype(jnp.float32) ** 2)

  with jax.set_mesh(mesh):
    step = jax.jit(jax.grad(loss), compiler_options=xla_options.of(mesh))
    done = compiled.compile_program(step.lower(weights, x), place)
  summed = [
    c for c in hlo.collectives(hlo.parse(done.text, mesh.size))
    if c.kind == "reduce-scatter" and c.times == 3
  ]  # fmt: skip
  assert sum(c.bytes for c in summed) == 2 * 2 * 1152 * 4304
  assert all(c.asynchronous for c in summed)


def test_what_layers_share_is_computed_before_the_loop_over_them():
  place = topology.get("v6e:2x2")
  one = jax.sharding.SingleDeviceSharding(place.devices[0])

  def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=one)

  def run(x, weights, positions):
    angles = attention.rotation(positions, x.shape[-1], 10_000.0)
    angles = stack.once(angles)

    def layer(x, weight):
      return attention.rotate((x @ weight).astype(x.dtype), angles)

    return stack.fold_layers(layer, x, weights, remat="none", scan=True)

  lowered = jax.jit(run).lower(
    array((8, 384, 1, 256), jnp.bfloat16),
    array((12, 256, 256), jnp.bfloat16),
    array((8, 384), jnp.int32),
  )
  module = hlo.parse(compiled.compile_program(lowered, place).text, 1)
  times = collections.defaultdict(set)
  for visit in hlo.visits(module):
    times[visit.instruction.opcode].add(visit.times)
  assert times["sine"] == {1}
  assert times["convolution"] == {12}


@pytest.mark.parametrize(
  "name, devices",
  [("v4:2x2x1", 8), ("v5p:2x2x1", 4), ("v6e:2x2", 4), ("v7x:2x2x1", 8)],
)
def test_every_kind_of_tpu_is_known(name, devices):
  place = topology.get(name)
  assert len(place.devices) == devices
  assert topology.count(place) == 4


def on_one(place, function, *shape):
  sharding = jax.sharding.SingleDeviceSharding(place.devices[0])
  array = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
  return jax.jit(function).lower(array)


@pytest.mark.parametrize(
  "name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v7x:2x2x1"]
)
def test_limits_are_those_of_the_compiler(name):
  """It names what is available when it refuses a program of that size."""
  place = topology.get(name)
  rows = place.chip.memory // 4096
  lowered = on_one(place, lambda x: jnp.sin(x)[::2] * 2, rows, 1024)
  done = compiled.compile_program(lowered, place)
  available = re.search(r"available HBM \(([\d.]+)G\)", done.error)
  assert float(available[1]) * 2**30 == pytest.approx(place.chip.memory, abs=9)
  assert done.text is None and done.memory["used"] > place.chip.memory


def test_unknown_options_are_refused():
  place = topology.get("v5e:2x2")
  lowered = on_one(place, lambda x: x + 1, 8)
  with pytest.raises(ValueError, match="xla_no_such"):
    compiled.compile_program(lowered, place, {"xla_no_such": "1"})


def test_a_tpu_copies_no_weights_for_a_token():
  """As tests/systems/test_decode_program.py reads it of CPU programs."""
  tree = config_files.load("configs/shapes.py")
  wide = {"width": 512, "mlp": 1024, "head_dim": 128, "depth": 2}
  tree.model.decoder.update(wide)
  tree.model.update(scan=True, dtype="bfloat16")
  tree.sampling.steps = 2
  config, place = systems.resolve(tree), topology.get("v5e:2x2")
  (program,) = lower.programs(
    config, "generate", place.devices, test_decode_program.ROWS
  )
  done = compiled.compile_program(program.lowered, place)
  found = test_decode_program.moved(hlo.parse(done.text, 1))
  weights = test_decode_program.weights_of(systems.build(config))
  assert not {math.prod(shape) for shape in found} & weights
