"""Weights on all devices, rows split over them."""

import numpy as np

from unifluid_jax.eval_loop import Replicas


def test_the_next_checkpoint_needs_no_compilation():
  replicas, traced = Replicas(rows=2), []

  def function(params, frozen, x):
    traced.append(x.shape)
    return params["w"] * x + frozen["b"]

  replicas.load({"w": np.float32(2)}, {"b": np.float32(1)})
  call = replicas(function)
  x = np.arange(10, dtype=np.float32).reshape(5, 2)
  np.testing.assert_array_equal(call(x), 2 * x + 1)
  replicas.load({"w": np.float32(3)}, {"b": np.float32(0)})
  np.testing.assert_array_equal(call(x), 3 * x)
  assert traced == [(2, 2)]


def test_floating_weights_are_narrow_and_others_are_not():
  replicas = Replicas(rows=1)
  weights = {"w": np.float32(1.001), "n": np.int32(257)}
  replicas.load(weights, {})
  kinds = replicas(lambda p, _, x: p["w"].astype("float32") + x)
  np.testing.assert_array_equal(kinds(np.zeros(1, np.float32)), 1.0)
  counted = replicas(lambda p, _, x: p["n"] + x)
  np.testing.assert_array_equal(counted(np.zeros(1, np.int32)), 257)
