"""Masks, rotations and attention against literal rows and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.ops import attention

EXAMPLES = {
  "causal": ([0, 1, 2, 3], [1] * 4, ["1000", "1100", "1110", "1111"]),
  "prefix": ([0, 0, 1, 2], [1] * 4, ["1100", "1100", "1110", "1111"]),
  "next_scale": (
    [0, 1, 1, 2, 2],
    [1] * 5,
    ["10000", "11100", "11100", "11111", "11111"],
  ),
  "right_aligned": (
    [0, 0, 0, 1, 2],
    [0, 1, 1, 1, 1],
    ["01100", "01100", "01100", "01110", "01111"],
  ),
}


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


attend = jax.jit(attention.attend, static_argnames=("softcap", "scale"))


def rope(x, positions, base, scale=1.0):
  angles = attention.rotation(positions, x.shape[-1], base, scale)
  return attention.rotate(x, angles)


def normal(seed, *shape):
  draw = np.random.default_rng(seed).normal
  return jnp.asarray(draw(size=shape), jnp.float32)


@pytest.mark.parametrize("name", EXAMPLES)
def test_block_causal_mask_examples(name):
  block, valid, rows = EXAMPLES[name]
  mask = attention.block_causal_mask(
    jnp.array([block]), jnp.array([valid], bool)
  )
  np.testing.assert_array_equal(mask[0], [[c == "1" for c in r] for r in rows])


def test_docstring_shows_the_tested_examples():
  text = attention.block_causal_mask.__doc__.replace(" ", "")
  for _, _, rows in EXAMPLES.values():
    assert "\n".join(rows) in text


def test_window_counts_positions_on_both_sides():
  keys = jnp.array([[0, 5, 6, 7, 8, 9, 10]])
  mask = attention.window_mask(jnp.array([[7]]), keys, 3)
  np.testing.assert_array_equal(mask[0, 0], [0, 1, 1, 1, 1, 1, 0])


def test_rope_is_a_complex_rotation():
  x = normal(0, 2, 3, 2, 6)
  positions = jnp.array([[0, 1, 7], [3, 500, 2]])
  got = rope(x, positions, 100.0, 4.0)
  wide = np.asarray(x, np.float64)
  angle = (
    np.asarray(positions)[..., None, None] / 4 * 100.0 ** -(np.arange(3) / 3)
  )
  turned = (wide[..., :3] + 1j * wide[..., 3:]) * np.exp(1j * angle)
  want = np.concatenate([turned.real, turned.imag], axis=-1)
  np.testing.assert_allclose(got, want, atol=2e-5)


def test_rope_products_depend_on_distance_only():
  q, k = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)

  @jax.jit
  def product(i, j):
    a = rope(q, jnp.full((1, 1), i), 10_000.0)
    b = rope(k, jnp.full((1, 1), j), 10_000.0)
    return jnp.sum(a * b)

  assert abs(product(3, 1) - product(102, 100)) < 1e-4
  assert abs(product(3, 1) - product(4, 1)) > 1e-3


def test_rope_takes_traced_base_and_keeps_angles_in_float32():
  x = normal(0, 1, 2, 1, 4)
  positions = jnp.array([[1001, 4099]])
  want = rope(x, positions, 10_000.0, 8.0)
  traced = jax.jit(rope)(x, positions, 10_000.0, 8.0)
  np.testing.assert_allclose(traced, want, atol=1e-5)
  half = rope(x.astype(jnp.bfloat16), positions, 10_000.0, 8.0)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), want, atol=0.04)


@pytest.mark.parametrize("cap", [0.0, 1.3])
def test_attend_equals_plain_loops(cap):
  b, t, s, n, kv, h = 2, 3, 5, 4, 2, 6
  q, k, v = (
    normal(0, b, t, n, h),
    normal(1, b, s, kv, h),
    normal(2, b, s, kv, h),
  )
  mask = (normal(3, b, t, s) < 0.2).at[:, :, 0].set(True)
  got = attend(q, k, v, mask, softcap=cap, scale=0.7)
  for i, j, head in np.ndindex(b, t, n):
    keys = np.asarray(k[i, :, head // (n // kv)], np.float64)
    values = np.asarray(v[i, :, head // (n // kv)], np.float64)
    z = keys @ np.asarray(q[i, j, head], np.float64) * 0.7
    z = cap * np.tanh(z / cap) if cap else z
    e = np.exp(z) * np.asarray(mask[i, j])
    np.testing.assert_allclose(
      got[i, j, head], (e / e.sum()) @ values, atol=1e-5
    )


def test_no_mask_is_a_full_mask():
  q, k, v = normal(0, 1, 3, 2, 4), normal(1, 1, 3, 1, 4), normal(2, 1, 3, 1, 4)
  full = jnp.ones((1, 3, 3), bool)
  np.testing.assert_array_equal(
    attend(q, k, v, None, softcap=0.0, scale=0.5),
    attend(q, k, v, full, softcap=0.0, scale=0.5),
  )


def test_row_without_visible_key_is_finite_and_its_neighbours_unharmed():
  q, k, v = normal(0, 1, 2, 1, 4), normal(1, 1, 3, 1, 4), normal(2, 1, 3, 1, 4)
  mask = jnp.array([[[0, 0, 0], [1, 0, 0]]], bool)

  def total(q, k, v):
    out = attend(q, k, v, mask, softcap=50.0, scale=0.5)
    return out.sum(), out

  grad = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
  (_, out), grads = grad(q, k, v)
  assert np.isfinite(out).all()
  assert all(np.isfinite(g).all() for g in grads)
  np.testing.assert_allclose(out[0, 1], v[0, 0], rtol=1e-6)


def test_bfloat16_logits_are_float32():
  # 100 and 100.25 are one number in bfloat16.
  q = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
  k = jnp.array([[100, 0], [100, 0.25]], jnp.bfloat16)[None, :, None]
  v = jnp.array([[0, 0], [1, 1]], jnp.bfloat16)[None, :, None]
  out = attend(q, k, v, None, softcap=0.0, scale=1.0)
  assert out.dtype == jnp.bfloat16
  want = 1 / (1 + np.exp(-0.25))
  np.testing.assert_allclose(out.astype(jnp.float32), want, atol=2e-3)


# --------------------------------------------------------------- wide products


def gradients(product, a, b, weights):
  def loss(a, b):
    return (product(a, b) * weights).sum()

  return jax.grad(loss, (0, 1))


def test_a_wide_product_and_its_gradients():
  """Float32 factors: exactly einsum's."""
  keys = jax.random.split(jax.random.key(0), 3)
  a, b = (jax.random.normal(k, (3, 5)) for k in keys[:2])
  weights = jax.random.normal(keys[2], (3, 3))

  def plain(a, b):
    return jnp.einsum("ac,bc->ab", a, b)

  def wide(a, b):
    return attention.wide_product("ac,bc->ab", a, b)

  np.testing.assert_array_equal(wide(a, b), plain(a, b))
  for got, want in zip(
    gradients(wide, a, b, weights)(a, b),
    gradients(plain, a, b, weights)(a, b),
    strict=True,
  ):
    np.testing.assert_array_equal(got, want)


def test_gradients_of_a_wide_product_are_narrow_ones():
  """No product of the backward pass takes float32, which is slow."""
  a = jnp.full((4, 8), 1.5, jnp.bfloat16)
  weights = jnp.full((4, 4), 1.0, jnp.float32)

  def wide(a, b):
    out = attention.wide_product("ac,bc->ab", a, b)
    assert out.dtype == jnp.float32
    return out

  program = jax.make_jaxpr(gradients(wide, a, a, weights))(a, a)
  products = [e for e in program.eqns if e.primitive.name == "dot_general"]
  taken = [x.aval.dtype for e in products for x in e.invars]
  assert len(products) >= 2 and set(taken) == {jnp.dtype(jnp.bfloat16)}
  for got in gradients(wide, a, a, weights)(a, a):
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), 6.0)
