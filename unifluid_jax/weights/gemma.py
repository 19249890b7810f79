"""Gemma 1-3 under its published names: Hugging Face, official, big_vision.

Sources: transformers modeling_gemma*.py, gemma gm/ckpts (FLAT and NESTED
trees), big_vision models/ppp/gemma.py. All three store norm scales without
the 1 that is added, and embeddings without their factor, as ours do.
"""

from typing import Any

import jax
import jax.numpy as jnp

from unifluid_jax.core.presets import GEMMA, DecoderConfig
from unifluid_jax.models.decoder import Decoder
from unifluid_jax.weights import gemma_settings
from unifluid_jax.weights.gemma_settings import published
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  count_layers,
  find,
  parameter_shapes,
  shape_of,
)
from unifluid_jax.weights.settings import check_depth, number_beside

# Rows that files carry beyond the vocabulary, which are never trained: the
# official tables of Gemma 1 and 2, and what transformers pads.
_PADDED = {256_128: 256_000, 257_216: 257_152, 262_208: 262_144}
_EMBED = "embed_tokens.weight"
_INPUT = "embedder/input_embedding"
_DROPS = (
  Drop("*rotary_emb.inv_freq", "computed"),
  Drop("*vision_tower.*", "vision tower; --from=paligemma: reads it"),
  Drop("*multi_modal_projector.*", "projector; --from=paligemma: reads it"),
  Drop("*SigLiPFromPatches_0/*", "vision tower of Gemma 3"),
  Drop("*vision_encoder/*", "vision tower of Gemma 3"),
  Drop("*embedder/mm_*", "projector of Gemma 3"),
  Drop("*img/*", "vision tower; --from=paligemma: reads it"),
)


def recipe(source: Source) -> Recipe:
  """How to read a Gemma.

  Raises:
    WeightsError: not a Gemma, or of a size that its tensors do not tell.
  """
  rows, config, names, drops = decoder(source)
  preset, number = published(config), gemma_settings.generation(config)
  return Recipe(
    "gemma",
    f"Gemma {number} ({preset or 'unpublished size'}: {in_words(config)}), "
    f"{names} names",
    rows,
    like(config),
    drops=(*_DROPS, *drops),
    meta={
      "preset": preset,
      "decoder": gemma_settings.describe(source.path, config),
    },
  )


def decoder(
  source: Source,
) -> tuple[list[Row], DecoderConfig, str, list[Drop]]:
  """Rows, shape, what the names are, and copies that may be dropped.

  Raises:
    WeightsError: the tensors are not a decoder's.
  """
  prefix, ending = find(source, "Gemma", _EMBED, _INPUT)
  read = _hugging_face
  if ending == _INPUT:
    layers = f"{prefix}layers/"
    stacked = any(name.startswith(layers) for name in source.names())
    read = _big_vision if stacked else _official
  rows, config, kind, drops = read(source, prefix)
  return rows, gemma_settings.complete(source.path, config), kind, drops


def hf_recipe(source: Source) -> Recipe:
  """The way back: our tree (paths below params) under Hugging Face names.

  Raises:
    WeightsError: the checkpoint holds no decoder, or one that transformers'
      Gemma cannot compute.
  """
  paths = [n for n in source.names() if n.startswith("decoder/")]
  at = {n.removeprefix("decoder/"): source.shape(n) for n in paths}
  if "embedder/table" not in at:
    raise WeightsError(
      f"{source.path} holds no decoder: expected params/decoder/embedder/"
      "table; correct --from"
    )
  (vocab, width), (depth, _, heads, head_dim) = (
    at["embedder/table"], at["layers/attn/q"],
  )  # fmt: skip
  config = DecoderConfig(
    vocab, width, depth, at["layers/mlp/up"][2], heads,
    at["layers/attn/k"][2], head_dim,
    post_norms="layers/post_attn/scale" in at,
    qk_norm="layers/attn/q_norm/scale" in at,
  )  # fmt: skip
  return Recipe(
    "gemma",
    f"Gemma ({published(config) or in_words(config)})",
    hf_rows("model.", config.post_norms, config.qk_norm),
    {path: source.shape(path) for path in paths},
    files=gemma_settings.files_of(source.path),
  )


def in_words(config: DecoderConfig) -> str:
  """The shape for people."""
  other = gemma_settings.differing(config)
  return (
    f"{config.depth} layers of {config.width}, {config.heads} heads and "
    f"{config.kv_heads} keys of {config.head_dim}, vocabulary {config.vocab}"
    + (f"; unlike the preset: {', '.join(other)}" if other else "")
  )


