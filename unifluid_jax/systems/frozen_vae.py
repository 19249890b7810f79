"""The trained image tokenizer as other systems use it: frozen, read once."""

import json
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from unifluid_jax import checkpoint
from unifluid_jax.config import ConfigError, ModelConfig
from unifluid_jax.models.kl_vae import KlVae

STATS = "latents.json"


def load_vae(model: ModelConfig) -> dict[str, Any]:
  """Weights and latent statistics of `config.model.vae_path`.

  The scale is the VAE's, which gives latents of about unit variance, times
  `config.model.latent_std`.

  Returns:
    {"vae": params, "latent_mean": f32[], "latent_scale": f32[]}

  Raises:
    ConfigError: no path, or statistics neither configured nor measured.
    checkpoint.CheckpointError: no or another checkpoint at the path.
  """
  mean, scale = latent_stats(model)
  return {
    "vae": vae_weights(model),
    "latent_mean": jnp.float32(mean),
    "latent_scale": jnp.float32(scale * model.latent_std),
  }


def vae_weights(model: ModelConfig) -> Any:
  """The newest parameters under `config.model.vae_path`.

  Raises:
    ConfigError: no path.
    checkpoint.CheckpointError: no or another checkpoint at the path.
  """
  if not model.vae_path:
    raise ConfigError(
      "config.model.vae_path is empty: generating images needs a trained "
      "autoencoder (python -m unifluid_jax.main --config=configs/vae.py)"
    )
  vae = KlVae(model.vae)
  size = model.vae.factor
  like = jax.eval_shape(
    lambda: vae.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  )["params"]
  step = checkpoint.latest_step(model.vae_path)
  return checkpoint.restore_part(model.vae_path, step, "params/vae", like)


def latent_stats(model: ModelConfig) -> tuple[float, float]:
  """Mean and scale of the latents: configured, else measured.

  Raises:
    ConfigError: neither is available.
  """
  mean, scale = model.vae.latent_mean, model.vae.latent_scale
  if mean is not None and scale is not None:
    return mean, scale
  path = epath.Path(model.vae_path) / STATS
  if not path.exists():
    raise ConfigError(
      f"{path} is missing: measure the latents once with "
      "python -m unifluid_jax.encode, or set config.model.vae.latent_mean "
      "and config.model.vae.latent_scale"
    )
  stats = json.loads(path.read_text())
  return float(stats["mean"]), float(stats["scale"])
