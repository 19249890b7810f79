"""Answers of a decoder with a KV cache: greedy, sampled, beam search."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from unifluid_jax.core import parallel
from unifluid_jax.core.types import EOS, Params
from unifluid_jax.models import key_cache
from unifluid_jax.models.decoder import logits, output_table
from unifluid_jax.models.key_cache import Cache
from unifluid_jax.ops import sampling
from unifluid_jax.ops.attention import block_causal_mask
from unifluid_jax.systems.common import embed, packing


def prefill(
  decoder: Any, params: Params, packed: packing.Packed, room: int
) -> tuple[Cache, Float[Array, "B T D"]]:
  """Runs a prefix through the decoder into a fresh cache.

  Args:
    decoder: the network.
    params: all parameters.
    packed: the prefix, T slots.
    room: slots for what will follow.

  Returns:
    The cache of T + room slots, and hidden states.
  """
  b, t = packed.valid.shape
  cache = key_cache.empty(decoder.config, b, t + room, packed.x.dtype)
  mask = block_causal_mask(packed.block, packed.valid)
  mask = jnp.pad(mask, ((0, 0), (0, 0), (0, room)))
  hidden, cache = decoder.apply(
    {"params": params["decoder"]},
    parallel.constrain(packed.x, "BTD"),
    packing.positions(packed.valid),
    mask,
    cache,
    jnp.int32(0),
  )
  return cache, hidden


def answer(
  decoder: Any,
  params: Params,
  packed: packing.Packed,
  length: int,
  config: Any,
  keys: Key[Array, "B"],
  eos: int | Sequence[int] = EOS,
) -> Int[Array, "B A"]:
  """Token ids after each prompt, padded after EOS.

  Greedy, sampled or beam search as `config.text` says (UniFluid §4.2: greedy
  except COCO captions, beam 2, and TextCaps, beam 3).

  Args:
    decoder: the network.
    params: all parameters.
    packed: the prompts.
    length: A.
    config: text, text_temperature, top_k, top_p and beams.
    keys: one per row, for sampling.
    eos: its id; several end an answer alike.
  """
  cache, hidden = prefill(decoder, params, packed, length)
  start = packed.x.shape[1]
  offset = packed.valid.sum(axis=1, dtype=jnp.int32)
  valid = jnp.pad(packed.valid, ((0, 0), (0, length)))
  table = output_table(params["decoder"])
  slots = jnp.arange(start + length)

  def logits_of(h):
    return logits(decoder.config, table.astype(h.dtype), h)

  def step(state, token, i):
    cache, valid, offset = state
    mask = valid | ((slots >= start) & (slots <= start + i))
    hidden, cache = decoder.apply(
      {"params": params["decoder"]},
      embed.text(decoder, params, token[:, None]),
      (offset + i)[:, None],
      mask[:, None],
      cache,
      start + i,
    )
    return logits_of(hidden[:, 0]), (cache, valid, offset)

  state = (cache, valid, offset)
  first = logits_of(hidden[:, -1])
  if config.text == "beam":
    return sampling.beam_search(
      step, state, first, config.beams, length, _gather_rows, eos
    )

  def pick(keys, scores):
    if config.text == "greedy":
      return sampling.greedy(scores)
    return sampling.pick_token(
      keys, scores, config.text_temperature, config.top_k, config.top_p
    )

  return sampling.decode_text(step, state, first, length, pick, keys, eos)


def _gather_rows(state: Any, rows: Int[Array, "R"]) -> Any:
  """The decoding state of the given rows, e.g. of each beam's parent."""
  cache, valid, offset = state
  return key_cache.of_rows(cache, rows), valid[rows], offset[rows]
