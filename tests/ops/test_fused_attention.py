"""Splash attention against the plain one, interpreted on CPUs.

Where libtpu is, it is compiled for TPUs too.
"""

import functools
import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.libtpu import needs_libtpu
from tests.systems.conftest import tiny
from unifluid_jax import systems, train
from unifluid_jax.aot import compiled, topology
from unifluid_jax.core import parallel
from unifluid_jax.core.config import ConfigError, MeshConfig
from unifluid_jax.core.presets import DecoderConfig
from unifluid_jax.models import decoder, key_cache
from unifluid_jax.ops import attention, fused_attention

splash = functools.partial(fused_attention.splash, interpret=True)


@pytest.fixture
def calls(monkeypatch):
  """Shapes of the queries that `attend` hands to splash, interpreted."""
  seen = []

  def spy(q, *args, **kwargs):
    seen.append(q.shape)
    return splash(q, *args, **kwargs)

  monkeypatch.setattr(fused_attention, "splash", spy)
  return seen


def arrays(b, t, n, kv, h, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((b, t, n, h), (b, t, kv, h), (b, t, kv, h), (b, t, n, h))
  return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def merged_mask(b, t):
  """Rows of two tasks: other prefixes, pads before the text and at the end."""
  rng = np.random.default_rng(0)
  block, valid = np.zeros((b, t), np.int32), np.ones((b, t), bool)
  for i in range(b):
    prefix, length = (t // 5, t) if i % 2 else (t // 2, t - t // 7)
    block[i, prefix:length] = 1 + np.arange(length - prefix)
    valid[i, prefix // 3 : prefix // 3 + rng.integers(prefix // 2)] = False
    valid[i, length:] = False
  return attention.block_causal_mask(jnp.asarray(block), jnp.asarray(valid))


def results(attend, qkvw, mask, **kwargs):
  """Attended values and the gradients of their product with w."""
  *qkv, w = qkvw

  def total(qkv, w, mask):
    out = attend(*qkv, mask, **kwargs)
    return jnp.sum(out.astype(jnp.float32) * w), out

  grad = jax.jit(jax.value_and_grad(total, has_aux=True))
  (_, out), grads = grad(qkv, w, mask)
  return [out, *grads]


def assert_close(got, want, tolerance=2e-6):
  """To a share of each array's largest entry."""
  for a, b in zip(got, want, strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    limit = tolerance * float(np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=limit)


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(fused_attention, "_LONGEST", 128)


@pytest.mark.parametrize(
  "t, n, kv, h, softcap, scale",
  [
    (128, 2, 2, 16, 0.0, 0.25),  # exactly one block
    (200, 4, 2, 16, 1.0, 0.7),  # padded
    (300, 2, 1, 8, 2.0, 0.5),  # several blocks, some of them unseen
  ],
)
def test_splash_equals_plain(t, n, kv, h, softcap, scale, small_blocks):
  qkvw, mask = arrays(3, t, n, kv, h), merged_mask(3, t)
  assert bool(mask.any(-1).all()) and not bool((mask[0] == mask[1]).all())
  if softcap:
    logits = scale * jnp.einsum("BTH,BSH->BTS", qkvw[0][:, :, 0],
                                qkvw[1][:, :, 0])  # fmt: skip
    assert float(jnp.abs(logits).max()) > 1.5 * softcap
  got, want = (
    results(f, qkvw, mask, softcap=softcap, scale=scale)
    for f in (splash, attention.attend)
  )
  assert_close(got, want)


def assert_as_near_as_plain(fused, wide, mask):
  """In bfloat16, to the float32 result; forward and gradients."""
  half = [x.astype(jnp.bfloat16) for x in wide]
  exact = [x.astype(jnp.float32) for x in half]
  run = functools.partial(results, mask=mask, softcap=2.0, scale=0.25)
  got, plain, want = (
    run(f, qkvw=x)
    for f, x in (
      (fused, half), (attention.attend, half), (attention.attend, exact),
    )
  )  # fmt: skip
  for a, b, c in zip(got, plain, want, strict=True):
    assert a.dtype == jnp.bfloat16
    off, allowed = (
      float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - c) ** 2)))
      for x in (a, b)
    )
    assert 0 < off < 1.1 * allowed


def test_bfloat16_is_as_near_to_float32_as_plain():
  assert_as_near_as_plain(splash, arrays(2, 200, 4, 2, 16), merged_mask(2, 200))


@pytest.mark.parametrize("rows", [slice(7, 8), slice(0, 128)])
def test_rows_without_visible_key_are_finite_and_harm_none(rows, small_blocks):
  """A row among others, and a whole block of queries that sees nothing."""
  qkvw = arrays(1, 200, 1, 1, 8)
  mask = merged_mask(1, 200).at[0, rows].set(False)
  kwargs = dict(softcap=2.0, scale=0.5)
  assert all(
    np.isfinite(x).all() for x in results(splash, qkvw, mask, **kwargs)
  )
  qkvw[3] = qkvw[3] * mask.any(-1)[..., None, None]
  got, want = (results(f, qkvw, mask, **kwargs) for f in
               (splash, attention.attend))  # fmt: skip
  got[0], want[0] = (jnp.where(qkvw[3] == 0, 0, x[0]) for x in (got, want))
  assert_close(got, want)


