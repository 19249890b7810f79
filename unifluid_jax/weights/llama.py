"""Decoders of the Llama family: Llama 2 and 3, SmolLM2, Qwen2, Chameleon.

Source: transformers modeling_llama.py, modeling_qwen2.py, modeling_chameleon.py
and the names of their released files, which are Gemma 1's and a few more.
Rotations pair channels (i, i + H/2) there as here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from unifluid_jax.core.presets import DecoderConfig
from unifluid_jax.weights import gemma, llama_settings
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  count_layers,
  find,
  shape_of,
)

_EMBED = "embed_tokens.weight"
_DROPS = (
  Drop("*rotary_emb.inv_freq", "computed"),
  Drop("*vqmodel.*", "image tokenizer, of which only the encoder is here"),
)
_NAMES = {"llama": "Llama", "qwen2": "Qwen2", "chameleon": "Chameleon"}


def recipe(source: Source, kind: str) -> Recipe:
  """How to read a decoder.

  Args:
    source: the tensors.
    kind: one of `llama_settings.KINDS`.

  Raises:
    WeightsError: not a decoder of this kind, or config.json is missing.
  """
  rows, config, drops, sizes = decoder(source, kind)
  preset = llama_settings.published(config)
  return Recipe(
    kind,
    f"{_NAMES[kind]} ({preset or 'unpublished size'}: "
    f"{gemma.in_words(config)}), Hugging Face names",
    rows,
    gemma.like(config),
    sizes=sizes,
    drops=(*_DROPS, *drops),
    meta={"preset": preset, "decoder": describe(config)},
  )


def decoder(
  source: Source,
  kind: str,
  part: str = "",
  silent: Mapping[str, Any] | None = None,
) -> tuple[list[Row], DecoderConfig, list[Drop], dict[str, int]]:
  """Rows, shape, copies that may be dropped, sizes of merged axes.

  Args:
    source: the tensors.
    kind: one of `llama_settings.KINDS`.
    part: see `llama_settings.read`.
    silent: likewise.

  Raises:
    WeightsError: see `recipe`.
  """
  prefix, _ = find(source, f"{_NAMES[kind]} decoder", _EMBED)
  depth = count_layers(source, f"{prefix}layers.", ".")
  config = llama_settings.read(source.path, kind, depth, part, silent)
  head = next((n for n in source.names() if n.endswith("lm_head.weight")), "")
  _check_heads(source, f"{prefix}layers.0.self_attn.q_proj.weight", config)
  drops = []
  if head and config.tied:
    drops.append(Drop(head, "tied", same_as=f"{prefix}{_EMBED}"))
  rows = [
    *hf_rows(config, prefix, head or "lm_head.weight"),
    *_stored_norm_rows(source, config, prefix),
  ]
  sizes = _sizes(config) | {"m": _shards(source, config, prefix)}
  return rows, config, drops, sizes


def describe(config: DecoderConfig) -> dict[str, Any]:
  """The settings that are written beside a decoder's weights."""
  settings = dataclasses.asdict(config)
  del settings["dropout"]  # of a run, not of weights
  return settings


def hf_recipe(source: Source, kind: str) -> Recipe:
  """The way back: our tree (paths below params) under Hugging Face names.

  Args:
    source: of a conversion or a run.
    kind: one of `llama_settings.KINDS`.

  Raises:
    WeightsError: the checkpoint holds no decoder of this kind.
  """
  config = _saved(source)
  found = llama_settings.kind_of(config)
  if found != kind:
    raise WeightsError(
      f"{source.path} holds a {found} decoder, not {kind}: correct the kind "
      "in --from"
    )
  llama_settings.check_writable(source.path, kind, config)
  rows = hf_rows(config, "model.", "lm_head.weight")
  rows += norm_rows(config, "model.")
  paths = [n for n in source.names() if n.startswith("decoder/")]
  return Recipe(
    kind,
    f"{_NAMES[kind]} ({gemma.in_words(config)})",
    rows,
    {path: source.shape(path) for path in paths},
    sizes=_sizes(config),
    files={"config.json": llama_settings.write(kind, config)},
  )


