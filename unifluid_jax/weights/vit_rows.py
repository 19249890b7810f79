"""What files of vision encoders have in common: SigLIP's and CLIP's blocks.

Sources: transformers modeling_siglip.py and modeling_clip.py; big_vision
models/vit.py, looped (`encoderblock_0`, ...) and stacked (`encoderblock`).
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from unifluid_jax.weights.rows import (
  Row,
  Source,
  WeightsError,
  count_layers,
  shape_of,
)
from unifluid_jax.weights.settings import (
  check_depth,
  config_beside,
  number_beside,
)

PATCH = "embeddings.patch_embedding.weight"
_PART = "vision_config"  # of the config.json of a larger model
_SILENT_HEADS = 12  # where it leaves them out, as transformers has it
POSITION = "embeddings.position_embedding.weight"

# A module of a block: our name, then name and layouts of weight and bias in
# transformers' files, then the same in big_vision's. Axes: w width, n heads,
# h width of a head, f hidden width of the MLP.
_MHA, _MLP = "MultiHeadDotProductAttention_0", "MlpBlock_0"
_QKV, _QKV_BIAS = "(n h) w -> w n h", "(n h) -> n h"
_BLOCK = (
  ("norm1", "layer_norm1", "w", "w", "LayerNorm_0", "w", "w"),
  ("attn/q", "self_attn.q_proj", _QKV, _QKV_BIAS,
   f"{_MHA}/query", "w n h", "n h"),
  ("attn/k", "self_attn.k_proj", _QKV, _QKV_BIAS,
   f"{_MHA}/key", "w n h", "n h"),
  ("attn/v", "self_attn.v_proj", _QKV, _QKV_BIAS,
   f"{_MHA}/value", "w n h", "n h"),
  ("attn/out", "self_attn.out_proj", "w (n h) -> n h w", "w",
   f"{_MHA}/out", "n h w", "w"),
  ("norm2", "layer_norm2", "w", "w", "LayerNorm_1", "w", "w"),
  ("mlp/up", "mlp.fc1", "f w -> w f", "f", f"{_MLP}/Dense_0", "w f", "f"),
  ("mlp/down", "mlp.fc2", "w f -> f w", "w", f"{_MLP}/Dense_1", "f w", "w"),
)  # fmt: skip


class Sizes(NamedTuple):
  """What the tensors of an encoder tell, and config.json beside them."""

  width: int
  depth: int
  mlp: int
  patch: int
  tokens: int  # positions, a class token's included
  heads: int  # 0: config.json does not say


def hf_sizes(source: Source, prefix: str) -> Sizes:
  """Sizes of an encoder under transformers' names.

  Args:
    source: the tensors.
    prefix: up to "embeddings" and "encoder".

  Raises:
    WeightsError: tensors are missing or of another rank, or config.json
      names another number of layers.
  """
  layer = f"{prefix}encoder.layers."
  width, _, patch, _ = shape_of(source, f"{prefix}{PATCH}", 4)
  tokens, _ = shape_of(source, f"{prefix}{POSITION}", 2)
  mlp, _ = shape_of(source, f"{layer}0.mlp.fc1.weight", 2)
  depth = count_layers(source, layer, ".")
  check_depth(source.path, depth, _PART)
  heads = number_beside(source.path, "num_attention_heads", _PART)
  if not heads and isinstance(config_beside(source.path).get(_PART), dict):
    heads = _SILENT_HEADS
  return Sizes(width, depth, mlp, patch, tokens, heads)


def hf_block_rows(prefix: str, root: str = "vit") -> list[Row]:
  """Rows of all blocks under transformers' names.

  Args:
    prefix: up to "encoder".
    root: of our paths.
  """
  rows = []
  for ours, name, weight, bias, *_ in _BLOCK:
    theirs, to = f"{prefix}encoder.layers.{{i}}.{name}", f"{root}/layers/{ours}"
    rows.append(Row(f"{theirs}.weight", f"{to}/{_leaf(ours)}", weight))
    rows.append(Row(f"{theirs}.bias", f"{to}/bias", bias))
  return rows


def big_vision_block_rows(prefix: str, stacked: bool) -> list[Row]:
  """Rows of all blocks under big_vision's names.

  Args:
    prefix: up to "encoderblock".
    stacked: one `encoderblock` that leads with the layer.
  """
  block = "encoderblock" if stacked else "encoderblock_{i}"
  lead = "l " if stacked else ""
  rows = []
  for ours, _, _, _, name, weight, bias in _BLOCK:
    leaf, to = _leaf(ours), f"vit/layers/{ours}"
    theirs = f"{prefix}{block}/{name}"
    rows.append(Row(f"{theirs}/{leaf}", f"{to}/{leaf}", lead + weight))
    rows.append(Row(f"{theirs}/bias", f"{to}/bias", lead + bias))
  return rows


def grid_of(image_size: int, patch: int) -> int:
  """Patches a side.

  Raises:
    WeightsError: none fits.
  """
  if image_size < patch:
    raise WeightsError(
      f"--image_size={image_size} is smaller than a patch of {patch} pixels"
    )
  return image_size // patch


def resize_positions(x: np.ndarray, grid: int) -> np.ndarray:
  """Learned positions of a square grid, for another grid.

  Linear, corner to corner, as big_vision does it (scipy's zoom, order 1);
  transformers interpolates bicubically between centres: other numbers.

  Args:
    x: [n, D]; an n of g * g + 1 begins with a class token, which is left out.
    grid: cells a side wanted.
  """
  n, width = x.shape
  side = math.isqrt(n)
  x = x[n - side * side :]
  if side == grid:
    return x
  # scipy knows neither bfloat16 nor float16.
  wide = x.astype(np.float32) if x.dtype.itemsize < 4 else x
  cells = wide.reshape(side, side, width)
  zoomed = scipy.ndimage.zoom(cells, (grid / side, grid / side, 1), order=1)
  return zoomed.reshape(grid * grid, width).astype(x.dtype)


def _leaf(module: str) -> str:
  """Our name, and big_vision's, of a module's weight."""
  return "scale" if module.startswith("norm") else "kernel"
