"""MAR's head against a float64 reference, published sizes, and guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.core.presets import HEAD, HeadConfig
from unifluid_jax.models import diffusion_head
from unifluid_jax.models.ddpm_head import sample_tokens
from unifluid_jax.models.diffusion_head import DiffusionHead
from unifluid_jax.ops import diffusion

C, Z, W, DEPTH = 3, 5, 8, 2
HEAD_ = DiffusionHead(HeadConfig(W, DEPTH), C)
SCHEDULE = diffusion.respace(6)


def normal(seed, shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(head=HEAD_, z=Z):
  x, t = jnp.zeros((1, head.channels)), jnp.zeros(1, jnp.int32)
  return head.init(jax.random.key(0), x, t, jnp.zeros((1, z)))["params"]


def random_params(seed=1, scale=0.4):
  """Nothing zero: every part of the net shows in its output."""
  leaves, tree = jax.tree.flatten(jax.eval_shape(init))
  noise = [
    scale * normal(seed * 100 + i, x.shape) for i, x in enumerate(leaves)
  ]
  return jax.tree.unflatten(tree, noise)


def reference(params, x, t, z, level=None):
  """MAR's net, row by row, float64; other heads have no t, or a level too."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)

  def dense(q, v):
    return v @ q["kernel"] + q["bias"]

  def silu(v):
    return v / (1 + np.exp(-v))

  def norm(v):
    v = v - v.mean(-1, keepdims=True)
    return v / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-6)

  y = dense(p["cond"], z)
  for name, number in (("time", t), ("step", level)):
    if number is not None:
      angle = np.asarray(number)[:, None] * np.exp(
        -np.log(10_000) * np.arange(128) / 128
      )
      te = np.concatenate([np.cos(angle), np.sin(angle)], 1)
      y = y + dense(p[name]["out"], silu(dense(p[name]["in"], te)))
  y = silu(y)
  h = dense(p["input"], x)
  for b in (p[k] for k in sorted(p) if k.startswith("block_")):
    shift, scale, gate = np.split(dense(b["modulation"], y), 3, axis=1)
    u = norm(h) * b["norm"]["scale"] + b["norm"]["bias"]
    u = u * (1 + scale) + shift
    h = h + gate * dense(b["out"], silu(dense(b["in"], u)))
  shift, scale = np.split(dense(p["final"]["modulation"], y), 2, axis=1)
  return dense(p["final"]["out"], norm(h) * (1 + scale) + shift)


@functools.partial(jax.jit, static_argnums=4)
def apply(params, x, t, z, head=HEAD_):
  return head.apply({"params": params}, x, t, z)


def test_against_reference():
  params = random_params()
  t = jnp.asarray([0, 1, 37, 500, 998, 999])
  x, z = normal(2, (6, C)), normal(3, (6, Z))
  got = apply(params, x, t, z)
  assert got.shape == (6, 2 * C) and got.dtype == jnp.float32
  expected = reference(params, x, t, z)
  assert np.abs(expected).min(0).max() > 0.01
  np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_draws_share_a_condition():
  params = random_params()
  x, t, z = normal(2, (4, 2, C)), jnp.arange(8).reshape(4, 2), normal(3, (2, Z))
  got = apply(params, x, t, z)
  for i in range(4):
    np.testing.assert_allclose(got[i], apply(params, x[i], t[i], z), 1e-4, 1e-5)


def test_bfloat16_blocks_give_float32_near_the_truth():
  params = random_params(scale=0.2)
  head = DiffusionHead(HeadConfig(W, DEPTH), C, jnp.bfloat16)
  t, x, z = jnp.asarray([3, 900]), normal(2, (2, C)), normal(3, (2, Z))
  got = apply(params, x, t, z.astype(jnp.bfloat16), head)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, apply(params, x, t, z), atol=0.05)


