"""A multi-scale VQ autoencoder as an image codec: codes of growing grids.

Besides it holds the sums over scales that next-scale models read and make.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unifluid_jax.codecs import vq
from unifluid_jax.core.freeze import need
from unifluid_jax.core.presets import MultiscaleVqConfig
from unifluid_jax.core.types import Params
from unifluid_jax.models import multiscale_vq


class MultiscaleVqCodec(vq.VqCodec):
  """A `types.ImageCodec`; weights {"vq"}.

  Codes stand scale by scale, coarse to fine, each in raster order. A model
  that predicts them draws one scale after another: it begins at `empty`, adds
  each scale's codes or vectors to the sum f^, reads `next_input` of it, and
  shows the last sum as an `image`.

  Attributes:
    config: of the network.
    cache: codes of one image, i32[N]; files keep uint16.
  """

  config: MultiscaleVqConfig

  def __init__(
    self,
    config: MultiscaleVqConfig,
    path: str,
    size: int,
    dtype: Any = jnp.float32,
  ):
    """Builds the network; reads nothing.

    Args:
      config: of the network.
      path: workdir of the tokenizer's run, or an imported one.
      size: of the images, in pixels: `factor` times the last scale's side.
      dtype: of the network's convolutions.
    """
    super().__init__(config, path, size, dtype)
    self._vq = multiscale_vq.MultiscaleVqVae(config, jnp.dtype(dtype))
    self.cache = jax.ShapeDtypeStruct((config.tokens,), np.int32)

  def shapes(self) -> Params:
    """See `types.ImageCodec`."""
    images = jnp.zeros((1, self.size, self.size, 3))
    shapes = jax.eval_shape(lambda: self._vq.init(jax.random.key(0), images))
    return {"vq": shapes["params"]}

  def decode(
    self, frozen: Params, tokens: Int[Array, "B N"]
  ) -> Float[Array, "B H W 3"]:
    """Codes of all scales → images in [-1, 1]."""
    return jnp.clip(self._apply(frozen, tokens, "decode"), -1.0, 1.0)

  # ------------------------------------------------------------------ scales

  def table(self, frozen: Params) -> Float[Array, "V Z"]:
    """The codebook, which all scales share."""
    return frozen["vq"]["codebook"]["table"]

  def inputs(
    self, frozen: Params, codes: Int[Array, "B N"]
  ) -> Float[Array, "B N Z"]:
    """Rows that the codes are predicted from under teacher forcing.

    Those of scale k are `next_input` of the sum of the scales before it, in
    raster order; those of the first are zeros.
    """
    return self._apply(frozen, codes, "inputs")

  def empty(self, rows: int) -> Float[Array, "B g g Z"]:
    """f^ before any scale."""
    side = self.config.scales[-1]
    return jnp.zeros((rows, side, side, self.config.code_channels))

  def add(
    self,
    frozen: Params,
    f_hat: Float[Array, "B g g Z"],
    k: int,
    codes: Int[Array, "B n"],
  ) -> Float[Array, "B g g Z"]:
    """f^ with the codes of scale k, n = P_k^2."""
    return self.add_vectors(frozen, f_hat, k, self.table(frozen)[codes])

  def add_vectors(
    self,
    frozen: Params,
    f_hat: Float[Array, "B g g Z"],
    k: int,
    h: Float[Array, "B n Z"],
  ) -> Float[Array, "B g g Z"]:
    """The same with any vectors, such as means over the codebook."""
    side = self.config.scales[k]
    h = h.reshape(len(h), side, side, -1)
    net = {"params": frozen["vq"]}
    return f_hat + self._vq.apply(net, k, h, method="contribution")

  def next_input(
    self, f_hat: Float[Array, "B g g Z"], k: int
  ) -> Float[Array, "B n Z"]:
    """f^ before scale k as that scale's rows, in raster order."""
    grid = multiscale_vq.down(f_hat, self.config.scales[k])
    return grid.reshape(len(f_hat), -1, f_hat.shape[-1])

  def image(
    self, frozen: Params, f_hat: Float[Array, "B g g Z"]
  ) -> Float[Array, "B H W 3"]:
    """Images in [-1, 1] of sums of all scales, or of some."""
    return jnp.clip(self._apply(frozen, f_hat, "image"), -1.0, 1.0)


def check_shape(config: MultiscaleVqConfig, size: int) -> None:
  """Refuses shapes that cannot work on images of size x size pixels.

  Raises:
    ConfigError: names the key and the fix.
  """
  vq.check_shape(config, size)
  scales, side = config.scales, size // config.factor
  need(
    all(a < b for a, b in zip(scales, scales[1:], strict=False)),
    f"model.vq.scales={scales} must grow from each scale to the next",
  )
  need(
    scales[-1] == side,
    f"model.vq.scales={scales} must end at {side}, the latent's side: "
    f"model.image_size={size} / factor {config.factor}",
  )
  need(
    not config.normalised,
    "model.vq.normalised=True: residuals are compared by distance; set it to "
    "False",
  )
