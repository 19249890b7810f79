"""Settings of Llama, Qwen2 and Chameleon decoders, from and to config.json.

Keys and what silence means: transformers configuration_llama.py, _qwen2.py and
_chameleon.py, with the flat rotary keys of released files and the
`rope_parameters` of newer saves.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unifluid_jax.core import checkpoint, freeze
from unifluid_jax.core.config import PRESETS
from unifluid_jax.core.presets import DECODER, DecoderConfig
from unifluid_jax.weights.rows import WeightsError
from unifluid_jax.weights.settings import (
  Settings,
  check_depth,
  config_beside,
  config_file,
  differences,
)

# Kind, as config.json calls it too → our settings that it always has.
KINDS: Mapping[str, Mapping[str, Any]] = {
  "llama": {},
  "qwen2": {"qkv_bias": True},
  "chameleon": {"qk_norm": True, "qk_norm_kind": "layer"},
}
FAMILY = {"activation": "silu", "norm": "llama", "scale_embedding": False}
_ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "chameleon": "ChameleonForConditionalGeneration",
}
# Its LayerNorms have this epsilon whatever config.json says.
_CHAMELEON_EPSILON = 1e-5
# Wavelengths that Llama 3 stretches in part, as ops/attention.py has them.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def read(
  path: str,
  kind: str,
  depth: int,
  part: str = "",
  silent: Mapping[str, Any] | None = None,
) -> DecoderConfig:
  """The decoder that config.json beside the weights describes.

  Tensors tell neither the size of a head nor the rotations, and models of one
  shape differ in both: SmolLM and SmolLM2, Llama 1 and 2.

  Args:
    path: of the weights.
    kind: one of `KINDS`.
    depth: layers that the weights hold.
    part: key of the decoder's settings in that of a larger model.
    silent: settings that files of this kind leave out; None: they do not.

  Raises:
    WeightsError: there is no config.json, it is of another kind, or it asks
      for what this decoder does not compute.
  """
  tree = config_beside(path, part)
  if not tree:
    raise WeightsError(
      f"{path}: expected config.json beside it, which tells heads, rotations "
      "and epsilon: copy it there"
    )
  tree = {**(silent or {}), **tree}
  where = f"{config_file(path)}{f': {part}' if part else ''}"
  found = str(tree.get("model_type"))[:80]
  if found != kind:
    alone = found in KINDS and not part
    fix = f"name it --from={found}:..." if alone else "correct --from"
    raise WeightsError(
      f"{where}: model_type: expected {kind}, found {found}: {fix}"
    )
  content = Settings(where, tree)
  check_depth(path, depth, part, (silent or {}).get("num_hidden_layers", 0))
  _check_fixed(kind, content)
  width = content.whole("hidden_size")
  heads = content.whole("num_attention_heads")
  kv_heads = content.whole("num_key_value_heads", heads)
  head_dim = content.whole("head_dim", max(width // heads, 1))
  if heads % kv_heads:
    raise content.error("num_key_value_heads", f"a divisor of {heads}")
  if head_dim % 2:
    raise content.error("head_dim", f"an even number, not {head_dim}")
  swin = bool(tree.get("swin_norm")) and kind == "chameleon"
  silent = _CHAMELEON_EPSILON if kind == "chameleon" else 1e-6
  return DecoderConfig(
    vocab=content.whole("vocab_size"),
    width=width,
    depth=depth,
    mlp=content.whole("intermediate_size"),
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    norm_epsilon=content.number("rms_norm_eps", silent),
    tied=bool(tree.get("tie_word_embeddings", False)),
    pre_norms=not swin,
    post_norms=swin,
    **KINDS[kind],
    **FAMILY,
    **_rotation(content),
  )


def published(config: DecoderConfig) -> str | None:
  """Key of presets.DECODER that is the same but for the vocabulary."""
  for name, preset in DECODER.items():
    if dataclasses.replace(preset, vocab=config.vocab) == config:
      return name
  return None


def kind_of(config: DecoderConfig) -> str:
  """Which of `KINDS` a decoder of this family is."""
  if config.qk_norm:
    return "chameleon"
  return "qwen2" if config.qkv_bias else "llama"


def saved(path: str) -> DecoderConfig | None:
  """The decoder that an import or a run wrote down; None without."""
  steps = checkpoint.steps(path)
  meta = checkpoint.read_meta(path, steps[-1]) if steps else {}
  if "weights" in meta:
    values = dict(meta["weights"].get("decoder", {}))
    if "pattern" in values:
      values["pattern"] = tuple(values["pattern"])
    return DecoderConfig(**values) if values else None
  if "config" not in meta:
    return None
  node = meta["config"]["model"].get("decoder")
  return node and freeze.build(
    DecoderConfig, node, "config.model.decoder", PRESETS
  )


def check_writable(path: str, kind: str, config: DecoderConfig) -> None:
  """Whether transformers' model of this kind computes what ours does.

  Args:
    path: of the checkpoint, for messages.
    kind: one of `KINDS`.
    config: of the checkpoint's decoder.

  Raises:
    WeightsError: it does not.
  """
  swin = kind == "chameleon" and config.post_norms
  wanted = {
    **FAMILY, "query_scale": None, "attn_softcap": 0.0, "final_softcap": 0.0,
    "window": 0, "qk_norm": False, "qkv_bias": False, "post_norms": swin,
    "pre_norms": not swin, **KINDS[kind],
  }  # fmt: skip
  if "local" in config.pattern:  # whose rotations are not scaled
    wanted |= {"rope_base": config.rope_base_global, "rope_scale_global": 1.0}
  if kind == "chameleon":
    wanted["norm_epsilon"] = _CHAMELEON_EPSILON
  if wrong := differences(config, wanted):
    raise WeightsError(
      f"{path}: transformers' {kind} cannot compute its decoder: "
      f"{wrong}: correct the kind in --from"
    )


def write(kind: str, config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json that transformers needs.

  Chameleon's lacks its image tokenizer, so only its text model loads from it.
  """
  tree = {
    "architectures": [_ARCHITECTURES[kind]],
    "model_type": kind,
    "vocab_size": config.vocab,
    "hidden_size": config.width,
    "intermediate_size": config.mlp,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "hidden_act": "silu",
    "rms_norm_eps": config.norm_epsilon,
    "rope_theta": config.rope_base_global,
    "rope_scaling": _rope_scaling(config),
    "tie_word_embeddings": config.tied,
  }
  if config.head_dim * config.heads != config.width:
    tree["head_dim"] = config.head_dim
  if kind == "chameleon":
    tree["swin_norm"] = config.post_norms
  return tree


