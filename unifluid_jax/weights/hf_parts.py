"""Parts of a trained model that transformers and diffusers load by themselves.

The language model, a SigLIP encoder and a KL autoencoder have classes there,
discrete image tokenizers, CLIP's feature layers and what connects them have
not.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from unifluid_jax.core.parallel import path_str
from unifluid_jax.core.presets import DecoderConfig
from unifluid_jax.weights import (
  gemma,
  kl_vae,
  llama,
  llama_settings,
  siglip,
  to_hf,
)
from unifluid_jax.weights.rows import Recipe, Source, WeightsError


class Part(NamedTuple):
  """One of them."""

  source: Source
  recipe: Recipe
  file: str  # of the weights, without its ending
  loads: str  # how it is loaded


class Arrays(Source):
  """Arrays in memory, by their paths."""

  def __init__(self, path: str, tree: Mapping[str, Any]):
    """Holds them.

    Args:
      path: of the checkpoint they were read from, whose JSON recipes read.
      tree: of arrays.
    """
    self.path = path
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    self._arrays = {path_str(p): np.asarray(x) for p, x in leaves}

  def names(self) -> list[str]:
    """All paths."""
    return list(self._arrays)

  def shape(self, name: str) -> tuple[int, ...]:
    """Of one array."""
    return self._arrays[name].shape

  def dtype(self, name: str) -> np.dtype:
    """Of one array."""
    return self._arrays[name].dtype

  def read(self, name: str) -> np.ndarray:
    """One array."""
    return self._arrays[name]


def plan(
  model: Any,
  params: Mapping[str, Any],
  codec: Mapping[str, Any],
  run: str,
  codec_path: str,
) -> tuple[dict[str, Part], list[str]]:
  """Which parts there are, and how each is written.

  Args:
    model: config.model of the run.
    params: trained parameters, in the dtype that is to be written.
    codec: the image tokenizer's, likewise; empty without one.
    run: workdir that they were read from.
    codec_path: of the image tokenizer.

  Returns:
    Name → part, and a line for each that has no class there: why.

  Raises:
    WeightsError: there is none.
  """
  trained = Arrays(run, params)
  wanted = {
    "decoder": lambda: _decoder(model, trained),
    "vit": lambda: _vit(trained),
    "vae": lambda: _vae(Arrays(codec_path, codec)),
  }
  parts = {}
  others = [
    f"{name} has no class there"
    for name, tree in codec.items()
    if name not in wanted and isinstance(tree, Mapping)
  ]
  for name, make in wanted.items():
    if name not in {**params, **codec}:
      continue
    try:
      parts[name] = make()
      to_hf.layout(parts[name].source, parts[name].recipe)
    except WeightsError as error:
      parts.pop(name, None)
      others.append(f"{name}: {error}")
  if not parts:
    reasons = "; ".join(others) or "its networks have no class there"
    raise WeightsError(f"--hf: no part of {run} can be written: {reasons}")
  return parts, others


def write(place: Path, part: Part) -> str:
  """Writes a part to a folder that does not exist; says what was written."""
  count = to_hf.write(str(place), part.file, part.source, part.recipe)
  return f"{part.recipe.found}: {count} tensors"


def _decoder(model: Any, source: Source) -> Part:
  config = model.decoder
  if not isinstance(config, DecoderConfig):
    raise WeightsError("it is no language model")
  silu = config.activation == llama_settings.FAMILY["activation"]
  kind = llama_settings.kind_of(config) if silu else "gemma"
  back: Callable[[Source], Recipe] = gemma.hf_recipe
  if silu:
    back = lambda s: llama.hf_recipe(s, kind)  # noqa: E731
  loads = "transformers.AutoModelForCausalLM.from_pretrained"
  if kind == "chameleon":
    loads = "transformers' ChameleonModel, its language model alone"
  return Part(source, back(source), "model", loads)


def _vit(source: Source) -> Part:
  loads = "transformers.SiglipVisionModel.from_pretrained"
  return Part(source, siglip.hf_recipe(source), "model", loads)


def _vae(source: Source) -> Part:
  loads = "diffusers.AutoencoderKL.from_pretrained"
  name = "diffusion_pytorch_model"
  return Part(source, kl_vae.hf_recipe(source), name, loads)
