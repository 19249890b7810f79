"""Products on meshes of fake devices against the same on one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.jaxprs import operations
from unifluid_jax.core import parallel
from unifluid_jax.core.config import MeshConfig
from unifluid_jax.models import decoder, vit
from unifluid_jax.ops.weight_product import product


@pytest.fixture
def mesh():
  return parallel.make_mesh(MeshConfig(2, 4, 1))


@pytest.mark.parametrize(
  "network, path, shape, inputs, letters",
  [
    (decoder, "layers/attn/q", (32, 4, 8), 32, "DN"),
    (decoder, "layers/attn/k", (32, 4, 8), 32, "DK"),
    (decoder, "layers/attn/o", (4, 8, 32), 32, "ND"),
    (vit, "layers/attn/out/kernel", (4, 8, 32), 32, "ND"),
    (vit, "layers/mlp/up/kernel", (32, 48), 32, "DF"),
    (vit, "layers/mlp/down/kernel", (48, 32), 48, "FD"),
  ],
)
def test_products_read_weights_as_they_are_split(
  mesh, network, path, shape, inputs, letters
):
  """Letters and rows say the same: nothing changes places."""
  parts = {"network": network.ROWS}
  spec = parallel.spec_of(parts, f"network/{path}", (2, *shape), mesh)
  spec = P(*spec[1:])
  place = jax.sharding.NamedSharding(mesh, spec)
  got, want, program, text = gradients(mesh, shape, inputs, letters, place)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  pinned = {
    line.params["sharding"].spec
    for line in operations(program)
    if line.primitive.name == "sharding_constraint"
  }
  (pinned,) = pinned
  assert [axis for axis in pinned if axis] == [axis for axis in spec if axis]
  assert not re.search(r"all-to-all|collective-permute", text)


@pytest.mark.parametrize("sizes", [(2, 4, 1), (2, 2, 2)])
@pytest.mark.parametrize(
  "shape, inputs, letters",
  [((12, 4, 8), 12, "DN"), ((4, 8, 12), 32, "ND"), ((12, 32), 12, "DF"),
   ((32, 12), 32, "FD"), ((12, 2, 8), 12, "DK")],
)  # fmt: skip
def test_pieces_of_broken_tiles_travel_as_they_are(
  sizes, shape, inputs, letters
):
  """3 or 6 rows a device, beside those of others, forward and backward."""
  mesh = parallel.make_mesh(MeshConfig(*sizes))
  axes = P(*("fsdp" if n == 12 else None for n in shape))
  place = jax.NamedSharding(mesh, axes)
  got, want, program, text = gradients(mesh, shape, inputs, letters, place)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  pieces = f"{sizes[1]},{12 // sizes[1]},"
  gathers = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
  # What is split over tensor comes together too.
  assert any(n.startswith(pieces) for n in gathers)
  assert sizes[2] > 1 or all(n.startswith(pieces) for n in gathers)
  (scattered,) = (
    line for line in operations(program)
    if line.primitive.name == "reduce_scatter"
  )  # fmt: skip
  assert scattered.invars[0].aval.shape[:2] == (sizes[1], 12 // sizes[1])
  assert not re.search(r"all-to-all|collective-permute", text)


def test_pieces_are_summed_over_slices_too():
  mesh = parallel.make_mesh(MeshConfig(1, 4, 1, slices=2))
  place = jax.NamedSharding(mesh, P("fsdp", None))
  got, want, program, _ = gradients(mesh, (12, 32), 12, "DF", place)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  names = [line.primitive.name for line in operations(program)]
  assert "reduce_scatter" in names


def gradients(mesh, shape, inputs, letters, place):
  """Of a loss over a product, on the mesh and without; the programs."""
  weight = jax.random.normal(jax.random.key(0), shape)
  x = jax.random.normal(jax.random.key(1), (8, 3, inputs)) / inputs**0.5
  rows = jax.NamedSharding(mesh, P(parallel.batch_axes(mesh)))

  def loss(w, x):
    return jnp.sum(jnp.sin(product(x, w, letters)))

  run = jax.value_and_grad(loss, (0, 1))
  want = jax.tree.leaves(run(weight, x))
  with jax.set_mesh(mesh):
    program = jax.make_jaxpr(run)(weight, x).jaxpr
    placed = jax.device_put(weight, place), jax.device_put(x, rows)
    run = jax.jit(run, out_shardings=(None, (place, rows)))
    run = run.lower(*placed).compile()
    got = jax.tree.leaves(run(*placed))
  return got, want, program, run.as_text()


def test_products_that_do_not_split_stay_as_they_are(mesh):
  weight = jnp.arange(105.0).reshape(5, 3, 7)
  x = jnp.ones((1, 2, 5))
  with jax.set_mesh(mesh):
    got = jax.jit(lambda x, w: product(x, w, "DN"))(x, weight)
  np.testing.assert_array_equal(got, x @ weight.reshape(5, 21))


def test_rows_that_do_not_split_have_a_gradient_too():
  """Every device then has the whole of it: its sum would be too large."""
  mesh = parallel.make_mesh(MeshConfig(2, 4, 1))
  weight, x = jnp.arange(60.0).reshape(12, 5), jnp.ones((3, 2, 12))

  def total(w):
    return jnp.sum(product(x, w, "DF"))

  with jax.set_mesh(mesh):
    got = jax.jit(jax.grad(total))(weight)
  np.testing.assert_array_equal(got, 6 * jnp.ones((12, 5)))