def test_fine_noise_survives_bfloat16():
  # 1e-4 next to 1 is below bfloat16; it must still reach the output.
  params = random_params()
  head = DiffusionHead(HeadConfig(W, 0), C, jnp.bfloat16)
  x, t, z = jnp.ones((1, C)), jnp.zeros(1, jnp.int32), normal(3, (1, Z))

  def run(x):
    return apply(params, x, t, z, head)

  change = run(x.at[0, 0].add(1e-4)) - run(x)
  grad = jax.jvp(run, (x,), (jnp.zeros((1, C)).at[0, 0].set(1e-4),))[1]
  np.testing.assert_allclose(change, grad, rtol=0.05, atol=2e-6)
  assert float(jnp.abs(grad).max()) > 2e-5


def test_initial_values():
  head = DiffusionHead(HeadConfig(64, 2), 16)
  params = init(head, 32)
  x, t, z = normal(2, (5, 16)), jnp.arange(5) * 200, normal(3, (5, 32))
  assert (apply(params, x, t, z, head) == 0).all()
  flat = {
    jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(v)
    for k, v in jax.tree_util.tree_leaves_with_path(params)
  }
  for path, value in flat.items():
    assert value.dtype == np.float32, path
    if path.endswith("norm/scale"):
      assert (value == 1).all()
    elif path.endswith("bias") or "modulation" in path or "final" in path:
      assert (value == 0).all(), path
    elif path.startswith("time/"):
      np.testing.assert_allclose(value.std(), 0.02, rtol=0.1, err_msg=path)
    else:
      limit = np.sqrt(6 / sum(value.shape))
      assert 0.9 * limit < np.abs(value).max() <= limit, path
      np.testing.assert_allclose(value.std(), limit / 3**0.5, rtol=0.1)


def test_parameter_tree():
  paths = {
    jax.tree_util.keystr(k, simple=True, separator="/")
    for k, _ in jax.tree_util.tree_leaves_with_path(jax.eval_shape(init))
  }
  dense = ["input", "time/in", "time/out", "cond", "final/modulation"]
  dense += ["final/out"]
  norms = set()
  for i in range(DEPTH):
    dense += [f"block_{i}/{name}" for name in ("modulation", "in", "out")]
    norms |= {f"block_{i}/norm/scale", f"block_{i}/norm/bias"}
  assert paths == norms | {
    f"{d}/{k}" for d in dense for k in ("kernel", "bias")
  }


@pytest.mark.parametrize(
  "width, depth, z, millions",
  [
    (1024, 6, 768, 35.7),
    (1280, 8, 1024, 72.2),
    (1536, 12, 1280, 151.2),
    (1024, 3, 1024, 20.3),
    (768, 6, 2304, 21.5),
    (1024, 3, 2304, 21.6),
    (1024, 6, 2304, 37.3),
    (1280, 8, 2304, 73.9),
    (1536, 12, 2304, 152.8),
    (1024, 6, 1152, 36.1),
  ],
)
def test_parameter_count(width, depth, z, millions):
  c, w = 16, width
  head = DiffusionHead(HeadConfig(width, depth), c)
  shapes = jax.eval_shape(lambda: init(head, z))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count == (
    depth * (5 * w**2 + 7 * w) + (w**2 + 258 * w) + (z * w + w) + (c * w + w)
    + (2 * w**2 + 2 * w) + (2 * c * w + 2 * c)
  )  # fmt: skip
  assert round(count / 1e6, 1) == millions


def test_presets_are_mars():
  sizes = {k: (v.width, v.depth) for k, v in HEAD.items()}
  assert sizes == {
    "mar_b": (1024, 6), "mar_l": (1280, 8), "mar_h": (1536, 12)
  }  # fmt: skip


def test_hoisted_modulations_are_those_of_the_plain_call():
  params = random_params()
  t, z, x = jnp.asarray([0, 400, 999]), normal(3, (2, Z)), normal(2, (2, C))
  variables = {"params": params}
  hoist = jax.jit(functools.partial(HEAD_.apply, method="modulations"))
  denoise = jax.jit(functools.partial(HEAD_.apply, method="denoise"))
  hoisted = hoist(variables, t, z)
  shapes = jax.tree.map(jnp.shape, hoisted)
  assert shapes.blocks == (((3, 2, W),) * 3,) * DEPTH
  assert shapes.final == ((3, 2, W),) * 2
  for i in range(3):
    step = jax.tree.map(lambda a, i=i: a[i], hoisted)
    np.testing.assert_allclose(
      denoise(variables, x, step),
      apply(params, x, jnp.full(2, t[i]), z),
      rtol=1e-5,
      atol=1e-5,
    )


