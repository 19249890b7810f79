"""KL autoencoders: diffusers' names, and those of CompVis and MAR.

Sources: diffusers' AutoencoderKL, whose attention names changed once; CompVis
ldm/modules/diffusionmodules/model.py and MAR models/vae.py, which count the
decoder's levels from the highest resolution and attend by 1 x 1 convolutions.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from unifluid_jax.core import checkpoint, freeze, presets
from unifluid_jax.core.config import PRESETS
from unifluid_jax.models.kl_vae import KlVae
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  parameter_shapes,
  wrong_kind,
)
from unifluid_jax.weights.settings import config_beside, number_beside
from unifluid_jax.weights.untrusted import read_json

# What modules of ours are called by diffusers and by CompVis. {s} is encoder
# or decoder, {i} and {j} are numbers, {r} counts levels from the other end.
_CONVS = (
  ("quant_conv", "quant_conv", "quant_conv"),
  ("post_quant_conv", "post_quant_conv", "post_quant_conv"),
  ("{s}/conv_in", "{s}.conv_in", "{s}.conv_in"),
  (
    "encoder/down_{i}/downsample",
    "encoder.down_blocks.{i}.downsamplers.0.conv",
    "encoder.down.{i}.downsample.conv",
  ),
  (
    "decoder/up_{i}/upsample",
    "decoder.up_blocks.{i}.upsamplers.0.conv",
    "decoder.up.{r}.upsample.conv",
  ),
  ("{s}/conv_out", "{s}.conv_out", "{s}.conv_out"),
)
_NORMS = (("{s}/norm_out", "{s}.conv_norm_out", "{s}.norm_out"),)
_RESNETS = (
  (
    "encoder/down_{i}/resnet_{j}",
    "encoder.down_blocks.{i}.resnets.{j}",
    "encoder.down.{i}.block.{j}",
  ),
  ("{s}/mid/resnet_0", "{s}.mid_block.resnets.0", "{s}.mid.block_1"),
  ("{s}/mid/resnet_1", "{s}.mid_block.resnets.1", "{s}.mid.block_2"),
  (
    "decoder/up_{i}/resnet_{j}",
    "decoder.up_blocks.{i}.resnets.{j}",
    "decoder.up.{r}.block.{j}",
  ),
)
_ATTENTIONS = (
  ("{s}/mid/attention", "{s}.mid_block.attentions.0", "{s}.mid.attn_1"),
  (
    "encoder/down_{i}/attention_{j}",
    "encoder.down_blocks.{i}.attentions.{j}",
    "encoder.down.{i}.attn.{j}",
  ),
)

# Layers of a block: ours, diffusers', diffusers' until 0.17, CompVis'.
_OF_RESNET = (
  ("norm1", "norm1", "norm1", "norm1"),
  ("conv1", "conv1", "conv1", "conv1"),
  ("norm2", "norm2", "norm2", "norm2"),
  ("conv2", "conv2", "conv2", "conv2"),
  ("shortcut", "conv_shortcut", "conv_shortcut", "nin_shortcut"),
)
_OF_ATTENTION = (
  ("norm", "group_norm", "group_norm", "norm"),
  ("q", "to_q", "query", "q"),
  ("k", "to_k", "key", "k"),
  ("v", "to_v", "value", "v"),
  ("out", "to_out.0", "proj_attn", "proj_out"),
)

# The tensors that tell the sizes: blocks of a level, attention in a level, in
# the middle, the first layer, the latent's. Ours, diffusers', CompVis'.
_PROBES = (
  (
    "vae/encoder/down_{}/resnet_{}/conv1/bias",
    "vae/encoder/down_{}/attention_0/norm/bias",
    "vae/encoder/mid/attention/norm/bias",
    "vae/encoder/conv_in/bias",
    "vae/post_quant_conv/bias",
  ),
  (
    "encoder.down_blocks.{}.resnets.{}.conv1.bias",
    "encoder.down_blocks.{}.attentions.0.group_norm.bias",
    "encoder.mid_block.attentions.0.group_norm.bias",
    "encoder.conv_in.bias",
    "post_quant_conv.bias",
  ),
  (
    "encoder.down.{}.block.{}.conv1.bias",
    "encoder.down.{}.attn.0.norm.bias",
    "encoder.mid.attn_1.norm.bias",
    "encoder.conv_in.bias",
    "post_quant_conv.bias",
  ),
)

_CONV, _POINT = "o i h w -> h w i o", "o i 1 1 -> i o"
_DENSE, _VECTOR = "o i -> i o", "c"

_FORMATS = ("diffusers", "older diffusers", "CompVis")
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
    WeightsError: neither format's names, or shapes of another family.
  """
  names = set(source.names())
  prefix = _PREFIX if f"{_PREFIX}encoder.conv_in.weight" in names else ""
  format_ = _format(names, prefix)
  if format_ is None:
    expected = (
      "encoder.conv_in.weight with encoder.mid_block.* (diffusers) or "
      "encoder.mid.* (CompVis, MAR)"
    )
    raise wrong_kind(source, "KL autoencoder", expected)
  settings = _settings(source.path)
  probes = _PROBES[1 + format_ // 2]
  groups = 32
  if settings:
    groups = number_beside(source.path, "norm_num_groups") or groups
  config = _config(source, [prefix + probe for probe in probes], groups)
  config, preset = _with_scale(config, settings)
  query = f"{prefix}encoder.mid_block.attentions.0.query.weight"
  point = format_ == 2 or (query in names and len(source.shape(query)) == 4)
  scale = config.latent_scale
  return Recipe(
    kind="kl_vae",
    found=f"KL autoencoder ({preset or 'no preset'}, latent scale "
    f"{scale or 'unknown'}), {_FORMATS[format_]} names",
    rows=_rows(
      format_, prefix, len(config.multipliers), _POINT if point else _DENSE
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
  shape = _config(source, _PROBES[0], groups=1)
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
    rows=_rows(0, "", len(shape.multipliers), _DENSE),
    like=_like(shape),
    files={"config.json": hf_config(saved)} if saved else {},
  )


def hf_config(config: presets.VaeConfig) -> dict[str, Any]:
  """diffusers' config.json of an autoencoder, without which it reads none."""
  last = len(config.multipliers) - 1
  ends = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
  return {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [config.base * m for m in config.multipliers],
    "down_block_types": [ends[0]] * last + [ends[config.encoder_attention]],
    "up_block_types": ["UpDecoderBlock2D"] * (last + 1),
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


def _format(names: set[str], prefix: str) -> int | None:
  """Which column of the tables the names follow."""
  if f"{prefix}encoder.conv_in.weight" not in names:
    return None
  if f"{prefix}encoder.mid.block_1.conv1.weight" in names:
    return 2
  if f"{prefix}encoder.mid_block.resnets.0.conv1.weight" not in names:
    return None
  return int(any(name.endswith(".proj_attn.weight") for name in names))


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


def _config(
  source: Source, probes: Sequence[str], groups: int
) -> presets.VaeConfig:
  """Sizes by the shapes of the tensors that `_PROBES` names."""
  names = set(source.names())

  def width(name: str) -> int:
    return math.prod(source.shape(name)) if name in names else 0

  def count(width_of: Callable[[int], int]) -> list[int]:
    return list(itertools.takewhile(bool, map(width_of, itertools.count())))

  block, level_attention, attention, first, latent = probes
  base, widths = width(first), count(lambda i: width(block.format(i, 0)))
  if not base or not widths or not width(latent):
    raise WeightsError(
      f"{source.path}: expected {first}, {block.format(0, 0)} and {latent}, "
      f"found widths {base}, {widths}, {width(latent)}: the file lacks "
      "tensors, download it again"
    )
  odd = [w for w in (base, *widths) if w % base or w % groups]
  if odd:
    raise WeightsError(
      f"{source.path}: {odd[0]} channels are no multiple of {base} (the first "
      f"layer's) and of {groups} groups; put diffusers' config.json with its "
      "norm_num_groups beside the file"
    )
  return presets.VaeConfig(
    base=base,
    multipliers=tuple(w // base for w in widths),
    blocks=len(count(lambda j: width(block.format(0, j)))),
    latent=width(latent),
    attention=attention in names,
    encoder_attention=level_attention.format(len(widths) - 1) in names,
    groups=groups,
  )


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
  return parameter_shapes(KlVae(config), "vae", images)


def _rows(format_: int, prefix: str, levels: int, attention: str) -> list[Row]:
  """All rows in one format; `attention` is the layout of its matrices."""

  def leaves(theirs: str, ours: str, kernel: str) -> list[Row]:
    name = "kernel" if kernel else "scale"
    return [
      Row(f"{prefix}{theirs}.weight", f"vae/{ours}/{name}", kernel or _VECTOR),
      Row(f"{prefix}{theirs}.bias", f"vae/{ours}/bias", _VECTOR),
    ]

  rows = []
  for modules, layers, kernel in (
    (_CONVS, (), _CONV),
    (_NORMS, (), ""),
    (_RESNETS, _OF_RESNET, _CONV),
    (_ATTENTIONS, _OF_ATTENTION, attention),
  ):
    for ours, theirs in _modules(modules, format_, levels):
      if not layers:
        rows += leaves(theirs, ours, kernel)
      for layer, *names in layers:
        rows += leaves(
          f"{theirs}.{names[format_]}",
          f"{ours}/{layer}",
          "" if layer.startswith("norm") else kernel,
        )
  return rows


def _modules(
  table: Sequence[tuple[str, str, str]], format_: int, levels: int
) -> Iterator[tuple[str, str]]:
  """Our and their names, with the sides and reversed levels filled in."""
  for ours, *columns in table:
    theirs = columns[format_ // 2]
    for side in ("encoder", "decoder") if "{s}" in ours else ("",):
      pair = ours.replace("{s}", side), theirs.replace("{s}", side)
      if "{r}" not in theirs:
        yield pair
        continue
      for i in range(levels):
        r = str(levels - 1 - i)
        yield pair[0].replace("{i}", str(i)), pair[1].replace("{r}", r)
