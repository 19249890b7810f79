"""The VQ autoencoder and its quantiser, against numpy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_kl_vae import count
from tests.parameters import filled
from unifluid_jax.core import presets
from unifluid_jax.models import vq

TINY = presets.VqConfig(
  8, (1, 2), 0, 6, attention=False, groups=4, codes=5, code_channels=3,
  normalised=True,
)  # fmt: skip
RNG = np.random.default_rng(0)
Z = jnp.float32(RNG.standard_normal((2, 3, 4, 3)))
TABLE = jnp.float32(RNG.standard_normal((7, 3)))

PUBLISHED = {
  "chameleon": (68_718_467, 8192 * 256),
  "llamagen_vq16": (71_883_403, 16_384 * 8),
  "llamagen_vq8": (70_109_835, 16_384 * 8),
}


@functools.cache
def shapes(config, side):
  images = jnp.zeros((1, side, side, 3))
  init = functools.partial(vq.VqVae(config).init, images=images)
  return jax.eval_shape(init, jax.random.key(0))["params"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_parameters(name):
  params = shapes(presets.VQ[name], presets.VQ[name].factor)
  whole, codebook = PUBLISHED[name]
  assert count(params) == whole
  assert list(params["codebook"]) == ["table"]
  assert count(params["codebook"]) == codebook


def test_attention_stands_where_the_original_has_it():
  """Chameleon: in the middle only; the others: at the lowest resolution."""
  for name, config in presets.VQ.items():
    params = shapes(config, config.factor)
    last = len(config.multipliers) - 1
    for part, level in (("encoder", f"down_{last}"), ("decoder", "up_0")):
      found = sorted(k for k in params[part][level] if "attention" in k)
      n = 2 if part == "encoder" else 3
      wanted = [f"attention_{i}" for i in range(n)]
      assert found == ([] if name == "chameleon" else wanted), (name, part)
      assert "attention" in params[part]["mid"]


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("normalised", [False, True])
def test_codes_are_the_nearest_vectors(normalised):
  found = jax.jit(vq.quantise, static_argnums=2)(Z, TABLE, normalised)
  z, table = np.float64(Z), np.float64(TABLE)
  if normalised:
    z, table = unit(z), unit(table)
  distance = np.square(z[..., None, :] - table).sum(-1)
  codes = distance.argmin(-1)
  assert len(np.unique(codes)) > 3
  np.testing.assert_array_equal(found.codes, codes)
  np.testing.assert_allclose(found.z, z, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found.nearest, table[codes], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    vq.distances(found.z, jnp.float32(table)), distance, rtol=1e-4, atol=1e-5
  )


def test_directions_and_distances_choose_differently():
  """Otherwise the test above could not tell them apart."""
  plain, normalised = (vq.quantise(Z, TABLE, n).codes for n in (False, True))
  assert (np.asarray(plain) != np.asarray(normalised)).any()


def test_of_equal_codes_the_first_is_taken():
  table = jnp.concatenate([TABLE[3:4], TABLE, TABLE])
  codes = np.asarray(vq.quantise(Z, table, False).codes)
  assert codes.max() <= 7 and (codes != 4).all() and (codes == 0).any()


def test_half_precision_is_compared_in_float32():
  found = vq.quantise(jnp.asarray(Z, jnp.bfloat16), TABLE, False)
  assert found.z.dtype == found.nearest.dtype == jnp.float32
  rounded = np.float64(jnp.asarray(Z, jnp.bfloat16))
  distance = np.square(rounded[..., None, :] - TABLE).sum(-1)
  np.testing.assert_array_equal(found.codes, distance.argmin(-1))


def test_gradients_pass_straight_through():
  """d f(nearest) / dz = f'(nearest), and nothing reaches the codebook."""
  weights = jnp.float32(RNG.standard_normal(Z.shape))

  def f(z, table):
    return (
      weights * jnp.square(vq.quantise(z, table, False).straight_through)
    ).sum()

  value, (dz, dtable) = jax.value_and_grad(f, (0, 1))(Z, TABLE)
  nearest = np.asarray(vq.quantise(Z, TABLE, False).nearest)
  np.testing.assert_allclose(value, (weights * nearest**2).sum(), rtol=1e-4)
  np.testing.assert_allclose(dz, 2 * weights * nearest, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(dtable, 0)


def test_gradients_pass_through_the_normalisation():
  """d (w . z / |z|) / dz = (w - (w . u) u) / |z| with u = z / |z|."""
  weights = jnp.float32(RNG.standard_normal(Z.shape))
  dz = jax.grad(
    lambda z: (weights * vq.quantise(z, TABLE, True).straight_through).sum()
  )(Z)
  u, norm = unit(Z), np.linalg.norm(Z, axis=-1, keepdims=True)
  along = (weights * u).sum(-1, keepdims=True) * u
  np.testing.assert_allclose(dz, (weights - along) / norm, rtol=1e-3, atol=1e-5)


def test_a_vector_of_zeros_has_finite_gradients():
  zeros = jnp.zeros((1, 1, 1, 3))
  found, grad = jax.value_and_grad(
    lambda z: vq.quantise(z, TABLE, True).straight_through.sum()
  )(zeros)
  assert np.isfinite(found) and np.isfinite(grad).all()


def test_entropy_equals_its_formula():
  z, table = 0.1 * np.float64(unit(Z)), 0.1 * np.float64(unit(TABLE))
  scores = -np.square(z[..., None, :] - table).sum(-1).reshape(-1, 7) / 0.01
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  each = -(p * np.log(p)).sum(-1).mean()
  mean = p.mean(0)
  expected = each + (mean * np.log(mean + 1e-5)).sum()
  found = vq.entropy_loss(jnp.float32(z), jnp.float32(table))
  np.testing.assert_allclose(found, expected, rtol=1e-3)
  # Sure of one code each, all codes alike: the least there is.
  sure = vq.entropy_loss(jnp.eye(3), jnp.eye(3))
  np.testing.assert_allclose(sure, -np.log(3), rtol=1e-3)


def test_perplexity_is_the_number_of_codes_in_equal_use():
  assert float(vq.perplexity(jnp.ones(8))) == pytest.approx(8, rel=1e-5)
  one = jnp.zeros(8).at[2].set(5.0)
  assert float(vq.perplexity(one)) == pytest.approx(1, rel=1e-5)
  half = jnp.asarray([3.0, 1.0])
  expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
  assert float(vq.perplexity(half)) == pytest.approx(expected, rel=1e-5)


def test_images_are_decoded_from_the_vectors_of_their_codes():
  """Reconstruction, and the straight-through path, are decode(encode)."""
  net, params = vq.VqVae(TINY), filled(shapes(TINY, 4))
  images = jnp.float32(RNG.uniform(-1, 1, (2, 8, 4, 3)))

  @jax.jit
  def run(params, images):
    def call(x, method):
      return net.apply({"params": params}, x, method=method)

    found = call(images, "quantise")
    through = call(found.straight_through, "decode_features")
    codes = call(images, "encode")
    return (
      found, codes, call(through, "decode_output"), call(codes, "decode"),
      call(images, "__call__"),
    )  # fmt: skip

  found, codes, *images = run(params, images)
  assert codes.shape == (2, 4, 2) and codes.dtype == jnp.int32
  np.testing.assert_array_equal(codes, found.codes)
  norms = np.linalg.norm(found.straight_through, axis=-1)
  np.testing.assert_allclose(norms, 1, rtol=1e-5)
  for other in images[1:]:
    np.testing.assert_allclose(images[0], other, rtol=1e-4, atol=1e-5)


def test_a_fresh_codebook_is_small_and_uniform():
  table = vq.Codebook(64, 3).init(jax.random.key(0))["params"]["table"]
  assert 0.9 / 64 < float(jnp.abs(table).max()) <= 1 / 64
  assert abs(float(table.mean())) < 0.1 / 64