def like(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of the decoder's parameters."""
  inputs = (
    jax.ShapeDtypeStruct((1, 1, config.width), jnp.float32),
    jax.ShapeDtypeStruct((1, 1), jnp.int32),
    jax.ShapeDtypeStruct((1, 1, 1), bool),
  )
  return parameter_shapes(Decoder(config, jnp.float32), "decoder", *inputs)


def hf_rows(prefix: str, post_norms: bool, qk_norm: bool) -> list[Row]:
  """Names of transformers' Gemma, Gemma2 and Gemma3 text models.

  Args:
    prefix: up to "embed_tokens" and "layers", "model." as a rule.
    post_norms: Gemma 2 and 3, where `post_attention_layernorm` is the norm
      of the branch's output. In Gemma 1 that name means the next pre-norm.
    qk_norm: Gemma 3.
  """
  layer, to = f"{prefix}layers.{{i}}.", "decoder/layers/"
  attn, mlp = f"{layer}self_attn.", f"{layer}mlp."
  rows = [
    Row(f"{prefix}{_EMBED}", "decoder/embedder/table", "v+ d"),
    Row(f"{prefix}norm.weight", "decoder/final_norm/scale", "d"),
    Row(f"{attn}q_proj.weight", f"{to}attn/q", "(n h) d -> d n h"),
    Row(f"{attn}k_proj.weight", f"{to}attn/k", "(k h) d -> d k h"),
    Row(f"{attn}v_proj.weight", f"{to}attn/v", "(k h) d -> d k h"),
    Row(f"{attn}o_proj.weight", f"{to}attn/o", "d (n h) -> n h d"),
    Row(f"{mlp}gate_proj.weight", f"{to}mlp/gate", "f d -> d f"),
    Row(f"{mlp}up_proj.weight", f"{to}mlp/up", "f d -> d f"),
    Row(f"{mlp}down_proj.weight", f"{to}mlp/down", "d f -> f d"),
  ]
  norms = {"input": "pre_attn", "post_attention": "pre_ffw"}
  if post_norms:
    norms = {
      "input": "pre_attn", "post_attention": "post_attn",
      "pre_feedforward": "pre_ffw", "post_feedforward": "post_ffw",
    }  # fmt: skip
  rows += [
    Row(f"{layer}{name}_layernorm.weight", f"{to}{ours}/scale", "d")
    for name, ours in norms.items()
  ]
  if qk_norm:
    rows += [
      Row(f"{attn}{name}.weight", f"{to}attn/{name}/scale", "h")
      for name in ("q_norm", "k_norm")
    ]
  return rows


def official_rows(
  prefix: str, inner: str, gate: str, merged: bool, stacked: bool
) -> list[Row]:
  """Names of the released Flax trees, and of big_vision's stacked ones.

  Args:
    prefix: up to "embedder".
    inner: "/w" where the mlp's arrays sit one level deeper (FLAT).
    gate: layout of one half of gating_einsum, "d f" or "f d".
    merged: one qkv_einsum instead of q_einsum and kv_einsum.
    stacked: `layers` leads with the layer instead of `layer_0`, ...
  """
  layer = f"{prefix}layers/" if stacked else f"{prefix}layer_{{i}}/"

  def row(name, target, left, right):
    lead = "l " if stacked else ""
    axes = f"{lead}{left} -> {lead}{right}"
    return Row(f"{layer}{name}", f"decoder/layers/{target}", axes)

  if merged:
    qkv = [
      row("attn/qkv_einsum/w", f"attn/{x}", f"[{i}/3] n d h", "d n h")
      for i, x in enumerate("qkv")
    ]
  else:
    qkv = [
      row("attn/q_einsum/w", "attn/q", "n d h", "d n h"),
      row("attn/kv_einsum/w", "attn/k", "[0/2] k d h", "d k h"),
      row("attn/kv_einsum/w", "attn/v", "[1/2] k d h", "d k h"),
    ]
  gating, norm = f"mlp/gating_einsum{inner}", "d"
  return [
    Row(f"{prefix}{_INPUT}", "decoder/embedder/table", "v+ d"),
    Row(f"{prefix}final_norm/scale", "decoder/final_norm/scale", "d"),
    *qkv,
    row("attn/attn_vec_einsum/w", "attn/o", "n h d", "n h d"),
    row(gating, "mlp/gate", f"[0/2] {gate}", "d f"),
    row(gating, "mlp/up", f"[1/2] {gate}", "d f"),
    row(f"mlp/linear{inner}", "mlp/down", "f d", "f d"),
    row("attn/_query_norm/scale", "attn/q_norm/scale", "h", "h"),
    row("attn/_key_norm/scale", "attn/k_norm/scale", "h", "h"),
    row("pre_attention_norm/scale", "pre_attn/scale", norm, norm),
    row("post_attention_norm/scale", "post_attn/scale", norm, norm),
    row("pre_ffw_norm/scale", "pre_ffw/scale", norm, norm),
    row("post_ffw_norm/scale", "post_ffw/scale", norm, norm),
  ]


def _hugging_face(source, prefix):
  layer = f"{prefix}layers.0."
  vocab, width = shape_of(source, f"{prefix}{_EMBED}", 2)
  queries, _ = shape_of(source, f"{layer}self_attn.q_proj.weight", 2)
  keys, _ = shape_of(source, f"{layer}self_attn.k_proj.weight", 2)
  mlp, _ = shape_of(source, f"{layer}mlp.up_proj.weight", 2)
  depth = count_layers(source, f"{prefix}layers.", ".")
  check_depth(source.path, depth, "text_config")
  names = set(source.names())
  post_norms = f"{layer}pre_feedforward_layernorm.weight" in names
  qk_norm = f"{layer}self_attn.q_norm.weight" in names
  flat = (width, depth, mlp, queries, keys, post_norms, qk_norm)
  if qk_norm:
    (head_dim,) = shape_of(source, f"{layer}self_attn.q_norm.weight", 1)
  else:
    sizes = (c.head_dim for c in GEMMA.values() if _flat(c) == flat)
    head_dim = _configured_head_dim(source, queries, next(sizes, 0))
  if not head_dim or queries % head_dim or keys % head_dim:
    raise WeightsError(
      f"{source.path}: {layer}self_attn.q_proj.weight: {queries} rows are no "
      f"multiple of the head size {head_dim}: correct config.json"
    )
  config = DecoderConfig(
    _PADDED.get(vocab, vocab), width, depth, mlp, queries // head_dim,
    keys // head_dim, head_dim, post_norms=post_norms, qk_norm=qk_norm,
  )  # fmt: skip
  tied = Drop("*lm_head.weight", "tied", same_as=f"{prefix}{_EMBED}")
  rows = hf_rows(prefix, post_norms, qk_norm)
  return rows, config, "Hugging Face", [tied]


def _configured_head_dim(source, queries: int, published_size: int) -> int:
  """Of config.json, else of the published Gemma with these matrices."""

  def number(key: str) -> int:
    return number_beside(source.path, key, "text_config")

  heads = number("num_attention_heads")
  head_dim = number("head_dim") or published_size
  if not head_dim and heads:
    head_dim = queries // heads
  if not head_dim:
    raise WeightsError(
      f"{source.path} is of no published size, and its tensors do not tell "
      "the size of a head: expected config.json beside it with head_dim; "
      "copy it there"
    )
  return head_dim


def _official(source, prefix):
  layer, names = f"{prefix}layer_0/", set(source.names())
  inner = "/w" if f"{layer}mlp/linear/w" in names else ""
  merged = f"{layer}attn/qkv_einsum/w" in names
  depth = count_layers(source, f"{prefix}layer_", "/")
  config, gate = _einsum_config(source, prefix, layer, inner, merged, depth)
  kind = "official FLAT" if inner else "official NESTED"
  rows = official_rows(prefix, inner, gate, merged, stacked=False)
  return _present(rows, config), config, kind, []


def _big_vision(source, prefix):
  layer = f"{prefix}layers/"
  merged = f"{layer}attn/qkv_einsum/w" in source.names()
  depth = shape_of(source, f"{layer}pre_attention_norm/scale", 2)[0]
  config, gate = _einsum_config(source, prefix, layer, "", merged, depth)
  rows = official_rows(prefix, "", gate, merged, stacked=True)
  return _present(rows, config), config, "big_vision", []


def _einsum_config(source, prefix, layer, inner, merged, depth):
  """Shape of a decoder whose projections name their heads."""
  names, lead = set(source.names()), 1 if layer.endswith("layers/") else 0
  vocab, width = shape_of(source, f"{prefix}{_INPUT}", 2)

  def of(name, rank):
    return shape_of(source, f"{layer}{name}", rank + lead)[lead:]

  if merged:
    _, heads, _, head_dim = of("attn/qkv_einsum/w", 4)
    kv_heads = heads
  else:
    heads, _, head_dim = of("attn/q_einsum/w", 3)
    kv_heads = of("attn/kv_einsum/w", 4)[1]
  mlp, _ = of(f"mlp/linear{inner}", 2)
  # Released in both orders, and only the shape tells which.
  swapped = of(f"mlp/gating_einsum{inner}", 3)[1:] == (mlp, width)
  config = DecoderConfig(
    _PADDED.get(vocab, vocab), width, depth, mlp, heads, kv_heads, head_dim,
    post_norms=f"{layer}post_ffw_norm/scale" in names,
    qk_norm=f"{layer}attn/_query_norm/scale" in names,
  )  # fmt: skip
  return config, "f d" if swapped and mlp != width else "d f"


def _present(rows: list[Row], config: DecoderConfig) -> list[Row]:
  """Without the norms that the generation has not."""
  paths = like(config)
  return [row for row in rows if row.target in paths]


def _flat(config: DecoderConfig) -> tuple[Any, ...]:
  queries = config.heads * config.head_dim
  keys = config.kv_heads * config.head_dim
  norms = (config.post_norms, config.qk_norm)
  return (config.width, config.depth, config.mlp, queries, keys, *norms)
