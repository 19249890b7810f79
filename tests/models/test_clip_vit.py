"""CLIP's vision encoder against a float64 reference in plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.core import presets
from unifluid_jax.models.clip_vit import ClipVit, quick_gelu

TINY = presets.VitConfig(
  width=12, depth=3, mlp=20, heads=3, patch=4, image_size=9
)
IMAGES = jnp.asarray(
  np.random.default_rng(9).normal(size=(2, 9, 9, 3)), jnp.float32
)


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


@functools.cache
def params():
  """None at its neutral value."""
  model = ClipVit(TINY, jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
  draw = np.random.default_rng(0).normal
  return jax.tree.map(
    lambda x: jnp.asarray(0.4 * draw(size=x.shape), x.dtype), shapes
  )


def norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  return (
    centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]
  )


def reference(image, depth):
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params())
  image = np.asarray(image, np.float64)
  cells = [image[r : r + 4, c : c + 4] for r in (0, 4) for c in (0, 4)]
  x = np.stack(
    [
      p["class_token"],
      *(np.tensordot(cell, p["patch"]["kernel"], 3) for cell in cells),
    ]
  )
  x = norm(x + p["position"], p["pre_norm"])
  for layer in range(depth):
    q = jax.tree.map(lambda a, i=layer: a[i], p["layers"])
    y, out = norm(x, q["norm1"]), q["attn"]["out"]["bias"]
    for n in range(3):
      query, key, value = (
        y @ q["attn"][a]["kernel"][:, n] + q["attn"][a]["bias"][n]
        for a in "qkv"
      )
      e = np.exp(query @ key.T / 2)
      y_n = e / e.sum(-1, keepdims=True) @ value
      out = out + y_n @ q["attn"]["out"]["kernel"][n]
    x = x + out
    up, down = q["mlp"]["up"], q["mlp"]["down"]
    z = norm(x, q["norm2"]) @ up["kernel"] + up["bias"]
    z = z / (1 + np.exp(-1.702 * z))
    x = x + z @ down["kernel"] + down["bias"]
  return x[1:]


def test_equals_numpy_and_stops_before_the_last_block():
  got = jax.jit(ClipVit(TINY, jnp.float32).apply)({"params": params()}, IMAGES)
  want = np.stack([reference(image, depth=2) for image in IMAGES])
  np.testing.assert_allclose(got, want, atol=2e-5)


def test_norm_of_flat_images_shows_its_epsilon():
  """With small tokens the norm's epsilon of 1e-5 is what counts."""
  small = dict(params())
  for name in ("class_token", "position"):
    small[name] = small[name] * 1e-3
  small["layers"] = jax.tree.map(jnp.zeros_like, small["layers"])
  got = ClipVit(TINY, jnp.float32).apply(
    {"params": small}, jnp.zeros((1, 9, 9, 3))
  )
  x = np.asarray(small["position"], np.float64)[1:]
  np.testing.assert_allclose(got[0], norm(x, params()["pre_norm"]), atol=1e-5)


def test_python_loop_and_remat_share_parameters():
  want = ClipVit(TINY, jnp.float32).apply({"params": params()}, IMAGES)
  other = ClipVit(TINY, jnp.float32, remat="full", scan=False)
  got = other.apply({"params": params()}, IMAGES)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_bfloat16_keeps_float32_parameters():
  model = ClipVit(TINY, jnp.bfloat16)
  tree = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
  assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
  out = jax.eval_shape(model.apply, {"params": tree}, IMAGES)
  assert out.dtype == jnp.bfloat16 and out.shape == (2, 4, 12)


def test_quick_gelu():
  x = np.linspace(-5, 5, 11)
  np.testing.assert_allclose(
    quick_gelu(jnp.asarray(x, jnp.float32)),
    x / (1 + np.exp(-1.702 * x)),
    atol=1e-6,
  )


def test_count_is_the_published_one_less_the_last_block():
  config = presets.CLIP_VIT["l14_336"]
  tree = jax.eval_shape(
    lambda: ClipVit(config, jnp.float32).init(
      jax.random.key(0), jnp.zeros((1, 336, 336, 3))
    )
  )["params"]
  total = sum(x.size for x in jax.tree.leaves(tree))
  d, f = config.width, config.mlp
  block = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
  assert total + block + 2 * d == 303_507_456
  assert tree["position"].shape == (577, 1024)


def test_other_image_size_is_refused():
  with pytest.raises(ValueError, match="expects 9 x 9 images, got 9 x 12"):
    ClipVit(TINY, jnp.float32).apply(
      {"params": params()}, jnp.zeros((1, 9, 12, 3))
    )
