"""What becomes of the codebook while a VQ tokenizer trains."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.systems.tiny_vq import KEY, Made, images, make, quantised
from unifluid_jax.models import vq
from unifluid_jax.systems import vq_training

SEEN = {
  "count": jnp.asarray([0.0, 0.0, 4.0, 8.0, 0.0, 4.0]),
  "candidates": 10 + jnp.arange(18.0).reshape(6, 3),
}


def revised(made, step, seen=SEEN, params=None):
  params = params or made.params
  return jax.tree.map(np.asarray, made.system.revise(params, seen, KEY, step))


def test_codes_that_hardly_occur_are_replaced_when_it_is_due():
  made = Made(revive_every=3, revive_below=0.5)
  old = np.asarray(made.params["vq"]["codebook"]["table"])
  used = 0.75 * np.asarray(made.params["usage"]["count"])
  used += 0.25 * np.asarray(SEEN["count"])
  dead = used < 0.5 * used.mean()
  assert dead.tolist() == [True, True, False, False, False, False]
  for step in (0, 1, 3):
    new = revised(made, step)
    np.testing.assert_array_equal(new["vq"]["codebook"]["table"], old)
    np.testing.assert_allclose(new["usage"]["count"], used)
  new = revised(made, 2)
  table = np.where(dead[:, None], SEEN["candidates"], old)
  np.testing.assert_array_equal(new["vq"]["codebook"]["table"], table)
  counts = np.where(dead, used.mean(), used)
  np.testing.assert_allclose(new["usage"]["count"], counts, rtol=1e-6)
  jax.tree.map(
    np.testing.assert_array_equal, new["vq"]["encoder"],
    jax.tree.map(np.asarray, made.params["vq"]["encoder"]),
  )  # fmt: skip


def test_codes_begin_as_outputs_of_the_encoder():
  made = Made(data_init=True)
  new = revised(made, 0)["vq"]["codebook"]["table"]
  np.testing.assert_array_equal(new, SEEN["candidates"])
  old = made.params["vq"]["codebook"]["table"]
  new = revised(made, 1)["vq"]["codebook"]["table"]
  np.testing.assert_array_equal(new, old)


def test_candidates_are_vectors_of_the_batch_each_at_most_once():
  made = Made(data_init=True)
  rng = np.random.default_rng(1)
  pixels = jnp.float32(rng.uniform(-1, 1, images().shape))
  seen = made.run(pixels)[2]
  z = np.reshape(quantised()(made.params["vq"], pixels).z, (-1, 3))
  at = [
    np.flatnonzero(np.abs(z - row).max(-1) < 1e-5) for row in seen["candidates"]
  ]
  assert all(len(found) == 1 for found in at)
  assert len({int(found[0]) for found in at}) == 6
  assert [int(found[0]) for found in at] != list(range(6))


def test_an_averaged_codebook_follows_the_formulas():
  """Counts and sums decay; codes are sums over smoothed counts."""
  made = Made(average=0.9)
  assert made.system.held == ("usage", "averages", "vq/codebook")
  count = np.float64([1.0, 2.0, 0.5, 1.0, 1.0, 3.0])
  sums = np.random.default_rng(3).standard_normal((6, 3))
  params = {
    **made.params,
    "averages": {"count": jnp.float32(count), "sum": jnp.float32(sums)},
  }
  total, metrics, seen, _ = made.run(images(), params=params)
  found = quantised()(made.params["vq"], images())
  codes, z = np.ravel(found.codes), np.reshape(np.float64(found.z), (-1, 3))
  new_sums = 0.9 * sums
  np.add.at(new_sums, codes, 0.1 * z)
  new = 0.9 * count + 0.1 * np.bincount(codes, minlength=6)
  smooth = (new + 1e-5) / (new.sum() + 6e-5) * new.sum()
  got = revised(made, 0, seen, params)
  table = got["vq"]["codebook"]["table"]
  np.testing.assert_allclose(got["averages"]["count"], new, rtol=1e-5)
  np.testing.assert_allclose(got["averages"]["sum"], new_sums, rtol=1e-4,
                             atol=1e-5)  # fmt: skip
  np.testing.assert_allclose(table, new_sums / smooth[:, None], rtol=1e-4,
                             atol=1e-5)  # fmt: skip
  wanted = 0.7 * metrics["l1"] + 2 * metrics["l2"]
  wanted += 0.5 * 0.25 * metrics["commitment"]
  np.testing.assert_allclose(total, wanted, rtol=1e-5)


def test_unused_averages_stay_where_they_began():
  """From a count of 0 they would be divided by the smoothing alone."""
  system = vq_training.VqSystem(make(average=0.99))
  params = jax.jit(system.init)(jax.random.key(0))
  seen = {"count": jnp.zeros(6), "sum": jnp.zeros((6, 3))}
  new = system.revise(params, seen, KEY, 0)["vq"]["codebook"]["table"]
  unit = vq.vectors(params["vq"]["codebook"]["table"], True)
  np.testing.assert_allclose(new, unit, rtol=1e-4, atol=1e-6)


def test_replaced_averages_begin_anew():
  made = Made(average=0.9, data_init=True)
  seen = {**SEEN, "sum": jnp.ones((6, 3))}
  new = revised(made, 0, seen)
  for tree in (new["vq"]["codebook"]["table"], new["averages"]["sum"]):
    np.testing.assert_array_equal(tree, SEEN["candidates"])
  np.testing.assert_array_equal(new["averages"]["count"], 1)
