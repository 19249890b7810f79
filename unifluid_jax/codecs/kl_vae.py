"""The KL autoencoder as an image codec: continuous tokens of its latents.

Paper: UniFluid §3.1; latents are normalised as MAR's (1 / std), patches are
merged into tokens as in `ops/patches`.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Array, Float, PRNGKeyArray

from unifluid_jax.codecs import copies
from unifluid_jax.core.freeze import ConfigError, need
from unifluid_jax.core.presets import VaeConfig
from unifluid_jax.core.types import Params
from unifluid_jax.models import kl_vae
from unifluid_jax.ops import patches


class KlVaeCodec:
  """A `types.ImageCodec`; weights {"vae", "latent_mean", "latent_scale"}.

  The scale is the VAE's, which gives latents of about unit variance, times
  `latent_std`.

  Attributes:
    cache: moments of one image, f32[h, w, 2c]; files keep float16.
    path_key: the configuration key of `path`.
    measured: whether the statistics are measured, not configured.
  """

  fit = "crop"
  sizes = ()
  path_key = "config.model.vae_path"
  file_dtype = np.float16

  def __init__(
    self,
    config: VaeConfig,
    path: str,
    size: int,
    patch: int = 1,
    latent_std: float = 1.0,
    dtype: Any = jnp.float32,
  ):
    """Builds the network; reads nothing.

    Args:
      config: of the network.
      path: workdir of the VAE's run, or an imported VAE.
      size: of the images, in pixels.
      patch: latent cells per side that are merged into a token.
      latent_std: approximate standard deviation of the tokens.
      dtype: of the network's products.
    """
    self.config, self.path, self.size = config, path, size
    self._patch, self._std = patch, latent_std
    self._vae = kl_vae.KlVae(config, jnp.dtype(dtype))
    side = size // config.factor
    self.cache = jax.ShapeDtypeStruct(
      (side, side, 2 * config.latent), np.float32
    )
    self.measured = config.latent_mean is None or config.latent_scale is None

  # --------------------------------------------------------------- weights

  def shapes(self) -> Params:
    """See `types.ImageCodec`."""
    scalar = jax.ShapeDtypeStruct((), np.float32)
    return self._weight_shapes() | {
      "latent_mean": scalar,
      "latent_scale": scalar,
    }

  def _weight_shapes(self) -> dict[str, Params]:
    size = self.config.factor
    shapes = jax.eval_shape(
      lambda: self._vae.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    )
    return {"vae": shapes["params"]}

  def load(self) -> Params:
    """Weights and statistics; see `types.ImageCodec`.

    Raises:
      ConfigError: no path; statistics neither configured nor measured, or
        measured with other weights.
      checkpoint.CheckpointError: no or another checkpoint at the path.
    """
    weights = self.weights()
    mean, scale = self.statistics(weights)
    return weights | {
      "latent_mean": jnp.float32(mean),
      "latent_scale": jnp.float32(scale * self._std),
    }

  def weights(self) -> dict[str, Params]:
    """The network's weights alone: all that encoding needs."""
    if not self.path:
      raise ConfigError(
        f"{self.path_key} is empty: generating images needs a trained "
        "autoencoder (python -m unifluid_jax.main --config=configs/vae.py)"
      )
    like = self._weight_shapes()["vae"]
    return {"vae": copies.restore(self.path, "vae", like, self.config)}

  def digest(self, frozen: Params) -> str:
    """SHA-256 of the weights."""
    return copies.digest(frozen["vae"])

  def statistics(self, frozen: Params) -> tuple[float, float]:
    """Mean and scale of the latents: configured, else measured.

    Args:
      frozen: the weights, which the measurement must be of.

    Raises:
      ConfigError: neither is available, or the weights have changed since.
    """
    c = self.config
    stats = copies.read_stats(self.path)
    path = epath.Path(self.path) / copies.STATS
    if c.latent_mean is not None and c.latent_scale is not None:
      own = c.latent_mean, c.latent_scale
      there = stats and (stats.get("mean"), stats.get("scale"))
      if there and there != own:
        # A preset's, where the weights are of another release of its shape.
        logging.log_first_n(
          logging.WARNING,
          "latents: the configured mean and scale %s are used, %s has %s; set "
          "config.model.vae.latent_mean and latent_scale to these if that is "
          "not meant (logged once)", 1, own, path, there,
        )  # fmt: skip
      return own
    if stats is None:
      raise ConfigError(
        f"{path} is missing: measure the latents once with "
        "python -m unifluid_jax.encode, or set config.model.vae.latent_mean "
        "and config.model.vae.latent_scale"
      )
    made, there = stats.get("weights"), self.digest(frozen)
    if made is not None and made != there:
      raise ConfigError(
        f"{path} was measured with weights {made[:8]}, {self.path} now has "
        f"{there[:8]}: measure the latents again with "
        "python -m unifluid_jax.encode"
      )
    try:
      return float(stats["mean"]), float(stats["scale"])
    except (KeyError, TypeError, ValueError) as error:
      raise ConfigError(
        f"{path} is damaged ({error!r}): delete it and measure the latents "
        "again with python -m unifluid_jax.encode"
      ) from error

  def identity(self, frozen: Params) -> dict[str, Any]:
    """What tells codecs apart: weights, latent mean and scale."""
    mean, scale = self.statistics(frozen)
    return {"weights": self.digest(frozen), "mean": mean, "scale": scale}

  def saved(self, frozen: Params) -> tuple[Params, dict[str, Any]]:
    """Parameters as a run's copy keeps them, and the network's settings."""
    settings = {"vae": dataclasses.asdict(self.config)}
    return {"vae": frozen["vae"]}, settings

  # ---------------------------------------------------------------- images

  def encode(
    self, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w c2"]:
    """Moments of the posterior: mean and log-variance."""
    moments = self._apply(frozen, images, "encode")
    return moments.astype(jnp.float32)

  def tokens(
    self,
    frozen: Params,
    cached: Float[Array, "B h w c2"],
    key: PRNGKeyArray | None,
  ) -> Float[Array, "B N C"]:
    """Normalised tokens in raster order; without a key the mode."""
    z = kl_vae.sample(cached.astype(jnp.float32), key)
    z = kl_vae.to_latents(z, frozen["latent_mean"], frozen["latent_scale"])
    return patches.patchify(z, self._patch)

  def decode(
    self, frozen: Params, tokens: Float[Array, "B N C"]
  ) -> Float[Array, "B H W 3"]:
    """Tokens in raster order → images in [-1, 1]."""
    z = patches.unpatchify(tokens, self._patch, self.config.latent)
    z = kl_vae.from_latents(z, frozen["latent_mean"], frozen["latent_scale"])
    images = self._apply(frozen, z, "decode")
    return jnp.clip(images.astype(jnp.float32), -1.0, 1.0)

  def reconstruct(
    self, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images through the autoencoder and back."""
    z = kl_vae.sample(self._apply(frozen, images, "encode"), None)
    return self._apply(frozen, z, "decode")

  def _apply(self, frozen: Params, x: Array, method: str) -> Array:
    return self._vae.apply({"params": frozen["vae"]}, x, method=method)

  def measure(self, cached: Iterator[np.ndarray | None]) -> Mapping[str, float]:
    """Mean and 1/std of posterior samples: E[z], E[z^2] in closed form."""
    n = total = square = 0.0
    for m in filter(lambda m: m is not None, cached):
      mean, logvar = np.split(np.asarray(m, np.float64), 2, axis=-1)
      total += mean.sum()
      square += (mean**2 + np.exp(logvar)).sum()
      n += mean.size
    average = total / n
    std = math.sqrt(max(square / n - average**2, 1e-12))
    return {"mean": average, "scale": 1 / std, "values": int(n)}


def check_shape(vae: VaeConfig, size: int, patch: int = 1) -> None:
  """Refuses images that are not whole cells, channels not whole groups.

  Args:
    vae: of the network.
    size: of the images, in pixels.
    patch: latent cells per side of a token.

  Raises:
    ConfigError: names the keys and the fix.
  """
  cell = vae.factor * patch
  need(
    size % cell == 0,
    f"model.image_size={size} must be a multiple of {cell} "
    f"(VAE factor {vae.factor} x patch {patch})",
  )
  for channels in (vae.base * n for n in (1, *vae.multipliers)):
    need(
      channels % vae.groups == 0,
      f"model.vae.groups={vae.groups} does not divide {channels} channels: "
      f"choose model.vae.base={vae.base} as a multiple of it, or fewer groups",
    )
