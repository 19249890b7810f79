"""A VQ autoencoder as an image codec: one code per latent cell."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unifluid_jax.codecs import copies
from unifluid_jax.core.freeze import ConfigError, need
from unifluid_jax.core.presets import VqConfig
from unifluid_jax.core.types import Params
from unifluid_jax.models import vq


class VqCodec:
  """A `types.ImageCodec`; weights {"vq"}.

  A `Part` of it is `exact`: weights rounded to bfloat16 give other codes.

  Attributes:
    config: of the network.
    cache: codes of one image in raster order, i32[N]; files keep uint16, in
      rows and columns where images have several sizes.
    path_key: the configuration key of `path`.
  """

  fit = "crop"
  path_key = "config.model.vq_path"
  file_dtype = np.uint16
  measured = False

  def __init__(
    self,
    config: VqConfig,
    path: str,
    size: int,
    dtype: Any = jnp.float32,
    sizes: tuple[tuple[int, int], ...] = (),
  ):
    """Builds the network; reads nothing.

    Args:
      config: of the network.
      path: workdir of the tokenizer's run, or an imported one.
      size: of the images, in pixels.
      dtype: of the network's convolutions.
      sizes: (height, width) that images may have; (): squares alone.
    """
    self.config, self.path, self.size, self.sizes = config, path, size, sizes
    self._vq = vq.VqVae(config, jnp.dtype(dtype))
    self._side = size // config.factor
    most = max(math.prod(self.grid(s)) for s in (*sizes, (size, size)))
    self.cache = jax.ShapeDtypeStruct((most,), np.int32)

  def grid(self, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the codes of an image of (height, width)."""
    height, width = size
    return height // self.config.factor, width // self.config.factor

  # --------------------------------------------------------------- weights

  def shapes(self) -> Params:
    """See `types.ImageCodec`."""
    side = self.config.factor
    images = jnp.zeros((1, side, side, 3))
    shapes = jax.eval_shape(lambda: self._vq.init(jax.random.key(0), images))
    return {"vq": shapes["params"]}

  def load(self) -> Params:
    """Weights; see `types.ImageCodec`.

    Raises:
      ConfigError: no path, or weights of another network.
      checkpoint.CheckpointError: no or another checkpoint at the path.
    """
    if not self.path:
      raise ConfigError(
        f"{self.path_key} is empty: discrete image tokens need a trained "
        "tokenizer (python -m unifluid_jax.main --config=configs/tokenizer.py)"
      )
    like = self.shapes()["vq"]
    return {"vq": copies.restore(self.path, "vq", like, self.config)}

  weights = load

  def digest(self, frozen: Params) -> str:
    """SHA-256 of the weights."""
    return copies.digest(frozen["vq"])

  def identity(self, frozen: Params) -> dict[str, Any]:
    """What tells codecs apart: the weights."""
    return {"weights": self.digest(frozen)}

  def saved(self, frozen: Params) -> tuple[Params, dict[str, Any]]:
    """Parameters as a run's copy keeps them, and the network's settings."""
    return {"vq": frozen["vq"]}, {"vq": dataclasses.asdict(self.config)}

  # ---------------------------------------------------------------- images

  def encode(
    self, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Int[Array, "B N"]:
    """Codes in raster order; sides may be any multiples of the factor."""
    codes = self._apply(frozen, images, "encode")
    return codes.reshape(len(images), -1)

  def tokens(
    self, frozen: Params, cached: Int[Array, "B N"], key: Any
  ) -> Int[Array, "B N"]:
    """The codes themselves: nothing is drawn."""
    del frozen, key
    return cached

  def decode(
    self,
    frozen: Params,
    tokens: Int[Array, "B N"],
    grid: tuple[int, int] | None = None,
  ) -> Float[Array, "B H W 3"]:
    """Codes in raster order → images in [-1, 1].

    Args:
      frozen: the weights.
      tokens: of images of `size`, or of `grid`.
      grid: rows and columns of the codes, where images are of another shape.
    """
    rows, columns = grid or (self._side, self._side)
    codes = tokens.reshape(-1, rows, columns)
    return jnp.clip(self._apply(frozen, codes, "decode"), -1.0, 1.0)

  def reconstruct(
    self, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images through the codes and back."""
    return jnp.clip(self._apply(frozen, images, "__call__"), -1.0, 1.0)

  def _apply(self, frozen: Params, x: Array, method: str) -> Array:
    return self._vq.apply({"params": frozen["vq"]}, x, method=method)


def check_shape(config: VqConfig, size: int) -> None:
  """Refuses images that are not whole cells, channels not whole groups.

  Args:
    config: of the network.
    size: of the images, in pixels.

  Raises:
    ConfigError: names the keys and the fix.
  """
  need(
    size % config.factor == 0,
    f"model.image_size={size} must be a multiple of {config.factor}, the "
    "factor of model.vq",
  )
  for channels in (config.base * n for n in (1, *config.multipliers)):
    need(
      channels % config.groups == 0,
      f"model.vq.groups={config.groups} does not divide {channels} channels: "
      f"choose model.vq.base={config.base} as a multiple of it, or fewer "
      "groups",
    )
  need(
    config.codes <= 1 << 16,
    f"model.vq.codes={config.codes}: at most 65536, as files keep codes as "
    "uint16",
  )
