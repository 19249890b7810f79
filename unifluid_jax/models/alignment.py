"""Images' codes and captions as unit vectors that can be compared.

Sources: CLIP (arXiv 2103.00020); UniTok (arXiv 2502.20321;
FoundationVision/UniTok), which compares captions with quantised features: an
attention layer, mean over cells, norm, projection.

Differs: the attention layer belongs to this comparison alone, where UniTok's
also feeds the decoder: the tokenizer has the same networks with and without
captions. Both towers are SigLIP's blocks with positions, from scratch.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from unifluid_jax.core import presets
from unifluid_jax.core.parameter_rows import KERNEL, MATRIX, Row
from unifluid_jax.models import vit
from unifluid_jax.models.norms import layer_norm
from unifluid_jax.models.stack import fold_layers, init_tree, narrow

ROWS = (
  *(row._replace(pattern=f"(image|text)/({row.pattern})") for row in vit.ROWS),
  Row(r"(image|text)/output", (None, "fsdp"), ((0,), (1,)), KERNEL),
  Row(r"input", (None, "fsdp"), ((0,), (1,)), KERNEL),
  Row(r"table", ("fsdp", "tensor"), decay=MATRIX),
  Row(r"log_scale", ()),
)

_POSITION = 0.01  # deviation of initial positions, as those of CLIP's captions
_SCALE, _MAX_SCALE = 1 / 0.07, 100.0  # of CLIP, at the start and at most


class Tower(nn.Module):
  """Pre-norm blocks with learned positions, and a projection.

  Attributes:
    shape: of the blocks; its images have one token per pixel.
    tokens: T.
    dtype: of the residual stream and the products.
  """

  shape: presets.VitConfig
  tokens: int
  dtype: Any

  def setup(self) -> None:
    """Declares all parameters."""
    width = self.shape.width
    small = nn.initializers.normal(width**-0.5)
    position = nn.initializers.normal(_POSITION)
    self.position = self.param("position", position, (self.tokens, width))
    self.layers = self.param("layers", init_tree, vit.layer_specs(self.shape))
    self.norm = self.param("norm", init_tree, vit.norm_spec(width))
    self.output = self.param("output", small, (width, width))

  def __call__(
    self, x: Float[Array, "B T D"], mask: Bool[Array, "B T T"] | None
  ) -> Float[Array, "B T D"]:
    """Tokens after the blocks, without positions at their input."""
    x = x.astype(self.dtype) + self.position.astype(self.dtype)
    layer = functools.partial(vit.block, mask=mask)
    layers = narrow(self.layers, self.dtype)
    return fold_layers(layer, x, layers, remat="none", scan=True)

  def unit(self, x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Norm and projection of pooled tokens, as float32 unit vectors."""
    out = layer_norm(x.astype(jnp.float32), self.norm) @ self.output
    return out / jnp.linalg.norm(out, axis=-1, keepdims=True)


class Alignment(nn.Module):
  """The towers of images and captions, and the scale of their cosines.

  Attributes:
    config: of both towers.
    cells: vectors of an image.
    length: T, the slot of captions.
    channels: e, of an image's vectors.
    dtype: of the towers; what they return is float32.
  """

  config: presets.AlignmentConfig
  cells: int
  length: int
  channels: int
  dtype: Any = jnp.float32

  def setup(self) -> None:
    """Declares all parts."""
    c = self.config
    dense = nn.initializers.lecun_normal()
    self.input = self.param("input", dense, (self.channels, c.width))
    small = nn.initializers.normal(0.02)
    self.table = self.param("table", small, (c.vocab, c.width))
    self.image = self._tower(c.image_depth, self.cells)
    self.text = self._tower(c.text_depth, self.length)
    start = nn.initializers.constant(math.log(_SCALE))
    self.log_scale = self.param("log_scale", start, ())

  def _tower(self, depth: int, tokens: int) -> Tower:
    c = self.config
    shape = presets.VitConfig(c.width, depth, 4 * c.width, c.heads, 1, 1)
    return Tower(shape, tokens, self.dtype)

  def images(self, z: Float[Array, "B N e"]) -> Float[Array, "B D"]:
    """Unit vectors of images' quantised vectors, in raster order."""
    x = z.astype(self.dtype) @ self.input.astype(self.dtype)
    return self.image.unit(self.image(x, None).mean(1, dtype=jnp.float32))

  def captions(self, ids: Int[Array, "B T"]) -> Float[Array, "B D"]:
    """Unit vectors of captions, read where their last token stands.

    Args:
      ids: left-aligned, padded with -1.
    """
    b, t = ids.shape
    x = self.table[jnp.maximum(ids, 0)]
    mask = np.broadcast_to(np.tril(np.ones((t, t), bool)), (b, t, t))
    x = self.text(x, jnp.asarray(mask))
    last = jnp.maximum((ids >= 0).sum(1) - 1, 0)
    return self.text.unit(x[jnp.arange(b), last])

  def scale(self) -> Float[Array, ""]:
    """Of the cosines, at most 100."""
    return jnp.exp(jnp.minimum(self.log_scale, math.log(_MAX_SCALE)))

  def __call__(
    self, z: Float[Array, "B N e"], ids: Int[Array, "B T"]
  ) -> tuple[Float[Array, "B D"], Float[Array, "B D"], Float[Array, ""]]:
    """Images and captions as unit vectors, and the scale of their cosines."""
    return self.images(z), self.captions(ids), self.scale()
