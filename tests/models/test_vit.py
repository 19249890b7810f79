"""The vision encoder against a float64 reference in plain loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.core import presets
from unifluid_jax.models import vit

TINY = presets.VitConfig(
  width=12, depth=2, mlp=20, heads=3, patch=4, image_size=14
)
TOKENS = 9  # 14 pixels hold three whole patches a side
IMAGES = jnp.asarray(
  np.random.default_rng(9).uniform(-1, 1, (2, 14, 14, 3)), jnp.float32
)


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


@functools.cache
def make(dtype="float32", **changes):
  """A tiny encoder and parameters of which none is at its neutral value."""
  model = vit.Vit(TINY, jnp.dtype(dtype), **changes)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
  draw = np.random.default_rng(0).normal
  return model, jax.tree.map(
    lambda x: jnp.asarray(0.4 * draw(size=x.shape), x.dtype), shapes
  )


@functools.cache
def encoded(**changes):
  model, params = make(**changes)
  return jax.jit(model.apply)({"params": params}, IMAGES)


def ref_norm(x, p):
  return np.stack(
    [
      (t - t.mean()) / np.sqrt(t.var() + 1e-6) * p["scale"] + p["bias"]
      for t in x
    ]
  )


def ref_attention(p, x):
  out = np.zeros_like(x) + p["out"]["bias"]
  for n in range(TINY.heads):
    q, k, v = (x @ p[a]["kernel"][:, n] + p[a]["bias"][n] for a in "qkv")
    for i in range(len(x)):
      e = np.exp([q[i] @ key / np.sqrt(TINY.width / TINY.heads) for key in k])
      out[i] += (e / e.sum() @ v) @ p["out"]["kernel"][n]
  return out


def ref_encoder(params, image):
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  image = np.asarray(image, np.float64)
  kernel, x = params["patch"]["kernel"], np.zeros((TOKENS, TINY.width))
  for row, column in np.ndindex(3, 3):
    cut = image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    for d in range(TINY.width):
      x[3 * row + column, d] = (cut * kernel[..., d]).sum()
  x = x + params["patch"]["bias"] + params["position"]
  for layer in range(TINY.depth):
    p = jax.tree.map(lambda a, i=layer: a[i], params["layers"])
    x = x + ref_attention(p["attn"], ref_norm(x, p["norm1"]))
    up, down = p["mlp"]["up"], p["mlp"]["down"]
    z = ref_norm(x, p["norm2"]) @ up["kernel"] + up["bias"]
    z *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    x = x + z @ down["kernel"] + down["bias"]
  return ref_norm(x, params["norm"])


def test_equals_plain_loops():
  _, params = make()
  want = np.stack([ref_encoder(params, image) for image in IMAGES])
  np.testing.assert_allclose(encoded(), want, atol=2e-5)


def test_norm_of_small_values_shows_its_epsilon():
  x = np.random.default_rng(3).normal(size=(4, 12)) * 1e-3
  params = {"scale": jnp.ones(12), "bias": jnp.zeros(12)}
  np.testing.assert_allclose(
    vit.layer_norm(jnp.asarray(x, jnp.float32), params),
    ref_norm(x, params),
    rtol=1e-4,
    atol=1e-6,
  )


def test_scan_and_python_loop_share_parameters():
  np.testing.assert_allclose(encoded(), encoded(scan=False), atol=1e-5)


def test_remat_reaches_the_layers():
  # That it keeps gradients is tested with the decoder, which shares the code.
  for remat, count in [("none", 0), ("full", 1)]:
    model, params = make(remat=remat)
    text = str(jax.make_jaxpr(model.apply)({"params": params}, IMAGES))
    assert text.count("nothing_saveable") == count


def test_bfloat16_keeps_float32_parameters():
  model, params = make("bfloat16")
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  out = jax.jit(model.apply)({"params": params}, IMAGES)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), encoded(), atol=0.15)


def test_other_image_size_is_refused():
  model, params = make()
  with pytest.raises(ValueError, match="expects 14 x 14 images, got 14 x 16"):
    model.apply({"params": params}, jnp.zeros((1, 14, 16, 3)))


def test_so400m_count_is_the_published_one_less_the_pooling_head():
  config = presets.VIT["so400m_14"]
  model = vit.Vit(config, jnp.bfloat16)
  params = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, 224, 224, 3))), jax.random.key(0)
  )["params"]
  total = sum(x.size for x in jax.tree.leaves(params))
  d, f = config.width, config.mlp
  probe, attn, norm, mlp = d, 4 * (d * d + d), 2 * d, 2 * d * f + f + d
  assert total + probe + attn + norm + mlp == 427_680_704
  assert params["position"].shape == (256, 1152)


def test_so400m_at_384_pixels_leaves_the_last_six_out():
  config = dataclasses.replace(presets.VIT["so400m_14"], image_size=384)
  images = jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.float32)
  tokens, _ = jax.eval_shape(
    vit.Vit(config, jnp.bfloat16).init_with_output, jax.random.key(0), images
  )
  assert tokens.shape == (1, 27 * 27, 1152)


def test_initial_values():
  config = presets.VitConfig(96, 2, 200, 4, patch=8, image_size=64)
  params = jax.jit(vit.Vit(config, jnp.float32).init)(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )["params"]
  params = jax.tree.map(np.asarray, params)
  layers = params["layers"]

  def check(value, variance):
    np.testing.assert_allclose(value.std() / variance**0.5, 1, atol=0.05)

  check(params["patch"]["kernel"], 1 / (8 * 8 * 3))
  check(params["position"], 1 / 96)
  check(layers["attn"]["q"]["kernel"], 1 / 96)
  check(layers["attn"]["out"]["kernel"], 1 / 96)
  check(layers["mlp"]["up"]["kernel"], 2 / 296)
  check(layers["mlp"]["down"]["kernel"], 2 / 296)
