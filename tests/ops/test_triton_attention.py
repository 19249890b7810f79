"""Triton attention against the plain one, interpreted on CPUs.

For GPUs it is lowered only: that needs none.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from tests.ops.test_fused_attention import (
  arrays,
  assert_as_near_as_plain,
  assert_close,
  merged_mask,
  results,
)
from tests.systems.conftest import tiny
from unifluid_jax import systems, train
from unifluid_jax.core import parallel
from unifluid_jax.core.config import ConfigError, MeshConfig
from unifluid_jax.core.presets import DecoderConfig
from unifluid_jax.models import decoder
from unifluid_jax.ops import attention, triton_attention
from unifluid_jax.ops.triton_attention import Blocks, Plan

SQUARE = Plan(*[Blocks(16, 16, 4, 1)] * 3)
UNEVEN = Plan(Blocks(32, 16, 4, 1), Blocks(16, 64, 4, 1), Blocks(16, 32, 4, 1))
flash = functools.partial(triton_attention.flash, interpret=True)
small = functools.partial(flash, plan=SQUARE)


def largest_logit(q, k, scale):
  group = q.shape[2] // k.shape[2]
  k = jnp.repeat(k, group, axis=2)
  return scale * float(jnp.abs(jnp.einsum("BTNH,BSNH->BNTS", q, k)).max())


@pytest.mark.parametrize(
  "t, n, kv, h, softcap, scale, plan",
  [
    (32, 8, 4, 32, 50.0, 5.0, SQUARE),  # whole blocks
    (40, 4, 1, 72, 0.0, 0.12, SQUARE),  # SigLIP's heads; rows padded
    (37, 2, 2, 16, 2.0, 0.7, UNEVEN),
    (20, 2, 1, 256, 50.0, 2.0, None),  # the table's, cut to the sequence
  ],
)
def test_flash_equals_plain(t, n, kv, h, softcap, scale, plan):
  qkvw, mask = arrays(3, t, n, kv, h), merged_mask(3, t)
  assert bool(mask.any(-1).all()) and not bool((mask[0] == mask[1]).all())
  # In whole quarters, so that logits of the cap's size are exact in any order.
  qkvw[:2] = [jnp.round(4 * x) / 4 for x in qkvw[:2]]
  if softcap:
    assert largest_logit(*qkvw[:2], scale) > 1.5 * softcap
  got, want = (
    results(f, qkvw, mask, softcap=softcap, scale=scale)
    for f in (functools.partial(flash, plan=plan), attention.attend)
  )
  assert_close(got, want)


@pytest.mark.parametrize("t, s", [(32, 32), (20, 37)])
def test_without_a_mask_padding_is_hidden(t, s):
  q, _, _, w = arrays(2, t, 4, 2, 16)
  _, k, v, _ = arrays(2, s, 4, 2, 16, seed=1)
  got, want = (
    results(f, (q, k, v, w), None, softcap=2.0, scale=0.3)
    for f in (functools.partial(flash, plan=UNEVEN), attention.attend)
  )
  assert_close(got, want)


def test_bfloat16_is_as_near_to_float32_as_plain():
  assert_as_near_as_plain(small, arrays(2, 48, 4, 2, 32), merged_mask(2, 48))


@pytest.mark.parametrize("rows", [slice(7, 8), slice(0, 16)])
def test_rows_without_visible_key_give_zeros_and_harm_none(rows):
  """A row among others, and a whole block of queries that sees nothing."""
  qkvw = arrays(1, 40, 2, 1, 8)
  mask = merged_mask(1, 40).at[0, rows].set(False)
  kwargs = dict(softcap=2.0, scale=0.5)
  got = results(small, qkvw, mask, **kwargs)
  assert all(np.isfinite(x).all() for x in got)
  assert not got[0][:, rows].any() and not got[1][:, rows].any()
  qkvw[3] = qkvw[3] * mask.any(-1)[..., None, None]
  want = results(attention.attend, qkvw, mask, **kwargs)
  want[0] = jnp.where(qkvw[3] == 0, 0, want[0])
  assert_close(got, want)


@pytest.mark.parametrize(
  "mesh, kv, local",
  [
    (MeshConfig(1, 2, 1), 2, (2, 4, 2)),
    (MeshConfig(1, 1, 2), 2, (4, 2, 1)),
    (MeshConfig(1, 1, 2), 1, (4, 2, 2)),  # a key head for each device
  ],
)
def test_each_device_runs_its_rows_and_heads(mesh, kv, local, monkeypatch):
  qkvw, mask = arrays(4, 20, 4, kv, 8), merged_mask(4, 20)
  run = functools.partial(results, small, qkvw, mask, softcap=1.0, scale=0.7)
  seen, alone = set(), run()
  forward = triton_attention._forward

  def spy(q, k, *args):
    seen.add((q.shape[0], q.shape[2], k.shape[2]))
    return forward(q, k, *args)

  monkeypatch.setattr(triton_attention, "_forward", spy)
  with jax.set_mesh(parallel.make_mesh(mesh, jax.devices()[:2])):
    split = run()
  assert_close(split, alone, 1e-6)
  assert seen == {local}


# ----------------------------------------------------------------- the decoder


def test_decoder_trains_the_same_with_both(monkeypatch):
  monkeypatch.setattr(triton_attention, "flash", small)
  config = DecoderConfig(
    vocab=11, width=16, depth=2, mlp=24, heads=2, kv_heads=1, head_dim=8,
    attn_softcap=0.5, post_norms=True, window=3, pattern=("local", "global"),
  )  # fmt: skip
  b, t = 2, 20
  x, positions = arrays(b, t, 1, 1, 16)[0][:, :, 0], jnp.arange(t)
  positions, mask = jnp.broadcast_to(positions, (b, t)), merged_mask(b, t)
  used = jnp.diagonal(mask, axis1=1, axis2=2)[..., None]  # all but pads
  plain, fused = (
    decoder.Decoder(config, jnp.float32, remat="full", kernel=kernel)
    for kernel in ("plain", "triton")
  )
  params = plain.init(jax.random.key(0), x, positions, mask)

  def run(module):
    def loss(params, x):
      hidden, _ = module.apply(params, x, positions, mask)
      return jnp.mean(hidden**4 * used)

    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x))

  assert_close(run(fused), run(plain), 1e-5)


def test_the_choice_is_the_decoders_and_other_devices_are_refused():
  config = tiny(model__attention="triton")
  assert systems.build(config).decoder.kernel == "triton"
  with pytest.raises(ConfigError, match="are cpu: set .*attention='plain'"):
    train.make_job(config, systems.build(config))


# ------------------------------------------------------------------ lowering


@pytest.mark.parametrize(
  "h, n, kv, dtype, t, masked",
  [
    (256, 8, 4, jnp.bfloat16, 384, True),  # 2B's training
    (256, 8, 4, jnp.float32, 384, True),
    (72, 16, 16, jnp.bfloat16, 729, False),  # SigLIP
  ],
)
def test_lowers_for_gpus(h, n, kv, dtype, t, masked):
  """Every row of the table of blocks; no logits outside the kernels."""
  qkv = [jax.ShapeDtypeStruct((2, t, heads, h), dtype) for heads in (n, kv, kv)]
  mask = jax.ShapeDtypeStruct((2, t, t), bool) if masked else None

  def forward(qkv, mask):
    return attention.attend(
      *qkv, mask, softcap=50.0, scale=h**-0.5, kernel="triton"
    )

  def backward(qkv, mask):
    return jax.grad(lambda x: forward(x, mask).astype(jnp.float32).sum())(qkv)

  # From jax 0.11 on the kernel's target is read from here.
  target = AbstractDevice("NVIDIA H200", num_cores=None, platform="gpu")
  with jax.sharding.use_abstract_mesh(
    AbstractMesh((), (), abstract_device=target)
  ):
    for f, kernels in ((forward, 1), (backward, 3)):
      traced = jax.jit(f).trace(qkv, mask)
      text = traced.lower(lowering_platforms=("cuda",)).as_text()
      assert text.count("@__gpu$xla.gpu.triton") == kernels
      assert not re.search(r"\d{3}x\d{3}x(bf16|f32)>", text)