def test_many_rows_take_several_calls(monkeypatch):
  (*qkv, _), mask = arrays(6, 40, 2, 1, 8), merged_mask(6, 40)
  run = functools.partial(splash, softcap=0.0, scale=0.3)
  whole, sizes = jax.jit(run)(*qkv, mask), []
  call = fused_attention._call

  def spy(q, *args, **kwargs):
    sizes.append(q.shape[0])
    return call(q, *args, **kwargs)

  monkeypatch.setattr(fused_attention, "_SCALARS", 8)
  monkeypatch.setattr(fused_attention, "_call", spy)
  parts = jax.jit(lambda *args: run(*args))(*qkv, mask)
  np.testing.assert_array_equal(parts, whole)
  assert set(sizes) == {3}  # of 6 rows, at most 4


@pytest.mark.parametrize(
  "n, kv, local",
  [(4, 2, "2 heads of 1"), (4, 1, "2 heads of 2"), (3, 3, "3 heads of 3")],
)
def test_each_device_runs_its_rows_and_heads(n, kv, local, monkeypatch):
  qkvw, mask = arrays(8, 40, n, kv, 8), merged_mask(8, 40)
  run = functools.partial(results, splash, qkvw, mask, softcap=1.0, scale=0.7)
  seen, alone = set(), run()
  call = fused_attention._call

  def spy(q, k, v, mask, **kw):
    seen.add((q.shape[0], f"{q.shape[1]} heads of {k.shape[1]}"))
    return call(q, k, v, mask, **kw)

  monkeypatch.setattr(fused_attention, "_call", spy)
  with jax.set_mesh(parallel.make_mesh(MeshConfig(2, 2, 2))):
    split = run()
  assert_close(split, alone, 1e-6)
  assert seen == {(2, local)}


# ----------------------------------------------------------------- the decoder

DECODER = DecoderConfig(
  vocab=11, width=16, depth=2, mlp=24, heads=2, kv_heads=1, head_dim=8,
  attn_softcap=0.5, post_norms=True, window=3, pattern=("local", "global"),
)  # fmt: skip


@pytest.mark.parametrize("mesh", [None, MeshConfig(2, 2, 2)])
def test_decoder_trains_the_same_with_both(mesh, calls):
  """Layers of two kinds, rows of two tasks, alone and on eight devices."""
  b, t = 8, 20
  x, positions = arrays(b, t, 1, 1, 16)[0][:, :, 0], jnp.arange(t)
  positions, mask = jnp.broadcast_to(positions, (b, t)), merged_mask(b, t)
  plain = decoder.Decoder(DECODER, jnp.float32, remat="full")
  fused = decoder.Decoder(DECODER, jnp.float32, remat="full", kernel="splash")
  params = plain.init(jax.random.key(0), x, positions, mask)
  used = jnp.diagonal(mask, axis1=1, axis2=2)[..., None]  # all but pads

  def results(module):
    def loss(params, x, mask):
      hidden, _ = module.apply(params, x, positions, mask)
      return jnp.mean(hidden**3 * used)

    grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return jax.tree.leaves(grad(params, x, mask))

  want = results(plain)
  assert not calls
  devices = jax.set_mesh(parallel.make_mesh(mesh)) if mesh else nullcontext()
  with devices:
    got = results(fused)
  assert_close(got, want, 1e-5)
  assert set(calls) == {(b, t, 2, 8)}


def test_a_cache_is_read_by_the_plain_kernel():
  """A CPU can run no other: nothing is interpreted here."""
  module = decoder.Decoder(DECODER, jnp.float32, kernel="splash")
  x, positions = jnp.ones((1, 2, 16)), jnp.arange(2)[None]
  cache = key_cache.empty(DECODER, 1, 4, jnp.float32)
  mask = jnp.ones((1, 2, 4), bool)

  def run(key):
    return module.init_with_output(key, x, positions, mask, cache, 0)[0][0]

  assert np.isfinite(jax.jit(run)(jax.random.key(0))).all()


def test_the_choice_is_the_decoders_and_other_devices_are_refused():
  config = tiny(model__attention="splash")
  assert systems.build(config).decoder.kernel == "splash"
  with pytest.raises(ConfigError, match="are cpu: set config.model.attention"):
    train.make_job(config, systems.build(config))


# -------------------------------------------------------------- ahead of time


@needs_libtpu
@pytest.mark.parametrize("rows, t", [(32, 320), (8, 2048)])
@pytest.mark.parametrize("name", ["v5e:2x2", "v7x:2x2x1"])
def test_as_many_rows_as_one_call_takes_compile(name, rows, t):
  """For all devices of a mesh; no device holds logits."""
  place = topology.get(name)
  mesh = parallel.make_mesh(MeshConfig(1, -1, 1), place.devices)
  assert rows * 8 * t // fused_attention._block(t) <= fused_attention._SCALARS
  b = rows * mesh.size
  place_of = functools.partial(jax.sharding.NamedSharding, mesh)
  qkv = [
    jax.ShapeDtypeStruct(
      (b, t, heads, 256), jnp.bfloat16, sharding=place_of(jax.P("fsdp"))
    )
    for heads in (8, 4, 4)
  ]
  mask = jax.ShapeDtypeStruct((b, t, t), bool, sharding=place_of(jax.P("fsdp")))

  def loss(qkv, mask):
    out = attention.attend(
      *qkv, mask, softcap=50.0, scale=1 / 16, kernel="splash"
    )
    return out.astype(jnp.float32).sum()

  with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss)).lower(qkv, mask)
  done = compiled.compile_program(lowered, place)
  assert done.error is None
  kernels = [x for x in done.text.splitlines() if "tpu_custom_call" in x]
  assert len(kernels) == 2  # forward, backward
  assert not re.search(rf"(bf16|f32)\[[\d,]*{t},{t}\]", done.text)
