import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, special

from tests.parameters import filled
from unifluid_jax.core import presets
from unifluid_jax.models import convolutions, kl_vae

# Factor 2, attention, shortcuts in encoder and decoder.
TINY = presets.VaeConfig(8, (1, 2), 1, 3, groups=4)


@functools.cache
def tiny():
  """The module and its parameters."""
  return kl_vae.KlVae(TINY), filled(shapes(TINY, 4))


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def apply(module, params, x, method=None):
  run = jax.jit(lambda p, x: module.apply({"params": p}, x, method=method))
  return run(params, x)


@functools.cache
def shapes(config, size):
  vae = kl_vae.KlVae(config)
  images = jnp.zeros((1, size, size, 3))
  return jax.eval_shape(lambda: vae.init(jax.random.key(0), images))["params"]


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


# References in float64, from the formulas of the paper's architecture.


def ref_norm(x, p, groups):
  b, h, w, d = x.shape
  g = x.reshape(b, h, w, groups, d // groups)
  mean = g.mean((1, 2, 4), keepdims=True)
  var = g.var((1, 2, 4), keepdims=True)
  y = ((g - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
  return y * np.float64(p["scale"]) + np.float64(p["bias"])


def ref_conv(x, p):
  kernel = np.float64(p["kernel"])
  out = np.zeros((*x.shape[:3], kernel.shape[3]))
  for b in range(x.shape[0]):
    for i in range(kernel.shape[2]):
      for o in range(kernel.shape[3]):
        out[b, :, :, o] += signal.correlate2d(
          x[b, :, :, i], kernel[:, :, i, o], mode="same"
        )
  return out + np.float64(p["bias"])


def silu(x):
  return x * special.expit(x)


def test_sd_f8_has_the_published_parameters():
  p = shapes(presets.VAE["sd_f8"], 64)
  assert count(p["encoder"]) == 34_163_592
  assert count(p["decoder"]) == 49_490_179
  assert count(p) == 83_653_863
  assert len(jax.tree.leaves(p)) == 248


# Multipliers and blocks are those of f16. Channels of z, of codes, side of the
# convolutions between them; published encoder, decoder, both convolutions.
DISCRETE = {
  "chameleon": (
    dict(base=128, latent=256), 256, 1, (27_194_880, 39_294_851, 131_584)
  ),
  "llamagen": (
    dict(base=128, latent=256, encoder_attention=True, decoder_attention=True),
    8, 1, (29_298_176, 42_449_795, 4_360),
  ),
  "var": (
    dict(base=160, latent=32, encoder_attention=True, decoder_attention=True),
    32, 3, (44_107_872, 64_653_923, 18_496),
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_tokenizers_have_the_published_parameters(name):
  sizes, code, side, published = DISCRETE[name]
  config = presets.AutoencoderConfig(
    multipliers=(1, 1, 2, 2, 4), blocks=2, **sizes
  )
  z = config.latent
  parts = (
    (convolutions.Encoder(config, z), (16, 16, 3)),
    (convolutions.Decoder(config), (1, 1, z)),
    (convolutions.conv(code, side, jnp.float32), (1, 1, z)),
    (convolutions.conv(z, side, jnp.float32), (1, 1, code)),
  )
  encoder, decoder, quant, post_quant = (
    count(jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape))))
    for net, shape in parts
  )
  assert (encoder, decoder, quant + post_quant) == published


def test_attention_of_the_decoder_follows_each_block_of_its_first_level():
  config = dataclasses.replace(TINY, decoder_attention=True)
  decoder = shapes(config, 4)["decoder"]
  found = [k for k in decoder["up_0"] if k.startswith("attention")]
  assert sorted(found) == ["attention_0", "attention_1"]
  assert not any(k.startswith("attention") for k in decoder["up_1"])


def test_sd_f8_names_and_shapes_follow_the_published_layout():
  p = shapes(presets.VAE["sd_f8"], 64)
  down, up = p["encoder"]["down_1"], p["decoder"]["up_2"]
  assert down["resnet_0"]["conv1"]["kernel"].shape == (3, 3, 128, 256)
  assert down["resnet_0"]["shortcut"]["kernel"].shape == (1, 1, 128, 256)
  assert "shortcut" not in down["resnet_1"]
  assert down["downsample"]["kernel"].shape == (3, 3, 256, 256)
  assert "downsample" not in p["encoder"]["down_3"]
  assert up["resnet_0"]["conv1"]["kernel"].shape == (3, 3, 512, 256)
  assert sorted(up) == ["resnet_0", "resnet_1", "resnet_2", "upsample"]
  assert p["decoder"]["up_0"]["upsample"]["kernel"].shape == (3, 3, 512, 512)
  assert "upsample" not in p["decoder"]["up_3"]
  mid = p["encoder"]["mid"]["attention"]
  assert sorted(mid) == ["k", "norm", "out", "q", "v"]
  assert mid["q"]["kernel"].shape == (512, 512)
  assert p["quant_conv"]["kernel"].shape == (1, 1, 8, 8)
  assert p["decoder"]["conv_out"]["kernel"].shape == (3, 3, 128, 3)


def test_sd_f8_maps_256_pixels_to_32_cells_and_back():
  vae = kl_vae.KlVae(presets.VAE["sd_f8"], jnp.bfloat16)
  variables = {"params": shapes(presets.VAE["sd_f8"], 64)}
  images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)

  def run(method, x):
    return jax.eval_shape(
      lambda v, x: vae.apply(v, x, method=method), variables, x
    )

  moments = run("encode", images)
  assert (moments.shape, moments.dtype) == ((2, 32, 32, 8), jnp.float32)
  z = jax.ShapeDtypeStruct((2, 32, 32, 4), jnp.float32)
  out = run("decode", z)
  assert (out.shape, out.dtype) == ((2, 256, 256, 3), jnp.float32)


def test_small_f4_without_attention():
  config = presets.VaeConfig(96, (1, 1, 1), 1, 4, attention=False, groups=32)
  p = shapes(config, 32)
  assert sorted(p["encoder"]["mid"]) == ["resnet_0", "resnet_1"]
  vae = kl_vae.KlVae(config)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  moments = jax.eval_shape(
    lambda v, x: vae.apply(v, x, method="encode"), {"params": p}, images
  )
  assert moments.shape == (1, 8, 8, 8)


def test_downsampling_pads_the_bottom_and_the_right_only():
  level = convolutions.Level(1, 0, "down", 1)
  x = normal(0, 1, 6, 6, 1)
  padded = np.pad(x[0, :, :, 0], ((0, 1), (0, 1)))
  for row in range(3):
    for column in range(3):
      kernel = np.zeros((3, 3, 1, 1), np.float32)
      kernel[row, column] = 1
      p = {"downsample": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}
      out = apply(level, p, x)
      expected = padded[row : row + 6 : 2, column : column + 6 : 2]
      np.testing.assert_array_equal(out[0, :, :, 0], expected)


def test_upsampling_repeats_cells_before_its_convolution():
  level = convolutions.Level(1, 0, "up", 1)
  x = jnp.arange(6, dtype=jnp.float32).reshape(1, 2, 3, 1)
  kernel = np.zeros((3, 3, 1, 1), np.float32)
  kernel[1, 1] = 1
  p = {"upsample": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}
  out = apply(level, p, x)
  expected = np.kron(x[0, :, :, 0], np.ones((2, 2)))
  np.testing.assert_array_equal(out[0, :, :, 0], expected)


def test_resnet_equals_its_formula():
  x = normal(1, 2, 4, 5, 4)
  block = convolutions.Resnet(6, 2)
  p = filled(jax.eval_shape(block.init, jax.random.key(0), x)["params"])
  h = ref_conv(silu(ref_norm(np.float64(x), p["norm1"], 2)), p["conv1"])
  h = ref_conv(silu(ref_norm(h, p["norm2"], 2)), p["conv2"])
  expected = ref_conv(np.float64(x), p["shortcut"]) + h
  out = apply(block, p, x)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-5)