def _rope_scaling(config):
  if config.rope_original_length:
    return {
      "rope_type": "llama3", "factor": config.rope_scale_global, **_LLAMA3,
      "original_max_position_embeddings": config.rope_original_length,
    }  # fmt: skip
  if config.rope_scale_global != 1:
    return {"rope_type": "linear", "factor": config.rope_scale_global}
  return None


def _check_fixed(kind, content):
  """What this decoder computes in one way alone."""
  tree = content.tree
  if tree.get("hidden_act", "silu") != "silu":
    raise content.error("hidden_act", "silu")
  for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
    if tree.get(key):
      raise content.error(key, "false")
  kinds = tree.get("layer_types", [])
  if not isinstance(kinds, list) or any(k != "full_attention" for k in kinds):
    raise content.error("layer_types", "full_attention alone")
  epsilon = content.number("rms_norm_eps", _CHAMELEON_EPSILON)
  if kind == "chameleon" and epsilon != _CHAMELEON_EPSILON:
    raise content.error("rms_norm_eps", "1e-05")
  if tree.get("swin_norm") and kind != "chameleon":
    raise content.error("swin_norm", "false")


def _rotation(content):
  """Base, scale and original length of the rotations."""
  tree = content.tree
  new = tree.get("rope_parameters")
  key = "rope_scaling" if new is None else "rope_parameters"
  node = tree.get(key) or {}
  if not isinstance(node, dict):
    raise content.error(key, "a table")
  flat = content.number("rope_theta", 1e4, least=1.0)
  theta = node.get("rope_theta")
  base = flat if theta is None else content.real(key, theta, 1.0)
  scale, original = 1.0, 0
  kind = node.get("rope_type", node.get("type", "default"))
  if kind in ("linear", "llama3"):
    scale = content.real(key, node.get("factor"), 1e-3)
  if kind == "llama3":
    if any(node.get(name) != value for name, value in _LLAMA3.items()):
      raise content.error(key, f"{_LLAMA3}")
    original = node.get("original_max_position_embeddings")
    if type(original) is not int or not 1 <= original < 2**31:
      raise content.error(key, "original_max_position_embeddings above 0")
  elif kind not in ("default", "linear"):
    raise content.error(key, "a rope_type of default, linear or llama3")
  for place in (node, tree):
    if place.get("partial_rotary_factor", 1) != 1:
      raise content.error(key, "a partial_rotary_factor of 1")
  return {
    "rope_base": base, "rope_base_global": base, "rope_scale_global": scale,
    "rope_original_length": original,
  }  # fmt: skip
