"""Mosaic attention against the plain one, interpreted on CPUs.

Where libtpu is, it is compiled for TPUs too.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.libtpu import needs_libtpu
from tests.ops.test_fused_attention import (
  arrays,
  assert_as_near_as_plain,
  assert_close,
  merged_mask,
  results,
)
from tests.systems.conftest import Tiny, examples, tiny, whole_loss
from unifluid_jax import systems
from unifluid_jax.aot import compiled, topology
from unifluid_jax.core import parallel
from unifluid_jax.core.config import MeshConfig
from unifluid_jax.core.presets import DecoderConfig, VitConfig
from unifluid_jax.models import decoder
from unifluid_jax.models.vit import Vit
from unifluid_jax.ops import attention, mosaic_attention

mosaic = functools.partial(mosaic_attention.attention, interpret=True)


def angles(b, t, h):
  """Of rows whose text starts at different positions."""
  positions = jnp.arange(t) + 100 * jnp.arange(b)[:, None]
  return attention.rotation(positions, h, 50.0)


@pytest.fixture
def small_blocks(monkeypatch):
  """128 queries a block."""
  monkeypatch.setattr(mosaic_attention, "_LOGITS", 2**15)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(
  "t, n, kv, h, softcap, scale",
  [
    (128, 2, 2, 16, 0.0, 0.25),  # exactly one block; two heads a program
    (200, 4, 2, 128, 1.0, 0.7),  # padded; a program a head
    (300, 6, 3, 24, 2.0, 0.5),  # several blocks
  ],
)
def test_mosaic_equals_plain(
  t, n, kv, h, softcap, scale, rotated, small_blocks
):
  qkvw, mask = arrays(3, t, n, kv, h), merged_mask(3, t)
  assert bool(mask.any(-1).all()) and not bool((mask[0] == mask[1]).all())
  # In whole quarters, so that logits of the cap's size are exact in any order.
  qkvw[:2] = [jnp.round(4 * x) / 4 for x in qkvw[:2]]
  kwargs = dict(softcap=softcap, scale=scale)
  kwargs["angles"] = angles(3, t, h) if rotated else None
  want = results(attention.attend, qkvw, mask, **kwargs)
  kwargs["rotation"] = kwargs.pop("angles")
  assert_close(results(mosaic, qkvw, mask, **kwargs), want)


@pytest.mark.parametrize(
  "n, kv, h, t, width",
  [
    (8, 4, 256, 384, 4 * 256),  # Gemma 2 2B: all
    (16, 8, 256, 384, 4 * 256),  # 9B: eight heads of queries
    (8, 1, 256, 384, 256),  # Gemma 1 2B
    (8, 4, 256, 1280, 4 * 256),
    (8, 4, 256, 1408, 2 * 256),  # more have no room
    (8, 4, 256, 2304, 256),
    (32, 32, 64, 384, 8 * 64),
    (12, 12, 64, 384, 6 * 64),  # a divisor
    (6, 3, 64, 384, 3 * 64),  # fewer fill no registers
    (16, 16, 72, 256, 16 * 72),  # SigLIP
    (8, 4, 256, 4096, 256),  # nothing has room
  ],
)
def test_heads_of_a_program(n, kv, h, t, width):
  """As many as have room; their channels fill registers where some do."""
  call = mosaic_attention._Call(h, n // kv, 0.0, 1.0, False)
  keys = jnp.zeros((1, t, kv * h), jnp.bfloat16)
  assert mosaic_attention._width(call, t, keys) == width


def test_blocks_divide_the_queries_and_have_room():
  block = mosaic_attention._block
  assert block(384, 384) == 384
  assert block(896, 896) == 128  # 7 x 128
  assert block(1024, 1024) == 256
  assert block(4096, 4096) == 128  # more than the room, but the least


def test_keys_that_do_not_fit_are_refused_with_a_kernel_that_takes_them():
  def run(t, dtype):
    q, k = (jax.ShapeDtypeStruct((1, t, n, 256), dtype) for n in (4, 2))
    run = functools.partial(mosaic_attention.attention, softcap=0.0, scale=1.0)
    return jax.eval_shape(run, q, k, k, None)

  assert run(3200, jnp.bfloat16).shape == (1, 3200, 4, 256)
  for t, dtype in ((3201, jnp.bfloat16), (1793, jnp.float32)):
    with pytest.raises(ValueError, match="256 channels .*='splash'"):
      run(t, dtype)


@pytest.mark.parametrize("t, s", [(256, 256), (100, 140)])
def test_everything_is_visible_without_a_mask(t, s, small_blocks):
  q, _, _, w = arrays(2, t, 2, 1, 24)
  _, k, v, _ = arrays(2, s, 2, 1, 24, seed=1)
  kwargs = dict(mask=None, softcap=0.0, scale=0.3)
  got, want = (
    results(f, [q, k, v, w], **kwargs) for f in (mosaic, attention.attend)
  )
  assert_close(got, want)


def test_bfloat16_is_as_near_to_float32_as_plain():
  assert_as_near_as_plain(mosaic, arrays(2, 200, 4, 2, 16), merged_mask(2, 200))


@pytest.mark.parametrize("softcap", [50.0, 100.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_at_the_cap(softcap, sign):
  """Visible ones all at one end of it, hidden ones at the other."""
  q, _, v, w = arrays(1, 128, 2, 1, 16)
  mask = merged_mask(1, 128)
  ends = jnp.where(mask.any(1), sign, -sign)
  k = 1e3 * ends[..., None, None] * jnp.ones((1, 128, 1, 16))
  got, want = (
    results(f, [abs(q) + 1, k, v, w], mask, softcap=softcap, scale=1.0)
    for f in (mosaic, attention.attend)
  )
  assert_close(got, want)


def test_rows_without_visible_key_are_finite_and_harm_none(small_blocks):
  qkvw = arrays(1, 200, 1, 1, 8)
  mask = merged_mask(1, 200).at[0, :140].set(False)
  kwargs = dict(softcap=2.0, scale=0.5)
  assert all(
    np.isfinite(x).all() for x in results(mosaic, qkvw, mask, **kwargs)
  )
  qkvw[3] = qkvw[3] * mask.any(-1)[..., None, None]
  got, want = (results(f, qkvw, mask, **kwargs) for f in
               (mosaic, attention.attend))  # fmt: skip
  got[0], want[0] = (jnp.where(qkvw[3] == 0, 0, x[0]) for x in (got, want))
  assert_close(got, want)


@pytest.mark.parametrize(
  "n, kv, local",
  [(4, 2, "2 heads of 1"), (4, 1, "2 heads of 2"), (3, 3, "3 heads of 3")],
)
def test_each_device_runs_its_rows_and_heads(n, kv, local, monkeypatch):
  qkvw, mask = arrays(8, 40, n, kv, 8), merged_mask(8, 40)
  kwargs = dict(softcap=1.0, scale=0.7, rotation=angles(8, 40, 8))
  alone, seen = results(mosaic, qkvw, mask, **kwargs), set()
  call = mosaic_attention._attention

  def spy(q, k, v, *args):
    seen.add((q.shape[0], f"{q.shape[2] // 8} heads of {k.shape[2] // 8}"))
    return call(q, k, v, *args)

  monkeypatch.setattr(mosaic_attention, "_attention", spy)
  with jax.set_mesh(parallel.make_mesh(MeshConfig(2, 2, 2))):
    split = results(mosaic, qkvw, mask, **kwargs)
  assert_close(split, alone, 1e-6)
  assert seen == {(2, local)}


# ----------------------------------------------------------------- the models


@pytest.fixture(scope="module")
def model():
  return Tiny()


@pytest.fixture
def interpreted(monkeypatch):
  """Shapes of the queries that `attend` hands to the kernel."""
  seen = []

  def spy(q, *args, **kwargs):
    seen.append(q.shape)
    return mosaic(q, *args, **kwargs)

  monkeypatch.setattr(mosaic_attention, "attention", spy)
  return seen


@pytest.mark.parametrize("qk_norm", [False, True])
def test_decoder_trains_the_same_with_both(qk_norm, interpreted):
  """Layers of two kinds, with angles of their own, kept by remat."""
  config = DecoderConfig(
    vocab=11, width=16, depth=2, mlp=24, heads=2, kv_heads=1, head_dim=8,
    attn_softcap=0.5, window=3, pattern=("local", "global"),
    rope_base=30.0, rope_base_global=900.0, qk_norm=qk_norm,
  )  # fmt: skip
  b, t = 4, 20
  x, positions = arrays(b, t, 1, 1, 16)[0][:, :, 0], jnp.arange(t)
  positions, mask = jnp.broadcast_to(positions, (b, t)), merged_mask(b, t)
  plain, fused = (
    decoder.Decoder(config, jnp.float32, remat="dots", kernel=kernel)
    for kernel in ("plain", "mosaic")
  )
  params = plain.init(jax.random.key(0), x, positions, mask)
  used = jnp.diagonal(mask, axis1=1, axis2=2)[..., None]  # all but pads

  def grads(module):
    def loss(params, x):
      hidden, _ = module.apply(params, x, positions, mask)
      return jnp.mean(hidden**3 * used)

    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x))

  want = grads(plain)
  assert not interpreted
  assert_close(grads(fused), want, 1e-5)
  assert set(interpreted) == {(b, t, 2, 8)}


def test_vision_encoder_gives_the_same_with_both(interpreted):
  config = VitConfig(width=36, depth=2, mlp=24, heads=3, image_size=8, patch=2)
  model = Vit(config, jnp.float32)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
  params = model.init(jax.random.key(0), images)
  plain = model.apply(params, images)
  assert not interpreted
  assert_close([model.apply(params, images, "mosaic")], [plain], 1e-5)
  assert set(interpreted) == {(2, 16, 3, 12)}


def test_training_uses_it_and_decoding_does_not(model, interpreted):
  """In encoder and decoder: a run is evaluated on any device."""
  batch, key = examples(edit=True), jax.random.key(1)
  changes = dict(batch__edit=8, model__dtype="float32")
  losses = {}
  for kernel in ("plain", "mosaic"):
    system = systems.build(tiny(model__attention=kernel, **changes))
    assert not interpreted
    loss = whole_loss(system)
    run = jax.jit(
      lambda params, loss=loss: loss(params, model.frozen, batch, key, 0)[0]
    )
    losses[kernel] = run(model.params)
  assert_close([losses["mosaic"]], [losses["plain"]], 1e-5)
  rows, vit, heads = 8, (16, 2, 8), (2, 16)
  decoder = (3 * rows, 16 + 5 + 16, *heads)
  assert sorted(set(interpreted)) == [(rows, *vit), decoder]
  assert interpreted.count((rows, *vit)) == 2  # of i2t and of edits
  interpreted.clear()
  prompts = {k: batch["edit"][k] for k in ("prompt", "seen")}
  jax.eval_shape(system.prompt_parts, model.params, model.frozen, prompts)
  sampling = system.config.sampling
  jax.eval_shape(
    lambda params: system.answer(
      params,
      model.frozen,
      {"i2t": {k: batch["i2t"][k] for k in ("seen", "prefix")}},
      jax.random.split(key, len(batch["i2t"]["prefix"])),
      sampling,
    ),
    model.params,
  )
  assert not interpreted


# -------------------------------------------------------------- ahead of time


@needs_libtpu
@pytest.mark.parametrize(
  "name, t, n, kv, h",
  [
    ("v5e:2x2", 384, 8, 4, 256),
    # As many keys as there is room for, of four heads, two and one.
    ("v5p:2x2x1", 1280, 8, 4, 256),
    ("v5p:2x2x1", 2176, 4, 2, 256),
    ("v5p:2x2x1", 3200, 2, 1, 256),
    ("v6e:2x2", 256, 16, 16, 72),
    ("v7x:2x2x1", 832, 4, 1, 256),
  ],
)
def test_kernels_compile_and_leave_layouts_alone(name, t, n, kv, h):
  """For all devices of a mesh; no device holds logits or copies of heads."""
  place = topology.get(name)
  mesh = parallel.make_mesh(MeshConfig(1, -1, 1), place.devices)
  rows = functools.partial(
    jax.ShapeDtypeStruct, sharding=jax.NamedSharding(mesh, jax.P("fsdp"))
  )
  b = 4 * mesh.size
  qkv = [rows((b, t, heads * h), jnp.bfloat16) for heads in (n, kv, kv)]
  rotation = [rows((b, t, h // 2), jnp.float32)] * 2

  def loss(qkv, mask, rotation):
    qkv = [x.reshape(b, t, -1, h) for x in qkv]
    out = attention.attend(
      *qkv, mask, attention.Rotation(*rotation),
      softcap=50.0, scale=1 / 16, kernel="mosaic",
    )  # fmt: skip
    out = out.astype(jnp.float32)
    return jnp.sum(out**2)

  with jax.set_mesh(mesh):
    grad = jax.jit(jax.grad(loss))
    lowered = grad.lower(qkv, rows((b, t, t), bool), rotation)
  done = compiled.compile_program(lowered, place)
  assert done.error is None
  lines = done.text.splitlines()
  assert len([x for x in lines if "tpu_custom_call" in x]) == 2
  assert not re.search(rf"(bf16|f32)\[[\d,]*{t},{t}\]", done.text)
  assert not re.search(rf"\[4,{t},\d+,{h}\]", done.text)  # heads apart
