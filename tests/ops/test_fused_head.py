"""The kernels of a head step against plain operations, interpreted on CPUs.

For GPUs they are lowered only; where libtpu is, they are compiled for TPUs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  NamedSharding,
  SingleDeviceSharding,
)

from tests.libtpu import needs_libtpu
from tests.models.test_diffusion_head import normal, reference
from tests.systems.conftest import tiny
from unifluid_jax.aot import compiled, topology
from unifluid_jax.core import parallel
from unifluid_jax.core.config import MeshConfig
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.presets import HeadConfig
from unifluid_jax.models import diffusion_head
from unifluid_jax.models.ddpm_head import sample_tokens
from unifluid_jax.models.diffusion_head import DiffusionHead
from unifluid_jax.ops import diffusion, fused_head

C, Z, W, DEPTH = 4, 6, 256, 2


def head(dtype=jnp.float32):
  return DiffusionHead(HeadConfig(W, DEPTH, fused=True), C, dtype)


@functools.cache
def params():
  """Nothing zero; products of unit size."""
  shapes = jax.eval_shape(
    functools.partial(head().init, jax.random.key(0)),
    jnp.zeros((1, C)), jnp.zeros(1), jnp.zeros((1, Z)),
  )["params"]  # fmt: skip
  leaves, tree = jax.tree.flatten(shapes)
  scales = [1 / np.sqrt(x.shape[0]) if x.ndim > 1 else 0.3 for x in leaves]
  return jax.tree.unflatten(
    tree,
    [
      s * normal(i, x.shape)
      for i, (x, s) in enumerate(zip(leaves, scales, strict=True))
    ],
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluate(net, kernel, params, x, t, z):
  """One step's noise and variance by a kernel, as `diffusion_head.step`."""
  packed = diffusion_head.hoist(net, params, t, z)[0]
  x = jnp.pad(x, ((0, len(packed) - len(x)), (0, 0)))
  call = functools.partial(net.apply, {"params": params}, x)
  if kernel == "plain":
    parts = diffusion_head.unpack(packed, DEPTH)
    return call(parts, method="denoise")
  return call(packed, kernel, method="denoise_fused")


def inputs(rows):
  """Noisy tokens, a step, conditions; tokens far from the norm's zero mean."""
  return normal(8, (rows, C)) + 1, jnp.asarray([300]), normal(9, (rows, Z))


def wanted(rows):
  """By MAR's net in float64."""
  x, t, z = inputs(rows)
  return reference(params(), x, jnp.repeat(t, rows), z)


@pytest.mark.parametrize("rows, padded", [(3, 16), (40, 64), (100, 128)])
def test_an_evaluation_equals_the_reference(rows, padded):
  """In one program, in one that is not full, and in several."""
  assert fused_head.padded_rows(rows) == padded
  got = evaluate(head(), "interpret", params(), *inputs(rows))
  assert got.shape == (padded, 2 * C)
  np.testing.assert_allclose(got[:rows], wanted(rows), rtol=2e-5, atol=2e-5)


def test_bfloat16_is_as_near_to_float64_as_plain():
  rows, narrow = 40, head(jnp.bfloat16)
  errors = {}
  for kernel in ("interpret", "plain"):
    got = evaluate(narrow, kernel, params(), *inputs(rows))[:rows]
    errors[kernel] = np.abs(got - wanted(rows)).mean()
  assert 0 < errors["interpret"] < 1.05 * errors["plain"]


# ------------------------------------------------------------------ dispatch


def draw(net, params, z, keys):
  # Without a limit numbers grow to 1e5 here, and their rounding with them.
  return sample_tokens(
    net, params, diffusion.respace(4), z, z[::-1], keys, 2.0, 1.0, limit=3.0
  )


def test_other_devices_draw_by_plain_operations():
  """Three rows, guided: six, of sixteen that a program would have."""
  args = params(), normal(9, (3, Z)), jax.random.split(jax.random.key(1), 3)
  nets = head(), head().clone(config=HeadConfig(W, DEPTH))
  got, want = (jax.jit(functools.partial(draw, net))(*args) for net in nets)
  assert got.shape == (3, C)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def drawing(dtype, rows, place=lambda x: x):
  """Traced for a whole token; `place` says where arguments lie."""
  shapes = jax.eval_shape(params), jax.ShapeDtypeStruct((rows, Z), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  draw_ = jax.jit(functools.partial(draw, head(dtype)))
  return draw_.trace(*jax.tree.map(place, (*shapes, keys)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 256])
def test_lowers_for_gpus_with_two_kernels_a_block(dtype, rows):
  target = AbstractDevice("NVIDIA H200", num_cores=None, platform="gpu")
  with jax.sharding.use_abstract_mesh(
    AbstractMesh((), (), abstract_device=target)
  ):
    lowered = drawing(dtype, rows).lower(lowering_platforms=("cuda",))
  assert lowered.as_text().count("@__gpu$xla.gpu.triton") == 2 * DEPTH


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_devices_of_a_mesh_draw_by_plain_operations(platform):
  """A compiler splits no kernel: Mosaic's are refused there."""
  mesh = parallel.make_mesh(MeshConfig(-1, 1, 1))
  rows = NamedSharding(mesh, parallel.P("data"))

  def place(x):
    split = rows if x.shape[:1] == (8,) else NamedSharding(mesh, parallel.P())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)

  with jax.set_mesh(mesh):
    lowered = drawing(jnp.float32, 8, place).lower(
      lowering_platforms=(platform,)
    )
  text = lowered.as_text()
  assert "tpu_custom_call" not in text and "gpu.triton" not in text


@needs_libtpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 256])
def test_compiles_for_tpus_with_two_kernels_a_block(dtype, rows):
  place = topology.get("v5e:2x2")
  one = SingleDeviceSharding(place.devices[0])

  def on_it(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)

  lowered = drawing(dtype, rows, on_it).lower()
  done = compiled.compile_program(lowered, place)
  assert done.text.count('custom_call_target="tpu_custom_call"') == 2 * DEPTH


@pytest.mark.parametrize("keys", [dict(width=64), dict(kind="energy")])
def test_heads_that_the_kernels_do_not_fit_are_refused(keys):
  changed = {f"model__head__{key}": value for key, value in keys.items()}
  whole = {"model__head__width": 128, "model__head__fused": True, **changed}
  if "kind" in keys:
    whole["sampling__steps"] = 1
  with pytest.raises(ConfigError, match="set model.head.fused=False"):
    tiny(**whole)
