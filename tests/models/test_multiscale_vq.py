"""The multi-scale VQ autoencoder's scales, against numpy and closed forms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_kl_vae import count
from tests.parameters import filled
from unifluid_jax.core import presets
from unifluid_jax.models import multiscale_vq

TINY = presets.MultiscaleVqConfig(
  8, (1, 1), 0, 6, attention=False, groups=4, codes=20, code_channels=3,
  scales=(1, 3, 4), phi=2, phi_ratio=0.3,
)  # fmt: skip
NET = multiscale_vq.MultiscaleVqVae(TINY)
SIDE = TINY.scales[-1]
RNG = np.random.default_rng(0)


@functools.cache
def shapes(config):
  side = config.factor * config.scales[-1]
  images = jnp.zeros((1, side, side, 3))
  init = functools.partial(multiscale_vq.MultiscaleVqVae(config).init,
                           images=images)  # fmt: skip
  return jax.eval_shape(init, jax.random.key(0))["params"]


@functools.cache
def params():
  tree = filled(shapes(TINY))
  return tree | {"codebook": {"table": 10 * tree["codebook"]["table"]}}


def apply(params, x, method):
  return NET.apply({"params": params}, x, method=method)


@pytest.fixture(scope="module")
def run():
  """A latent, what it becomes, and what is made of its codes."""
  f = jnp.float32(2 * RNG.standard_normal((2, SIDE, SIDE, 3)))

  @jax.jit
  def all_of(p, f):
    found = apply(p, f, "quantise_latents")
    codes = found.codes
    sums = apply(p, codes, "sums")
    return found, sums, apply(p, codes, "inputs"), (
      apply(p, codes, "decode"), apply(p, sums[-1], "image")
    )  # fmt: skip

  return (f, *all_of(params(), f))


# ------------------------------------------------------------------ published


def test_presets_have_the_published_sizes():
  one, two = (presets.MULTISCALE_VQ[n] for n in ("var_f16", "var_f16_512"))
  assert (one.tokens, two.tokens) == (680, 2240)
  assert dataclasses.replace(two, scales=one.scales) == one  # the same weights
  tree = shapes(one)
  quantiser = {k: tree[k] for k in ("codebook", "phi")}
  assert count(quantiser) == 168_064
  assert count(tree["encoder"]) == 44_107_872
  assert count(tree["decoder"]) == 64_653_923
  assert count(tree) == 108_948_355
  assert "attention_2" in tree["decoder"]["up_0"]
  assert "attention_1" in tree["encoder"]["down_4"]


def test_tokens_are_squares_of_all_scales():
  config = presets.MultiscaleVqConfig(
    8, (1,), 1, 8, codes=4, code_channels=2, scales=(1, 2, 3, 4, 6, 8)
  )
  assert config.tokens == 130


@pytest.mark.parametrize(
  "scales, phi, wanted",
  [
    (10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
    (6, 4, [0, 0, 1, 2, 3, 3]),
    (10, 1, [0] * 10),
    (7, 7, list(range(7))),
    # Ticks at 1/6, 1/2, 5/6; scales at 0, 1/4, ...: 1/4 is nearer to 1/6.
    (5, 3, [0, 0, 1, 2, 2]),
    (1, 4, [0]),
  ],
)
def test_scales_share_convolutions_by_their_place(scales, phi, wanted):
  found = [multiscale_vq.phi_of(k, scales, phi) for k in range(scales)]
  assert found == wanted


def test_interpolation_is_cubic_with_the_published_kernel():
  """From 2 to 4 cells, edges clamped; ramps pass where no edge is near."""
  matrix = multiscale_vq.bicubic_matrix(4, 2)
  golden = [-0.10546875, 0.2265625, 0.7734375, 1.10546875]
  np.testing.assert_array_equal(matrix @ np.float32([0, 1]), np.float32(golden))
  for outputs, inputs in ((16, 1), (16, 3), (16, 13), (32, 24)):
    matrix = multiscale_vq.bicubic_matrix(outputs, inputs)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-6)
    assert ((matrix != 0).sum(1) <= 4).all()
  at = (np.arange(16) + 0.5) * 13 / 16 - 0.5
  inside = (at >= 1) & (at <= 11)
  ramp = multiscale_vq.bicubic_matrix(16, 13) @ np.arange(13)
  # Keys' kernel passes ramps only for a = -1/2; here within this bound.
  assert inside.sum() > 10 and np.abs(ramp - at)[inside].max() < 0.05


def test_averages_are_of_overlapping_windows():
  matrix = multiscale_vq.area_matrix(3, 16)
  for row, (start, end) in zip(
    matrix, ((0, 6), (5, 11), (10, 16)), strict=True
  ):
    wanted = np.zeros(16)
    wanted[start:end] = 1 / 6
    np.testing.assert_allclose(row, wanted, rtol=1e-6)
  matrix = multiscale_vq.area_matrix(6, 16)
  assert [(row > 0).sum() for row in matrix] == [3, 4, 3, 3, 4, 3]
  np.testing.assert_array_equal(multiscale_vq.area_matrix(5, 5), np.eye(5))


def test_rows_of_scales_are_cut_and_joined_in_order():
  rows = np.arange(2 * TINY.tokens).reshape(2, -1)
  parts = multiscale_vq.split(jnp.asarray(rows), TINY.scales)
  assert [part.shape for part in parts] == [(2, p, p) for p in TINY.scales]
  assert parts[1][0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
  np.testing.assert_array_equal(multiscale_vq.join(parts), rows)


# --------------------------------------------------------------- quantisation


def resized(x, matrix):
  return np.einsum("ip,jq,bpqe->bije", matrix, matrix, np.float64(x))


def smoothed(h, kernel, bias):
  """phi, with the convolution as nine shifted products."""
  padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
  y = sum(
    padded[:, i : i + SIDE, j : j + SIDE] @ np.float64(kernel[i, j])
    for i in range(3)
    for j in range(3)
  )
  return 0.7 * h + 0.3 * (y + bias)


def test_each_scale_codes_what_the_coarser_ones_leave(run):
  """All of the loop in float64."""
  f, found, sums, _, _ = run
  p = jax.tree.map(np.float64, params())
  table, phi = p["codebook"]["table"], p["phi"]
  residual, f_hat = np.float64(f), np.zeros(f.shape)
  codes = np.split(np.asarray(found.codes), [1, 10], axis=1)
  compared = np.split(np.asarray(found.compared), [1, 10], axis=1)
  # Of two convolutions, ticks at 1/4 and 3/4: 0 and 1/2 are the first's.
  for k, (side, which) in enumerate(zip((1, 3, 4), (0, 0, 1), strict=True)):
    z = resized(residual, multiscale_vq.area_matrix(side, SIDE))
    z = z.reshape(2, -1, 3)
    np.testing.assert_allclose(compared[k], z, rtol=1e-4, atol=1e-5)
    nearest = np.square(z[:, :, None] - table).sum(-1).argmin(-1)
    np.testing.assert_array_equal(codes[k], nearest)
    h = table[nearest].reshape(2, side, side, 3)
    h = resized(h, multiscale_vq.bicubic_matrix(SIDE, side))
    h = smoothed(h, phi["kernels"][which], phi["biases"][which])
    f_hat, residual = f_hat + h, residual - h
    for ours in (found.sums[:, k], sums[k + 1]):
      np.testing.assert_allclose(ours, f_hat, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(sums[0], 0)
  np.testing.assert_array_equal(found.nearest, found.sums[:, -1])
  np.testing.assert_array_equal(found.z, f)
  assert len(np.unique(found.codes)) > 8
  assert found.codes.dtype == jnp.int32


def test_the_residual_and_the_sum_are_the_latent(run):
  """After each scale; and the finest is searched for without averaging."""
  f, found, *_ = run
  compared = multiscale_vq.split(found.compared, TINY.scales)
  for k, side in ((1, 3), (2, 4)):
    residual = f - found.sums[:, k - 1]
    wanted = resized(residual, multiscale_vq.area_matrix(side, SIDE))
    np.testing.assert_allclose(compared[k], wanted, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(compared[2], residual, atol=1e-6)


def test_a_scale_is_fed_the_sum_of_the_coarser_ones(run):
  _, found, sums, inputs, _ = run
  parts = multiscale_vq.split(inputs, TINY.scales)
  np.testing.assert_array_equal(parts[0], 0)
  for k, side in ((1, 3), (2, 4)):
    wanted = resized(sums[k], multiscale_vq.area_matrix(side, SIDE))
    np.testing.assert_allclose(parts[k], wanted, rtol=1e-4, atol=1e-5)
  change = jax.jit(lambda codes: apply(params(), codes, "inputs"))
  for k, start, end in ((0, 0, 1), (1, 1, 10), (2, 10, 26)):
    codes = found.codes.at[:, start:end].set(
      (found.codes[:, start:end] + 1) % 20
    )
    others = multiscale_vq.split(change(codes), TINY.scales)
    moved = [not np.allclose(a, b) for a, b in zip(parts, others, strict=True)]
    assert moved == [k < other for other in range(3)]


def test_uses_are_counted_for_each_scale(run):
  _, found, *_ = run
  uses = found.uses(TINY)
  for row, part in zip(
    uses, np.split(np.asarray(found.codes), [1, 10], axis=1), strict=True
  ):
    np.testing.assert_array_equal(row, np.bincount(part.ravel(), minlength=20))


def test_gradients_pass_straight_through_the_sum(run):
  f, found, *_ = run
  weights = jnp.float32(RNG.standard_normal(f.shape))

  def value(f, p):
    z = apply(p, f, "quantise_latents").straight_through
    return (weights * jnp.square(z)).sum()

  df, dp = jax.jit(jax.grad(value, (0, 1)))(f, params())
  np.testing.assert_allclose(
    df, 2 * weights * found.nearest, rtol=1e-4, atol=1e-4
  )
  assert all(not np.any(x) for x in jax.tree.leaves(dp))


def test_partial_sums_train_the_codes_of_their_scales_alone(run):
  """f^ after scale k is a function of the vectors of scales 0 to k."""
  f, found, *_ = run
  codes = [set(np.ravel(c)) for c in
           np.split(np.asarray(found.codes), [1, 10], axis=1)]  # fmt: skip

  def sums(p):
    return jnp.square(apply(p, f, "quantise_latents").sums - f[:, None]).sum(
      (0, 2, 3, 4)
    )

  grads = jax.jit(jax.jacrev(sums))(params())
  table = np.asarray(grads["codebook"]["table"])
  for k in range(3):
    touched = set(np.flatnonzero(np.abs(table[k]).max(-1)))
    assert touched == set().union(*codes[: k + 1])
  kernels = np.abs(grads["phi"]["kernels"]).max((2, 3, 4, 5)) > 0
  assert kernels.tolist() == [[True, False], [True, False], [True, True]]


# ----------------------------------------------------------------- the network


def test_images_are_decoded_from_the_sum_of_all_scales():
  p = params()
  images = jnp.float32(RNG.uniform(-1, 1, (2, 8, 8, 3)))

  @jax.jit
  def run(p, images):
    found = apply(p, images, "quantise")
    through = apply(p, found.straight_through, "decode_features")
    codes = apply(p, images, "encode")
    return found.codes, codes, (
      apply(p, through, "decode_output"), apply(p, codes, "decode"),
      apply(p, found.nearest, "image"), apply(p, images, "__call__"),
    )  # fmt: skip

  codes, own, images = run(p, images)
  assert codes.shape == (2, 26)
  np.testing.assert_array_equal(codes, own)
  assert images[0].shape == (2, 8, 8, 3)
  for other in images[1:]:
    np.testing.assert_allclose(images[0], other, rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_refused():
  images = jax.ShapeDtypeStruct((1, 6, 6, 3), jnp.float32)
  with pytest.raises(ValueError, match="6x6 have 3x3 cells, .* 8x8"):
    jax.eval_shape(lambda x: apply(params(), x, "quantise"), images)


def test_each_convolution_starts_at_its_own_fan_in():
  phi = multiscale_vq.Phi(4, 16, 0.5)
  init = jax.jit(lambda key: phi.init(key, jnp.zeros((1, 2, 2, 16)), 0))
  made = init(jax.random.key(0))["params"]
  np.testing.assert_allclose(made["kernels"].std(), 144**-0.5, rtol=0.05)
  assert not made["biases"].any()