# ------------------------------------------------------------------ sampling


@functools.cache
def sampler(guided, **kw):
  def run(params, z, z_null, k, cfg, temperature):
    z_null = z_null if guided else None
    return sample_tokens(
      HEAD_, params, SCHEDULE, z, z_null, k, cfg, temperature, **kw
    )

  return jax.jit(run)


def draw(params, z, z_null, k, cfg=1.0, temperature=1.0, **kw):
  run = sampler(z_null is not None, **kw)
  return np.asarray(run(params, z, z_null, k, cfg, temperature))


def test_guided_sampling_against_reference():
  params, k = random_params(scale=0.3), keys(3)
  z, z_null = normal(4, (3, Z)), normal(5, (3, Z))
  # A net of zeros only rescales the initial noise: this is what it was.
  zeros = jax.tree.map(jnp.zeros_like, params)
  gain = np.asarray(SCHEDULE.c1 * SCHEDULE.recip + SCHEDULE.c2, np.float64)
  x = draw(zeros, z, None, k, temperature=0.0) / gain.prod()
  assert abs(x).max() < 4
  for i in reversed(range(6)):
    t = np.full(3, SCHEDULE.timesteps[i])
    cond = reference(params, x, t, z)[:, :C]
    null = reference(params, x, t, z_null)[:, :C]
    eps = null + 2.5 * (cond - null)
    bar = np.float64(SCHEDULE.alphas_bar[i])
    clean = (x - np.sqrt(1 - bar) * eps) / np.sqrt(bar)
    x = SCHEDULE.c1[i] * clean + SCHEDULE.c2[i] * x
  got = draw(params, z, z_null, k, 2.5, 0.0)
  np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-3)


@functools.cache
def editor():
  def run(params, z, z_null, z_none, k, cfg, image_cfg):
    return sample_tokens(
      HEAD_, params, SCHEDULE, z, z_null, k, cfg, 1.0,
      z_none=z_none, image_cfg=image_cfg,
    )  # fmt: skip

  return jax.jit(run)


def test_two_scales_against_reference():
  """One step from known noise: what sampling does with three predictions."""
  params, k = random_params(scale=0.3), keys(3)
  z, z_null, z_none = (normal(s, (3, Z)) for s in (4, 5, 6))
  one = diffusion.respace(1)

  @jax.jit
  def run(p, image_cfg):
    return sample_tokens(
      HEAD_, p, one, z, z_null, k, 2.5, 0.0, z_none=z_none, image_cfg=image_cfg
    )

  gain = np.asarray(one.c1 * one.recip + one.c2, np.float64)
  x = run(jax.tree.map(jnp.zeros_like, params), 1.5) / gain[0]
  t = np.full(3, one.timesteps[0])
  full, source, null = (
    reference(params, x, t, c)[:, :C] for c in (z, z_null, z_none)
  )
  bar = np.float64(one.alphas_bar[0])
  for image_cfg in (0.0, 1.5):
    eps = null + image_cfg * (source - null) + 2.5 * (full - source)
    clean = (x - np.sqrt(1 - bar) * eps) / np.sqrt(bar)
    expected = one.c1[0] * clean + one.c2[0] * x
    got = run(params, image_cfg)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < 2e-3, image_cfg


def test_equal_scales_are_guidance_against_neither():
  params, k = random_params(), keys(3)
  z, z_null, z_none = (normal(s, (3, Z)) for s in (4, 5, 6))
  got = editor()(params, z, z_null, z_none, k, 2.0, 2.0)
  plain = draw(params, z, z_none, k, 2.0)
  np.testing.assert_allclose(got, plain, rtol=2e-3, atol=2e-3)
  other = editor()(params, z, z_null, z_none, k, 2.0, 3.0)
  assert abs(other - plain).max() > 0.1


