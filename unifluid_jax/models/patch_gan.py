"""PatchGAN discriminator: one real-or-fake logit per image patch.

Source: pix2pix (arXiv 1611.07004) N-layer discriminator, as LDM's kl-f8
recipe uses it (contperceptual.py).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from unifluid_jax.core.parameter_rows import KERNEL, Row

# Convolutions are split over their output channels.
ROWS = (
  Row(r".*/kernel", (None,) * 3 + ("fsdp",), decay=KERNEL),
  Row(r".*/(bias|scale)", (None,)),
)

_SLOPE = 0.2
_EPS = 1e-5


def _scale_init(key: Any, shape: tuple[int, ...]) -> Float[Array, "d"]:
  """Norm scales start at N(1, 0.02)."""
  return 1 + 0.02 * jax.random.normal(key, shape)


class BatchNorm(nn.Module):
  """Normalisation by the statistics of the batch, in float32.

  Differs: keeps no running averages; the discriminator only runs in training.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "B h w d"]) -> Float[Array, "B h w d"]:
    """Zero mean and unit variance per channel over batch and grid."""
    d = x.shape[-1]
    scale = self.param("scale", _scale_init, (d,))
    bias = self.param("bias", nn.initializers.zeros, (d,))
    y = x.astype(jnp.float32)
    y = y - y.mean((0, 1, 2))
    y = y * jax.lax.rsqrt(jnp.square(y).mean((0, 1, 2)) + _EPS)
    return (y * scale + bias).astype(x.dtype)


class PatchGan(nn.Module):
  """Strided 4x4 convolutions with batch norm and leaky ReLU.

  Attributes:
    width: channels of the first convolution; they double up to 8 times it.
    layers: convolutions of stride 2; 3 gives patches of 70 pixels.
    dtype: of the convolutions; statistics and logits are float32.
  """

  width: int
  layers: int
  dtype: Any = jnp.float32

  def _conv(self, name: str, channels: int, stride: int, bias: bool) -> nn.Conv:
    return nn.Conv(
      channels,
      (4, 4),
      strides=stride,
      padding=1,
      use_bias=bias,
      dtype=self.dtype,
      kernel_init=nn.initializers.normal(0.02),
      name=name,
    )

  @nn.compact
  def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B i j"]:
    """Logits, positive for images taken to be real.

    Args:
      images: in [-1, 1].

    Returns:
      One float32 logit per patch; 256 x 256 gives 30 x 30 with 3 layers.

    Raises:
      ValueError: the images are too small for this many layers.
    """
    smallest = 3 * 2**self.layers
    if min(images.shape[1:3]) < smallest:
      raise ValueError(
        f"images of {images.shape[1]}x{images.shape[2]} are too small for "
        f"discriminator_layers={self.layers}: use {smallest} pixels or more, "
        "or fewer layers"
      )
    x = self._conv("conv_0", self.width, 2, True)(images.astype(self.dtype))
    x = nn.leaky_relu(x, _SLOPE)
    for i in range(1, self.layers + 1):
      stride = 1 if i == self.layers else 2
      channels = self.width * min(2**i, 8)
      x = self._conv(f"conv_{i}", channels, stride, False)(x)
      x = nn.leaky_relu(BatchNorm(name=f"norm_{i}")(x), _SLOPE)
    x = self._conv("conv_out", 1, 1, True)(x)
    return x[..., 0].astype(jnp.float32)
