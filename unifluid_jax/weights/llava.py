"""LLaVA-1.5: decoder, CLIP and projector of one file, Hugging Face names.

Source: transformers modeling_llava.py, with the names of its released files
(`language_model.model.*`) and of newer saves (`model.language_model.*` and
`lm_head.weight`; CLIP with or without `vision_model.`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unifluid_jax.core.presets import DecoderConfig, VitConfig
from unifluid_jax.models.adapter import Adapter
from unifluid_jax.weights import clip, gemma, llama, llama_settings
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  find,
  parameter_shapes,
  shape_of,
)
from unifluid_jax.weights.settings import Settings, config_beside, config_file

_LINEAR_1 = "multi_modal_projector.linear_1.weight"
_TEXT = "text_config"
_ENCODER = "encoder"  # CLIP's path
# transformers' LlamaConfig, whose values released files leave out: the 7B's.
SILENT: Mapping[str, Any] = {
  "model_type": "llama",
  "vocab_size": 32_000,
  "hidden_size": 4096,
  "intermediate_size": 11_008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
}
# What is computed in one way alone; silence means the same.
_FIXED: Mapping[str, Any] = {
  "vision_feature_layer": -2,
  "vision_feature_select_strategy": "default",  # without the class token
  "projector_hidden_act": "gelu",
  "multimodal_projector_bias": True,
}
_DROPS = (
  Drop("*rotary_emb.inv_freq", "computed"),
  Drop("*position_ids", "computed"),
)


def recipe(source: Source, image_size: int | None = None) -> Recipe:
  """How to read a LLaVA-1.5.

  Args:
    source: the tensors.
    image_size: pixels a side the encoder will see; None: as it was trained.

  Raises:
    WeightsError: not a LLaVA-1.5, or config.json is missing or asks for what
      these networks do not compute.
  """
  parts = networks(source, image_size)
  return Recipe(
    "llava",
    f"LLaVA-1.5 ({parts.shown}), Hugging Face names",
    parts.rows,
    parts.like,
    sizes=parts.sizes,
    drops=parts.drops,
    meta=parts.meta,
  )


@dataclasses.dataclass(frozen=True)
class Networks:
  """What reads the decoder, the encoder and the projector between them.

  Attributes:
    shown: for people: presets, pixels, vocabulary.
    config: of the decoder.
    rows: as a recipe's, and so are `like`, `sizes`, `drops` and `meta`.
  """

  shown: str
  config: DecoderConfig
  rows: list[Row]
  like: dict[str, tuple[int, ...]]
  sizes: dict[str, int]
  drops: list[Drop]
  meta: dict[str, Any]


def networks(source: Source, image_size: int | None = None) -> Networks:
  """The parts of a LLaVA-1.5, or of what is built around one.

  Raises:
    WeightsError: see `recipe`.
  """
  before, _ = find(source, "LLaVA", _LINEAR_1)
  _check_settings(source.path)
  rows, config, copies, sizes = llama.decoder(source, "llama", _TEXT, SILENT)
  eyes, _ = find(source, "LLaVA with CLIP", clip.CLASS)
  vision, vit, vit_preset, unread, more = clip.encoder(
    source, eyes, image_size, _ENCODER
  )
  _check_projector(source, before + _LINEAR_1, vit, config)
  features = jax.ShapeDtypeStruct((1, 1, vit.width), jnp.float32)
  adapter = Adapter(config.width, jnp.float32)
  preset = llama_settings.published(config)
  shown = " + ".join(p or "unpublished size" for p in (preset, vit_preset))
  return Networks(
    f"{shown}; {vit.image_size} pixels, vocabulary {config.vocab}",
    config,
    [*rows, *vision, *_projector_rows(before)],
    gemma.like(config)
    | clip.like(vit, _ENCODER)
    | parameter_shapes(adapter, "projector", features),
    {**sizes, **more},
    [*_DROPS, *copies, *unread],
    {
      "preset": preset,
      "decoder": llama.describe(config),
      "vit_preset": vit_preset,
      "vit": dataclasses.asdict(vit),
    },
  )


def _projector_rows(before: str) -> list[Row]:
  """Two layers; axes: w from, d to."""
  at, rows = f"{before}multi_modal_projector.", []
  for theirs, ours in (("linear_1", "in"), ("linear_2", "out")):
    to = f"projector/{ours}"
    rows.append(Row(f"{at}{theirs}.weight", f"{to}/kernel", "d w -> w d"))
    rows.append(Row(f"{at}{theirs}.bias", f"{to}/bias", "d"))
  return rows


def _check_projector(
  source: Source, name: str, vit: VitConfig, config: DecoderConfig
) -> None:
  outputs, inputs = shape_of(source, name, 2)
  if (inputs, outputs) != (vit.width, config.width):
    raise WeightsError(
      f"{source.path}: {name}: expected to lead from {vit.width} to "
      f"{config.width}, found {inputs} to {outputs}; the file mixes models: "
      "download it again"
    )


def _check_settings(path: str) -> None:
  """What config.json says of the whole."""
  tree = config_beside(path)
  content = Settings(str(config_file(path)), tree)
  if not isinstance(tree.get(_TEXT), dict):
    raise WeightsError(
      f"{path}: expected config.json beside it with {_TEXT}, which tells "
      "heads, rotations and epsilon: copy it there"
    )
  for key, value in _FIXED.items():
    if tree.get(key, value) != value:
      raise content.error(key, str(value))
