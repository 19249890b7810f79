"""Settings of a Gemma that its tensors do not tell, from and to config.json.

Keys: transformers configuration_gemma.py, _gemma2.py, _gemma3.py, with the
flat rotary keys of released files and the `rope_parameters` of newer saves.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from unifluid_jax.core import checkpoint
from unifluid_jax.core.presets import GEMMA, DecoderConfig
from unifluid_jax.weights import llama_settings
from unifluid_jax.weights.rows import WeightsError
from unifluid_jax.weights.settings import (
  Settings,
  config_beside,
  config_file,
  differences,
)

SHAPE = ("vocab", "width", "depth", "mlp", "heads", "kv_heads", "head_dim")
_LAYERS = {"sliding_attention": "local", "full_attention": "global"}
_ARCHITECTURES = {
  1: ("gemma", "GemmaForCausalLM"),
  2: ("gemma2", "Gemma2ForCausalLM"),
  3: ("gemma3_text", "Gemma3ForCausalLM"),
}
# What transformers assumes where a configuration is silent, by generation.
_SILENT: Mapping[int, Mapping[str, Any]] = {
  1: {},
  2: dict(
    query_scale=1 / 16, attn_softcap=50.0, final_softcap=30.0, window=4096,
    pattern=("local", "global"),
  ),
  3: dict(
    query_scale=1 / 16, window=4096, pattern=("local",) * 5 + ("global",),
    rope_base_global=1e6,
  ),
}  # fmt: skip


def complete(path: str, config: DecoderConfig) -> DecoderConfig:
  """Adds what the preset of these shapes says, and config.json over it.

  Args:
    path: of the weights.
    config: shapes and generation, as the tensors tell.

  Raises:
    WeightsError: config.json contradicts the tensors, or asks for what this
      decoder does not compute.
  """
  content = Settings(str(config_file(path)), config_beside(path, "text_config"))
  name = published(config)
  if name:
    known = dataclasses.replace(
      GEMMA[name], **{key: getattr(config, key) for key in SHAPE}
    )
  elif content.tree:
    known = dataclasses.replace(config, **_SILENT[generation(config)])
  else:
    return config
  return _override(known, content) if content.tree else known


def describe(path: str, config: DecoderConfig) -> dict[str, Any]:
  """What is known of a decoder, as JSON: shapes alone, or all settings."""
  kept = dataclasses.asdict(config)
  del kept["dropout"]  # of a run, not of weights
  if not published(config) and not config_beside(path, "text_config"):
    return {key: kept[key] for key in SHAPE}
  return kept


def files_of(path: str) -> dict[str, Any]:
  """config.json of the decoder that a run or a conversion wrote down.

  Returns:
    File name → content; nothing where its settings are not known.

  Raises:
    WeightsError: transformers' Gemma cannot compute what it does.
  """
  steps = checkpoint.steps(path)
  meta = checkpoint.read_meta(path, steps[-1]) if steps else {}
  shapes_alone = set((meta.get("weights") or {}).get("decoder", {})) == {*SHAPE}
  config = None if shapes_alone else llama_settings.saved(path)
  if config is None:
    return {}
  check_writable(path, config)
  return {"config.json": write(config)}


def check_writable(path: str, config: DecoderConfig) -> None:
  """Whether transformers' Gemma of this generation computes what ours does.

  Args:
    path: of the checkpoint, for messages.
    config: of its decoder.

  Raises:
    WeightsError: it does not.
  """
  number = generation(config)
  wanted = {
    "activation": "gelu_tanh", "norm": "gemma", "norm_epsilon": 1e-6,
    "pre_norms": True, "post_norms": number > 1, "qkv_bias": False,
    "qk_norm_kind": "rms", "scale_embedding": True, "tied": True,
    "rope_original_length": 0,
  }  # fmt: skip
  if number == 1:
    wanted |= {"query_scale": None, "attn_softcap": 0.0, "final_softcap": 0.0}
    wanted |= {"pattern": ("global",)}
  if number < 3:
    wanted |= {"rope_base": config.rope_base_global}
  if number == 3:
    wanted |= {"attn_softcap": 0.0}  # transformers never reads its key
  if number > 1 and "local" in config.pattern:
    wanted |= {"window": config.window or "1 or more"}
    if number == 2:  # where sliding layers are scaled too
      wanted |= {"rope_scale_global": 1.0}
  if wrong := differences(config, wanted):
    raise WeightsError(
      f"{path}: transformers' Gemma {number} cannot compute its decoder: "
      f"{wrong}"
    )


def write(config: DecoderConfig) -> dict[str, Any]:
  """The content of config.json that transformers needs."""
  number = generation(config)
  name, architecture = _ARCHITECTURES[number]
  scale = config.rope_scale_global
  scaling = {"rope_type": "linear", "factor": scale} if scale != 1 else None
  tree = {
    "architectures": [architecture],
    "model_type": name,
    "vocab_size": config.vocab,
    "hidden_size": config.width,
    "intermediate_size": config.mlp,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_dim,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": config.norm_epsilon,
    "rope_theta": config.rope_base_global,
    "rope_scaling": scaling,
    "attention_bias": False,
    "tie_word_embeddings": True,
  }
  if number == 1:
    return tree | {"hidden_act": "gelu_pytorch_tanh"}
  kinds = {ours: theirs for theirs, ours in _LAYERS.items()}
  pattern = config.pattern
  tree |= {
    "query_pre_attn_scalar": _query_scalar(config),
    "attn_logit_softcapping": config.attn_softcap or None,
    "final_logit_softcapping": config.final_softcap or None,
    "sliding_window": config.window or None,
    "layer_types": [
      kinds[pattern[i % len(pattern)]] for i in range(config.depth)
    ],
  }
  if number == 3:
    tree["rope_local_base_freq"] = config.rope_base
  return tree


def _query_scalar(config: DecoderConfig) -> int | float:
  """query_scale ** -2, whole where rounding alone keeps it from being so."""
  if config.query_scale is None:
    return config.head_dim
  scalar = config.query_scale**-2
  whole = round(scalar)
  return whole if math.isclose(scalar, whole, rel_tol=1e-12) else scalar


def differing(config: DecoderConfig) -> list[str]:
  """Settings in which it differs from the preset of its shapes."""
  name = published(config)
  if not name:
    return []
  return [
    f"{f.name} {_shown(getattr(config, f.name))}"
    for f in dataclasses.fields(config)
    if f.name != "vocab"
    and getattr(config, f.name) != getattr(GEMMA[name], f.name)
  ]


def published(config: DecoderConfig) -> str | None:
  """Key of presets.GEMMA with these shapes, whatever the vocabulary."""
  shape = _shape(config)
  return next((k for k, v in GEMMA.items() if _shape(v) == shape), None)


def generation(config: DecoderConfig) -> int:
  """1 to 3."""
  return 1 + config.post_norms + config.qk_norm


def _shape(config):
  norms = (config.post_norms, config.qk_norm)
  return (*(getattr(config, key) for key in SHAPE[1:]), *norms)


def _shown(value):
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def _override(known: DecoderConfig, content: Settings) -> DecoderConfig:
  """The settings with what config.json says in their place."""
  _check_sizes(known, content)
  _check_fixed(content)
  if generation(known) == 3 and content.tree.get("use_bidirectional_attention"):
    # Its windows are others too. In PaliGemma 1 and 2 it means the prefix.
    raise content.error("use_bidirectional_attention", "false")
  values, local_scale = _rotary(known, content)
  if generation(known) > 1:  # Gemma 1 has none of these, whatever is written
    values |= {
      "query_scale": _query_scale(known, content),
      "attn_softcap": content.cap("attn_logit_softcapping", known.attn_softcap),
      "final_softcap": content.cap(
        "final_logit_softcapping", known.final_softcap
      ),
      "window": _window(known, content),
      "pattern": _pattern(known, content),
    }
  if generation(known) == 3:  # transformers never reads its key
    values["attn_softcap"] = 0.0
  found = dataclasses.replace(known, **values)
  if "local" in found.pattern and local_scale != 1:
    raise content.error(_rotary_key(content), "no scaling of sliding layers")
  return found


def _check_sizes(known, content):
  """What the tensors tell as well."""
  sizes = {
    "hidden_size": known.width,
    "num_attention_heads": known.heads,
    "num_key_value_heads": known.kv_heads,
    "head_dim": known.head_dim,
  }
  for key, size in sizes.items():
    found = content.tree.get(key)
    if found is not None and found != size:
      raise content.error(key, f"{size}, as the tensors say")


def _check_fixed(content):
  """What this decoder computes in one way alone."""
  tree = content.tree
  if content.number("rms_norm_eps", 1e-6) != 1e-6:
    raise content.error("rms_norm_eps", "1e-06")
  if tree.get("attention_bias"):
    raise content.error("attention_bias", "false")
  if content.number("partial_rotary_factor", 1.0) != 1:
    raise content.error("partial_rotary_factor", "1")
  # Released files of Gemma 1 name "gelu" and were trained with the other.
  key = "hidden_activation" if tree.get("hidden_activation") else "hidden_act"
  known = ["gelu_pytorch_tanh", None]
  if tree.get(key) not in known + ["gelu"] * (key == "hidden_act"):
    raise content.error(key, "gelu_pytorch_tanh")


def _query_scale(known, content):
  """None where it is the default, so that it compares with a preset."""
  key = "query_pre_attn_scalar"
  silent = (known.query_scale or known.head_dim**-0.5) ** -2
  scalar = content.number(key, silent, least=1e-6)
  scale = known.query_scale if scalar == silent else scalar**-0.5
  default = known.head_dim**-0.5
  return None if scale is not None and math.isclose(scale, default) else scale


def _window(known, content):
  key = "sliding_window"
  if key not in content.tree:
    return known.window
  found = content.tree[key]
  if found is None:
    return 0
  if type(found) is not int or not 1 <= found < 2**31:
    raise content.error(key, "a whole number above 0")
  return found


def _pattern(known, content):
  """Kinds of the layers, as few as repeat."""
  depth, kinds = known.depth, content.tree.get("layer_types")
  if kinds is None:
    # The last one of every so many is global, as in Gemma 3.
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
      every = content.tree.get(key)
      if every is None:
        continue
      if type(every) is not int or not 1 <= every <= 10_000:
        raise content.error(key, "a whole number above 0")
      return ("local",) * (every - 1) + ("global",)
    return known.pattern
  named = isinstance(kinds, list) and all(
    isinstance(kind, str) and kind in _LAYERS for kind in kinds
  )
  if not named or len(kinds) != depth:
    raise content.error(
      "layer_types", f"{depth} of {' and '.join(_LAYERS)}, one per layer"
    )
  ours = tuple(_LAYERS[kind] for kind in kinds)
  repeats = (
    n for n in range(1, depth + 1)
    if all(ours[i] == ours[i % n] for i in range(depth))
  )  # fmt: skip
  return ours[: next(repeats)]


def _rotary(known, content):
  """Bases and scale of the rotations, of full and of sliding layers."""
  key, full, local = _rotations(known, content)
  base, scale = _rotation(
    content, key, full, known.rope_base_global, known.rope_scale_global
  )
  local_base, local_scale = _rotation(content, key, local, known.rope_base, 1.0)
  return {
    "rope_base_global": base,
    "rope_scale_global": scale,
    "rope_base": local_base,
  }, local_scale


def _rotations(known, content):
  """The key that says it, and what it says of full and of sliding layers."""
  tree, two = content.tree, generation(known) == 3
  key = _rotary_key(content)
  node = tree.get(key)
  if node is not None and not isinstance(node, dict):
    raise content.error(key, "a table")
  if key == "rope_scaling":
    scaling = {"rope_type": "default", **node} if node else {}
    full = {"rope_theta": tree.get("rope_theta"), **scaling}
    return key, full, (
      {"rope_theta": tree.get("rope_local_base_freq")} if two else full
    )  # fmt: skip
  if not two:
    return key, node, node
  parts = [node.get(kind) for kind in ("full_attention", "sliding_attention")]
  if not all(isinstance(part, dict) for part in parts):
    raise content.error(key, "tables full_attention and sliding_attention")
  return key, *parts


def _rotary_key(content):
  new = bool(content.tree.get("rope_parameters"))
  return "rope_parameters" if new else "rope_scaling"


def _rotation(content, key, node, base, scale):
  """Base and scale of one kind of layer; the given ones where it is silent."""
  theta = node.get("rope_theta")
  if theta is not None:
    base = content.real(
      "rope_theta" if key == "rope_scaling" else key, theta, 1.0
    )
  kind = node.get("rope_type", node.get("type"))
  if kind == "linear":
    scale = content.real(key, node.get("factor"), 1e-3)
  elif kind == "default":
    scale = 1.0
  elif kind is not None:
    raise content.error(key, "a rope_type of default or linear")
  if content.real(key, node.get("partial_rotary_factor", 1)) != 1:
    raise content.error(key, "a partial_rotary_factor of 1")
  return base, scale
