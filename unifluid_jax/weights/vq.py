"""VQ autoencoders under the names of VQGAN and of LlamaGen.

Sources: CompVis/taming-transformers taming/models/vqgan.py, whose names
Chameleon's vqgan.ckpt keeps; FoundationVision/LlamaGen vq_model.py, whose
codebook is stored as it was trained and normalised at use. The names are those
of `autoencoder`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from unifluid_jax.core import checkpoint, freeze, presets
from unifluid_jax.core.config import PRESETS
from unifluid_jax.models.vq import VqVae
from unifluid_jax.weights import autoencoder
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  parameter_shapes,
  shape_of,
  wrong_kind,
)

_ROOT = "vq"  # of our parameters
_TABLE, _CODEBOOK = f"{_ROOT}/codebook/table", "quantize.embedding.weight"
_GROUPS = 32  # of every published one
_DROPS = (
  Drop("loss.*", "training loss and discriminator"),
  Drop("quantize.codebook_used", "recently used codes, a statistic"),
)


def recipe(source: Source) -> Recipe:
  """How to read a VQ autoencoder; sizes come from the tensors.

  Raises:
    WeightsError: neither format's names, or no decoder among them.
  """
  format_ = autoencoder.format_of(source, "")
  if any("vqmodel.encoder." in name for name in source.names()):
    raise WeightsError(
      f"{source.path} holds the encoder and the codebook of Chameleon's image "
      "tokenizer and no decoder, as all of transformers' Chameleons do: name "
      "the release's tokenizer/vqgan.ckpt"
    )
  if any(name.startswith("quantize.quant_resi.") for name in source.names()):
    raise WeightsError(
      f"{source.path} holds a multi-scale VQ autoencoder of VAR: name it "
      "var_vq in --from"
    )
  if format_ not in (autoencoder.COMPVIS, autoencoder.LLAMAGEN):
    expected = (
      "encoder.conv_in.weight with encoder.mid.block_1 (VQGAN, Chameleon) or "
      "encoder.mid.0 (LlamaGen)"
    )
    raise wrong_kind(source, "VQ autoencoder", expected)
  codes, channels = shape_of(source, _CODEBOOK, 2)
  probes = autoencoder.PROBES[format_]
  config = presets.VqConfig(
    **autoencoder.sizes(source, probes, _GROUPS),
    codes=codes,
    code_channels=channels,
    normalised=format_ == autoencoder.LLAMAGEN,
  )
  preset = next((k for k, v in presets.VQ.items() if v == config), "")
  inside = getattr(source, "inside", "")
  return Recipe(
    kind="vq",
    found=f"VQ autoencoder ({preset or 'no preset'}: {codes} codes of "
    f"{channels} channels, factor {config.factor}), {_name(format_)} names"
    + (f", below {inside}" if inside else ""),
    rows=_rows(format_, config),
    like=_like(config),
    drops=_DROPS,
    meta={"preset": preset, "vq": dataclasses.asdict(config)},
  )


def hf_recipe(source: Source) -> Recipe:
  """The way back: VQGAN's names, or LlamaGen's if codes are normalised.

  Args:
    source: our parameters, named by their paths: "vq/encoder/...".

  Raises:
    WeightsError: not a VQ autoencoder, or one that neither can hold.
  """
  if f"{_ROOT}/phi/kernels" in source.names():
    raise WeightsError(
      f"{source.path} holds a multi-scale VQ autoencoder: name it var_vq in "
      "--from"
    )
  config = saved_config(source.path, presets.VqConfig)
  if config is None or _TABLE not in source.names():
    raise WeightsError(
      f"{source.path} holds no VQ autoencoder: expected params/{_TABLE} and "
      "its settings; correct --from"
    )
  if config.stem != 1 or config.groups != _GROUPS:
    raise WeightsError(
      f"{source.path}: stem={config.stem} and groups={config.groups}; VQGAN "
      f"and LlamaGen have stem=1 and groups={_GROUPS}: only such can be "
      "written"
    )
  format_ = autoencoder.LLAMAGEN if config.normalised else autoencoder.COMPVIS
  return Recipe(
    kind="vq",
    found=f"VQ autoencoder, {_name(format_)} names",
    rows=_rows(format_, config),
    like=_like(config),
  )


def _name(format_: int) -> str:
  return "VQGAN" if format_ == autoencoder.COMPVIS else "LlamaGen"


def _rows(format_: int, config: presets.VqConfig) -> list[Row]:
  levels = len(config.multipliers)
  return [
    *autoencoder.rows(format_, _ROOT, levels, autoencoder.POINT),
    Row(_CODEBOOK, _TABLE, "k e"),
  ]


def _like(config: presets.VqConfig) -> dict[str, tuple[int, ...]]:
  """Path → shape of all our parameters."""
  side = config.factor
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return parameter_shapes(VqVae(config), _ROOT, images)


def saved_config(path: str, kind: type) -> Any:
  """The network that an import, a run or a run's copy wrote down.

  Args:
    path: of a checkpoint.
    kind: `presets.VqConfig` or one like it; what is returned, or None.
  """
  steps = checkpoint.steps(path)
  meta: dict[str, Any] = checkpoint.read_meta(path, steps[-1]) if steps else {}
  if "config" in meta:
    node = meta["config"]["model"].get("vq")
    return node and freeze.build(kind, node, "config.model.vq", PRESETS)
  values = dict(meta.get("weights", meta).get("vq", {}))
  if not values:
    return None
  tuples = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
  return kind(**values | tuples)
