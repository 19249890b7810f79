"""Image tokens of one vocabulary, drawn one by one with a KV cache."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from unifluid_jax.core.types import PAD, Params
from unifluid_jax.models.decoder import logits, output_table
from unifluid_jax.ops import sampling
from unifluid_jax.systems.common import (
  drawn_cells,
  embed,
  packing,
  text_decode,
)

# keys [B], the states [B, D] of each condition → ids i32[B]
Pick = Callable[[Key[Array, "B"], Sequence[Float[Array, "B D"]]], Array]


def draw(
  decoder: Any,
  params: Params,
  conditions: Sequence[packing.Packed],
  forced: Int[Array, "B M"],
  pick: Pick,
  keys: Key[Array, "B"],
) -> Int[Array, "B M"]:
  """Tokens after each prompt; the same token feeds all conditions.

  The last token of every condition predicts the first that is drawn. Each
  condition counts its own positions, pads not included.

  Args:
    decoder: the network.
    params: all parameters.
    conditions: prompts of one length T, plain causal, right-aligned, B rows
      each: what is asked for, then the null conditions of guidance.
    forced: ids that need no drawing; PAD where one is drawn.
    pick: draws an id from the states.
    keys: one per row; token i draws from `fold_in(key, i)`.
  """
  n = forced.shape[1]
  packed = jax.tree.map(lambda *rows: jnp.concatenate(rows), *conditions)
  # The last token that is drawn is never fed.
  cache, hidden = text_decode.prefill(decoder, params, packed, n - 1)
  start = packed.x.shape[1]
  offset = packed.valid.sum(axis=1, dtype=jnp.int32)
  valid = jnp.pad(packed.valid, ((0, 0), (0, n - 1)))
  slots = jnp.arange(start + n - 1)

  def choose(states: Float[Array, "rows D"], i: Any) -> Int[Array, "B"]:
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    drawn = pick(folded, jnp.split(states, len(conditions)))
    given = forced[:, i]
    return jnp.where(given == PAD, drawn, given).astype(jnp.int32)

  def step(carry, i):
    cache, token = carry
    fed = jnp.concatenate([token] * len(conditions))[:, None]
    hidden, cache = decoder.apply(
      {"params": params["decoder"]},
      embed.text(decoder, params, fed),
      (offset + i - 1)[:, None],
      (valid | ((slots >= start) & (slots < start + i)))[:, None],
      cache,
      start + i - 1,
    )
    token = choose(hidden[:, 0], i)
    return (cache, token), token

  first = choose(hidden[:, -1], 0)
  _, rest = jax.lax.scan(step, (cache, first), jnp.arange(1, n))
  return jnp.concatenate([first[:, None], rest.T], axis=1)


def images_of_stages(
  codec: Any,
  frozen: Any,
  codes: Int[Array, "B N"],
  grid: tuple[int, int],
  most: int,
) -> Float[Array, "B S H W 3"]:
  """Images of the first codes, of more, of all; undrawn cells are grey.

  In the place of unknown codes the decoder reads the known ones, repeated. Its
  norms and attention span the whole image, so that this choice shows in the
  known cells too: repeated codes have the statistics of an image, and known
  cells look much more like they will in the end than with zeros or the mean
  vector of the codebook.

  Args:
    codec: `codecs.vq.VqCodec`.
    frozen: its weights.
    codes: in raster order, in which they were drawn.
    grid: rows and columns of the codes.
    most: images per row; see `drawn_cells.images_of_stages`.
  """
  rank = jnp.broadcast_to(jnp.arange(codes.shape[1]), codes.shape)

  def decode(known: Bool[Array, "B N"]) -> Float[Array, "B H W 3"]:
    repeated = rank % known.sum(axis=1, keepdims=True)
    known_codes = jnp.take_along_axis(codes, repeated, axis=1)
    return codec.decode(frozen, known_codes, grid)

  return drawn_cells.images_of_stages(decode, rank, grid, most)


def guided_scores(
  decoder: Any,
  params: Params,
  first: int,
  count: int,
  states: Sequence[Float[Array, "B D"]],
  cfg: float,
) -> Float[Array, "B K"]:
  """Logits of the image codes alone, guided away from the null condition.

  Args:
    decoder: its configuration.
    params: all parameters.
    first: row of the table that is code 0.
    count: K, of codes.
    states: of the prompt, and of the null condition where there is guidance.
    cfg: scale of the guidance.
  """
  table = output_table(params["decoder"])[first : first + count]
  scores = [logits(decoder, table, h) for h in states]
  return scores[0] if len(scores) == 1 else sampling.guide(*scores, cfg)
