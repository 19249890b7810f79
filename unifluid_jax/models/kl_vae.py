"""KL autoencoder of the Stable-Diffusion family: images to Gaussian latents.

Architecture: Latent Diffusion Models (arXiv 2112.10752), config kl-f8; the
networks are those of `convolutions`. `VaeConfig` sets their widths, depth and
factor; `VAE["sd_f8"]` is the original, `VAE["mar_kl16"]` the one of MAR
models/vae.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from unifluid_jax.core import presets
from unifluid_jax.models import convolutions

LOG_VARIANCE_MIN, LOG_VARIANCE_MAX = -30.0, 20.0

Scalar = float | Float[Array, ""]


class KlVae(nn.Module):
  """Encoder to a diagonal Gaussian per latent cell, and decoder.

  Works on raw latents; `to_latents` and `from_latents` centre and scale them.

  Attributes:
    config: widths, depth and factor.
    dtype: of the convolutions; norms, softmax and results are float32.
  """

  config: presets.VaeConfig
  dtype: Any = jnp.float32

  def setup(self) -> None:
    """Declares all parts."""
    c = self.config
    self.encoder = convolutions.Encoder(c, 2 * c.latent, self.dtype)
    self.quant_conv = convolutions.conv(2 * c.latent, 1, self.dtype)
    self.post_quant_conv = convolutions.conv(c.latent, 1, self.dtype)
    self.decoder = convolutions.Decoder(c, self.dtype)

  def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w m"]:
    """Moments of the posterior.

    Args:
      images: in [-1, 1], sides multiples of `config.factor`.

    Returns:
      Float32 mean and log-variance along the last axis, m = 2c; the
      log-variance is clipped to [-30, 20].

    Raises:
      ValueError: a side is not a multiple of the factor.
    """
    x = self.quant_conv(self.encoder(images))
    mean, log_variance = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    log_variance = jnp.clip(log_variance, LOG_VARIANCE_MIN, LOG_VARIANCE_MAX)
    return jnp.concatenate([mean, log_variance], axis=-1)

  def decode(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W 3"]:
    """Float32 images, in [-1, 1] up to the decoder's error."""
    return self.decode_output(self.decode_features(z))

  def decode_features(
    self, z: Float[Array, "B h w c"]
  ) -> Float[Array, "B i j d"]:
    """What the decoder's last convolution reads."""
    return self.decoder.features(self.post_quant_conv(z.astype(self.dtype)))

  def decode_output(
    self, features: Float[Array, "B i j d"]
  ) -> Float[Array, "B H W 3"]:
    """The decoder's last convolution; what depends on its kernel."""
    return self.decoder.output(features)

  def __call__(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Reconstruction from the posterior's mode."""
    return self.decode(sample(self.encode(images), None))


def sample(
  moments: Float[Array, "B h w m"], key: PRNGKeyArray | None
) -> Float[Array, "B h w c"]:
  """Raw latents: a draw of the posterior, or its mode without a key."""
  mean, log_variance = jnp.split(moments, 2, axis=-1)
  if key is None:
    return mean
  noise = jax.random.normal(key, mean.shape, mean.dtype)
  return mean + jnp.exp(0.5 * log_variance) * noise


def kl(moments: Float[Array, "B h w m"]) -> Float[Array, "B"]:
  """KL divergence to N(0, 1) in nats, summed over each example's latent."""
  mean, log_variance = jnp.split(moments, 2, axis=-1)
  terms = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
  return 0.5 * terms.sum((1, 2, 3))


def to_latents(
  z: Float[Array, "B h w c"], mean: Scalar, scale: Scalar
) -> Float[Array, "B h w c"]:
  """Raw latents centred and scaled: (z - mean) * scale."""
  return (z - mean) * scale


def from_latents(
  latents: Float[Array, "B h w c"], mean: Scalar, scale: Scalar
) -> Float[Array, "B h w c"]:
  """Inverse of `to_latents`."""
  return latents / scale + mean