def hf_rows(config: DecoderConfig, prefix: str, head: str) -> list[Row]:
  """All names but those of the norms of queries and keys.

  Args:
    config: the decoder.
    prefix: up to "embed_tokens" and "layers", "model." as a rule.
    head: the output layer's matrix, where there is one.
  """
  to, layer = "decoder/layers/", f"{prefix}layers.{{i}}."
  rows = gemma.hf_rows(prefix, post_norms=False, qk_norm=False)
  rows[0] = Row(f"{prefix}{_EMBED}", "decoder/embedder/table", "v d")
  if config.post_norms:  # the same two names, behind the branches
    moved = {
      f"{to}pre_{x}/scale": f"{to}post_{x}/scale" for x in ("attn", "ffw")
    }
    rows = [
      dataclasses.replace(row, target=moved.get(row.target, row.target))
      for row in rows
    ]
  if not config.tied:
    rows.append(Row(head, "decoder/lm_head/table", "v d"))
  for x in "qkv" if config.qkv_bias else "":
    bias = f"{layer}self_attn.{x}_proj.bias"
    rows.append(Row(bias, f"{to}attn/{x}_bias", "b"))
  return rows


def _stored_norm_rows(source, config, prefix):
  """Chameleon's norms: one set per head, or one per part of a split model."""
  rows = norm_rows(config, prefix)
  parts = _shards(source, config, prefix)
  if parts == config.heads or not rows:
    return rows

  def spread(heads: int):
    def change(x: np.ndarray) -> np.ndarray:
      return x.repeat(heads // parts, axis=0).reshape(-1)

    return change

  heads = {"q": config.heads, "k": config.kv_heads}
  return [
    Row(row.source, row.target, "m h", spread(heads[x]))
    for x in "qk"
    for row in rows
    if f"/{x}_norm/" in row.target
  ]


def norm_rows(config: DecoderConfig, prefix: str) -> list[Row]:
  """Names of the norms of queries and keys, stored per head; [] without."""
  if not config.qk_norm:
    return []
  at = f"{prefix}layers.{{i}}.self_attn."
  return [
    Row(
      f"{at}{x}_norm.{theirs}",
      f"decoder/layers/attn/{x}_norm/{ours}",
      f"{heads} h -> ({heads} h)",
    )
    for x, heads in (("q", "n"), ("k", "k"))
    for theirs, ours in (("weight", "scale"), ("bias", "bias"))
  ]


def _sizes(config):
  """Of the axes that the merged ones of norms do not show."""
  return {"n": config.heads, "k": config.kv_heads, "h": config.head_dim}


def _shards(source, config, prefix):
  """Sets of norm parameters that a file holds for queries; heads if none."""
  if not config.qk_norm:
    return config.heads
  name = f"{prefix}layers.0.self_attn.q_norm.weight"
  parts, _ = shape_of(source, name, 2)
  if parts != config.heads and config.kv_heads % parts:
    raise WeightsError(
      f"{source.path}: {name}: expected {config.heads} rows, or a number that "
      f"divides the {config.kv_heads} heads of keys, found {parts}; download "
      "it again"
    )
  return parts


def _check_heads(source, name, config):
  rows, _ = shape_of(source, name, 2)
  if rows != config.heads * config.head_dim:
    raise WeightsError(
      f"{source.path}: {name}: expected {config.heads} heads of "
      f"{config.head_dim}, as config.json says, found {rows} rows; correct it"
    )


def _saved(source):
  """The decoder that a conversion or a run wrote down, as long as its table."""
  table = "decoder/embedder/table"
  config = llama_settings.saved(source.path)
  if config is None or table not in source.names():
    raise WeightsError(
      f"{source.path} holds no decoder: expected params/{table} and its "
      "settings; correct --from"
    )
  return dataclasses.replace(config, vocab=source.shape(table)[0])
