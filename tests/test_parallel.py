import dataclasses
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from unifluid_jax import optim, parallel
from unifluid_jax.config import ConfigError, MeshConfig, OptimConfig

OPTIM = OptimConfig(
  "adamw",
  1e-3,
  1,
  "constant",
  1e-3,
  0.9,
  0.95,
  1e-8,
  0.0,
  1.0,
  0.0,
  "float32",
  {},
)


@pytest.fixture(scope="module")
def mesh():
  return parallel.make_mesh(MeshConfig(2, -1, 2))


def test_mesh_fills_the_open_axis(mesh):
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_mesh_that_does_not_fit_is_refused():
  with pytest.raises(ConfigError, match="8 devices"):
    parallel.make_mesh(MeshConfig(3, 1, 1))
  with pytest.raises(ConfigError, match="8 devices"):
    parallel.make_mesh(MeshConfig(3, -1, 1))


def test_a_rule_splits_the_named_axes(mesh):
  spec = parallel.spec_of("decoder/layers/attn/q", (2, 64, 4, 8), mesh)
  assert spec == P(None, "fsdp", "tensor", None)


def test_unknown_parameters_are_refused(mesh):
  with pytest.raises(ValueError, match="matches 0 rows"):
    parallel.spec_of("decoder/layers/attn/new", (2, 64), mesh)


def test_wrong_rank_is_refused(mesh):
  with pytest.raises(ValueError, match="another rank"):
    parallel.spec_of("decoder/layers/attn/q", (2, 64, 32), mesh)


def test_large_arrays_are_never_replicated(mesh):
  with pytest.raises(ValueError, match="too large to replicate"):
    parallel.spec_of("decoder/layers/mlp/up", (1, 513, 513 * 2), mesh)
  small = parallel.spec_of("decoder/layers/mlp/up", (1, 3, 5), mesh)
  assert small == P()


def test_moments_are_laid_out_like_their_parameters(mesh):
  params = {
    "decoder": {"layers": {"mlp": {"up": jnp.zeros((2, 8, 16))}}},
    "projector": {"bias": jnp.zeros((8,))},
  }
  for name in ("adamw", "muon"):
    tx = optim.make_optimizer(dataclasses.replace(OPTIM, name=name), 10)
    state = jax.eval_shape(tx.init, params)
    places = parallel.shardings(state, params, mesh)
    specs = [
      s.spec
      for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(places),
                      strict=True)
      if x.shape == (2, 8, 16)
    ]  # fmt: skip
    assert specs and all(s == P(None, "fsdp", "tensor") for s in specs)


def test_large_state_without_a_parameter_is_refused(mesh):
  state = {"odd": jax.ShapeDtypeStruct((2**20,), jnp.float32)}
  with pytest.raises(ValueError, match="mirrors no parameter"):
    parallel.shardings(state, {}, mesh)


def test_to_global_splits_the_batch(mesh):
  x = parallel.to_global({"x": np.arange(8.0)}, mesh)["x"]
  assert x.sharding.spec == P(("data", "fsdp"))
  assert x.addressable_shards[0].data.shape == (2,)
  np.testing.assert_array_equal(np.asarray(x), np.arange(8.0))


def test_constrain_is_free_without_a_mesh_and_pins_with_one(mesh):
  x = jnp.ones((8, 4, 6))
  assert parallel.constrain(x, "BTD") is x
  with jax.set_mesh(mesh):
    y = jax.jit(lambda a: parallel.constrain(a, "BTF"))(x)
  assert y.sharding.spec == P(("data", "fsdp"), None, "tensor")


