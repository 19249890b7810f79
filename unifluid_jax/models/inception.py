"""Inception-v3 as the Fréchet Inception distance defines it.

Source: the graph "inception-2015-12-05" that Heusel et al. 2017 (arXiv
1706.08500) use, in the form that pytorch-fid gives its weights. It is not
torchvision's network: average pools leave the padding out of their divisor,
the last block pools by maximum, and there are 1008 classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from unifluid_jax.core.types import Params
from unifluid_jax.models.stack import init_tree

SIZE = 299  # pixels a side
FEATURES, CLASSES = 2048, 1008
_EPS = 1e-3


class Conv(NamedTuple):
  """Convolution, batch norm with stored moments, ReLU."""

  name: str
  channels: int
  rows: int = 1
  columns: int = 1
  stride: int = 1
  padding: str = "SAME"


class Pool(NamedTuple):
  """A 3 x 3 window: its mean, or its maximum."""

  kind: str
  stride: int = 1
  padding: str = "SAME"


class Fork(NamedTuple):
  """Branches that read the same input; their channels are concatenated.

  Only the forks named like the original's blocks nest their parameters.
  """

  name: str
  branches: tuple[tuple[Any, ...], ...]


_HALVE = Pool("max", 2, "VALID")


def _a(name: str, pool: int) -> Fork:
  return Fork(
    name,
    (
      (Conv("branch1x1", 64),),
      (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, 5, 5)),
      (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, 3, 3),
        Conv("branch3x3dbl_3", 96, 3, 3),
      ),
      (Pool("mean"), Conv("branch_pool", pool)),
    ),
  )


def _b(name: str) -> Fork:
  return Fork(
    name,
    (
      (Conv("branch3x3", 384, 3, 3, 2, "VALID"),),
      (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, 3, 3),
        Conv("branch3x3dbl_3", 96, 3, 3, 2, "VALID"),
      ),
      (_HALVE,),
    ),
  )


def _c(name: str, inner: int) -> Fork:
  return Fork(
    name,
    (
      (Conv("branch1x1", 192),),
      (
        Conv("branch7x7_1", inner),
        Conv("branch7x7_2", inner, 1, 7),
        Conv("branch7x7_3", 192, 7, 1),
      ),
      (
        Conv("branch7x7dbl_1", inner),
        Conv("branch7x7dbl_2", inner, 7, 1),
        Conv("branch7x7dbl_3", inner, 1, 7),
        Conv("branch7x7dbl_4", inner, 7, 1),
        Conv("branch7x7dbl_5", 192, 1, 7),
      ),
      (Pool("mean"), Conv("branch_pool", 192)),
    ),
  )


def _d(name: str) -> Fork:
  return Fork(
    name,
    (
      (
        Conv("branch3x3_1", 192),
        Conv("branch3x3_2", 320, 3, 3, 2, "VALID"),
      ),
      (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, 1, 7),
        Conv("branch7x7x3_3", 192, 7, 1),
        Conv("branch7x7x3_4", 192, 3, 3, 2, "VALID"),
      ),
      (_HALVE,),
    ),
  )


def _e(name: str, pool: str) -> Fork:
  def cross(stem: str) -> Fork:
    return Fork(
      "", ((Conv(f"{stem}a", 384, 1, 3),), (Conv(f"{stem}b", 384, 3, 1),))
    )

  return Fork(
    name,
    (
      (Conv("branch1x1", 320),),
      (Conv("branch3x3_1", 384), cross("branch3x3_2")),
      (
        Conv("branch3x3dbl_1", 448),
        Conv("branch3x3dbl_2", 384, 3, 3),
        cross("branch3x3dbl_3"),
      ),
      (Pool(pool), Conv("branch_pool", 192)),
    ),
  )


NETWORK: tuple[Conv | Pool | Fork, ...] = (
  Conv("Conv2d_1a_3x3", 32, 3, 3, 2, "VALID"),
  Conv("Conv2d_2a_3x3", 32, 3, 3, 1, "VALID"),
  Conv("Conv2d_2b_3x3", 64, 3, 3),
  _HALVE,
  Conv("Conv2d_3b_1x1", 80),
  Conv("Conv2d_4a_3x3", 192, 3, 3, 1, "VALID"),
  _HALVE,
  _a("Mixed_5b", 32),
  _a("Mixed_5c", 64),
  _a("Mixed_5d", 64),
  _b("Mixed_6a"),
  _c("Mixed_6b", 128),
  _c("Mixed_6c", 160),
  _c("Mixed_6d", 160),
  _c("Mixed_6e", 192),
  _d("Mixed_7a"),
  _e("Mixed_7b", "mean"),
  _e("Mixed_7c", "max"),
)


class Activations(NamedTuple):
  """What the network is used for."""

  features: Any  # f32[B, 2048] mean over the last grid, for the distance
  logits: Any  # f32[B, 1008] for the Inception score


class Inception(nn.Module):
  """The network without its input's resize; float32 throughout.

  Products take the highest precision on every backend, so that a distance
  does not depend on the device it was computed on.
  """

  @nn.compact
  def __call__(self, images: Float[Array, "B H W 3"]) -> Activations:
    """Features and logits.

    Args:
      images: in [-1, 1], 299 x 299, resized by one of the conventions in
        evals/inception_features.py.

    Raises:
      ValueError: images of another size.
    """
    if images.shape[1:3] != (SIZE, SIZE):
      raise ValueError(
        f"Inception expects {SIZE} x {SIZE} images, got {images.shape[1]} x "
        f"{images.shape[2]}: resize them by one of the named conventions"
      )
    params = {k: self.param(k, init_tree, v) for k, v in _network_specs()}
    x = _run(NETWORK, params, images.astype(jnp.float32))
    features = x.mean((1, 2))
    logits = jnp.dot(
      features, params["fc"]["kernel"], precision=lax.Precision.HIGHEST
    )
    return Activations(features, logits + params["fc"]["bias"])


def _network_specs() -> list[tuple[str, Any]]:
  """Initializer and shape of every parameter, in the network's order."""
  specs: dict[str, Any] = {}
  _add_specs(NETWORK, 3, specs)
  kernel = nn.initializers.lecun_normal()
  specs["fc"] = {
    "kernel": (kernel, (FEATURES, CLASSES)),
    "bias": (nn.initializers.zeros, (CLASSES,)),
  }
  return list(specs.items())


