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
from unifluid_jax.weights import siglip
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  count_layers,
  shape_of,
  shapes,
)
from unifluid_jax.weights.settings import check_depth, number_beside

# After the prefix. Axes: d width, n heads, h head size, f hidden.
_ROWS = (
  ("embeddings.class_embedding", "class_token", "d"),
  ("embeddings.patch_embedding.weight", "patch/kernel", "d c y x -> y x c d"),
  ("embeddings.position_embedding.weight", "position", "t w"),
  ("pre_layrnorm.weight", "pre_norm/scale", "d"),
  ("pre_layrnorm.bias", "pre_norm/bias", "d"),
)
_LAYER_ROWS = (
  ("layer_norm1.weight", "norm1/scale", "d"),
  ("layer_norm1.bias", "norm1/bias", "d"),
  ("self_attn.q_proj.weight", "attn/q/kernel", "(n h) d -> d n h"),
  ("self_attn.q_proj.bias", "attn/q/bias", "(n h) -> n h"),
  ("self_attn.k_proj.weight", "attn/k/kernel", "(n h) d -> d n h"),
  ("self_attn.k_proj.bias", "attn/k/bias", "(n h) -> n h"),
  ("self_attn.v_proj.weight", "attn/v/kernel", "(n h) d -> d n h"),
  ("self_attn.v_proj.bias", "attn/v/bias", "(n h) -> n h"),
  ("self_attn.out_proj.weight", "attn/out/kernel", "d (n h) -> n h d"),
  ("self_attn.out_proj.bias", "attn/out/bias", "d"),
  ("layer_norm2.weight", "norm2/scale", "d"),
  ("layer_norm2.bias", "norm2/bias", "d"),
  ("mlp.fc1.weight", "mlp/up/kernel", "f d -> d f"),
  ("mlp.fc1.bias", "mlp/up/bias", "f"),
  ("mlp.fc2.weight", "mlp/down/kernel", "d f -> f d"),
  ("mlp.fc2.bias", "mlp/down/bias", "d"),
)

_HEAD = 64  # width of a head in every published CLIP
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
      by `siglip.resize_positions`; None: as it was trained.

  Raises:
    WeightsError: no CLIP vision encoder in these names.
  """
  names = set(source.names())
  end = "embeddings.class_embedding"
  prefix = next((p for p in ("vision_model.", "") if p + end in names), None)
  needed = [a for a, _, _ in _ROWS] + ["encoder.layers.0.mlp.fc1.weight"]
  lost = [a for a in needed if prefix is None or prefix + a not in names]
  if lost:
    raise WeightsError(
      f"{source.path} is no CLIP vision encoder: expected {lost[0]}, with or "
      f"without vision_model., found {', '.join(sorted(names)[:3])}; name the "
      "kind it is in --from"
    )
  trained = _config(source, prefix)
  config = dataclasses.replace(
    trained, image_size=image_size or trained.image_size
  )
  last = f"{prefix}encoder.layers.{config.depth - 1}."
  preset = [k for k, v in presets.CLIP_VIT.items() if v == trained]
  after, sizes = _resize(trained, config)
  return Recipe(
    kind="clip",
    found=f"CLIP vision encoder ({preset[0] if preset else 'no preset'}), "
    "Hugging Face names",
    rows=[
      Row(prefix + a, f"vit/{b}", axes, after if b == "position" else None)
      for a, b, axes in _ROWS
    ]
    + [
      Row(f"{prefix}encoder.layers.{{i}}.{a}", f"vit/layers/{b}", axes)
      for a, b, axes in _LAYER_ROWS
    ],
    like=_like(config),
    sizes=sizes,
    drops=(
      Drop(f"{last}*", "the last block, behind the output that is read"),
      Drop(f"{prefix}post_layernorm.*", "behind the output that is read"),
      *_DROPS,
    ),
    meta={
      "preset": preset[0] if preset else "",
      "vit": dataclasses.asdict(config),
    },
  )


def _resize(trained: presets.VitConfig, wanted: presets.VitConfig) -> Any:
  """What moves positions to another grid, and the axes it starts from."""
  side, grid = (c.image_size // c.patch for c in (trained, wanted))
  if not grid:
    raise WeightsError(
      f"--image_size={wanted.image_size} is smaller than a patch of "
      f"{wanted.patch} pixels"
    )
  if side == grid:
    return None, {}

  def after(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:1], siglip.resize_positions(x[1:], grid)])

  return after, {"t": side * side + 1, "w": trained.width}


def _config(source: Source, prefix: str) -> presets.VitConfig:
  """Sizes by the tensors' shapes."""
  width, _, patch, _ = shape_of(source, f"{prefix}{_ROWS[1][0]}", 4)
  tokens, _ = shape_of(source, f"{prefix}{_ROWS[2][0]}", 2)
  side = math.isqrt(max(tokens - 1, 0))
  heads = number_beside(source.path, "num_attention_heads", "vision_config")
  heads = heads or width // _HEAD
  if side**2 != tokens - 1 or not heads or width % heads:
    raise WeightsError(
      f"{source.path}: {tokens} positions and {heads} heads of {width} "
      "channels: expected a class token and a square of patches, and heads "
      "that divide the width; put the model's config.json beside the file"
    )
  hidden, _ = shape_of(source, f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)
  depth = count_layers(source, f"{prefix}encoder.layers.", ".")
  check_depth(source.path, depth, "vision_config")
  return presets.VitConfig(
    width=width,
    depth=depth,
    mlp=hidden,
    heads=heads,
    patch=patch,
    image_size=side * patch,
  )


def _like(config: presets.VitConfig) -> dict[str, tuple[int, ...]]:
  """Path → shape of all our parameters."""
  side = config.image_size
  tree = jax.eval_shape(
    lambda: ClipVit(config, jnp.float32).init(
      jax.random.key(0), jnp.zeros((1, side, side, 3))
    )
  )
  return shapes(tree["params"], "vit")
