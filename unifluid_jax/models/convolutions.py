"""Encoder and decoder of image tokenizers, continuous and discrete.

Architecture: Latent Diffusion Models (arXiv 2112.10752), as in CompVis
ldm/modules/diffusionmodules/model.py and diffusers' AutoencoderKL; those of
VQGAN, LlamaGen and VAR are the same with other channels and attention.

Differs: kernels start at variance 1 / fan_in and biases at 0, where the
original draws both with variance 1 / (3 fan_in): small models learn faster.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from unifluid_jax.core import presets
from unifluid_jax.core.parameter_rows import KERNEL, Row
from unifluid_jax.core.types import Params

# Convolutions are split over their output channels.
ROWS = (
  Row(r".*/attention(_\d+)?/(q|k|v|out)/kernel", (None, "fsdp"), decay=KERNEL),
  Row(r"(?!.*/attention).*/kernel", (None,) * 3 + ("fsdp",), decay=KERNEL),
  Row(r".*/(bias|scale)", (None,)),
)


def conv(channels: int, size: int, dtype: Any, **rest: Any) -> nn.Conv:
  """A convolution of size x size cells; it keeps the grid by default."""
  return nn.Conv(channels, (size, size), dtype=dtype, **rest)


class Norm(nn.Module):
  """GroupNorm with eps 1e-6, computed in float32 whatever the input is."""

  groups: int

  @nn.compact
  def __call__(self, x: Float[Array, "B h w d"]) -> Float[Array, "B h w d"]:
    """Normalises each group of channels over the grid and the group."""
    d = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (d,))
    bias = self.param("bias", nn.initializers.zeros, (d,))
    y = x.astype(jnp.float32)
    # Sums of numbers and of squares: one pass over the image, then another
    # with one product and one sum, as in flax's GroupNorm.
    mean = self._mean(y)
    variance = self._mean(jnp.square(y)) - jnp.square(mean)
    gain = scale * jax.lax.rsqrt(jnp.maximum(variance, 0) + 1e-6)
    return (y * gain + (bias - mean * gain)).astype(x.dtype)

  def _mean(self, x: Float[Array, "B h w d"]) -> Float[Array, "B 1 1 d"]:
    """Every channel's group mean.

    Over the grid first: four channels as the last axis of a whole image
    would leave most lanes of an accelerator empty.
    """
    channels = x.mean((1, 2))
    groups = channels.reshape(-1, self.groups, x.shape[-1] // self.groups)
    means = jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape)
    return means.reshape(channels.shape)[:, None, None]


class Resnet(nn.Module):
  """norm, silu, conv, norm, silu, conv, plus the input."""

  channels: int
  groups: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B h w d"]) -> Float[Array, "B h w e"]:
    """Maps d input channels to `channels`; 1x1 shortcut where they differ."""
    h = nn.silu(Norm(self.groups, name="norm1")(x))
    h = conv(self.channels, 3, self.dtype, name="conv1")(h)
    h = nn.silu(Norm(self.groups, name="norm2")(h))
    h = conv(self.channels, 3, self.dtype, name="conv2")(h)
    if x.shape[-1] != self.channels:
      x = conv(self.channels, 1, self.dtype, name="shortcut")(x)
    return x + h


class Attention(nn.Module):
  """Single-head self-attention over the grid, plus the input."""

  groups: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B h w d"]) -> Float[Array, "B h w d"]:
    """softmax(q k^T / sqrt(d)) v of the normalised input; softmax in fp32."""
    b, h, w, d = x.shape

    def dense(name: str) -> nn.Dense:
      return nn.Dense(d, dtype=self.dtype, name=name)

    y = Norm(self.groups, name="norm")(x).reshape(b, h * w, d)
    q, k, v = dense("q")(y), dense("k")(y), dense("v")(y)
    logits = jnp.einsum(
      "BTD,BSD->BTS", q, k, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(logits * d**-0.5).astype(v.dtype)
    y = dense("out")(jnp.einsum("BTS,BSD->BTD", weights, v))
    return x + y.reshape(x.shape)


class Level(nn.Module):
  """Residual blocks at one resolution, then a change of resolution.

  With `attention` an attention layer follows every block.
  """

  channels: int
  blocks: int
  resample: Literal["down", "up", "none"]
  groups: int
  attention: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B h w d"]) -> Float[Array, "B i j e"]:
    """Halves the grid ("down"), doubles it ("up") or keeps it ("none").

    Downsampling pads one row at the bottom and one column at the right only,
    upsampling repeats each cell before a convolution.
    """
    for i in range(self.blocks):
      x = Resnet(self.channels, self.groups, self.dtype, name=f"resnet_{i}")(x)
      if self.attention:
        x = Attention(self.groups, self.dtype, name=f"attention_{i}")(x)
    if self.resample == "down":
      pads = ((0, 1), (0, 1))
      x = conv(
        self.channels, 3, self.dtype, strides=2, padding=pads, name="downsample"
      )(x)
    elif self.resample == "up":
      x = x.repeat(2, axis=1).repeat(2, axis=2)
      x = conv(self.channels, 3, self.dtype, name="upsample")(x)
    return x


class Middle(nn.Module):
  """Two residual blocks around an optional attention layer."""

  attention: bool
  groups: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B h w d"]) -> Float[Array, "B h w d"]:
    """Keeps grid and channels."""
    d = x.shape[-1]
    x = Resnet(d, self.groups, self.dtype, name="resnet_0")(x)
    if self.attention:
      x = Attention(self.groups, self.dtype, name="attention")(x)
    return Resnet(d, self.groups, self.dtype, name="resnet_1")(x)


class Encoder(nn.Module):
  """Images to `outputs` channels per latent cell, before the quant conv.

  Attributes:
    config: widths, depth and factor.
    outputs: the latent channels; twice as many where they are moments.
    dtype: of the convolutions; norms and softmax are float32.
  """

  config: presets.AutoencoderConfig
  outputs: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w m"]:
    """One level per multiplier, all but the last halving the grid.

    Raises:
      ValueError: a side is not a multiple of the factor, or `groups` does not
        divide a number of channels.
    """
    c = self.config
    _check_groups(c)
    if images.shape[1] % c.factor or images.shape[2] % c.factor:
      raise ValueError(
        f"images of {images.shape[1]}x{images.shape[2]} do not fit the VAE: "
        f"resize both sides to multiples of {c.factor}"
      )
    last = len(c.multipliers) - 1
    x = space_to_depth(images.astype(self.dtype), c.stem)
    x = conv(c.base, 3, self.dtype, name="conv_in")(x)
    for i, multiplier in enumerate(c.multipliers):
      x = Level(
        c.base * multiplier,
        c.blocks,
        "none" if i == last else "down",
        c.groups,
        c.encoder_attention and i == last,
        self.dtype,
        name=f"down_{i}",
      )(x)
    x = Middle(c.attention, c.groups, self.dtype, name="mid")(x)
    x = nn.silu(Norm(c.groups, name="norm_out")(x))
    return conv(self.outputs, 3, self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
  """Latents, after the post-quant conv, to images."""

  config: presets.AutoencoderConfig
  dtype: Any = jnp.float32

  def setup(self) -> None:
    """Levels from the lowest resolution up: up_0 holds the widest blocks."""
    c = self.config
    _check_groups(c)
    widths = [c.base * m for m in reversed(c.multipliers)]
    last = len(widths) - 1
    self.conv_in = conv(widths[0], 3, self.dtype)
    self.mid = Middle(c.attention, c.groups, self.dtype)
    self.up = [
      Level(
        width,
        c.blocks + 1,
        "none" if i == last else "up",
        c.groups,
        c.decoder_attention and i == 0,
        self.dtype,
      )
      for i, width in enumerate(widths)
    ]
    self.norm_out = Norm(c.groups)
    self.conv_out = conv(3 * c.stem**2, 3, self.dtype)

  def features(self, z: Float[Array, "B h w c"]) -> Float[Array, "B i j d"]:
    """All but the last convolution."""
    x = self.mid(self.conv_in(z))
    for level in self.up:
      x = level(x)
    return nn.silu(self.norm_out(x))

  def output(self, x: Float[Array, "B i j d"]) -> Float[Array, "B H W 3"]:
    """The last convolution, and its stem's cells unfolded; float32."""
    x = self.conv_out(x).astype(jnp.float32)
    return depth_to_space(x, self.config.stem)

  def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W 3"]:
    """Both."""
    return self.output(self.features(z))