def test_attention_equals_its_formula():
  x = normal(2, 2, 3, 4, 6)
  block = convolutions.Attention(3)
  p = filled(jax.eval_shape(block.init, jax.random.key(0), x)["params"])

  def dense(y, name):
    q = p[name]
    return y @ np.float64(q["kernel"]) + np.float64(q["bias"])

  y = ref_norm(np.float64(x), p["norm"], 3).reshape(2, 12, 6)
  logits = dense(y, "q") @ dense(y, "k").transpose(0, 2, 1) / np.sqrt(6)
  y = dense(special.softmax(logits, -1) @ dense(y, "v"), "out")
  out = apply(block, p, x)
  np.testing.assert_allclose(out, x + y.reshape(x.shape), rtol=1e-4, atol=2e-5)


def test_norm_keeps_float32_precision_for_bfloat16_inputs():
  x = jnp.asarray(
    100 + np.random.default_rng(3).standard_normal((1, 8, 8, 4)), jnp.bfloat16
  )
  norm = convolutions.Norm(2)
  p = norm.init(jax.random.key(0), x)["params"]
  out = apply(norm, p, x)
  assert out.dtype == jnp.bfloat16
  expected = ref_norm(np.float64(x), {"scale": 1, "bias": 0}, 2)
  np.testing.assert_allclose(np.float64(out), expected, rtol=2**-8, atol=1e-3)


