"""Sampling from UniFluid: image tokens and answers with a KV cache.

Paper: UniFluid §4.2. The prompt is prefilled once; then one scan over the
image tokens (or text positions), conditional and null rows in one batch.
Edits may have two null conditions, as InstructPix2Pix (arXiv 2211.09800).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from unifluid_jax.core import parallel
from unifluid_jax.core.config import SamplingConfig
from unifluid_jax.core.types import Params, Prompts
from unifluid_jax.models import decoder
from unifluid_jax.models.diffusion_head import sample_tokens
from unifluid_jax.models.kl_vae import from_latents
from unifluid_jax.ops import diffusion, order, patches, sampling
from unifluid_jax.ops.attention import block_causal_mask
from unifluid_jax.systems.common import packing


def generate(
  system: Any,
  params: Params,
  frozen: Any,
  prompts: Prompts,
  key: Key[Array, "*rows"],
  config: SamplingConfig,
  cells: Int[Array, "B N"] | None = None,
) -> Float[Array, "B H W 3"]:
  """Images in [-1, 1].

  Args:
    system: the UniFluid instance.
    params: its parameters.
    frozen: the VAE.
    prompts: B rows.
    key: one key, split by row, or one key a row; row i depends on its own
      key only, whatever the batch.
    config: steps, guidance, temperature, order. With `image_cfg` of 1 the
      null condition of an edit is its source without instruction; otherwise
      there is a second, neither of them, which the run must have been trained
      with (`loss.image_dropout`).
    cells: the order in which cells are drawn; default as `config.order`.
  """
  m = system.config.model
  b, n = prompts.text.shape[0], m.image_tokens
  keys = key if key.ndim else jax.random.split(key, b)
  split = jax.vmap(lambda k: jax.random.split(k, 2))(keys)
  if cells is None:
    cells = order.raster_orders(b, n)
    if config.order == "random":
      cells = order.permutations(split[:, 0], n)
  tokens = _image_tokens(
    system, params, frozen, prompts, cells, split[:, 1], config
  )
  z = patches.unpatchify(order.put_tokens(tokens, cells), m.patch, m.vae.latent)
  z = from_latents(z, frozen["latent_mean"], frozen["latent_scale"])
  images = system.vae.apply({"params": frozen["vae"]}, z, method="decode")
  return jnp.clip(images.astype(jnp.float32), -1.0, 1.0)


def _image_tokens(system, params, frozen, prompts, cells, keys, config):
  """Tokens [B, N, C] in the order they were drawn."""
  b, n = cells.shape
  thrice = prompts.source is not None and config.image_cfg != 1.0
  guided = config.cfg != 1.0 or thrice
  schedule = diffusion.respace(config.steps)
  table = params["image"]
  conditions = [system.prompt_parts(params, frozen, prompts)]
  if guided:
    null = prompts._replace(text=packing.null_prompt(prompts.text))
    conditions.append(system.prompt_parts(params, frozen, null))
  if thrice:
    hidden, width = jnp.ones(b, bool), prompts.text.shape[1]
    conditions.append(packing.hide_source(conditions[1], width, hidden))
  packed = jax.tree.map(lambda *rows: jnp.concatenate(rows), *conditions)
  rows = packed.x.shape[0]
  cache, _ = prefill(system, params, packed, n)
  start = packed.x.shape[1]
  prefix_ok = jnp.pad(packed.valid, ((0, 0), (0, n)))
  offset = packed.valid.sum(axis=1, dtype=jnp.int32)
  slots = jnp.arange(start + n)
  next_rows = order.next(table["next_position"], cells)  # [B, N, D]
  here = table["position"][cells]  # [B, N, D]
  boi = jnp.broadcast_to(table["boi"], (b, table["boi"].shape[0]))

  def step(carry, i):
    cache, token = carry
    embedded = system.embed_tokens(params, token[:, None])[:, 0]
    embedded = embedded + here[:, jnp.maximum(i - 1, 0)]
    x = jnp.where(i == 0, boi, embedded) + next_rows[:, i]
    x = jnp.concatenate([x] * (rows // b))[:, None]
    mask = prefix_ok | ((slots >= start) & (slots <= start + i))
    hidden, cache = system.decoder.apply(
      {"params": params["decoder"]},
      x.astype(packed.x.dtype),
      (offset + i)[:, None],
      mask[:, None],
      cache,
      start + i,
    )
    z = hidden[:, 0]
    token = sample_tokens(
      system.head,
      params["head"],
      schedule,
      z[:b],
      z[b : 2 * b] if guided else None,
      jax.vmap(lambda k: jax.random.fold_in(k, i))(keys),
      sampling.cfg_scale(config.cfg_schedule, config.cfg, i, n),
      config.temperature,
      limit=config.clip or math.inf,
      z_none=z[2 * b :] if thrice else None,
      image_cfg=sampling.cfg_scale(config.cfg_schedule, config.image_cfg, i, n),
    )
    return (cache, token), token

  first = jnp.zeros((b, system.config.model.token_channels), jnp.float32)
  _, tokens = jax.lax.scan(step, (cache, first), jnp.arange(n))
  return tokens.swapaxes(0, 1)


def prefill(system: Any, params: Params, packed: Any, room: int) -> Any:
  """Runs a prefix through the decoder into a fresh cache.

  Args:
    system: gives the decoder.
    params: all parameters.
    packed: the prefix, T slots.
    room: slots for what will follow.

  Returns:
    The cache of T + room slots, and hidden states [B, T, D].
  """
  b, t = packed.valid.shape
  cache = decoder.init_cache(
    system.config.model.decoder, b, t + room, packed.x.dtype
  )
  mask = block_causal_mask(packed.block, packed.valid)
  mask = jnp.pad(mask, ((0, 0), (0, 0), (0, room)))
  hidden, cache = system.decoder.apply(
    {"params": params["decoder"]},
    parallel.constrain(packed.x, "BTD"),
    packing.positions(packed.valid),
    mask,
    cache,
    jnp.int32(0),
  )
  return cache, hidden


def answer(
  system: Any,
  params: Params,
  images: Float[Array, "B *F H W 3"] | None,
  prefix: Int[Array, "B P"],
  config: SamplingConfig,
) -> Int[Array, "B A"]:
  """Token ids after each prefix, padded after EOS.

  Greedy, sampled or beam search as `config.text` says (UniFluid §4.2: greedy
  except COCO captions, beam 2, and TextCaps, beam 3).
  """
  length = system.config.text.suffix
  parts = []
  if images is not None:
    x = system.embed_pixels(params, images)
    parts.append(packing.prefix(x, packing.all_valid(x)))
  x = system.embed_text(params, prefix)
  parts.append(packing.prefix(x, packing.text_valid(prefix)))
  packed = packing.join(parts)
  cache, hidden = prefill(system, params, packed, length)
  start = packed.x.shape[1]
  offset = packed.valid.sum(axis=1, dtype=jnp.int32)
  valid = jnp.pad(packed.valid, ((0, 0), (0, length)))
  table = decoder.output_table(params["decoder"])
  slots = jnp.arange(start + length)

  def logits_of(h):
    return decoder.logits(system.config.model.decoder, table.astype(h.dtype), h)

  def step(state, token, i):
    cache, valid, offset = state
    mask = valid | ((slots >= start) & (slots <= start + i))
    hidden, cache = system.decoder.apply(
      {"params": params["decoder"]},
      system.embed_text(params, token[:, None]),
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
      step, state, first, config.beams, length, _gather_rows
    )

  def pick(keys, logits):
    if config.text == "greedy":
      return sampling.greedy(logits)
    return sampling.pick_token(
      keys, logits, config.text_temperature, config.top_k, config.top_p
    )

  keys = jax.random.split(jax.random.key(config.seed), prefix.shape[0])
  return sampling.decode_text(step, state, first, length, pick, keys)


def _gather_rows(state: Any, rows: Int[Array, "R"]) -> Any:
  """The decoding state of the given rows, e.g. of each beam's parent."""
  cache, valid, offset = state
  cache = cache._replace(
    k=cache.k[:, rows], v=cache.v[:, rows], positions=cache.positions[rows]
  )
  return cache, valid[rows], offset[rows]
