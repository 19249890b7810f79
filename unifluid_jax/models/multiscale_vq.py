"""Multi-scale VQ autoencoder: images to codes of growing grids and back.

Architecture: VAR (arXiv 2404.02905; FoundationVision/VAR models/vqvae.py,
quant.py). Scale k has P_k x P_k codes. Each scale quantises what the scales
before it leave of the latent f: the residual is averaged down to P_k x P_k,
every cell takes the codebook's nearest vector, and these are interpolated back
to the whole grid and smoothed by a convolution phi. All scales share one
codebook. The approximation of f after a scale is the sum of the contributions
until then, written f^ below ("f_hat").

All of it is float32, with float32 products: a flipped minimum is another
token, and every later scale then describes another residual.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from unifluid_jax.core import presets
from unifluid_jax.core.parameter_rows import KERNEL, Row
from unifluid_jax.models import convolutions, vq

# One stack of small kernels that every device reads whole.
ROWS = (
  *vq.ROWS,
  Row("phi/kernels", (None,) * 5, decay=KERNEL),
  Row("phi/biases", (None, None)),
)

_A = -0.75  # of the cubic kernel
_HIGHEST = jax.lax.Precision.HIGHEST

_sg = jax.lax.stop_gradient


# --------------------------------------------------------------------- scales


@functools.cache
def area_matrix(outputs: int, inputs: int) -> Float[np.ndarray, "m n"]:
  """Means over windows: output i is that of [floor(i n/m), ceil((i+1) n/m)).

  Windows overlap where m does not divide n.
  """
  matrix = np.zeros((outputs, inputs))
  for i in range(outputs):
    start, end = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
    matrix[i, start:end] = 1 / (end - start)
  return matrix.astype(np.float32)


@functools.cache
def bicubic_matrix(outputs: int, inputs: int) -> Float[np.ndarray, "m n"]:
  """Cubic convolution with a = -0.75 between the centres of cells.

  Taps beyond the edge read the cell at the edge. `jax.image.resize` has
  a = -0.5 and leaves them out.
  """
  matrix = np.zeros((outputs, inputs))
  for i in range(outputs):
    at = (i + 0.5) * inputs / outputs - 0.5
    first = int(np.floor(at))
    for tap in range(first - 1, first + 3):
      matrix[i, np.clip(tap, 0, inputs - 1)] += _cubic(abs(at - tap))
  return matrix.astype(np.float32)


def _cubic(x: float) -> float:
  """Keys' kernel at a distance of x cells."""
  if x <= 1:
    return ((_A + 2) * x - (_A + 3)) * x * x + 1
  return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A if x < 2 else 0.0


def phi_of(scale: int, scales: int, count: int) -> int:
  """Which of `count` convolutions scale number `scale` of `scales` has.

  Source: VAR, `PhiPartiallyShared`: the nearest tick to k / (K - 1); ticks of
  four convolutions begin at 1/12, of M others at 1 / 2M.
  """
  margin = 1 / (3 * count if count == 4 else 2 * count)
  ticks = np.linspace(margin, 1 - margin, count)
  return int(np.abs(ticks - scale / max(scales - 1, 1)).argmin())


def down(x: Float[Array, "B g G e"], side: int) -> Float[Array, "B p p e"]:
  """Averages a grid over side x side overlapping windows."""
  return x if x.shape[1] == side else _resize(x, area_matrix, side)


def up(x: Float[Array, "B p P e"], side: int) -> Float[Array, "B g g e"]:
  """Interpolates a grid to side x side cells."""
  return x if x.shape[1] == side else _resize(x, bicubic_matrix, side)


def _resize(x: Array, matrix_of: Any, side: int) -> Array:
  matrix = jnp.asarray(matrix_of(side, x.shape[1]))
  x = jnp.einsum("ip,Bpqe->Biqe", matrix, x, precision=_HIGHEST)
  return jnp.einsum("jq,Biqe->Bije", matrix, x, precision=_HIGHEST)


def split(x: Array, scales: tuple[int, ...]) -> list[Array]:
  """Rows [B, N, ...] of all scales as one array [B, P_k, P_k, ...] each."""
  ends = itertools.accumulate(side**2 for side in scales)
  parts = jnp.split(x, list(ends)[:-1], axis=1)
  return [
    part.reshape(len(x), side, side, *x.shape[2:])
    for part, side in zip(parts, scales, strict=True)
  ]


def join(parts: list[Array]) -> Array:
  """Inverse of `split`: each scale in raster order, coarse to fine."""
  return jnp.concatenate(
    [part.reshape(len(part), -1, *part.shape[3:]) for part in parts], axis=1
  )


# -------------------------------------------------------------------- network


class MultiscaleQuantised(NamedTuple):
  """A latent and its approximations, in float32; trained as `vq.Quantised`."""

  codes: Any  # i32[B, N]
  z: Any  # f32[B, g, g, e], the latent f
  sums: Any  # f32[B, K, g, g, e], f^ after each scale
  compared: Any  # f32[B, N, e] that the codebook was searched for

  @property
  def nearest(self) -> Float[Array, "B g g e"]:
    """f^ after the last scale."""
    return self.sums[:, -1]

  @property
  def straight_through(self) -> Float[Array, "B g g e"]:
    """`nearest`, with the gradient of `z`: what the decoder reads."""
    return self.z + _sg(self.nearest - self.z)

  @property
  def targets(self) -> Float[Array, "B 1 g g e"]:
    """What `approximations` are drawn to."""
    return self.z[:, None]

  @property
  def approximations(self) -> Float[Array, "B K g g e"]:
    """VAR's loss is a mean over scales: every partial sum is one."""
    return self.sums

  def uses(self, config: presets.MultiscaleVqConfig) -> Float[Array, "K V"]:
    """How often each scale chose each code."""
    return jnp.stack(
      [
        jnp.zeros(config.codes).at[part.reshape(-1)].add(1)
        for part in split(self.codes, config.scales)
      ]
    )


