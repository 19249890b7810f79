"""What a generation example becomes: draws, order, and what is predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems.conftest import examples
from unifluid_jax.models import kl_vae
from unifluid_jax.ops import order, patches

KEY = jax.random.key(3)


@pytest.fixture
def packed(model, monkeypatch):
  """Orders a batch with a share of random ones; returns all that was drawn."""

  def pack(share):
    seen = {}

    def embed_image(params, x, cells):
      seen.update(x=x, cells=cells)
      return jnp.zeros((*x.shape[:2], model.config.model.decoder.width))

    monkeypatch.setattr(model.system, "embed_image", embed_image)
    t2i = examples()["t2i"]
    whole, target = model.system._pack_image(
      model.params, model.frozen, t2i, KEY, share, 0.2
    )
    k_latent = jax.random.split(KEY, 3)[0]
    # The prompt's slot sees all of itself, then every token what was before.
    want = [*[0] * 5, *range(1, 17)]
    np.testing.assert_array_equal(whole.block, [want] * 8)
    raster = model.system.codec.tokens(
      model.frozen["codec"], t2i["image"], k_latent
    )
    return np.asarray(raster), np.asarray(target), seen

  return pack


def test_tokens_are_fed_and_predicted_in_the_order_of_their_cells(packed):
  raster, target, seen = packed(1.0)
  cells = np.asarray(seen["cells"])
  assert (cells != np.arange(16)).any(1).all()
  want = np.stack([x[row] for x, row in zip(raster, cells, strict=True)])
  np.testing.assert_array_equal(target, want)
  np.testing.assert_array_equal(seen["x"], want)
  raster, target, seen = packed(0.0)
  np.testing.assert_array_equal(seen["cells"][0], np.arange(16))
  np.testing.assert_array_equal(target, raster)


def test_the_share_of_random_orders_is_the_steps(model, monkeypatch):
  class Seen(Exception):
    pass

  def pack(*args):
    raise Seen(float(args[-2]))

  monkeypatch.setattr(model.system, "_pack_image", pack)
  batch, shares = {"t2i": examples()["t2i"]}, []
  for step in (0, 10, 15, 20):
    with pytest.raises(Seen) as seen:
      model.whole_loss(model.params, model.frozen, batch, KEY, step)
    shares += seen.value.args
  assert shares == [1.0, 1.0, 0.5, 0.0]


def test_latents_in_training_are_drawn_from_their_posterior(packed, model):
  """Normalised tokens: mean (m - .1) 1.3, deviation 1.3 exp(v / 2)."""
  _, target, seen = packed(0.0)
  mean, log_var = np.split(np.float32(examples()["t2i"]["image"]), 2, axis=-1)
  z = order.put_tokens(jnp.asarray(target), seen["cells"])
  z = patches.unpatchify(z, 2, 4)
  noise = (z / 1.3 + 0.1 - mean) / np.exp(log_var / 2)
  # 2048 values: four standard deviations.
  assert abs(noise.mean()) < 0.09 and abs(noise.std() - 1) < 0.07
  mode = kl_vae.sample(jnp.asarray(examples()["t2i"]["image"]), None)
  np.testing.assert_array_equal(mode, mean.astype(mode.dtype))
