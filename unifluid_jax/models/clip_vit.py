"""CLIP's vision encoder: images to patch tokens of the layer before the last.

Sources: CLIP (arXiv 2103.00020); LLaVA-1.5 (arXiv 2310.03744), which reads the
output of the last block but one and leaves the class token out.

Differs: what that output does not pass has no parameters here: the last
block, the final norm, the projection.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from unifluid_jax.core import parallel
from unifluid_jax.core.parameter_rows import Row
from unifluid_jax.core.presets import VitConfig
from unifluid_jax.models import vit
from unifluid_jax.models.stack import fold_layers, init_tree

# Statistics of the three channels in [0, 1]: CLIP expects normalised images.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

_EPSILON = 1e-5

ROWS = (*vit.ROWS, Row(r"class_token|pre_norm/(scale|bias)", (None,)))


class ClipVit(nn.Module):
  """A pre-norm encoder with a class token and another norm before its blocks.

  Attributes:
    config: shape; `depth` counts the last block, which is not built.
    dtype: of the residual stream and the products; parameters are float32.
    remat: what the backward pass recomputes: "none", "dots" or "full".
    scan: False unrolls the layers in Python; the parameters are the same.
  """

  config: VitConfig
  dtype: Any
  remat: str = "none"
  scan: bool = True

  def setup(self) -> None:
    """Declares all parameters."""
    c = self.config
    tokens = (c.image_size // c.patch) ** 2
    small = nn.initializers.normal(c.width**-0.5)
    patch = {
      "kernel": (nn.initializers.lecun_normal(), (c.patch, c.patch, 3, c.width))
    }
    built = dataclasses.replace(c, depth=c.depth - 1)
    self.patch = self.param("patch", init_tree, patch)
    self.class_token = self.param("class_token", small, (c.width,))
    self.position = self.param("position", small, (1 + tokens, c.width))
    self.pre_norm = self.param("pre_norm", init_tree, vit.norm_spec(c.width))
    self.layers = self.param("layers", init_tree, vit.layer_specs(built))

  def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
    """Encodes images.

    Args:
      images: of the configured size, normalised by `MEAN` and `STD`.

    Returns:
      One token per patch, row by row, in `dtype`.

    Raises:
      ValueError: images of another size.
    """
    c = self.config
    b, *size, _ = images.shape
    if size != [c.image_size, c.image_size]:
      raise ValueError(
        f"the vision encoder expects {c.image_size} x {c.image_size} images, "
        f"got {size[0]} x {size[1]}: resize them, or set another image_size "
        "and resample its positions"
      )
    x = vit.patches(images.astype(self.dtype), self.patch["kernel"])
    first = jnp.broadcast_to(self.class_token, (b, 1, c.width))
    x = jnp.concatenate([first.astype(self.dtype), x], axis=1)
    x = x + self.position.astype(self.dtype)
    x = vit.layer_norm(x, self.pre_norm, _EPSILON)
    x = fold_layers(_block, x, self.layers, remat=self.remat, scan=self.scan)
    return x[:, 1:]


def normalised(images: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
  """Images in [-1, 1] as the encoder expects them."""
  return ((images + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(STD)


def quick_gelu(x: Float[Array, "*dims F"]) -> Float[Array, "*dims F"]:
  """x sigmoid(1.702 x), CLIP's approximation of GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


def _block(x: Float[Array, "B T D"], params: Any) -> Float[Array, "B T D"]:
  x = parallel.constrain(x, "BTD")
  with jax.named_scope("attn"):
    y = vit.layer_norm(x, params["norm1"], _EPSILON)
    x = x + vit.self_attention(y, params["attn"])
  with jax.named_scope("mlp"):
    y = vit.layer_norm(x, params["norm2"], _EPSILON)
    x = x + vit.mlp(y, params["mlp"], quick_gelu)
  return parallel.constrain(x, "BTD")
