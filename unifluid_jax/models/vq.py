"""VQ autoencoder: images to a grid of codes and back.

Architecture: VQGAN (arXiv 2012.09841; CompVis/taming-transformers), whose
shape Chameleon keeps; LlamaGen (arXiv 2406.06525; FoundationVision/LlamaGen
vq_model.py) looks unit vectors up in a codebook of unit vectors. The networks
are those of `convolutions`. Codes are exact only where vectors and distances
are float32: a flipped minimum is another token.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from unifluid_jax.core import presets
from unifluid_jax.core.parameter_rows import Row
from unifluid_jax.models import convolutions

# A codebook is small and read at random rows: every device has all of it.
ROWS = (*convolutions.ROWS, Row("codebook/table", (None, None)))

_NORM_EPS = 1e-12
_TEMPERATURE = 0.01  # of the entropy term's assignments
_LOG_EPS = 1e-5

_sg = jax.lax.stop_gradient


class Quantised(NamedTuple):
  """A grid of vectors and the codebook's nearest ones, in float32."""

  codes: Any  # i32[B, h, w]
  z: Any  # f32[B, h, w, e] that was compared: unit vectors if normalised
  nearest: Any  # f32[B, h, w, e]

  @property
  def straight_through(self) -> Float[Array, "B h w e"]:
    """`nearest`, with the gradient of `z`: what the decoder reads."""
    return self.z + _sg(self.nearest - self.z)

  @property
  def targets(self) -> Float[Array, "B h w e"]:
    """What `approximations` are drawn to."""
    return self.z

  @property
  def approximations(self) -> Float[Array, "B h w e"]:
    """Vectors of which each has a share in the quantisation loss."""
    return self.nearest

  @property
  def compared(self) -> Float[Array, "B h w e"]:
    """Vectors that the codebook was searched for."""
    return self.z

  def uses(self, config: presets.VqConfig) -> Float[Array, "K"]:
    """How often each code was chosen."""
    return jnp.zeros(config.codes).at[self.codes.reshape(-1)].add(1)


class Codebook(nn.Module):
  """K vectors, drawn from U(-1/K, 1/K)."""

  codes: int
  channels: int

  @nn.compact
  def __call__(self) -> Float[Array, "K e"]:
    """The table as it is stored, not normalised."""

    def init(key: Any, shape: tuple[int, int]) -> Float[Array, "K e"]:
      return jax.random.uniform(key, shape, minval=-1, maxval=1) / self.codes

    return self.param("table", init, (self.codes, self.channels))


class VqVae(nn.Module):
  """Encoder to a vector per latent cell, its code, and decoder.

  Attributes:
    config: widths, depth, factor and codebook.
    dtype: of the convolutions; norms, softmax, quantisation and results are
      float32.
  """

  config: presets.VqConfig
  dtype: Any = jnp.float32

  def setup(self) -> None:
    """Declares all parts."""
    c = self.config
    self.encoder = convolutions.Encoder(c, c.latent, self.dtype)
    self.quant_conv = convolutions.conv(c.code_channels, 1, self.dtype)
    self.codebook = Codebook(c.codes, c.code_channels)
    self.post_quant_conv = convolutions.conv(c.latent, 1, self.dtype)
    self.decoder = convolutions.Decoder(c, self.dtype)

  def quantise(self, images: Float[Array, "B H W 3"]) -> Quantised:
    """Vectors of the cells and the codes nearest to them.

    Args:
      images: in [-1, 1], sides multiples of `config.factor`.

    Raises:
      ValueError: a side is not a multiple of the factor.
    """
    z = self.quant_conv(self.encoder(images))
    return quantise(z, self.codebook(), self.config.normalised)

  def encode(self, images: Float[Array, "B H W 3"]) -> Int[Array, "B h w"]:
    """Codes alone; see `quantise`."""
    return self.quantise(images).codes

  def decode(self, codes: Int[Array, "B h w"]) -> Float[Array, "B H W 3"]:
    """Float32 images, in [-1, 1] up to the decoder's error."""
    table = vectors(self.codebook(), self.config.normalised)
    return self.decode_output(self.decode_features(table[codes]))

  def decode_features(
    self, z: Float[Array, "B h w e"]
  ) -> Float[Array, "B i j d"]:
    """What the decoder's last convolution reads, of vectors of codes."""
    return self.decoder.features(self.post_quant_conv(z.astype(self.dtype)))

  def decode_output(
    self, features: Float[Array, "B i j d"]
  ) -> Float[Array, "B H W 3"]:
    """The decoder's last convolution; what depends on its kernel."""
    return self.decoder.output(features)

  def __call__(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Reconstruction from the nearest codes."""
    return self.decode(self.encode(images))


def quantise(
  z: Float[Array, "B h w e"], table: Float[Array, "K e"], normalised: bool
) -> Quantised:
  """The codebook's nearest vector of every cell; the first one on ties.

  Args:
    z: of any dtype; compared in float32.
    table: the codebook as it is stored.
    normalised: compares directions; `z` and `nearest` are unit vectors, with
      gradients through both normalisations.
  """
  z = vectors(z.astype(jnp.float32), normalised)
  table = vectors(table, normalised)
  codes = jnp.argmin(distances(z, table), axis=-1).astype(jnp.int32)
  return Quantised(codes, z, table[codes])


def vectors(x: Float[Array, "*rows e"], normalised: bool) -> Array:
  """Vectors as they are compared: divided by their norms if `normalised`."""
  if not normalised:
    return x
  # The root of a square of 0 has no gradient: the bound is on the square.
  square = jnp.square(x).sum(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, _NORM_EPS**2))


def distances(
  z: Float[Array, "*rows e"], table: Float[Array, "K e"]
) -> Float[Array, "*rows K"]:
  """Squared distances |z|^2 + |e|^2 - 2 z e of every pair.

  The product asks for float32: accelerators would round its factors.
  """
  product = jnp.matmul(z, table.T, precision=jax.lax.Precision.HIGHEST)
  square = jnp.square(z).sum(-1, keepdims=True)
  return square + jnp.square(table).sum(-1) - 2 * product


def entropy_loss(
  z: Float[Array, "*rows e"], table: Float[Array, "K e"]
) -> Float[Array, ""]:
  """Mean entropy of the cells' assignments less that of their mean.

  Source: LlamaGen, `compute_entropy_loss`: softmax of -distance / 0.01. Small
  where every cell is sure of its code and all codes are in use.

  Args:
    z: vectors of all cells, as they are compared.
    table: the codebook, likewise.
  """
  scores = -distances(z.reshape(-1, z.shape[-1]), table) / _TEMPERATURE
  logs = jax.nn.log_softmax(scores)
  shares = jnp.exp(logs)
  mean = shares.mean(0)
  per_cell = -(shares * logs).sum(-1).mean()
  return per_cell + (mean * jnp.log(mean + _LOG_EPS)).sum()


def perplexity(count: Float[Array, "K"]) -> Float[Array, ""]:
  """exp of the entropy of the shares that codes have; at most K."""
  shares = count / jnp.maximum(count.sum(), 1e-10)
  return jnp.exp(-(shares * jnp.log(shares + 1e-10)).sum())
