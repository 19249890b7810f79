"""What remat keeps of a layer, and what leaves the loop over layers."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.jaxprs import operations
from tests.models.test_decoder import MASK, POSITIONS, VALID, embedded, make
from unifluid_jax.models import stack


def remat_loss(remat, scan=True, dtype="float32"):
  model, params = make("gemma1", dtype, remat=remat, scan=scan)

  def loss(params):
    x = embedded("gemma1")[1:2]
    hidden, _ = model.apply({"params": params}, x, POSITIONS[1:2], MASK[1:2])
    return jnp.sum(jnp.sin(hidden) * VALID[1:2, :, None])

  return loss, params


def test_remat_keeps_gradients():
  def grads(remat):
    loss, params = remat_loss(remat)
    return jax.jit(jax.grad(loss))(params)

  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, grads("full"), grads("none"))


@pytest.mark.parametrize("scan, layers", [(True, 1), (False, 3)])
def test_remat_computes_again_what_it_does_not_keep(scan, layers):
  """Products and sums of forward and backward; a scan shows one layer."""

  def counts(remat):
    loss, params = remat_loss(remat, scan)
    program = jax.make_jaxpr(jax.grad(loss))(params)
    assert (f"prevent_cse={not scan}" in str(program)) == (remat != "none")
    lines = operations(program.jaxpr)
    found = collections.Counter(line.primitive.name for line in lines)
    assert ("scan" in found) == scan
    return np.array([found[op] for op in ("dot_general", "reduce_sum", "tanh")])

  none, dots, full = (counts(remat) for remat in ("none", "dots", "full"))
  # "dots": the logits and the softmax's sum; the MLP's activation.
  np.testing.assert_array_equal(dots[::2] - none[::2], [layers, layers])
  # "full": all products but the last, sums of the norms too.
  assert full[0] - none[0] == 8 * layers
  assert full[1] > dots[1]


def test_weights_are_narrowed_and_vectors_are_not():
  tree = {
    "weight": jnp.full((2, 3, 4), 1 / 3),
    "scale": jnp.full((2, 3), 1 / 3),
  }
  got = stack.narrow(tree, jnp.bfloat16)
  assert got["weight"].dtype == jnp.bfloat16
  assert got["scale"].dtype == jnp.float32
  wide = stack.narrow(tree, jnp.float32)
  assert {x.dtype for x in wide.values()} == {jnp.dtype("float32")}


def test_gradients_of_weights_leave_the_loop_narrow():
  """Those of norms' scales stay wide; the parameters' own are float32."""
  loss, params = remat_loss("dots", dtype="bfloat16")
  grads = jax.eval_shape(jax.grad(loss), params)
  assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
  program = jax.make_jaxpr(jax.grad(loss))(params)
  backward = [
    line for line in operations(program.jaxpr)
    if line.primitive.name == "scan" and line.params["reverse"]
  ]  # fmt: skip
  left = {(x.aval.shape, x.aval.dtype) for x in backward[0].outvars}
  for leaf in jax.tree.leaves(params["layers"]):
    dtype = jnp.bfloat16 if leaf.ndim > 2 else jnp.float32
    assert (leaf.shape, jnp.dtype(dtype)) in left


@pytest.mark.parametrize(
  "name, shared",
  [("gemma1", 1 + 2), ("gemma2", 2 + 2), ("gemma3", 2 + 2 + 2)],
)
def test_masks_and_angles_stand_before_the_loop(name, shared):
  """Barriers keep XLA from computing them in it; angles are two arrays."""
  model, params = make(name)
  x = embedded(name)[1:2]
  run = functools.partial(model.apply, {"params": params})
  program = jax.make_jaxpr(run)(x, POSITIONS[1:2], MASK[1:2])
  fixed = [
    x for line in program.eqns if line.primitive.name == "optimization_barrier"
    for x in line.outvars
  ]  # fmt: skip
  assert len(fixed) == shared
  (loop,) = (x for x in program.eqns if x.primitive.name == "scan")
  assert len([x for x in loop.invars if x in fixed]) == shared
