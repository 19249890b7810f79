"""PaliGemma 1 and 2: decoder, SigLIP and projector of one file.

Sources: big_vision models/proj/paligemma; transformers modeling_paligemma.py,
with the names of its released files and those of newer saves.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from unifluid_jax.weights import gemma, gemma_settings, siglip
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

_HF = "multi_modal_projector.linear.weight"
_BV = "img/head/kernel"
_DROPS = (
  Drop("*rotary_emb.inv_freq", "computed"),
  Drop("*position_ids", "computed"),
  Drop("*vision_model.head.*", "pooling head"),
  Drop("*MAPHead_0/*", "pooling head"),
)


def recipe(source: Source, image_size: int | None = None) -> Recipe:
  """How to read a PaliGemma.

  Args:
    source: the tensors.
    image_size: pixels a side the encoder will see; None: as it was trained.

  Raises:
    WeightsError: not a PaliGemma, or of a size its tensors do not tell.
  """
  projector, inputs, outputs = _projector(source)
  rows, config, names, copies = gemma.decoder(source)
  eyes, vit, more, sizes = siglip.encoder(source, image_size)
  if (inputs, outputs) != (vit.width, config.width):
    raise WeightsError(
      f"{source.path}: {projector[0].source}: expected to lead from "
      f"{vit.width} to {config.width}, found {inputs} to {outputs}; the file "
      "mixes models: download it again"
    )
  dense = parameter_shapes(
    nn.Dense(outputs),
    "projector",
    jax.ShapeDtypeStruct((1, inputs), jnp.float32),
  )
  generation = gemma_settings.generation(config)
  presets = gemma_settings.published(config), siglip.published(vit)
  shown = " + ".join(p or "unpublished size" for p in presets)
  other = gemma_settings.differing(config)
  shown += f"; unlike the preset: {', '.join(other)}" if other else ""
  return Recipe(
    "paligemma",
    f"PaliGemma {generation} ({shown}; {vit.image_size} pixels, vocabulary "
    f"{config.vocab}), {names} names (vision: {more})",
    [*rows, *eyes, *projector],
    gemma.like(config) | siglip.like(vit) | dense,
    sizes=sizes,
    drops=(*_DROPS, *copies),
    meta={
      "preset": presets[0],
      "decoder": gemma_settings.describe(source.path, config),
      "vit_preset": presets[1],
      "vit": dataclasses.asdict(vit),
    },
  )


def _projector(source: Source) -> tuple[list[Row], int, int]:
  """Its rows, and what it leads from and to."""
  before, ending = find(source, "PaliGemma", _HF, _BV)
  name = before + ending
  first, second = shape_of(source, name, 2)
  bias = name.removesuffix("weight").removesuffix("kernel") + "bias"
  if ending == _HF:
    inputs, outputs, axes = second, first, "d w -> w d"
  else:
    inputs, outputs, axes = first, second, "w d"
  rows = [Row(name, "projector/kernel", axes), Row(bias, "projector/bias", "d")]
  return rows, inputs, outputs
