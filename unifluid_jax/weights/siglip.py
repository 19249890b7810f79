"""SigLIP's vision encoder under its published names.

Sources: transformers modeling_siglip.py; big_vision models/vit.py, looped
(`encoderblock_0`, ...) as SigLIP and stacked (`encoderblock`) as PaliGemma.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unifluid_jax.core.presets import VIT, VitConfig
from unifluid_jax.models.vit import Vit
from unifluid_jax.weights import vit_rows
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  count_layers,
  find,
  parameter_shapes,
  shape_of,
)
from unifluid_jax.weights.settings import Settings, config_beside, config_file

_POSITION = "pos_embedding"
_ACTIVATION, _EPSILON = "gelu_pytorch_tanh", 1e-6
# Heads of the released widths: their matrices do not show them.
_HEADS = {768: 12, 1024: 16, 1152: 16}
# Image sizes that are no multiple of the patch: (grid, patch) to pixels.
_SIZES = {(27, 14): 384}
_DROPS = (
  Drop("*head.*", "pooling head"),
  Drop("*MAPHead_0/*", "pooling head"),
  Drop("*head/*", "projector; --from=paligemma: reads it"),
  Drop("*position_ids", "computed"),
  Drop("*text_model.*", "text tower"),
  Drop("*txt/*", "text tower"),
  Drop("*logit_scale", "contrastive loss"),
  Drop("*logit_bias", "contrastive loss"),
  Drop("t", "contrastive loss"),
  Drop("b", "contrastive loss"),
  Drop("params/[tb]", "contrastive loss"),
  Drop("*multi_modal_projector.*", "projector; --from=paligemma: reads it"),
  Drop("*language_model.*", "decoder; --from=paligemma: reads it"),
  Drop("*lm_head.weight", "decoder; --from=paligemma: reads it"),
  Drop("*llm/*", "decoder; --from=paligemma: reads it"),
)


def recipe(source: Source, image_size: int | None = None) -> Recipe:
  """How to read a SigLIP.

  Args:
    source: the tensors.
    image_size: pixels a side the encoder will see; None: as it was trained.

  Raises:
    WeightsError: not a SigLIP, or of a size that its tensors do not tell.
  """
  rows, config, names, sizes = encoder(source, image_size)
  preset = published(config)
  return Recipe(
    "siglip",
    f"SigLIP ({preset or 'unpublished size'}: {in_words(config)}), {names} "
    "names",
    rows,
    like(config),
    sizes=sizes,
    drops=_DROPS,
    meta={"preset": preset, "vit": dataclasses.asdict(config)},
  )


def encoder(
  source: Source, image_size: int | None = None
) -> tuple[list[Row], VitConfig, str, dict[str, int]]:
  """Rows, shape, what the names are, and sizes of axes before a resize.

  Raises:
    WeightsError: the tensors are not a vision encoder's.
  """
  before, ending = find(
    source, "SigLIP", vit_rows.PATCH, _POSITION, without="txt/"
  )
  read = _hugging_face if ending == vit_rows.PATCH else _big_vision
  return read(source, before, image_size)


def hf_recipe(source: Source) -> Recipe:
  """The way back: our tree (paths below params) under Hugging Face names.

  Raises:
    WeightsError: the checkpoint holds no vision encoder, or one whose layers
      are not stacked.
  """
  at = {n: source.shape(n) for n in source.names() if n.startswith("vit/")}
  if "vit/patch/kernel" not in at:
    raise WeightsError(
      f"{source.path} holds no vision encoder: expected params/vit/patch/"
      "kernel; correct --from"
    )
  if "vit/layers/attn/q/kernel" not in at:
    raise WeightsError(
      f"{source.path} keeps each layer apart (config.model.scan=False): only "
      "stacked ones can be written"
    )
  files = {"config.json": _settings(at)}
  return Recipe("siglip", "SigLIP", hf_rows("vision_model."), at, files=files)


def _settings(at: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """The content of config.json that transformers' SiglipVisionModel needs.

  Args:
    at: path below "params" → shape of the encoder's parameters.
  """
  patch, _, channels, width = at["vit/patch/kernel"]
  depth, _, heads, _ = at["vit/layers/attn/q/kernel"]
  side = math.isqrt(at["vit/position"][0])
  return {
    "architectures": ["SiglipVisionModel"],
    "model_type": "siglip_vision_model",
    "hidden_size": width,
    "intermediate_size": at["vit/layers/mlp/up/kernel"][2],
    "num_hidden_layers": depth,
    "num_attention_heads": heads,
    "num_channels": channels,
    "image_size": _SIZES.get((side, patch), side * patch),
    "patch_size": patch,
    "layer_norm_eps": _EPSILON,
    "hidden_act": _ACTIVATION,
    "vision_use_head": False,
  }


def published(config: VitConfig) -> str | None:
  """Key of presets.VIT with these shapes, whatever the image size."""
  size = config.image_size
  same = (
    key
    for key, preset in VIT.items()
    if dataclasses.replace(preset, image_size=size) == config
  )
  return next(same, None)


def in_words(config: VitConfig) -> str:
  """The shape for people."""
  return (
    f"{config.depth} layers of {config.width}, {config.heads} heads, "
    f"{config.image_size} pixels in cells of {config.patch}"
  )


def like(config: VitConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of the encoder's parameters."""
  side = config.image_size
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return parameter_shapes(Vit(config, jnp.float32), "vit", images)


