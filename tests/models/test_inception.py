"""Structure and layers; the whole network's numbers: tests/weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.models import inception


def shapes():
  net = inception.Inception()
  images = jnp.zeros((1, 299, 299, 3))
  return jax.eval_shape(lambda: net.init(jax.random.key(0), images))["params"]


def test_size_is_torchvisions_with_1008_classes():
  # 23,834,568 with 1000 classes and no auxiliary head; two moments a channel.
  params = shapes()
  kernels = [
    x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if path[-1].key == "kernel" and len(x.shape) == 4
  ]
  channels = sum(shape[-1] for shape in kernels)
  total = sum(x.size for x in jax.tree.leaves(params))
  assert len(kernels) == 94
  assert total == 23_834_568 + 8 * (2048 + 1) + 2 * channels


def test_channels_after_every_block():
  channels = 3
  seen = {}
  for step in inception.NETWORK:
    channels = inception._add_specs([step], channels, {})
    if isinstance(step, inception.Fork):
      seen[step.name] = channels
  assert list(seen.values()) == [
    256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048,
  ]  # fmt: skip


def test_unit_normalises_by_stored_moments():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 6, 3))
  p = {
    "kernel": rng.normal(size=(3, 1, 3, 4)),
    "scale": rng.normal(size=4),
    "bias": rng.normal(size=4),
    "mean": rng.normal(size=4),
    "var": np.array([1e-3, 0.5, 1, 2]),  # the first shows the epsilon
  }
  step = inception.Conv("unit", 4, rows=3, columns=1, stride=2, padding="VALID")
  want = np.zeros((2, 2, 3, 4))
  for b, i, j, o in np.ndindex(want.shape):
    patch = x[b, 2 * i : 2 * i + 3, 2 * j]
    want[b, i, j, o] = (patch * p["kernel"][:, 0, :, o]).sum()
  want = (want - p["mean"]) / np.sqrt(p["var"] + 1e-3) * p["scale"] + p["bias"]
  got = inception._conv(
    step,
    {k: jnp.asarray(v, jnp.float32) for k, v in p.items()},
    jnp.asarray(x, jnp.float32),
  )
  np.testing.assert_allclose(got, np.maximum(want, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind, reduce", [("mean", np.mean), ("max", np.max)])
def test_pools_see_no_padding(kind, reduce):
  x = np.random.default_rng(1).normal(size=(1, 4, 5, 2)) - 3  # zeros would show
  want = np.zeros_like(x)
  for i, j, c in np.ndindex(4, 5, 2):
    want[0, i, j, c] = reduce(
      x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2, c]
    )
  got = inception._pool(inception.Pool(kind), jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_only_the_last_block_pools_by_maximum():
  pools = {
    step.name: [
      p.kind
      for branch in step.branches
      for p in branch
      if isinstance(p, inception.Pool) and p.stride == 1
    ]
    for step in inception.NETWORK
    if isinstance(step, inception.Fork)
  }
  last = pools.pop("Mixed_7c")
  assert last == ["max"]
  assert pools.pop("Mixed_6a") == pools.pop("Mixed_7a") == []
  assert all(kinds == ["mean"] for kinds in pools.values())


def test_other_sizes_are_refused():
  with pytest.raises(ValueError, match="expects 299 x 299 images, got 256"):
    inception.Inception().init(jax.random.key(0), jnp.zeros((1, 256, 299, 3)))
