"""CLIP's vision encoder, from the names of Hugging Face transformers.

Source: transformers' CLIPVisionModel; files of whole CLIP models, and files
without the prefix "vision_model.", are read as well.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unifluid_jax.core import presets
from unifluid_jax.models.clip_vit import ClipVit
from unifluid_jax.weights import vit_rows
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  parameter_shapes,
  wrong_kind,
)
from unifluid_jax.weights.settings import Settings, config_beside, config_file

# After the prefix; the blocks' are in `vit_rows`. Axes: w width, t tokens.
CLASS = "embeddings.class_embedding"
_ROWS = (
  (CLASS, "class_token", "w"),
  (vit_rows.PATCH, "patch/kernel", "w c y x -> y x c w"),
  (vit_rows.POSITION, "position", "t w"),
  ("pre_layrnorm.weight", "pre_norm/scale", "w"),
  ("pre_layrnorm.bias", "pre_norm/bias", "w"),
)
_HEAD = 64  # width of a head in every published CLIP
_EPSILON = 1e-5
_ROOT = "vit"  # of our paths
_DROPS = (
  Drop("text_model.*", "text encoder, not read"),
  Drop("*_projection.weight", "joint space of images and texts, not read"),
  Drop("logit_scale", "joint space of images and texts, not read"),
  Drop("*position_ids", "counts positions"),
)


def recipe(source: Source, image_size: int | None = None) -> Recipe:
  """How to read a vision encoder, up to its last block but one.

  Sizes come from the tensors. The number of heads does not show in them: it
  comes from config.json beside the file, else a head is 64 wide.

  Args:
    source: the tensors.
    image_size: pixels a side the encoder will see, positions being resized
      by `vit_rows.resize_positions`; None: as it was trained.

  Raises:
    WeightsError: no CLIP vision encoder in these names.
  """
  names = set(source.names())
  prefix = next((p for p in ("vision_model.", "") if p + CLASS in names), None)
  if prefix is None:
    expected = f"{CLASS}, with or without vision_model."
    raise wrong_kind(source, "CLIP vision encoder", expected)
  rows, config, preset, drops, sizes = encoder(source, prefix, image_size)
  return Recipe(
    kind="clip",
    found=f"CLIP vision encoder ({preset or 'no preset'}), Hugging Face names",
    rows=rows,
    like=like(config),
    sizes=sizes,
    drops=(*drops, *_DROPS),
    meta={"preset": preset, "vit": dataclasses.asdict(config)},
  )


def encoder(
  source: Source,
  prefix: str,
  image_size: int | None = None,
  root: str = _ROOT,
) -> tuple[list[Row], presets.VitConfig, str, list[Drop], dict[str, int]]:
  """Rows, shape, preset ("" if none), what is not read, sizes before a resize.

  Args:
    source: the tensors.
    prefix: up to "embeddings" and "encoder".
    image_size: as for `recipe`.
    root: of our paths.

  Raises:
    WeightsError: tensors are missing, or config.json asks for what this
      encoder does not compute.
  """
  names = set(source.names())
  needed = [a for a, _, _ in _ROWS] + ["encoder.layers.0.mlp.fc1.weight"]
  lost = [prefix + a for a in needed if prefix + a not in names]
  if lost:
    raise wrong_kind(source, "CLIP vision encoder", lost[0])
  _check_settings(source.path)
  trained = _config(source, prefix)
  config = dataclasses.replace(
    trained, image_size=image_size or trained.image_size
  )
  last = f"{prefix}encoder.layers.{config.depth - 1}."
  preset = [k for k, v in presets.CLIP_VIT.items() if v == trained]
  after, sizes = _resize(trained, config)
  rows = [
    Row(prefix + a, f"{root}/{b}", axes, after if b == "position" else None)
    for a, b, axes in _ROWS
  ]
  drops = [
    Drop(f"{last}*", "the last block, behind the output that is read"),
    Drop(f"{prefix}post_layernorm.*", "behind the output that is read"),
  ]
  rows += vit_rows.hf_block_rows(prefix, root)
  return rows, config, preset[0] if preset else "", drops, sizes


def like(
  config: presets.VitConfig, root: str = _ROOT
) -> dict[str, tuple[int, ...]]:
  """Shapes of the encoder's parameters, without its last block."""
  side = config.image_size
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return parameter_shapes(ClipVit(config, jnp.float32), root, images)


def _check_settings(path: str) -> None:
  """What this encoder computes in one way alone."""
  tree = config_beside(path, "vision_config")
  content = Settings(str(config_file(path)), tree)
  # Files trained by OpenCLIP say gelu.
  if tree.get("hidden_act", "quick_gelu") != "quick_gelu":
    raise content.error("hidden_act", "quick_gelu")
  if content.number("layer_norm_eps", _EPSILON) != _EPSILON:
    raise content.error("layer_norm_eps", f"{_EPSILON:g}")


def _resize(trained: presets.VitConfig, wanted: presets.VitConfig) -> Any:
  """What moves positions to another grid, and the axes it starts from."""
  side = trained.image_size // trained.patch
  grid = vit_rows.grid_of(wanted.image_size, wanted.patch)
  if side == grid:
    return None, {}

  def after(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:1], vit_rows.resize_positions(x[1:], grid)])

  return after, {"t": side * side + 1, "w": trained.width}


def _config(source: Source, prefix: str) -> presets.VitConfig:
  """Sizes by the tensors' shapes."""
  width, depth, mlp, patch, tokens, heads = vit_rows.hf_sizes(source, prefix)
  side = math.isqrt(max(tokens - 1, 0))
  heads = heads or width // _HEAD
  if side**2 != tokens - 1 or not heads or width % heads:
    raise WeightsError(
      f"{source.path}: {tokens} positions and {heads} heads of {width} "
      "channels: expected a class token and a square of patches, and heads "
      "that divide the width; put the model's config.json beside the file"
    )
  return presets.VitConfig(width, depth, mlp, heads, patch, side * patch)
