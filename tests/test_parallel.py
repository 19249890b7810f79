import dataclasses
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from unifluid_jax.core import optim, parallel
from unifluid_jax.core.config import ConfigError, MeshConfig, OptimConfig
from unifluid_jax.core.parameter_rows import Row, row_of
from unifluid_jax.models import decoder

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
PARTS = {
  "decoder": decoder.ROWS,
  "projector": (Row("bias", (None,)),),
}


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


@pytest.fixture(scope="module")
def sliced():
  return parallel.make_mesh(MeshConfig(1, -1, 2, slices=2))


def test_slices_are_the_outermost_axis(sliced):
  assert dict(sliced.shape) == {
    "slices": 2, "data": 1, "fsdp": 2, "tensor": 2,
  }  # fmt: skip
  ids = np.vectorize(lambda d: d.id)(sliced.devices)
  assert ids[0].max() < ids[1].min()
  one = parallel.make_mesh(MeshConfig(2, 2, 2, slices=1))
  assert one.axis_names == parallel.AXES
  with pytest.raises(ConfigError, match="'slices': 2, .* 8 devices"):
    parallel.make_mesh(MeshConfig(3, 1, 1, slices=2))


def test_rows_are_split_over_slices_and_parameters_are_not(sliced):
  spec = parallel.spec_of(PARTS, "decoder/layers/attn/q", (2, 64, 4, 8), sliced)
  assert spec == P(None, "fsdp", "tensor", None)
  x = parallel.to_global({"x": np.arange(8.0)}, sliced)["x"]
  assert x.sharding.spec == P(("slices", "data", "fsdp"))
  assert parallel.batch_groups(sliced) == 4
  with jax.set_mesh(sliced):
    assert parallel.layout((8, 3, 4), "BTF") == P(
      ("slices", "data", "fsdp"), None, "tensor"
    )
    assert parallel.layout((4, 8), "GV") == P(("slices", "data"), "fsdp")
    assert parallel.split_rows(4) == 2 and parallel.split_rows(3) == 1
  with pytest.raises(ConfigError, match="mesh slices x data x fsdp"):
    parallel.check_batch({"t2i": 2}, 1, sliced)


def test_a_tpu_knows_its_slices():
  class Device(NamedTuple):
    id: int
    slice_index: int
    platform: str = "tpu"

  devices = [Device(i, i % 2) for i in range(4)]
  found = parallel._slices(devices, 2)
  assert [[d.id for d in part] for part in found] == [[0, 2], [1, 3]]
  with pytest.raises(ConfigError, match="2 slices: set config.mesh.slices=2"):
    parallel._slices(devices, 1)


def test_a_rule_splits_the_named_axes(mesh):
  spec = parallel.spec_of(PARTS, "decoder/layers/attn/q", (2, 64, 4, 8), mesh)
  assert spec == P(None, "fsdp", "tensor", None)


def test_unknown_parameters_are_refused(mesh):
  with pytest.raises(ValueError, match="matches 0 rows"):
    parallel.spec_of(PARTS, "decoder/layers/attn/new", (2, 64), mesh)


def test_the_longest_prefix_has_the_row():
  whole, inner = (Row(".*", ("fsdp",)),), (Row("x", (None,)), Row("y", ()))
  parts = {"a": whole, "a/b": inner, "a/b/x/z": whole}
  assert row_of(parts, "a/b/x") == inner[0]
  assert row_of(parts, "a/bx") == row_of(parts, "a/c/x") == whole[0]
  with pytest.raises(ValueError, match="matches 0 rows of 'a/b'"):
    row_of(parts, "a/b/yy")


def test_parameters_outside_all_parts_or_of_two_rows_are_refused():
  twice = {"a": (Row("x|y", ()), Row("[xz]", ()))}
  with pytest.raises(ValueError, match="a/x matches 2 rows of 'a'"):
    row_of(twice, "a/x")
  with pytest.raises(ValueError, match="b/x matches 0 rows: .* are a$"):
    row_of(twice, "b/x")


def test_wrong_rank_is_refused(mesh):
  with pytest.raises(ValueError, match="another rank"):
    parallel.spec_of(PARTS, "decoder/layers/attn/q", (2, 64, 32), mesh)


def test_large_arrays_are_never_replicated(mesh):
  with pytest.raises(ValueError, match="too large to replicate"):
    parallel.spec_of(PARTS, "decoder/layers/mlp/up", (1, 513, 513 * 2), mesh)
  small = parallel.spec_of(PARTS, "decoder/layers/mlp/up", (1, 3, 5), mesh)
  assert small == P()


def test_moments_are_laid_out_like_their_parameters(mesh):
  params = {
    "decoder": {"layers": {"mlp": {"up": jnp.zeros((2, 8, 16))}}},
    "projector": {"bias": jnp.zeros((8,))},
  }
  for name in ("adamw", "muon"):
    tx = optim.make_optimizer(dataclasses.replace(OPTIM, name=name), 10, PARTS)
    state = jax.eval_shape(tx.init, params)
    places = parallel.shardings(state, params, PARTS, mesh)
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
    parallel.shardings(state, {}, {}, mesh)


def test_to_global_splits_the_batch(mesh):
  x = parallel.to_global({"x": np.arange(8.0)}, mesh)["x"]
  assert x.sharding.spec == P(("data", "fsdp"))
  assert x.addressable_shards[0].data.shape == (2,)
  np.testing.assert_array_equal(np.asarray(x), np.arange(8.0))


@dataclasses.dataclass(frozen=True)
class Fake:
  id: int
  process_index: int
  platform: str = "cpu"
  device_kind: str = "cpu"


@pytest.mark.parametrize(
  "shape, owners, share",
  [
    ((2, 2, 1), [0, 0, 1, 1], (0, 2)),
    ((1, 2, 2), [1, 1, 0, 0], (1, 2)),
    ((1, 1, 4), [0, 0, 1, 1], (0, 1)),
    ((1, 2, 4), [0, 0, 1, 1, 2, 2, 3, 3], (0, 2)),
    # As a grid of chips: each process has half of two rows.
    ((1, 4, 4), [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2, (0, 2)),
  ],
)
def test_processes_along_tensor_hold_the_same_rows(shape, owners, share):
  devices = [Fake(i, owner) for i, owner in enumerate(owners)]
  grid = jax.sharding.Mesh(np.reshape(devices, shape), parallel.AXES)
  assert parallel.batch_share(grid) == share


def test_processes_whose_rows_overlap_are_refused():
  devices = [Fake(i, i // 3) for i in range(6)]
  grid = jax.sharding.Mesh(np.reshape(devices, (3, 1, 2)), parallel.AXES)
  with pytest.raises(ConfigError, match="3 batch shards do not split over 2"):
    parallel.batch_share(grid)


def test_constrain_is_free_without_a_mesh_and_pins_with_one(mesh):
  x = jnp.ones((8, 4, 6))
  assert parallel.constrain(x, "BTD") is x
  with jax.set_mesh(mesh):
    y = jax.jit(lambda a: parallel.constrain(a, "BTF"))(x)
  assert y.sharding.spec == P(("data", "fsdp"), None, "tensor")


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