def hf_rows(prefix: str) -> list[Row]:
  """Names of transformers' SiglipVisionModel.

  Args:
    prefix: up to "embeddings" and "encoder".
  """
  embed, norm = f"{prefix}embeddings.", f"{prefix}post_layernorm"
  return [
    Row(f"{prefix}{vit_rows.PATCH}", "vit/patch/kernel", "w c p q -> p q c w"),
    Row(f"{embed}patch_embedding.bias", "vit/patch/bias", "w"),
    Row(f"{prefix}{vit_rows.POSITION}", "vit/position", "t w"),
    *vit_rows.hf_block_rows(prefix),
    Row(f"{norm}.weight", "vit/norm/scale", "w"),
    Row(f"{norm}.bias", "vit/norm/bias", "w"),
  ]


def big_vision_rows(prefix: str, stacked: bool) -> list[Row]:
  """Names of big_vision's ViT.

  Args:
    prefix: up to "embedding" and "Transformer".
    stacked: one `encoderblock` that leads with the layer.
  """
  top = f"{prefix}Transformer/"
  return [
    Row(f"{prefix}embedding/kernel", "vit/patch/kernel", "p q c w"),
    Row(f"{prefix}embedding/bias", "vit/patch/bias", "w"),
    Row(f"{prefix}{_POSITION}", "vit/position", "1 t w -> t w"),
    Row(f"{top}encoder_norm/scale", "vit/norm/scale", "w"),
    Row(f"{top}encoder_norm/bias", "vit/norm/bias", "w"),
    *vit_rows.big_vision_block_rows(top, stacked),
  ]


def _check_settings(path: str) -> None:
  """What this encoder computes in one way alone."""
  tree = config_beside(path, "vision_config")
  content = Settings(str(config_file(path)), tree)
  if tree.get("hidden_act", _ACTIVATION) != _ACTIVATION:
    raise content.error("hidden_act", _ACTIVATION)
  if content.number("layer_norm_eps", _EPSILON) != _EPSILON:
    raise content.error("layer_norm_eps", f"{_EPSILON:g}")


def _hugging_face(source, prefix, image_size):
  _check_settings(source.path)
  width, depth, mlp, patch, tokens, heads = vit_rows.hf_sizes(source, prefix)
  heads = heads or _HEADS.get(width)
  if not heads or width % heads:
    raise WeightsError(
      f"{source.path} has width {width}, and its tensors do not tell the "
      "number of heads: expected config.json beside it with "
      "num_attention_heads; copy it there"
    )
  shape = (width, depth, mlp, heads, patch)
  return _finish(
    source, hf_rows(prefix), shape, tokens, image_size, "Hugging Face"
  )


def _big_vision(source, prefix, image_size):
  stacked = f"{prefix}Transformer/encoderblock/LayerNorm_0/scale"
  is_stacked = stacked in source.names()
  rows = big_vision_rows(prefix, is_stacked)
  patch, _, _, width = shape_of(source, f"{prefix}embedding/kernel", 4)
  _, tokens, _ = shape_of(source, f"{prefix}{_POSITION}", 3)
  block = "encoderblock" if is_stacked else "encoderblock_0"
  top = f"{prefix}Transformer/{block}/"
  query = f"{top}MultiHeadDotProductAttention_0/query/kernel"
  heads = shape_of(source, query, 3 + is_stacked)[-2]
  up = f"{top}MlpBlock_0/Dense_0/kernel"
  mlp = shape_of(source, up, 2 + is_stacked)[-1]
  if is_stacked:
    depth = source.shape(stacked)[0]
  else:
    depth = count_layers(source, f"{prefix}Transformer/encoderblock_", "/")
  shape = (width, depth, mlp, heads, patch)
  names = f"big_vision {'stacked' if is_stacked else 'looped'}"
  return _finish(source, rows, shape, tokens, image_size, names)


def _finish(source, rows, shape, tokens, image_size, names):
  """Adds the resize where the grid of positions is not the wanted one."""
  width, _, _, _, patch = shape
  side = math.isqrt(tokens)
  if tokens not in (side * side, side * side + 1):
    raise WeightsError(
      f"{source.path}: {tokens} positions are no square grid; expected g * g "
      "or, with a class token, g * g + 1: correct the kind in --from"
    )
  image_size = image_size or _SIZES.get((side, patch), side * patch)
  config = VitConfig(*shape, image_size=image_size)
  grid = vit_rows.grid_of(image_size, patch)
  if tokens == grid * grid:
    return rows, config, names, {}
  after = functools.partial(vit_rows.resize_positions, grid=grid)
  rows = [
    Row(r.source, r.target, r.axes, after) if r.target == "vit/position" else r
    for r in rows
  ]
  names += f", positions resized from {side} x {side} to {grid} x {grid}"
  return rows, config, names, {"t": tokens, "w": width}