def _add_specs(steps: Any, channels: int, specs: dict[str, Any]) -> int:
  """Fills `specs`; returns the channels after `steps`."""
  zeros, ones = nn.initializers.zeros, nn.initializers.ones
  for step in steps:
    if isinstance(step, Conv):
      shape = (step.rows, step.columns, channels, step.channels)
      channels = step.channels
      specs[step.name] = {
        "kernel": (nn.initializers.lecun_normal(), shape),
        "scale": (ones, (channels,)),
        "bias": (zeros, (channels,)),
        "mean": (zeros, (channels,)),
        "var": (ones, (channels,)),
      }
    elif isinstance(step, Fork):
      inner = specs.setdefault(step.name, {}) if step.name else specs
      channels = sum(_add_specs(b, channels, inner) for b in step.branches)
  return channels


def _run(steps: Any, params: Params, x: Any) -> Any:
  for step in steps:
    if isinstance(step, Conv):
      x = _conv(step, params[step.name], x)
    elif isinstance(step, Pool):
      x = _pool(step, x)
    else:
      inner = params[step.name] if step.name else params
      x = jnp.concatenate([_run(b, inner, x) for b in step.branches], axis=-1)
  return x


def _conv(step: Conv, params: Params, x: Any) -> Any:
  x = lax.conv_general_dilated(
    x,
    params["kernel"],
    (step.stride, step.stride),
    step.padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=lax.Precision.HIGHEST,
  )
  scale = params["scale"] * lax.rsqrt(params["var"] + _EPS)
  return jax.nn.relu((x - params["mean"]) * scale + params["bias"])


def _pool(step: Pool, x: Any) -> Any:
  def window(values: Any, start: float, reduce: Any) -> Any:
    return lax.reduce_window(
      values,
      start,
      reduce,
      (1, 3, 3, 1),
      (1, step.stride, step.stride, 1),
      step.padding,
    )

  if step.kind == "max":
    return window(x, -jnp.inf, lax.max)
  # Cells of the padding are neither summed nor counted.
  cells = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
  return window(x, 0.0, lax.add) / window(cells, 0.0, lax.add)
