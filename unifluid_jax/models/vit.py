"""SigLIP's vision encoder: images to patch tokens, without pooling head.

Sources: SigLIP (arXiv 2303.15343), big_vision models/vit.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unifluid_jax.core import parallel
from unifluid_jax.core.parameter_rows import KERNEL, MATRIX, Row
from unifluid_jax.core.presets import VitConfig
from unifluid_jax.models.norms import layer_norm
from unifluid_jax.models.stack import fold_layers, init_tree, keep, narrow
from unifluid_jax.ops import attention
from unifluid_jax.ops.weight_product import product

_QKV, _OUT = (None, "fsdp", "tensor", None), (None, "tensor", None, "fsdp")
_UP, _DOWN = (None, "fsdp", "tensor"), (None, "tensor", "fsdp")

ROWS = (
  Row(r"patch/kernel", (None, None, None, "fsdp"), ((0, 1, 2), (3,)), KERNEL),
  Row(r"position", (None, "fsdp"), decay=MATRIX),
  Row(r"layers/attn/[qkv]/kernel", _QKV, ((1,), (2, 3)), KERNEL),  # LDNH
  Row(r"layers/attn/out/kernel", _OUT, ((1, 2), (3,)), KERNEL),  # LNHD
  Row(r"layers/mlp/up/kernel", _UP, ((1,), (2,)), KERNEL),  # LDF
  Row(r"layers/mlp/down/kernel", _DOWN, ((1,), (2,)), KERNEL),  # LFD
  Row(r"layers/attn/[qkv]/bias", (None, None, None)),
  Row(r"layers/(attn/out|mlp/up|mlp/down)/bias", (None, None)),
  Row(r"layers/norm[12]/(scale|bias)", (None, None)),
  Row(r"norm/(scale|bias)|patch/bias", (None,)),
)


class Vit(nn.Module):
  """A pre-norm encoder with learned positions and biases everywhere.

  Attributes:
    config: shape.
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
    position = nn.initializers.normal(c.width**-0.5)
    patch = {
      "kernel": (
        nn.initializers.lecun_normal(),
        (c.patch, c.patch, 3, c.width),
      ),
      "bias": (nn.initializers.zeros, (c.width,)),
    }
    self.patch = self.param("patch", init_tree, patch)
    self.position = self.param("position", position, (tokens, c.width))
    self.layers = self.param("layers", init_tree, layer_specs(c))
    self.norm = self.param("norm", init_tree, norm_spec(c.width))

  def __call__(
    self, images: Float[Array, "B H W 3"], kernel: str = "plain"
  ) -> Float[Array, "B N D"]:
    """Encodes images.

    Args:
      images: in [-1, 1], of the configured size.
      kernel: see `attention.attend`.

    Returns:
      One token per patch, row by row, after the final norm, in `dtype`.

    Raises:
      ValueError: images of another size.
    """
    c = self.config
    b, *size, _ = images.shape
    if size != [c.image_size, c.image_size]:
      raise ValueError(
        f"the vision encoder expects {c.image_size} x {c.image_size} images, "
        f"got {size[0]} x {size[1]}: resize them, or set "
        "config.model.vit.image_size and resample its positions"
      )
    x = patches(images.astype(self.dtype), self.patch["kernel"])
    x = x + self.patch["bias"].astype(self.dtype)
    x = x + self.position.astype(self.dtype)
    layer = functools.partial(block, kernel=kernel)
    layers = narrow(self.layers, self.dtype)
    x = fold_layers(layer, x, layers, remat=self.remat, scan=self.scan)
    return layer_norm(x, self.norm)


def patches(
  images: Float[Array, "B H W 3"], kernel: Float[Array, "p p 3 D"]
) -> Float[Array, "B N D"]:
  """A convolution whose stride is its kernel's size, as one product.

  Pixels beyond the last whole patch are left out: 384 / 14 gives 27.
  """
  p = len(kernel)
  b, height, width, channels = images.shape
  rows, columns = height // p, width // p
  whole = images[:, : rows * p, : columns * p]
  cut = whole.reshape(b, rows, p, columns, p, channels)
  x = jnp.einsum("BhpwqC,pqCD->BhwD", cut, kernel.astype(images.dtype))
  return x.reshape(b, -1, x.shape[-1])