def test_log_variance_is_clipped():
  vae, p = tiny()
  bias = jnp.array([50.0, 0, 0, 50, -50, 0])
  p = {**p, "quant_conv": {**p["quant_conv"], "bias": bias}}
  moments = apply(vae, p, jnp.zeros((1, 4, 4, 3)), "encode")
  assert float(moments[..., 0].min()) > 40
  np.testing.assert_array_equal(moments[..., 3], 20)
  np.testing.assert_array_equal(moments[..., 4], -30)


def test_decode_splits_at_the_last_convolution():
  vae, p = tiny()
  z = normal(1, 2, 3, 3, 3)
  features = apply(vae, p, z, "decode_features")
  assert features.shape == (2, 6, 6, 8)
  swapped = convolutions.with_last_kernel(p, 2 * convolutions.last_kernel(p))
  out = apply(vae, swapped, features, "decode_output")
  full = apply(vae, p, z, "decode")
  bias = p["decoder"]["conv_out"]["bias"]
  np.testing.assert_allclose(
    out - bias, 2 * (full - bias), rtol=1e-5, atol=1e-6
  )


def test_bfloat16_stays_near_float32():
  vae, p = tiny()
  half = kl_vae.KlVae(TINY, jnp.bfloat16)
  images = jax.random.uniform(jax.random.key(1), (1, 4, 4, 3), minval=-1)
  masters = jax.eval_shape(half.init, jax.random.key(0), images)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(masters))
  x, y = apply(vae, p, images), apply(half, p, images)
  assert y.dtype == jnp.float32
  assert 0 < float(jnp.abs(x - y).max()) < 0.05


def test_kl_of_a_standard_normal_is_zero():
  np.testing.assert_array_equal(kl_vae.kl(jnp.zeros((3, 2, 2, 8))), 0)


def test_kl_equals_its_closed_form():
  rng = np.random.default_rng(4)
  mean, std = (
    rng.standard_normal((2, 2, 3, 4)),
    rng.uniform(0.2, 3, (2, 2, 3, 4)),
  )
  moments = np.concatenate([mean, 2 * np.log(std)], -1).astype(np.float32)
  expected = (-np.log(std) + (std**2 + mean**2) / 2 - 0.5).sum((1, 2, 3))
  np.testing.assert_allclose(
    kl_vae.kl(jnp.asarray(moments)), expected, rtol=1e-5
  )


def test_samples_follow_the_posterior():
  mean, std = 1.5, 0.25
  moments = jnp.stack(
    [jnp.full((1, 64, 64), mean), jnp.full((1, 64, 64), 2 * np.log(std))], -1
  )
  np.testing.assert_array_equal(kl_vae.sample(moments, None), moments[..., :1])
  z = kl_vae.sample(moments, jax.random.key(0))
  # Five standard errors of 4096 draws.
  assert abs(float(z.mean()) - mean) < 5 * std / 64
  assert abs(float(z.std()) - std) < 5 * std / 64 / np.sqrt(2)


def test_latents_are_centred_then_scaled_and_back():
  z = jnp.asarray([1.0, 3.0]).reshape(1, 1, 1, 2)
  latents = kl_vae.to_latents(z, 1.0, 0.5)
  np.testing.assert_array_equal(latents.ravel(), [0, 1])
  np.testing.assert_array_equal(kl_vae.from_latents(latents, 1.0, 0.5), z)


def test_misfits_are_refused_with_the_fix():
  with pytest.raises(ValueError, match="multiples of 2"):
    apply(*tiny(), jnp.zeros((1, 4, 5, 3)), "encode")
  bad = dataclasses.replace(TINY, groups=3)
  with pytest.raises(ValueError, match="groups=3 does not divide 8"):
    shapes(bad, 4)


def test_a_flat_image_far_from_zero_is_not_nan():
  """Whose variance, as a difference of large numbers, may be below 0."""
  norm = convolutions.Norm(2)
  for value in (0.0, 3.3, 77.7):
    x = jnp.full((1, 16, 16, 4), value)
    got = norm.apply(norm.init(jax.random.key(0), x), x)
    assert np.isfinite(got).all() and np.abs(got).max() < 2
