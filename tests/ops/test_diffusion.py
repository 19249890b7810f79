"""Golden tables of the cosine chain, closed forms of loss and sampler."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.ops import diffusion

FULL = diffusion.cosine_schedule()


def normal(seed, shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_golden_full_chain():
  def check(field, values, rtol=1e-6):
    got = np.asarray(field)[list(values)]
    np.testing.assert_allclose(got, list(values.values()), rtol)

  check(
    FULL.betas,
    {0: 4.128422482e-5, 1: 4.614175274e-5, 500: 3.155691e-3, 998: 0.7499994,
     999: 0.999},
  )  # fmt: skip
  check(
    FULL.alphas_bar,
    {0: 0.9999587158, 499: 0.4938435904, 500: 0.4922851724, 998: 2.428767e-6,
     999: 2.428767e-9},
  )  # fmt: skip
  check(FULL.log_betas, {0: -10.0950301, 1: -9.9837923, 500: -5.7585477})
  check(FULL.log_betas, {999: -0.00100050}, 1e-5)
  check(FULL.log_posterior, {0: -10.7340825, 1: -10.7340825, 500: -5.7616218})
  check(FULL.log_posterior, {999: -0.00100293}, 1e-5)
  check(FULL.c1, {0: 1.0, 500: 0.00436787}, 2e-6)
  check(FULL.c2, {0: 0.0, 500: 0.99535628})
  check(FULL.recip, {999: 20291.0}, 2e-5)
  assert (FULL.betas == np.float32(0.999)).sum() == 1
  assert FULL.betas.dtype == np.float32 and FULL.timesteps.dtype == np.int32


def test_golden_respaced():
  s = diffusion.respace(100)
  jumps = {50: 61, 161: 172, 272: 283, 383: 394, 494: 505, 605: 616, 716: 727,
           827: 838, 938: 949}  # fmt: skip
  expected = [0]
  while expected[-1] < 999:
    expected.append(jumps.get(expected[-1], expected[-1] + 10))
  assert s.timesteps.tolist() == expected and len(expected) == 100
  np.testing.assert_allclose(s.betas[0], 4.128422e-5, 1e-6)
  assert abs(s.betas[1] - 6.798e-4) < 5e-8  # the digits known
  np.testing.assert_allclose(s.betas[50], 0.0341717, 1e-6)
  np.testing.assert_allclose(s.betas[98:], [0.7499393, 0.99998999], 1e-7)
  np.testing.assert_allclose(
    s.log_posterior[[0, 1, 50]], [-10.15395, -10.15395, -3.41018], atol=6e-6
  )
  np.testing.assert_allclose(s.log_posterior[99], -2.529e-4, 2e-4)


@pytest.mark.parametrize(
  "count, first, last",
  [
    (50, [0, 20, 41, 61, 82], [979, 999]),
    (25, [0, 42, 83, 125, 166, 208], [957, 999]),
    (1000, [0, 1, 2], [998, 999]),
    (2, [0, 999], [0, 999]),
    (1, [999], [999]),
  ],
)
def test_timesteps(count, first, last):
  got = diffusion.respace(count).timesteps.tolist()
  assert len(got) == count
  assert got[: len(first)] == first and got[-len(last) :] == last


def test_respaced_by_one_is_the_full_chain():
  for ours, full in zip(diffusion.respace(1000), FULL, strict=True):
    np.testing.assert_allclose(ours, full, 1e-6)


def test_respaced_chains_are_sound():
  for count in range(2, 1001, 7):
    s = diffusion.respace(count)
    assert (np.diff(s.timesteps) > 0).all()
    np.testing.assert_array_equal(s.alphas_bar, FULL.alphas_bar[s.timesteps])
    assert all(np.isfinite(f).all() for f in s)


@pytest.mark.parametrize("count", [0, 1001])
def test_bad_count(count):
  with pytest.raises(ValueError, match="choose 1..1000"):
    diffusion.respace(count)


def test_q_sample():
  x0, noise = normal(0, (2, 3, 4)), normal(1, (2, 3, 4))
  t = jnp.asarray([[0, 1, 500], [998, 999, 250]])
  a = np.cumprod(1 - np.asarray(FULL.betas, np.float64))[np.asarray(t)]
  a = a[..., None]
  expected = np.sqrt(a) * np.asarray(x0) + np.sqrt(1 - a) * np.asarray(noise)
  got = diffusion.q_sample(FULL, x0, t, noise)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
  half = diffusion.q_sample(FULL, x0.astype(jnp.bfloat16), t, noise)
  assert half.dtype == jnp.float32


@jax.jit
def terms(prediction, x0, t, noise):
  t = jnp.full(x0.shape[:-1], t)
  x_t = diffusion.q_sample(FULL, x0, t, noise)
  return diffusion.loss_terms(FULL, prediction, x0, x_t, t, noise)


@pytest.mark.parametrize(
  "t, bits",
  [
    (1, 0.5990177),
    (10, 0.0976548),
    (100, 0.0136605),
    (500, 0.0045055),
    (900, 0.0148826),
    (999, 720.627),
  ],
)
def test_bound_of_a_zero_head(t, bits):
  # Quadratic in the noise: its mean over unit noise is its value at +-1.
  x0 = 3 * normal(0, (5, 16))
  noise = jnp.sign(normal(1, (5, 16)))
  mse, vb = terms(jnp.zeros((5, 32)), x0, t, noise)
  np.testing.assert_allclose(mse, 1.0, 1e-6)
  np.testing.assert_allclose(vb, bits, rtol=2e-4)


def reference_loss(prediction, x0, t, noise):
  """Loss of one row in float64, from the definitions of q and p."""

  def u(i):
    return math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

  betas = [min(1 - u(i + 1) / u(i), 0.999) for i in range(1000)]
  bar = np.cumprod(1 - np.asarray(betas))
  before = bar[t - 1] if t else 1.0
  eps, v = np.split(np.asarray(prediction, np.float64), 2)
  x0, noise = np.asarray(x0, np.float64), np.asarray(noise, np.float64)
  x_t = np.sqrt(bar[t]) * x0 + np.sqrt(1 - bar[t]) * noise
  var = betas[t] * (1 - before) / (1 - bar[t])
  floor = var if t else betas[1] * (1 - bar[0]) / (1 - bar[1])
  f = (v + 1) / 2
  log_var = f * np.log(betas[t]) + (1 - f) * np.log(floor)

  def posterior_mean(clean):
    return (
      betas[t] * np.sqrt(before) * clean
      + (1 - before) * np.sqrt(1 - betas[t]) * x_t
    ) / (1 - bar[t])

  guess = (x_t - np.sqrt(1 - bar[t]) * eps) / np.sqrt(bar[t])
  mean = posterior_mean(guess)
  if t:
    vb = 0.5 * (
      log_var - np.log(var) + var / np.exp(log_var) - 1
      + (posterior_mean(x0) - mean) ** 2 / np.exp(log_var)
    )  # fmt: skip
  else:

    def cdf(x):
      x = x / np.exp(log_var / 2)
      return (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2

    high, low = cdf(x0 - mean + 1 / 255), cdf(x0 - mean - 1 / 255)
    high, low = np.where(x0 > 0.999, 1, high), np.where(x0 < -0.999, 0, low)
    vb = -np.log(np.maximum(high - low, 1e-12))
  return ((noise - eps) ** 2).mean(), vb.mean() / np.log(2)


@pytest.mark.parametrize("t", [0, 1, 37, 500, 960])
def test_loss_against_definitions(t):
  x0 = 1.2 * normal(2, (6, 8))
  assert float(x0.max()) > 1 and float(x0.min()) < -1  # open bins at t = 0
  noise, prediction = normal(3, (6, 8)), 0.5 * normal(4, (6, 16))
  mse, vb = terms(prediction, x0, t, noise)
  rows = [
    reference_loss(*row, t, e)
    for *row, e in zip(prediction, x0, noise, strict=True)
  ]
  expected = np.asarray(rows).T
  np.testing.assert_allclose(mse, expected[0], 1e-5)
  np.testing.assert_allclose(vb, expected[1], 2e-3)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_gradient_routing(t):
  x0, noise = normal(5, (3, 4)), normal(6, (3, 4))
  prediction = 0.1 * normal(7, (3, 8))
  parts = [
    jax.grad(lambda p, i=i: terms(p, x0, t, noise)[i].sum())(prediction)
    for i in (0, 1)
  ]
  (mse_eps, mse_v), (vb_eps, vb_v) = (jnp.split(p, 2, -1) for p in parts)
  assert (mse_v == 0).all() and (vb_eps == 0).all()
  assert (mse_eps != 0).all() and (vb_v != 0).all()
  assert np.isfinite(parts).all()


sample = jax.jit(diffusion.ancestral_sample, static_argnames="denoise")


def oracle(x0):
  """A denoiser that knows the answer, and any variance."""

  def denoise(x, at):
    eps = (x - at.signal * x0) / at.noise
    return jnp.concatenate([eps, jnp.full_like(x, 0.7)], axis=-1)

  return denoise


def keys(seed, n):
  return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize(
  "count, atol", [(1, 5e-3), (2, 2e-6), (7, 2e-6), (1000, 2e-6)]
)
def test_oracle_returns_x0(count, atol):
  s = jax.tree.map(jnp.asarray, diffusion.respace(count))
  x0 = normal(8, (3, 4))
  got = sample(s, oracle(x0), normal(9, (3, 4)), keys(0, 3), 1.0, s)
  np.testing.assert_allclose(got, x0, atol=atol)


def test_sampler_reproduces_a_gaussian():
  # For data N(mu, sd^2) the best noise prediction is linear and known.
  mu, sd, rows = 1.5, 0.4, 8_000
  s = jax.tree.map(jnp.asarray, diffusion.respace(100))

  def denoise(x, at):
    bar = at.alphas_bar
    eps = at.noise * (x - at.signal * mu) / (bar * sd**2 + 1 - bar)
    return jnp.concatenate([eps, jnp.zeros_like(x)], axis=-1)

  x = sample(s, denoise, normal(10, (rows, 1)), keys(1, rows), 1.0, s)
  assert abs(float(x.mean()) - mu) < 0.015
  assert abs(float(x.std()) / sd - 1) < 0.03


def test_temperature_scales_step_noise_only():
  # Without the last step, whose factor 20,000 costs digits.
  s = diffusion.Schedule(*(f[:4] for f in diffusion.respace(5)))
  x_t = normal(11, (3, 4))

  def linear(x, _):
    return jnp.concatenate([0.5 * x, 0 * x], axis=-1)

  def run(temperature, seed):
    return sample(s, linear, x_t, keys(seed, 3), temperature)

  cold = run(0.0, 0)
  np.testing.assert_array_equal(cold, run(0.0, 1))
  a = (s.c1 * (s.recip - 0.5 * s.recip_m1) + s.c2).prod()
  np.testing.assert_allclose(cold, a * x_t, 1e-5)
  warm = run(1.0, 0) - cold
  assert float(jnp.abs(warm).min()) > 0
  np.testing.assert_allclose(run(2.0, 0) - cold, 2 * warm, rtol=1e-3)


def test_last_step_adds_no_noise():
  first = diffusion.Schedule(*(f[:1] for f in diffusion.respace(5)))
  x_t = normal(12, (3, 4))
  hot = sample(first, lambda x, _: jnp.zeros((3, 8)), x_t, keys(0, 3), 1.0)
  np.testing.assert_allclose(hot, first.recip * x_t, 1e-6)


def test_rows_and_slices_of_steps_stand_alone():
  s = diffusion.respace(6)
  x_t = normal(13, (3, 2, 4))

  def denoise(x, _):
    return jnp.concatenate([jnp.tanh(x), jnp.sin(x)], axis=-1)

  k = keys(2, 3)
  whole = sample(s, denoise, x_t, k, 1.0)
  row = sample(s, denoise, x_t[1:2], k[1:2], 1.0)
  np.testing.assert_allclose(row[0], whole[1], rtol=1e-5, atol=1e-6)
  assert not np.allclose(whole[0], whole[1])
  x = x_t
  for part in (slice(3, 6), slice(0, 3)):
    steps = diffusion.Schedule(*(f[part] for f in s))
    x = sample(steps, denoise, x, k, 1.0)
  np.testing.assert_allclose(x, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draws", [1, 3, 4])
def test_steps_of_a_row_cover_the_chain(draws):
  t = np.asarray(diffusion.sample_steps(jax.random.key(0), draws, (20_000, 2)))
  assert t.shape == (draws, 20_000, 2) and t.min() >= 0 and t.max() <= 999
  # Draw i stays in its stratum, and all of them together are uniform.
  low = np.floor(np.arange(draws) * 1000 / draws)[:, None, None]
  high = np.ceil(np.arange(1, draws + 1) * 1000 / draws)[:, None, None]
  assert (t >= low).all() and (t < high).all()
  shares = np.histogram(t, bins=10, range=(0, 1000))[0] / t.size
  np.testing.assert_allclose(shares, 0.1, atol=0.01)
  assert len(np.unique(t)) == 1000
