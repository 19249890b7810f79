"""VAR's transformers under the names of their releases (var_d16.pth, ...).

Source: FoundationVision/VAR models/var.py and basic_var.py, plain state dicts.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unifluid_jax.core import checkpoint, freeze, presets
from unifluid_jax.core.config import PRESETS
from unifluid_jax.models.scale_decoder import ScaleDecoder
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  count_layers,
  parameter_shapes,
  shape_of,
  wrong_kind,
)

_ROOT = "decoder"  # of our parameters
_FOUND = "VAR transformer"
_HEAD = 64  # width of a head in every published one

# Name of theirs, path of ours, layout. Axes: w width, n heads, h of a head,
# s parts side by side, d width again, f hidden width, v codes, z of a code.
_WHOLE = (
  ("pos_start", "start", "1 1 w -> w"),
  ("pos_1LC", "position", "1 l w -> l w"),
  ("lvl_embed.weight", "level", "k w"),
  ("class_emb.weight", "classes/table", "c w"),
  ("word_embed.weight", "words/kernel", "w z -> z w"),
  ("word_embed.bias", "words/bias", "w"),
  ("head_nm.ada_lin.1.weight", "head/modulation/kernel", "(s d) w -> w s d"),
  ("head_nm.ada_lin.1.bias", "head/modulation/bias", "(s d) -> s d"),
  ("head.weight", "head/kernel", "v w -> w v"),
  ("head.bias", "head/bias", "v"),
)
_LAYER = (
  ("attn.mat_qkv.weight", "attn/qkv", "(s n h) w -> w s n h"),
  ("attn.q_bias", "attn/q_bias", "(n h) -> n h"),
  ("attn.v_bias", "attn/v_bias", "(n h) -> n h"),
  ("attn.proj.weight", "attn/out/kernel", "w (n h) -> n h w"),
  ("attn.proj.bias", "attn/out/bias", "w"),
  ("ffn.fc1.weight", "mlp/up/kernel", "f w -> w f"),
  ("ffn.fc1.bias", "mlp/up/bias", "f"),
  ("ffn.fc2.weight", "mlp/down/kernel", "w f -> f w"),
  ("ffn.fc2.bias", "mlp/down/bias", "w"),
)
_TEMPERATURE = ("attn.scale_mul_1H11", "attn/temperature", "1 n 1 1 -> n")
_OWN = (  # modulations of each layer
  ("ada_lin.1.weight", "modulation/kernel", "(s d) w -> w s d"),
  ("ada_lin.1.bias", "modulation/bias", "(s d) -> s d"),
)
_OFFSET = ("ada_gss", "modulation/offset", "1 1 s d -> s d")
_SHARED = (
  ("shared_ada_lin.1.weight", "modulation/kernel", "(s d) w -> w s d"),
  ("shared_ada_lin.1.bias", "modulation/bias", "(s d) -> s d"),
)
_LEVELS = "lvl_1L"  # the scale of every slot


def rows(
  config: presets.ScaleDecoderConfig, root: str = _ROOT, prefix: str = ""
) -> list[Row]:
  """All names.

  Args:
    config: of the decoder.
    root: of our paths.
    prefix: before their names.
  """
  whole, layer = list(_WHOLE), list(_LAYER)
  if config.l2_norm:
    layer.append(_TEMPERATURE)
  if config.shared_adaln:
    whole += _SHARED
    layer.append(_OFFSET)
  else:
    layer += _OWN
  return [
    *(Row(f"{prefix}{a}", f"{root}/{b}", axes) for a, b, axes in whole),
    *(
      Row(f"{prefix}blocks.{{i}}.{a}", f"{root}/layers/{b}", axes)
      for a, b, axes in layer
    ),
  ]


def drops(prefix: str = "") -> tuple[Drop, ...]:
  """Buffers that follow from the scales."""
  return (
    Drop(f"{prefix}{_LEVELS}", "the scale of every slot"),
    Drop(f"{prefix}attn_bias_for_masking", "the mask of the scales"),
    Drop(f"{prefix}blocks.*.attn.zero_k_bias", "zeros: keys have no bias"),
  )


def config_of(source: Source, prefix: str = "") -> presets.ScaleDecoderConfig:
  """The decoder that the tensors' shapes tell.

  Scales are those that the file counts in its levels, else those of the preset
  with as many slots and scales. Drop path and initial gates, which no tensor
  tells, are those of the preset of this shape, else the defaults.

  Raises:
    WeightsError: tensors are missing, or scales that are not known.
  """
  names = set(source.names())
  width, channels = shape_of(source, f"{prefix}word_embed.weight", 2)
  codes, _ = shape_of(source, f"{prefix}head.weight", 2)
  class_rows, _ = shape_of(source, f"{prefix}class_emb.weight", 2)
  mlp, _ = shape_of(source, f"{prefix}blocks.0.ffn.fc1.weight", 2)
  temperature = f"{prefix}blocks.0.{_TEMPERATURE[0]}"
  l2_norm = temperature in names
  heads = shape_of(source, temperature, 4)[1] if l2_norm else width // _HEAD
  found = presets.ScaleDecoderConfig(
    width=width,
    depth=count_layers(source, f"{prefix}blocks.", "."),
    heads=heads,
    mlp=mlp,
    codes=codes,
    code_channels=channels,
    scales=_scales(source, prefix),
    classes=class_rows - 1,
    shared_adaln=f"{prefix}{_SHARED[0][0]}" in names,
    l2_norm=l2_norm,
  )
  for preset in presets.SCALE_DECODER.values():
    training = {k: getattr(preset, k) for k in ("drop_path", "gate_init")}
    if dataclasses.replace(found, **training) == preset:
      return preset
  return found


def _scales(source: Source, prefix: str) -> tuple[int, ...]:
  _, tokens, _ = shape_of(source, f"{prefix}pos_1LC", 3)
  count, _ = shape_of(source, f"{prefix}lvl_embed.weight", 2)
  levels = f"{prefix}{_LEVELS}"
  if levels in source.names() and source.shape(levels) == (1, tokens):
    numbers = np.asarray(source.read(levels)).astype(np.int64).reshape(-1)
    slots = np.bincount(numbers[(numbers >= 0) & (numbers < count)])
    sides = tuple(math.isqrt(n) for n in slots.tolist())
    if sum(s * s for s in sides) == tokens and len(sides) == count:
      return sides
  for preset in presets.SCALE_DECODER.values():
    if (preset.tokens, len(preset.scales)) == (tokens, count):
      return preset.scales
  raise WeightsError(
    f"{source.path}: {tokens} slots in {count} scales, and no tensor {levels} "
    "that tells the sides of these: take the file as VAR saved it"
  )


def recipe(source: Source) -> Recipe:
  """How to read a whole transformer; sizes come from the tensors.

  Raises:
    WeightsError: other names, or tensors are missing.
  """
  if "blocks.0.attn.mat_qkv.weight" not in source.names():
    raise wrong_kind(source, _FOUND, "blocks.0.attn.mat_qkv.weight")
  config = config_of(source)
  preset = next(
    (k for k, v in presets.SCALE_DECODER.items() if v == config), ""
  )
  return Recipe(
    kind="var",
    found=f"{_FOUND} ({preset or 'no preset'}: {config.depth} layers x "
    f"{config.width}, {config.tokens} slots), VAR's names",
    rows=rows(config),
    like=like(config),
    drops=drops(),
    meta={"preset": preset, "scale_decoder": dataclasses.asdict(config)},
  )


def hf_recipe(source: Source) -> Recipe:
  """The way back, without buffers: load it with strict=False.

  Args:
    source: our parameters, named by their paths: "decoder/layers/...".

  Raises:
    WeightsError: no scale decoder.
  """
  config = _saved_config(source.path)
  if config is None or f"{_ROOT}/layers/attn/qkv" not in source.names():
    raise WeightsError(
      f"{source.path} holds no {_FOUND}: expected params/{_ROOT}/layers/attn/"
      "qkv and its settings; correct --from"
    )
  return Recipe(
    kind="var",
    found=f"{_FOUND}, VAR's names",
    rows=rows(config),
    like=like(config),
  )


def like(
  config: presets.ScaleDecoderConfig, root: str = _ROOT
) -> dict[str, tuple[int, ...]]:
  """Path → shape of all our parameters."""
  inputs = jax.ShapeDtypeStruct((1, 1, config.code_channels), jnp.float32)
  cond = jax.ShapeDtypeStruct((1, config.width), jnp.float32)
  return parameter_shapes(ScaleDecoder(config), root, inputs, cond)


def _saved_config(path: str) -> presets.ScaleDecoderConfig | None:
  """The network that an import or a run wrote down."""
  steps = checkpoint.steps(path)
  meta: dict[str, Any] = checkpoint.read_meta(path, steps[-1]) if steps else {}
  if "config" in meta:
    if meta["config"].get("system") != "var":
      return None
    return freeze.build(
      presets.ScaleDecoderConfig, meta["config"]["model"]["decoder"],
      "config.model.decoder", PRESETS,
    )  # fmt: skip
  values = dict(meta.get("weights", {}).get("scale_decoder", {}))
  if not values:
    return None
  return presets.ScaleDecoderConfig(
    **values | {"scales": tuple(values["scales"])}
  )
