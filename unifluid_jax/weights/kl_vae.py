"""KL autoencoders under the names of diffusers, and of CompVis and MAR.

Sources: diffusers' AutoencoderKL, CompVis ldm/models/autoencoder.py, MAR
models/vae.py. The names are those of `autoencoder`.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unifluid_jax.core import checkpoint, freeze, presets
from unifluid_jax.core.config import PRESETS
from unifluid_jax.models.kl_vae import KlVae
from unifluid_jax.weights import autoencoder
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Source,
  WeightsError,
  parameter_shapes,
  wrong_kind,
)
from unifluid_jax.weights.settings import (
  Settings,
  config_beside,
  config_file,
  number_beside,
)
from unifluid_jax.weights.untrusted import read_json

_ROOT = "vae"  # of our parameters
_STATS = "latents.json"  # as codecs/copies.py reads it
_PREFIX = "first_stage_model."  # of the autoencoder in a whole model

_DROPS = (
  Drop("loss.*", "training loss and discriminator"),
  Drop(f"{_PREFIX}loss.*", "training loss and discriminator"),
  *(
    Drop(pattern, "part of the diffusion model, not of its autoencoder")
    for pattern in (
      "model.*", "model_ema.*", "cond_stage_model.*", "betas", "alphas_*",
      "sqrt_*", "log_one_minus_*", "posterior_*", "logvar", "lvlb_weights",
      "scale_factor",
    )
  ),
)  # fmt: skip


def recipe(source: Source) -> Recipe:
  """How to read an autoencoder of the Stable-Diffusion family.

  Widths and depth come from the tensors. The number of groups and the
  latents' scale do not show in them: they come from diffusers' config.json
  beside the file, else from the published size of the same shape. Failing
  both, groups are 32 and the scale has to be measured.

  Raises:
    WeightsError: neither format's names, shapes of another family, or
      config.json asks for another activation.
  """
  names = set(source.names())
  prefix = _PREFIX if f"{_PREFIX}encoder.conv_in.weight" in names else ""
  format_ = autoencoder.format_of(source, prefix)
  if format_ in (None, autoencoder.LLAMAGEN):
    expected = (
      "encoder.conv_in.weight with encoder.mid_block.* (diffusers) or "
      "encoder.mid.* (CompVis, MAR)"
    )
    raise wrong_kind(source, "KL autoencoder", expected)
  settings = _settings(source.path)
  if settings.get("act_fn", "silu") not in ("silu", "swish"):
    content = Settings(str(config_file(source.path)), settings)
    raise content.error("act_fn", "silu")
  probes = [prefix + probe for probe in autoencoder.PROBES[format_]]
  groups = 32
  if settings:
    groups = number_beside(source.path, "norm_num_groups") or groups
  sizes = autoencoder.sizes(source, probes, groups)
  config, preset = _with_scale(presets.VaeConfig(**sizes), settings)
  query = f"{prefix}encoder.mid_block.attentions.0.query.weight"
  point = format_ == autoencoder.COMPVIS or (
    query in names and len(source.shape(query)) == 4
  )
  scale = config.latent_scale
  return Recipe(
    kind="kl_vae",
    found=f"KL autoencoder ({preset or 'no preset'}, latent scale "
    f"{scale or 'unknown'}), {autoencoder.NAMES[format_]} names",
    rows=autoencoder.rows(
      format_,
      _ROOT,
      len(config.multipliers),
      autoencoder.POINT if point else autoencoder.DENSE,
      prefix,
    ),
    like=_like(config),
    drops=_DROPS,
    meta={"preset": preset, "vae": dataclasses.asdict(config)},
    files={
      _STATS: {"mean": config.latent_mean or 0.0, "scale": scale}
    } if scale else {},
  )  # fmt: skip


def hf_recipe(source: Source) -> Recipe:
  """How diffusers names one of our autoencoders, for the way back.

  The JSON saved beside a checkpoint tells groups and latent statistics, and
  so allows a config.json, without which diffusers reads no file.

  Args:
    source: our parameters, named by their paths: "vae/encoder/...".

  Raises:
    WeightsError: not an autoencoder, or one that diffusers cannot hold.
  """
  probes = [f"{_ROOT}/{probe}" for probe in autoencoder.OUR_PROBES]
  sizes = autoencoder.sizes(source, probes, groups=1)
  shape = presets.VaeConfig(**sizes)
  pixels = source.shape("vae/encoder/conv_in/kernel")[2]
  if pixels != 3:
    raise WeightsError(
      f"{source.path}: its first layer reads {pixels} channels, diffusers' "
      "AutoencoderKL reads 3: only autoencoders with stem=1 can be written"
    )
  saved = _saved_config(source.path)
  return Recipe(
    kind="kl_vae",
    found="KL autoencoder, diffusers names",
    rows=autoencoder.rows(
      autoencoder.DIFFUSERS, _ROOT, len(shape.multipliers), autoencoder.DENSE
    ),
    like=_like(shape),
    files={"config.json": hf_config(saved)} if saved else {},
  )


def hf_config(config: presets.VaeConfig) -> dict[str, Any]:
  """diffusers' config.json of an autoencoder, without which it reads none."""
  last = len(config.multipliers) - 1
  ends = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
  starts = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
  return {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [config.base * m for m in config.multipliers],
    "down_block_types": [ends[0]] * last + [ends[config.encoder_attention]],
    "up_block_types": [starts[config.decoder_attention]] + [starts[0]] * last,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": config.latent,
    "layers_per_block": config.blocks,
    "mid_block_add_attention": config.attention,
    "norm_num_groups": config.groups,
    "scaling_factor": config.latent_scale,
    "shift_factor": config.latent_mean or None,
  }


