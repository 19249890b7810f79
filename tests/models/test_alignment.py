"""The towers against a float64 reference in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.core import presets
from unifluid_jax.models import alignment

TINY = presets.AlignmentConfig(
  vocab=11, width=12, image_depth=1, text_depth=2, heads=3
)
CELLS, LENGTH, CHANNELS = 4, 6, 5
IDS = np.int32([[7, 3, 10, 1, -1, -1], [7, 1, -1, -1, -1, -1], [3] * 6])


@pytest.fixture(scope="module")
def made():
  """Towers, parameters of which none is at its neutral value, vectors."""
  towers = alignment.Alignment(TINY, CELLS, LENGTH, CHANNELS)
  rng = np.random.default_rng(0)
  z = jnp.float32(rng.standard_normal((3, CELLS, CHANNELS)))
  shapes = jax.eval_shape(towers.init, jax.random.key(0), z, jnp.asarray(IDS))
  shapes = shapes["params"]
  params = jax.tree.map(
    lambda x: jnp.float32(0.4 * rng.standard_normal(x.shape)), shapes
  )

  @jax.jit
  def run(log_scale=0.0):
    changed = {**params, "log_scale": log_scale}
    return towers.apply({"params": changed}, z, jnp.asarray(IDS))

  return run, jax.tree.map(np.float64, params), np.float64(z)


def norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  return centred / deviation * p["scale"] + p["bias"]


def attention(x, p, causal):
  out = np.zeros_like(x) + p["out"]["bias"]
  for n in range(TINY.heads):
    q, k, v = (x @ p[a]["kernel"][:, n] + p[a]["bias"][n] for a in "qkv")
    for i in range(len(x)):
      seen = i + 1 if causal else len(x)
      e = np.exp(k[:seen] @ q[i] / np.sqrt(TINY.width / TINY.heads))
      out[i] += (e / e.sum()) @ v[:seen] @ p["out"]["kernel"][n]
  return out


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def tower(x, p, causal):
  x = x + p["position"][: len(x)]
  for i in range(len(p["layers"]["norm1"]["scale"])):
    layer = jax.tree.map(lambda a, i=i: a[i], p["layers"])
    x = x + attention(norm(x, layer["norm1"]), layer["attn"], causal)
    up, down = layer["mlp"]["up"], layer["mlp"]["down"]
    hidden = gelu(norm(x, layer["norm2"]) @ up["kernel"] + up["bias"])
    x = x + hidden @ down["kernel"] + down["bias"]
  return x


def unit(x, p):
  out = norm(x, p["norm"]) @ p["output"]
  return out / np.linalg.norm(out)


def test_images_are_averaged_over_their_cells(made):
  run, p, z = made
  want = [
    unit(tower(x @ p["input"], p["image"], False).mean(0), p["image"])
    for x in z
  ]
  np.testing.assert_allclose(run()[0], want, atol=2e-5)


def test_captions_are_read_where_they_end(made):
  """Without what is behind, which the reference never sees."""
  run, p, _ = made
  want = [
    unit(tower(p["table"][ids[ids >= 0]], p["text"], True)[-1], p["text"])
    for ids in IDS
  ]
  np.testing.assert_allclose(run()[1], want, atol=2e-5)


def test_the_temperature_begins_and_ends_as_clips(made):
  run, _, _ = made
  for log, scale in ((np.log(20), 20), (9, 100)):
    np.testing.assert_allclose(run(np.float32(log))[2], scale, rtol=1e-5)
  towers = alignment.Alignment(TINY, CELLS, LENGTH, CHANNELS)
  z = jnp.zeros((1, CELLS, CHANNELS))

  @jax.jit
  def start(key):
    return towers.init(key, z, jnp.asarray(IDS[:1]))["params"]["log_scale"]

  start = start(jax.random.key(0))
  np.testing.assert_allclose(np.exp(start), 1 / 0.07, rtol=1e-5)