def _check_groups(c: presets.AutoencoderConfig) -> None:
  odd = [c.base * m for m in (1, *c.multipliers) if c.base * m % c.groups]
  if odd:
    raise ValueError(
      f"vae.groups={c.groups} does not divide {odd[0]} channels: "
      f"choose vae.base={c.base} as a multiple of it, or fewer groups"
    )


def space_to_depth(
  x: Float[Array, "B H W c"], side: int
) -> Float[Array, "B i j e"]:
  """Folds cells of side x side pixels into channels; 1 changes nothing."""
  b, height, width, c = x.shape
  x = x.reshape(b, height // side, side, width // side, side, c)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, height // side, width // side, side * side * c)


def depth_to_space(
  x: Float[Array, "B i j e"], side: int
) -> Float[Array, "B H W c"]:
  """Inverse of `space_to_depth`."""
  b, rows, columns, e = x.shape
  x = x.reshape(b, rows, columns, side, side, e // side**2)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, rows * side, columns * side, e // side**2)


def last_kernel(params: Params) -> Float[Array, "3 3 d e"]:
  """Kernel of the last convolution, out of a tokenizer's parameters."""
  return params["decoder"]["conv_out"]["kernel"]


def with_last_kernel(
  params: Params, kernel: Float[Array, "3 3 d e"]
) -> dict[str, Any]:
  """`params` with the decoder's last kernel replaced."""
  decoder = params["decoder"]
  conv_out = {**decoder["conv_out"], "kernel": kernel}
  return {**params, "decoder": {**decoder, "conv_out": conv_out}}