def _saved_config(path: str) -> presets.VaeConfig | None:
  """The autoencoder that an import or a run wrote down, with its scale."""
  steps = checkpoint.steps(path)
  if not steps:
    return None
  meta = checkpoint.read_meta(path, steps[-1])
  if "weights" in meta:
    vae = dict(meta["weights"]["vae"])
    vae["multipliers"] = tuple(vae["multipliers"])
    config = presets.VaeConfig(**vae)
  else:
    saved = meta["config"]["model"]["vae"]
    config = freeze.build(presets.VaeConfig, saved, "config.model.vae", PRESETS)
  measured = os.path.join(path, _STATS)
  if config.latent_scale is None and os.path.exists(measured):
    stats = _read_json(measured)
    config = dataclasses.replace(
      config, latent_mean=stats["mean"], latent_scale=stats["scale"]
    )
  return config


def _settings(path: str) -> dict[str, Any]:
  """diffusers' config.json beside a file or in a directory; {} without."""
  settings = config_beside(path)
  return settings if "latent_channels" in settings else {}


def _read_json(file: str) -> dict[str, Any]:
  try:
    return read_json(file)
  except WeightsError:
    raise
  except ValueError as e:
    raise WeightsError(
      f"{file}: expected settings, found no JSON ({e}): download it again or "
      "remove it"
    ) from e


def _with_scale(
  config: presets.VaeConfig, settings: Mapping[str, Any]
) -> tuple[presets.VaeConfig, str]:
  """Latent statistics, and the preset that is the same in all; "" if none."""
  if settings.get("scaling_factor"):
    config = dataclasses.replace(
      config,
      latent_mean=float(settings.get("shift_factor") or 0.0),
      latent_scale=float(settings["scaling_factor"]),
    )
  for name, preset in presets.VAE.items():
    stats = {"latent_mean": None, "latent_scale": None}
    if config == preset or config == dataclasses.replace(preset, **stats):
      return preset, name
  return config, ""


def _like(config: presets.VaeConfig) -> dict[str, tuple[int, ...]]:
  """Path → shape of all our parameters."""
  side = config.factor
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return parameter_shapes(KlVae(config), _ROOT, images)