@pytest.mark.parametrize(
  "path, shape, inputs, letters",
  [
    ("layers/attn/q", (16, 4, 8), 16, "DN"),
    ("layers/attn/k", (16, 4, 8), 16, "DK"),
    ("layers/attn/o", (4, 8, 16), 32, "ND"),
    ("layers/attn/out/kernel", (4, 8, 16), 32, "ND"),
    ("layers/mlp/up/kernel", (16, 32), 16, "DF"),
    ("layers/mlp/down/kernel", (32, 16), 32, "FD"),
  ],
)
def test_a_matrix_is_split_as_its_weight(mesh, path, shape, inputs, letters):
  """No data move, forward or backward: letters and RULES say the same."""
  spec = parallel.spec_of(path, (2, *shape), mesh)
  place = jax.sharding.NamedSharding(mesh, P(*spec[1:]))
  weight = jax.random.normal(jax.random.key(0), shape)
  flat = weight.reshape(inputs, -1)

  def run(w):
    out, pull = jax.vjp(lambda w: parallel.matrix(w, inputs, letters), w)
    return out, pull(2 * out)[0]

  with jax.set_mesh(mesh):
    program = jax.make_jaxpr(lambda w: parallel.matrix(w, inputs, letters))
    assert program(weight).eqns[-1].primitive.name == "sharding_constraint"
    run = jax.jit(run).lower(jax.device_put(weight, place)).compile()
    out, gradient = run(jax.device_put(weight, place))
  np.testing.assert_array_equal(out, flat)
  np.testing.assert_array_equal(gradient, 2 * weight)
  axes = [{"D": "fsdp", "N": "tensor", "F": "tensor", "K": None}[x]
          for x in letters]  # fmt: skip
  assert out.sharding.is_equivalent_to(
    jax.sharding.NamedSharding(mesh, P(*axes)), 2
  )
  moved = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
  assert not re.search(rf"({moved})(-start)?\(", run.as_text())


@pytest.mark.parametrize(
  "shape, inputs, letters",
  [((12, 4, 8), 12, "DN"), ((4, 8, 12), 32, "ND"), ((12, 32), 12, "DF")],
)
def test_pieces_of_broken_tiles_are_gathered_as_they_are(
  shape, inputs, letters
):
  """3 rows a device, which leave with those of other devices beside them."""
  mesh = parallel.make_mesh(MeshConfig(2, 4, 1))
  weight = jax.random.normal(jax.random.key(0), shape)
  x = jax.random.normal(jax.random.key(1), (8, inputs))
  axes = P(*("fsdp" if n == 12 else None for n in shape))
  place = jax.NamedSharding(mesh, axes)
  rows = jax.NamedSharding(mesh, P(parallel.BATCH_AXES))

  def loss(w, x, matrix):
    return jnp.sum((x @ matrix(w)) ** 2)

  def gathered(w):
    return parallel.matrix(w, inputs, letters)

  def flat(w):
    return w.reshape(inputs, -1)

  want = jax.grad(loss)(weight, x, flat)
  with jax.set_mesh(mesh):
    run = jax.jit(jax.grad(loss), static_argnums=2, out_shardings=place)
    run = run.lower(
      jax.device_put(weight, place), jax.device_put(x, rows), gathered
    ).compile()
  got = run(jax.device_put(weight, place), jax.device_put(x, rows))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
  gathers = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", run.as_text())
  assert gathers and all(n.startswith("4,3,") for n in gathers)
  assert not re.search(r"all-to-all|collective-permute", run.as_text())


def test_a_matrix_that_does_not_split_stays_as_it_is(mesh):
  weight = jnp.arange(105.0).reshape(5, 3, 7)
  with jax.set_mesh(mesh):
    got = jax.jit(lambda w: parallel.matrix(w, 5, "DN"))(weight)
  np.testing.assert_array_equal(got, weight.reshape(5, 21))


def test_batch_that_does_not_split_is_refused(mesh):
  parallel.check_batch({"t2i": 8}, 2, mesh)
  with pytest.raises(ConfigError, match="multiple of 4 batch shards"):
    parallel.check_batch({"t2i": 6}, 1, mesh)


def test_coordinator_without_count_is_refused(monkeypatch):
  monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
  with pytest.raises(ConfigError, match="--num_processes"):
    parallel.start_processes("localhost:1", None, 0)


def test_constrain_is_free_under_pmap():
  """pmap sets a mesh of its own axes."""
  x = np.ones((8, 2, 3), np.float32)
  y = jax.pmap(lambda a: parallel.gather(parallel.constrain(a, "BD")))(x)
  np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
  "platform, kernel, fix",
  [("gpu", "splash", "triton"), ("tpu", "triton", "mosaic"),
   ("cpu", "mosaic", "plain")],
)  # fmt: skip
def test_a_kernel_for_other_devices_is_refused_with_theirs(
  platform, kernel, fix
):
  mesh = mock.Mock(spec=jax.sharding.Mesh)
  mesh.devices = np.array([mock.Mock(platform=platform)])
  with pytest.raises(ConfigError, match=f"{platform}: set .*='{fix}'"):
    parallel.check_attention(kernel, mesh)
  parallel.check_attention("plain", mesh)
  if fix != "plain":
    parallel.check_attention(fix, mesh)
