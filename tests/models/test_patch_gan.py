import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parameters import filled
from unifluid_jax.models import patch_gan


def test_published_size_and_patch_grid():
  gan = patch_gan.PatchGan(64, 3)
  images = jnp.zeros((1, 256, 256, 3))
  logits, variables = jax.eval_shape(
    lambda: gan.init_with_output(jax.random.key(0), images)
  )
  sizes = [x.size for x in jax.tree.leaves(variables["params"])]
  # pix2pix's 70-pixel discriminator on three input channels.
  assert sum(sizes) == 2_765_633
  assert logits.shape == (1, 30, 30)
  assert list(variables) == ["params"]


def test_widths_double_up_to_eight_times():
  gan = patch_gan.PatchGan(2, 5)
  p = jax.eval_shape(
    lambda: gan.init(jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
  )["params"]
  widths = [p[f"conv_{i}"]["kernel"].shape[-1] for i in range(6)]
  assert widths == [2, 4, 8, 16, 16, 16]


def test_initial_distributions():
  gan = patch_gan.PatchGan(32, 2)
  init = jax.jit(gan.init)
  p = init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))["params"]
  kernel = np.asarray(p["conv_2"]["kernel"])
  assert abs(kernel.std() - 0.02) < 0.001 and abs(kernel.mean()) < 0.001
  scale = np.asarray(p["norm_2"]["scale"])
  assert abs(scale.mean() - 1) < 0.01 and 0.01 < scale.std() < 0.03
  assert "bias" in p["conv_0"] and "bias" not in p["conv_1"]


def ref_conv(x, kernel, stride):
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows = (x.shape[1] - 4) // stride + 1
  columns = (x.shape[2] - 4) // stride + 1
  out = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
  for i in range(rows):
    for j in range(columns):
      patch = x[:, stride * i : stride * i + 4, stride * j : stride * j + 4]
      out[:, i, j] = np.einsum("BHWC,HWCD->BD", patch, kernel)
  return out


def test_network_equals_its_formula():
  x = np.random.default_rng(0).standard_normal((3, 16, 14, 3))
  gan = patch_gan.PatchGan(4, 2)
  images = jnp.asarray(x, jnp.float32)
  p = filled(jax.eval_shape(gan.init, jax.random.key(0), images)["params"])
  run = jax.jit(gan.apply)
  # The second factor makes the norm's eps count.
  for factor in (1, 1e-3):
    q = jax.tree.map(lambda a, f=factor: np.float64(a * f), p)
    y = ref_conv(x, q["conv_0"]["kernel"], 2) + q["conv_0"]["bias"]
    y = np.where(y > 0, y, 0.2 * y)
    for i, stride in ((1, 2), (2, 1)):
      y = ref_conv(y, q[f"conv_{i}"]["kernel"], stride)
      mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
      norm = q[f"norm_{i}"]
      y = (y - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
      y = np.where(y > 0, y, 0.2 * y)
    y = ref_conv(y, q["conv_out"]["kernel"], 1) + q["conv_out"]["bias"]
    scaled = jax.tree.map(lambda a, f=factor: a * f, p)
    out = run({"params": scaled}, images)
    np.testing.assert_allclose(
      out, y[..., 0], rtol=1e-4, atol=1e-5 * np.abs(y).max()
    )


def test_too_small_images_are_refused_with_the_fix():
  gan = patch_gan.PatchGan(4, 3)

  def run(height, width):
    images = jnp.zeros((1, height, width, 3))
    return jax.eval_shape(
      lambda: gan.init_with_output(jax.random.key(0), images)
    )[0]

  assert run(24, 24).shape == (1, 1, 1)
  with pytest.raises(ValueError, match="24 pixels or more"):
    run(23, 32)
