"""Llama decoders in GGUF files, with their tokenizer: SmolLM2 and others.

Source: llama.cpp convert_hf_to_gguf.py, whose names these are, and which keeps
the rows of queries and keys in another order.
"""

import dataclasses

import numpy as np

from unifluid_jax.core.presets import DecoderConfig
from unifluid_jax.weights import gemma, gguf_tokenizer, llama_settings
from unifluid_jax.weights.gguf_file import GgufFile
from unifluid_jax.weights.rows import (
  Recipe,
  Row,
  Source,
  WeightsError,
  count_layers,
  shape_of,
)
from unifluid_jax.weights.settings import Settings

_AT = "llama."  # before the decoder's keys


def recipe(source: Source) -> Recipe:
  """How to read a Llama of llama.cpp.

  Raises:
    WeightsError: no GGUF file, another network, or a tokenizer that cannot be
      written as tokenizer.json.
  """
  if not isinstance(source, GgufFile):
    raise WeightsError(f"{source.path} is no GGUF file: correct --from")
  content = Settings(source.path, source.fields)
  config = _config(source, content)
  settings = dataclasses.asdict(config)
  del settings["dropout"]  # of a run, not of weights
  preset = llama_settings.published(config)
  special = gguf_tokenizer.special(content)
  shown = ", ".join(f"{name} {piece!r}" for name, piece in special.items())
  return Recipe(
    "gguf",
    f"Llama ({preset or 'unpublished size'}: {gemma.in_words(config)}), GGUF "
    f"names; tokenizer.json with {shown or 'no special token'}",
    rows(config),
    gemma.like(config),
    sizes={"i": 2, "r": config.head_dim // 2},
    meta={"preset": preset, "decoder": settings, "special": special},
    files={"tokenizer.json": gguf_tokenizer.tokenizer(content)},
  )


def rows(config: DecoderConfig) -> list[Row]:
  """All names.

  Channels of a head that rotate together, r and r + H/2, are neighbours in
  the rows of queries and keys.
  """
  layer, to = "blk.{i}.", "decoder/layers/"
  out = [
    Row("token_embd.weight", "decoder/embedder/table", "v d"),
    Row("output_norm.weight", "decoder/final_norm/scale", "d"),
    Row(f"{layer}attn_q.weight", f"{to}attn/q", "(n r i) d -> d n (i r)"),
    Row(f"{layer}attn_k.weight", f"{to}attn/k", "(k r i) d -> d k (i r)"),
    Row(f"{layer}attn_v.weight", f"{to}attn/v", "(k h) d -> d k h"),
    Row(f"{layer}attn_output.weight", f"{to}attn/o", "d (n h) -> n h d"),
    Row(f"{layer}ffn_gate.weight", f"{to}mlp/gate", "f d -> d f"),
    Row(f"{layer}ffn_up.weight", f"{to}mlp/up", "f d -> d f"),
    Row(f"{layer}ffn_down.weight", f"{to}mlp/down", "d f -> f d"),
    Row(f"{layer}attn_norm.weight", f"{to}pre_attn/scale", "d"),
    Row(f"{layer}ffn_norm.weight", f"{to}pre_ffw/scale", "d"),
  ]
  if not config.tied:
    out.append(Row("output.weight", "decoder/lm_head/table", "v d"))
  return out


def _config(source: GgufFile, content: Settings) -> DecoderConfig:
  """The decoder that the metadata describes."""
  _check_fixed(source, content)

  def whole(key: str, silent: int | None = None) -> int:
    return content.whole(_AT + key, silent)

  width, heads = whole("embedding_length"), whole("attention.head_count")
  kv_heads = whole("attention.head_count_kv", heads)
  head_dim = whole("attention.key_length", max(width // heads, 1))
  if heads % kv_heads:
    key = f"{_AT}attention.head_count_kv"
    raise content.error(key, f"a divisor of {heads}")
  if head_dim % 2 or whole("rope.dimension_count", head_dim) != head_dim:
    key = f"{_AT}rope.dimension_count"
    raise content.error(key, f"{head_dim}, all of an even number")
  queries, _ = shape_of(source, "blk.0.attn_q.weight", 2)
  if queries != heads * head_dim:
    key = f"{_AT}attention.head_count"
    raise content.error(key, f"{queries} rows of {head_dim} a head")
  depth = count_layers(source, "blk.", ".")
  if whole("block_count") != depth:
    raise content.error(f"{_AT}block_count", f"{depth}, as the tensors say")
  base = _short(content.number(f"{_AT}rope.freq_base", 1e4, least=1.0))
  epsilon = f"{_AT}attention.layer_norm_rms_epsilon"
  return DecoderConfig(
    vocab=shape_of(source, "token_embd.weight", 2)[0],
    width=width,
    depth=depth,
    mlp=whole("feed_forward_length"),
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    norm_epsilon=_short(content.real(epsilon, content.tree.get(epsilon))),
    rope_base=base,
    rope_base_global=base,
    tied="output.weight" not in source.names(),
    **llama_settings.FAMILY,
  )


def _check_fixed(source, content):
  """What this decoder computes in one way alone."""
  if content.tree.get("general.architecture") != "llama":
    raise content.error("general.architecture", "llama")
  if content.tree.get(f"{_AT}rope.scaling.type", "none") != "none":
    raise content.error(f"{_AT}rope.scaling.type", "none")
  # Without a type llama.cpp divides positions by either of these.
  silent = f"{_AT}rope.scaling.type" not in content.tree
  for key in (f"{_AT}rope.scaling.factor", f"{_AT}rope.scale_linear"):
    if silent and content.tree.get(key, 1) not in (0, 1):
      raise content.error(key, "1")
  if content.tree.get(f"{_AT}expert_count", 0) != 0:
    raise content.error(f"{_AT}expert_count", "0")
  if "rope_freqs.weight" in source.names():
    raise WeightsError(
      f"{source.path}: expected no rope_freqs.weight, which scales rotations "
      "as Llama 3 does: convert its Hugging Face files by --from=llama:"
    )


def _short(value: float) -> float:
  """A float32 as it was written: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(value)))
