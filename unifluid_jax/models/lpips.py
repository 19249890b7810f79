"""LPIPS: distance of two images in the features of VGG16.

Source: Zhang et al. 2018 (arXiv 1801.03924), version 0.1, net "vgg".

The weights are one .npz of float arrays: `conv{s}_{i}/kernel` [3, 3, in, out]
and `conv{s}_{i}/bias` [out] for VGG16's 13 convolutions (stages s = 1..5 of 2,
2, 3, 3, 3), and `lin_{k}/kernel` [channels] for the stages k = 0..4.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unifluid_jax.core.types import Params

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width, depth
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-10


def shapes() -> dict[str, tuple[int, ...]]:
  """Name → shape of every array that `load_lpips` reads."""
  out, inputs = {}, 3
  for s, (width, depth) in enumerate(STAGES, 1):
    for i in range(1, depth + 1):
      out[f"conv{s}_{i}/kernel"] = (3, 3, inputs, width)
      out[f"conv{s}_{i}/bias"] = (width,)
      inputs = width
  for k, (width, _) in enumerate(STAGES):
    out[f"lin_{k}/kernel"] = (width,)
  return out


def weight_shapes() -> Params:
  """The same as a nested tree of ShapeDtypeStructs, as `load_lpips` gives."""
  tree: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
  for name, shape in shapes().items():
    module, leaf = name.split("/")
    array = jax.ShapeDtypeStruct(shape, np.float32)
    tree.setdefault(module, {})[leaf] = array
  return tree


def load_lpips(path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
  """Reads the weights of VGG16 and of LPIPS' five linear layers.

  Args:
    path: an .npz with exactly the arrays that `shapes` lists.

  Returns:
    {"conv1_1": {"kernel": ..., "bias": ...}, ..., "lin_0": {"kernel": ...}},
    float32.

  Raises:
    ValueError: an array is missing, unknown or of another shape.
    FileNotFoundError: no such file.
  """
  expected = shapes()
  params: dict[str, dict[str, np.ndarray]] = {}
  with np.load(path, allow_pickle=False) as arrays:
    unknown = sorted(set(arrays.files) - set(expected))
    if unknown:
      raise ValueError(
        f"{path} holds {unknown[0]!r}, which LPIPS does not know: write "
        f"exactly the {len(expected)} arrays that lpips.shapes() lists"
      )
    for name, shape in expected.items():
      if name not in arrays.files:
        raise ValueError(
          f"{path} lacks {name!r} {shape}: convert the weights again with "
          "every array that lpips.shapes() lists"
        )
      array = arrays[name]
      if array.shape != shape:
        raise ValueError(
          f"{path}: {name!r} has shape {array.shape}, expected {shape}; "
          "kernels are [rows, columns, in, out]"
        )
      module, leaf = name.split("/")
      params.setdefault(module, {})[leaf] = array.astype(np.float32)
  return params


def _features(
  params: Params, images: Float[Array, "B H W 3"]
) -> list[Float[Array, "B _ _ _"]]:
  """Activations after the last ReLU of each VGG16 stage."""
  x = (images - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
  out = []
  for s, (_, depth) in enumerate(STAGES, 1):
    if s > 1:
      x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
      )
    for i in range(1, depth + 1):
      layer = params[f"conv{s}_{i}"]
      x = jax.lax.conv_general_dilated(
        x,
        layer["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
      x = jax.nn.relu(x + layer["bias"])
    out.append(x)
  return out


def unit(x: Float[Array, "B h w d"]) -> Float[Array, "B h w d"]:
  """x / (|x| + eps) over channels.

  Differs: the gradient is 0, not NaN, where every channel is 0.
  """
  square = jnp.square(x).sum(-1, keepdims=True)
  zero = square == 0
  norm = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
  return x / (norm + _EPS)


def distance(
  params: Params, x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]
) -> Float[Array, "B"]:
  """LPIPS of each pair of images.

  Args:
    params: as `load_lpips` returns them.
    x: in [-1, 1], sides of at least 16 pixels.
    y: likewise.

  Returns:
    The sum over stages of the weighted squared difference of unit features,
    averaged over positions; 0 for equal images.

  Raises:
    ValueError: the images vanish before the fifth stage.
  """
  if min(x.shape[1:3]) < 16:
    raise ValueError(
      f"LPIPS needs images of 16 pixels or more, got {x.shape[1]}x{x.shape[2]}"
      ": set loss.perceptual=0 or use larger images"
    )
  total = jnp.zeros(x.shape[0])
  pairs = zip(_features(params, x), _features(params, y), strict=True)
  for k, (a, b) in enumerate(pairs):
    weight = params[f"lin_{k}"]["kernel"]
    square = jnp.square(unit(a) - unit(b))
    total += (square * weight).sum(-1).mean((1, 2))
  return total