def norm_spec(*shape: int) -> dict[str, Any]:
  """Initializers and shapes of a LayerNorm, for `stack.init_tree`."""
  return {
    "scale": (nn.initializers.ones, shape),
    "bias": (nn.initializers.zeros, shape),
  }


def layer_specs(config: VitConfig) -> dict[str, Any]:
  """Initializers and shapes of all layers, stacked along the first axis."""
  c = config
  head = (c.heads, c.width // c.heads)

  def dense(
    inputs: tuple[int, ...], outputs: tuple[int, ...]
  ) -> dict[str, Any]:
    first = 1 + len(inputs)
    kernel = nn.initializers.variance_scaling(
      1.0, "fan_avg", "uniform",
      in_axis=range(1, first), out_axis=range(first, first + len(outputs)),
      batch_axis=(0,),
    )  # fmt: skip
    return {
      "kernel": (kernel, (c.depth, *inputs, *outputs)),
      "bias": (nn.initializers.zeros, (c.depth, *outputs)),
    }

  return {
    "norm1": norm_spec(c.depth, c.width),
    "attn": {
      **{name: dense((c.width,), head) for name in "qkv"},
      "out": dense(head, (c.width,)),
    },
    "norm2": norm_spec(c.depth, c.width),
    "mlp": {
      "up": dense((c.width,), (c.mlp,)),
      "down": dense((c.mlp,), (c.width,)),
    },
  }


def self_attention(
  x: Float[Array, "B T D"],
  params: Any,
  kernel: str = "plain",
  mask: Bool[Array, "B T T"] | None = None,
) -> Float[Array, "B T D"]:
  """Tokens attend to one another; biases on all four products.

  Args:
    x: tokens.
    params: of one layer.
    kernel: see `attention.attend`.
    mask: True where a key is visible; None: everywhere.
  """
  q, k, v = (_heads(x, params[name]) for name in "qkv")
  scale = q.shape[-1] ** -0.5
  y = attention.attend(q, k, v, mask, softcap=0.0, scale=scale, kernel=kernel)
  return _dense(keep(y.reshape(*x.shape[:2], -1)), params["out"], "ND")


def mlp(
  x: Float[Array, "B T D"], params: Any, activation: Callable[[Any], Any]
) -> Float[Array, "B T D"]:
  """Two products with biases around an activation."""
  hidden = activation(_dense(x, params["up"], "DF"))
  return _dense(hidden, params["down"], "FD")


def _heads(x: Float[Array, "B T D"], params: Any) -> Float[Array, "B T N H"]:
  # Kept side by side: heads of 72 channels would be padded to 128 each.
  out = keep(_dense(x, params, "DN"))
  return out.reshape(*x.shape[:2], *params["bias"].shape)


def _dense(
  x: Float[Array, "B T inputs"], params: Any, letters: str
) -> Float[Array, "B T outputs"]:
  """A product of matrices: heads side by side are one axis, in or out."""
  out = product(x, params["kernel"].astype(x.dtype), letters)
  return out + params["bias"].astype(x.dtype).reshape(-1)


def block(
  x: Float[Array, "B T D"],
  params: Any,
  kernel: str = "plain",
  mask: Bool[Array, "B T T"] | None = None,
) -> Float[Array, "B T D"]:
  """One layer; see `self_attention`."""
  x = parallel.constrain(x, "BTD")
  with jax.named_scope("attn"):
    y = layer_norm(x, params["norm1"])
    x = x + self_attention(y, params["attn"], kernel, mask)
  with jax.named_scope("mlp"):
    x = x + mlp(layer_norm(x, params["norm2"]), params["mlp"], jax.nn.gelu)
  return parallel.constrain(x, "BTD")
