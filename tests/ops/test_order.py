"""Token orders: annealing, uniformity, and which rows an input gets."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.ops import order


@pytest.mark.parametrize(
  "step, expected",
  [(0, 1), (300_000, 1), (450_000, 0.5), (525_000, 0.25), (600_000, 0),
   (1_000_000, 0)],
)  # fmt: skip
def test_randomness_of_the_paper(step, expected):
  assert float(order.randomness(step, 300_000, 600_000)) == expected
  traced = jax.jit(lambda s: order.randomness(s, 300_000, 600_000))
  assert float(traced(jnp.int32(step))) == expected


@pytest.mark.parametrize("n", [1, 2, 16, 64, 256])
def test_passes_draw_few_tokens_at_first_and_all_in_the_end(n):
  for passes in {1, 2, min(3, n), min(8, n), n} & set(range(1, n + 1)):
    sizes = order.group_sizes(n, passes)
    assert len(sizes) == passes and sum(sizes) == n and min(sizes) >= 1
  assert order.group_sizes(n, n) == [1] * n and order.group_sizes(n, 1) == [n]


def test_passes_follow_the_cosine_of_mar():
  assert order.group_sizes(16, 4) == [2, 3, 5, 6]  # 14.8, 11.3, 6.1, 0 left
  assert order.group_sizes(256, 8) == [5, 15, 24, 31, 39, 45, 48, 49]


def test_the_farthest_order_settles_the_whole_image_first():
  """Passes: 16 ** (p/4)^3 = 1.04, 1.4, 3.2 known, but one more each."""
  assert order.group_sizes(16, 4, "farthest") == [1, 1, 1, 13]
  assert order.group_sizes(16, 8, "farthest") == [1] * 7 + [9]
  known = np.cumsum(order.group_sizes(256, 64, "farthest"))
  p = np.arange(1, 65)
  want = np.maximum(p, np.floor(256 ** (p / 64) ** 3 + 1e-9))
  np.testing.assert_array_equal(known, want)
  assert order.group_sizes(16, 0, "farthest") == [1] * 16
  keys = jax.random.split(jax.random.key(0), 2)
  cells = np.asarray(order.to_draw("farthest", keys, 16, 4))
  # Corners; then cells whose nearest corner is farthest, in raster order.
  assert cells[0, :6].tolist() == [0, 15, 3, 12, 5, 10]
  np.testing.assert_array_equal(cells[0], cells[1])
  assert sorted(cells[0]) == list(range(16))
  assert order.farthest(1).tolist() == [0]


def test_rows_learn_the_tokens_of_a_pass_in_any_order():
  """Passes stay in order, and every token of one comes first in turn."""
  cells, sizes = order.farthest(16), order.group_sizes(16, 4, "farthest")
  draw = jax.jit(
    lambda key, p: order.sample_orders(key, 400, 16, p, "farthest", 4)
  )
  got = np.asarray(draw(jax.random.key(0), 0.0))
  ends = np.cumsum(sizes)
  for begin, end in zip([0, *ends[:-1]], ends, strict=True):
    want = np.tile(np.sort(cells[begin:end]), (400, 1))
    np.testing.assert_array_equal(np.sort(got[:, begin:end]), want)
  first = collections.Counter(got[:, 3].tolist())
  assert set(first) == set(cells[3:].tolist())
  assert max(first.values()) < 3 * 400 / 13
  mixed = np.asarray(draw(jax.random.key(1), 0.5))
  share = (mixed[:, :3] == cells[:3]).all(axis=1).mean()
  assert 0.4 < share < 0.6
  one = order.sample_orders(jax.random.key(0), 3, 16, 0.0, "farthest")
  np.testing.assert_array_equal(one, np.tile(cells, (3, 1)))


def test_a_share_stays_random():
  got = [float(order.randomness(s, 4, 8, 0.25)) for s in (0, 4, 6, 7, 8, 99)]
  assert got == [1, 1, 0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("n", [1, 4, 16, 64])
def test_a_spread_order_is_a_permutation_for_any_number_of_passes(n):
  for passes in sorted({0, 1, min(4, n), n}):
    got = order.to_draw("spread", jax.random.split(jax.random.key(0), 3), n,
                        passes)  # fmt: skip
    np.testing.assert_array_equal(np.sort(got), np.tile(np.arange(n), (3, 1)))


def test_cells_of_a_pass_are_far_apart_and_near_what_is_known():
  """Four passes over 4 x 4 cells; distances worked out by hand."""
  keys = jax.random.split(jax.random.key(0), 1)
  cells = np.asarray(order.to_draw("spread", keys, 16, 4)[0])
  # Opposite corners; then a neighbour of the first, 1; then 14, a neighbour of
  # 15 and sqrt(10) from 1; then 4, next to 0 and sqrt(2) from 1: 11 is as good.
  assert cells[:4].tolist() == [0, 15, 1, 14]
  apart, context = [], []
  for name in ("spread", "random"):
    at = np.asarray(order.to_draw(name, keys, 16, 4)[0])
    xy = np.stack(np.divmod(at, 4), axis=1)
    d = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    groups = np.split(np.arange(16), [2, 5, 10])
    inside = [d[np.ix_(g, g)][~np.eye(len(g), dtype=bool)].min()
              for g in groups[:3]]  # fmt: skip
    apart.append(np.mean(inside))
    context.append(np.mean([d[g][:, : g[0]].min(axis=1).mean()
                            for g in groups[1:3]]))  # fmt: skip
  assert apart[0] > apart[1] and context[0] <= context[1]


def test_randomness_without_annealing():
  assert [float(order.randomness(s, 0, 0)) for s in (0, 1, 9)] == [0, 0, 0]
  assert [float(order.randomness(s, 5, 5)) for s in (4, 5)] == [1, 0]


def test_orders_are_permutations_and_raster_at_zero():
  got = order.sample_orders(jax.random.key(0), 8, 16, 1.0)
  assert got.dtype == jnp.int32
  np.testing.assert_array_equal(np.sort(got), np.tile(np.arange(16), (8, 1)))
  assert len({tuple(row) for row in got.tolist()}) == 8
  raster = order.sample_orders(jax.random.key(0), 8, 16, jnp.float32(0))
  np.testing.assert_array_equal(raster, np.tile(np.arange(16), (8, 1)))


def test_permutations_are_uniform():
  got = order.sample_orders(jax.random.key(1), 4800, 4, 1.0)
  counts = collections.Counter(map(tuple, got.tolist()))
  assert len(counts) == 24
  chi2 = sum((c - 200) ** 2 / 200 for c in counts.values())
  assert chi2 < 49.7  # 23 degrees of freedom, p = 0.001


def test_coin_is_thrown_per_sample():
  got = order.sample_orders(jax.random.key(2), 4800, 4, 0.3)
  shuffled = (np.asarray(got) != np.arange(4)).any(axis=1).mean()
  assert abs(shuffled - 0.3 * 23 / 24) < 0.02


def test_permutation_of_a_key_ignores_the_batch():
  keys = jax.random.split(jax.random.key(3), 4)
  np.testing.assert_array_equal(
    order.permutations(keys, 9)[2:3], order.permutations(keys[2:3], 9)
  )


def test_take_and_put_tokens():
  x = jnp.arange(12.0).reshape(2, 3, 2)
  cells = jnp.asarray([[2, 0, 1], [0, 2, 1]])
  taken = order.take_tokens(x, cells)
  np.testing.assert_array_equal(taken[0], x[0][jnp.asarray([2, 0, 1])])
  np.testing.assert_array_equal(taken[1], x[1][jnp.asarray([0, 2, 1])])
  np.testing.assert_array_equal(order.put_tokens(taken, cells), x)


def test_position_rows():
  table = jnp.asarray([[0.0], [10.0], [20.0]])
  cells = jnp.asarray([[2, 0, 1]])
  # Inputs BOI, cell 2, cell 0 predict cells 2, 0, 1.
  assert order.current(table, cells)[0, :, 0].tolist() == [20, 0]
  assert order.next(table, cells)[0, :, 0].tolist() == [20, 0, 10]
