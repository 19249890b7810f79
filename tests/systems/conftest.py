"""A UniFluid of a few thousand parameters, and a random frozen VAE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from unifluid_jax import systems
from unifluid_jax.codecs.inputs import encode_pixels
from unifluid_jax.core import types
from unifluid_jax.models import kl_vae
from unifluid_jax.models.kl_vae import KlVae
from unifluid_jax.ops import diffusion, order
from unifluid_jax.systems.unifluid import UniFluid


def tiny(**changes):
  c = shapes.get_config()
  c.batch = dict(t2i=8, i2t=8, edit=0, text=0)
  m = c.model
  m.decoder.update(
    vocab=24, width=32, depth=2, mlp=48, heads=2, kv_heads=1, head_dim=16
  )
  m.vit.update(width=16, depth=1, mlp=32, heads=2, patch=8)
  m.patch = 2
  m.head.update(kind="ddpm", width=32, depth=1)
  m.vae.update(base=8, groups=4)
  c.text.update(prompt=5, prefix=5, suffix=4)
  c.loss.update(random_until=10, raster_from=20)
  c.loss.prompt_dropout = 0.2
  c.loss.word_dropout = 0.0
  c.sampling.steps = 3
  c.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return systems.resolve(c)


def right_aligned(rng, rows, length, most):
  out = np.full((rows, length), types.PAD, np.int32)
  for row in out:
    n = rng.integers(1, most + 1)
    row[-n:] = rng.integers(4, 24, n)
    row[-n] = types.BOS
  return out


def suffixes(rng, rows, length):
  out = np.full((rows, length), types.PAD, np.int32)
  for row in out:
    n = rng.integers(1, length)
    row[:n] = rng.integers(4, 24, n)
    row[n] = types.EOS
  return out


def examples(rows=8, seed=0, edit=False, text=False):
  rng = np.random.default_rng(seed)

  def pixels():
    return rng.uniform(-1, 1, (rows, 32, 32, 3)).astype(np.float32)

  moments = rng.normal(size=(rows, 8, 8, 8)).astype(np.float16)
  batch = {
    "t2i": {"prompt": right_aligned(rng, rows, 5, 5), "image": moments},
    "i2t": {
      "seen": pixels(),
      "prefix": right_aligned(rng, rows, 5, 4),
      "suffix": suffixes(rng, rows, 4),
    },
  }
  if edit:
    batch["edit"] = {
      "seen": pixels(),
      "prompt": right_aligned(rng, rows, 5, 5),
      "image.pixels": pixels(),
    }
  if text:
    batch["text"] = {
      "prefix": right_aligned(rng, rows, 5, 3),
      "suffix": suffixes(rng, rows, 4),
    }
  return jax.tree.map(jnp.asarray, batch)


def whole_loss(system):
  """The system's loss of a batch in one piece, as train_step computes it."""

  def loss(params, frozen, batch, key, step):
    counts = system.counts(batch)
    batch = encode_pixels(system, frozen, batch)
    return system.loss(params, frozen, batch, counts, key, step)[:2]

  return loss


class Tiny:
  def __init__(self, **changes):
    self.config = tiny(**changes)
    self.system = UniFluid(self.config)
    self.params = jax.tree.map(
      # Zero-initialised parts would hide mistakes: everything is random.
      lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
      jax.jit(self.system.init)(jax.random.key(0)),
    )
    vae = jax.jit(KlVae(self.config.model.vae).init)(
      jax.random.key(1), jnp.zeros((1, 32, 32, 3))
    )
    self.frozen = {
      "codec": {
        "vae": vae["params"],
        "latent_mean": jnp.float32(0.1),
        "latent_scale": jnp.float32(1.3),
      }
    }
    self.whole_loss = whole_loss(self.system)
    self.loss = jax.jit(self.whole_loss)


@pytest.fixture(scope="session")
def model():
  return Tiny()


@pytest.fixture
def without_draws(monkeypatch):
  """Every row gets the same noise, steps and order, and its latent's mode."""
  fixed, sample = jax.random.key(5), kl_vae.sample
  steps, normal = diffusion.sample_steps, jax.random.normal

  def fixed_steps(key, draws, shape):
    del key
    drawn = steps(fixed, draws, (1, *shape[1:]))
    return jnp.broadcast_to(drawn, (draws, *shape))

  def fixed_noise(key, shape, dtype):
    del key
    drawn = normal(fixed, (shape[0], 1, *shape[2:]), dtype)
    return jnp.broadcast_to(drawn, shape)

  def backwards(key, rows, n, share, *kind):
    del key, share
    return jnp.broadcast_to(jnp.arange(n)[::-1], (rows, n))

  monkeypatch.setattr(kl_vae, "sample", lambda m, key: sample(m, None))
  monkeypatch.setattr(diffusion, "sample_steps", fixed_steps)
  monkeypatch.setattr(jax.random, "normal", fixed_noise)
  monkeypatch.setattr(order, "sample_orders", backwards)