class Phi(nn.Module):
  """phi(h) = (1 - ratio) h + ratio (conv3x3(h) + bias), one of `count`."""

  count: int
  channels: int
  ratio: float

  @nn.compact
  def __call__(
    self, h: Float[Array, "B g g e"], which: int
  ) -> Float[Array, "B g g e"]:
    """Applies convolution number `which`."""
    e = self.channels
    init = nn.initializers.lecun_normal(batch_axis=0)
    kernels = self.param("kernels", init, (self.count, 3, 3, e, e))
    biases = self.param("biases", nn.initializers.zeros, (self.count, e))
    y = jax.lax.conv_general_dilated(
      h, kernels[which], (1, 1), "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=_HIGHEST,
    )  # fmt: skip
    return (1 - self.ratio) * h + self.ratio * (y + biases[which])


class MultiscaleVqVae(vq.VqVae):
  """Encoder, residual quantisation over scales, and `VqVae`'s decoder.

  Attributes:
    config: widths, depth, factor, codebook and scales.
    dtype: of the convolutions; norms, softmax, quantisation and results are
      float32.
  """

  config: presets.MultiscaleVqConfig
  dtype: Any = jnp.float32

  def setup(self) -> None:
    """Declares all parts."""
    c = self.config
    self.encoder = convolutions.Encoder(c, c.latent, self.dtype)
    self.quant_conv = convolutions.conv(c.code_channels, 3, self.dtype)
    self.codebook = vq.Codebook(c.codes, c.code_channels)
    self.phi = Phi(c.phi or len(c.scales), c.code_channels, c.phi_ratio)
    self.post_quant_conv = convolutions.conv(c.latent, 3, self.dtype)
    self.decoder = convolutions.Decoder(c, self.dtype)

  # ------------------------------------------------------------ quantisation

  def quantise(self, images: Float[Array, "B H W 3"]) -> MultiscaleQuantised:
    """Codes of all scales, and how near each of them comes to the latent.

    The residual that is searched for is a constant; the sums have gradients
    to the codebook and the convolutions of all scales until then.

    Args:
      images: in [-1, 1], `factor` times the last scale's side.

    Raises:
      ValueError: images of another size.
    """
    c = self.config
    f = self.quant_conv(self.encoder(images)).astype(jnp.float32)
    side = c.scales[-1]
    if f.shape[1:3] != (side, side):
      raise ValueError(
        f"images of {images.shape[1]}x{images.shape[2]} have {f.shape[1]}x"
        f"{f.shape[2]} cells, the scales {c.scales} end at {side}x{side}: "
        f"resize them to {side * c.factor}x{side * c.factor}"
      )
    return self.quantise_latents(f)

  def quantise_latents(self, f: Float[Array, "B g g e"]) -> MultiscaleQuantised:
    """The same of latents, f32."""
    table, residual = self.codebook(), _sg(f)
    f_hat = jnp.zeros_like(f)
    codes, compared, sums = [], [], []
    for k, side in enumerate(self.config.scales):
      z = down(residual, side)
      found = jnp.argmin(vq.distances(z, _sg(table)), axis=-1)
      h = self.contribution(k, table[found])
      f_hat, residual = f_hat + h, residual - _sg(h)
      codes.append(found.astype(jnp.int32))
      compared.append(z)
      sums.append(f_hat)
    return MultiscaleQuantised(
      join(codes), f, jnp.stack(sums, 1), join(compared)
    )

  def contribution(
    self, k: int, h: Float[Array, "B p p e"]
  ) -> Float[Array, "B g g e"]:
    """What vectors of scale k add to f^."""
    c = self.config
    which = phi_of(k, len(c.scales), c.phi or len(c.scales))
    return self.phi(up(h, c.scales[-1]), which)

  def sums(self, codes: Int[Array, "B N"]) -> list[Float[Array, "B g g e"]]:
    """f^ before each scale, and after the last: K + 1 grids."""
    c, table = self.config, self.codebook()
    side = c.scales[-1]
    out = [jnp.zeros((len(codes), side, side, c.code_channels))]
    for k, part in enumerate(split(codes, c.scales)):
      out.append(out[-1] + self.contribution(k, table[part]))
    return out

  def inputs(self, codes: Int[Array, "B N"]) -> Float[Array, "B N e"]:
    """What a model that predicts scale after scale is fed, row by row.

    The rows of scale k are f^ before it, averaged to P_k x P_k: the whole sum
    of the coarser scales, neither their last codes nor the residual. Those of
    the first scale are zeros.
    """
    sums = self.sums(codes)[:-1]
    grids = zip(sums, self.config.scales, strict=True)
    return join([down(f_hat, side) for f_hat, side in grids])

  # ------------------------------------------------------------------ images

  def encode(self, images: Float[Array, "B H W 3"]) -> Int[Array, "B N"]:
    """Codes alone; see `quantise`."""
    return self.quantise(images).codes

  def decode(self, codes: Int[Array, "B N"]) -> Float[Array, "B H W 3"]:
    """Float32 images, in [-1, 1] up to the decoder's error."""
    return self.image(self.sums(codes)[-1])

  def image(self, f_hat: Float[Array, "B g g e"]) -> Float[Array, "B H W 3"]:
    """The image of a sum over scales."""
    return self.decode_output(self.decode_features(f_hat))