def test_image_scale_one_is_guidance_against_the_source():
  params, k = random_params(), keys(3)
  z, z_null, z_none = (normal(s, (3, Z)) for s in (4, 5, 6))
  got = editor()(params, z, z_null, z_none, k, 2.0, 1.0)
  np.testing.assert_allclose(
    got, draw(params, z, z_null, k, 2.0), rtol=2e-3, atol=2e-3
  )


STEP_BYTES = 6 * (3 * DEPTH + 2) * W * 4  # of a guided batch of 3


@pytest.mark.parametrize("limit", [0, 2 * STEP_BYTES, 5 * STEP_BYTES])
def test_hoisting_changes_nothing(limit):
  params, z, z_null = random_params(), normal(4, (3, Z)), normal(5, (3, Z))
  whole = draw(params, z, z_null, keys(3), 2.0)
  got = draw(params, z, z_null, keys(3), 2.0, hoist_bytes=limit)
  np.testing.assert_allclose(got, whole, rtol=1e-4, atol=1e-4)


def testhoisted_steps_fit_the_limit():
  def steps(n, limit):
    return diffusion_head.hoisted_steps(HEAD_, n, 6, limit)

  assert steps(6, 6 * STEP_BYTES) == 6
  assert steps(6, 6 * STEP_BYTES - 1) == 3
  assert steps(7, 6 * STEP_BYTES) == 1
  assert steps(6, 0) == 1
  half = DiffusionHead(HeadConfig(W, DEPTH), C, jnp.bfloat16)
  assert diffusion_head.hoisted_steps(half, 6, 6, 3 * STEP_BYTES) == 6


def test_scale_one_is_the_conditional_alone():
  params, z, k = random_params(), normal(4, (3, Z)), keys(3)
  plain = draw(params, z, None, k)
  one = draw(params, z, normal(5, (3, Z)), k, 1.0)
  np.testing.assert_allclose(one, plain, rtol=1e-3, atol=1e-3)
  other = draw(params, z, normal(5, (3, Z)), k, 3.0)
  assert abs(other - plain).max() > 0.1


def test_null_equal_to_condition_ignores_the_scale():
  params, z, k = random_params(), normal(4, (3, Z)), keys(3)
  np.testing.assert_allclose(
    draw(params, z, z, k, 7.0), draw(params, z, None, k), rtol=1e-3, atol=1e-3
  )


def test_variance_is_conditional_and_unguided():
  params, z, k = random_params(), normal(4, (3, Z)), keys(3)
  out = params["final"]["out"]
  silent = {
    "kernel": out["kernel"].at[:, :C].set(0), "bias": out["bias"].at[:C].set(0)
  }  # fmt: skip
  params = params | {"final": params["final"] | {"out": silent}}
  plain = draw(params, z, None, k)
  for cfg in (0.0, 4.0):
    got = draw(params, z, normal(5, (3, Z)), k, cfg)
    np.testing.assert_allclose(got, plain, rtol=1e-4)
  assert not np.allclose(draw(params, normal(5, (3, Z)), None, k), plain)


def test_rows_ignore_their_neighbours():
  params, z, z_null = random_params(), normal(4, (3, Z)), normal(5, (3, Z))
  k = keys(3)
  whole = draw(params, z, z_null, k, 2.0)
  for i in range(3):
    one = slice(i, i + 1)
    alone = draw(params, z[one], z_null[one], k[one], 2.0)
    np.testing.assert_allclose(alone[0], whole[i], rtol=1e-3, atol=1e-3)
  same = draw(params, z[:1].repeat(3, 0), None, k)
  assert not np.allclose(same[0], same[1])


def test_temperature_zero_keeps_only_the_initial_noise():
  params, z = random_params(), normal(4, (3, Z))
  a, b, again = (draw(params, z, None, keys(3, s), 1.0, 0.0) for s in (0, 1, 0))
  assert not np.allclose(a, b)
  np.testing.assert_array_equal(a, again)
