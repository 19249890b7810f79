"""Continuous image tokens, drawn one by one with a KV cache."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from unifluid_jax.core.types import Params
from unifluid_jax.ops import order
from unifluid_jax.systems.common import drawn_cells, packing, text_decode

# Token i - 1 as drawn, i, and j >= i → the input that predicts token j where
# only the tokens before i are known.
Embed = Callable[[Float[Array, "B C"], Any, Any], Float[Array, "B D"]]
# The states of each condition, i, and the first place of its group → token i.
Pick = Callable[[Sequence[Float[Array, "B D"]], Any, Any], Float[Array, "B C"]]


class Known(NamedTuple):
  """The first tokens of each row's order, which are given and not drawn."""

  tokens: Any  # f32[B, N, C] in the order of drawing; those behind are ignored
  count: Any  # i32[B]


class _Prompt(NamedTuple):
  """All conditions in one batch, prefilled, with room for image tokens."""

  cache: Any
  slots: int  # of the prompts, padding included
  seen: Any  # bool[B, T + room]: slots of prompts that are tokens
  length: Any  # i32[B]: tokens of each prompt
  dtype: Any  # of inputs


def _prefilled(
  decoder: Any, params: Params, conditions: Sequence[packing.Packed], room: int
) -> _Prompt:
  packed = jax.tree.map(lambda *rows: jnp.concatenate(rows), *conditions)
  cache, _ = text_decode.prefill(decoder, params, packed, room)
  return _Prompt(
    cache, packed.x.shape[1], jnp.pad(packed.valid, ((0, 0), (0, room))),
    packed.valid.sum(axis=1, dtype=jnp.int32), packed.x.dtype,
  )  # fmt: skip


def draw(
  decoder: Any,
  params: Params,
  conditions: Sequence[packing.Packed],
  embed: Embed,
  pick: Pick,
  first: Float[Array, "B C"],
  n: int,
  known: Known | None = None,
  sizes: Sequence[int] = (),
) -> Float[Array, "B N C"]:
  """Tokens in the order they are drawn; each feeds all conditions.

  The prompts are prefilled once; then one scan over the image tokens,
  all conditions in one batch, or passes over groups of them.

  Args:
    decoder: the network.
    params: all parameters.
    conditions: prompts of one length, B rows each: what is asked for, then
      the null conditions of guidance.
    embed: makes inputs of tokens.
    pick: draws a token.
    first: zeros, fed to `embed` with i = 0.
    n: how many tokens there are.
    known: tokens that are fed as they are; they are drawn one by one.
    sizes: of the groups; (): one token each.
  """
  if known is None and 0 < len(sizes) < n:
    return _draw_in_groups(
      decoder, params, conditions, embed, pick, first, sizes
    )
  prompt = _prefilled(decoder, params, conditions, n)
  start, slots = prompt.slots, jnp.arange(prompt.slots + n)

  def step(carry, i):
    cache, token = carry
    x = jnp.concatenate([embed(token, i, i)] * len(conditions))[:, None]
    mask = prompt.seen | ((slots >= start) & (slots <= start + i))
    hidden, cache = decoder.apply(
      {"params": params["decoder"]},
      x.astype(prompt.dtype),
      (prompt.length + i)[:, None],
      mask[:, None],
      cache,
      start + i,
    )
    b = len(first)
    z = [hidden[k * b : (k + 1) * b, 0] for k in range(len(conditions))]
    token = pick(z, i, i)
    if known is not None:
      given = (i < known.count)[:, None]
      token = jnp.where(given, known.tokens[:, i], token)
    return (cache, token), token

  _, tokens = jax.lax.scan(step, (prompt.cache, first), jnp.arange(n))
  return tokens.swapaxes(0, 1)


def _draw_in_groups(
  decoder: Any,
  params: Params,
  conditions: Sequence[packing.Packed],
  embed: Embed,
  pick: Pick,
  first: Float[Array, "B C"],
  sizes: Sequence[int],
) -> Float[Array, "B N C"]:
  """Tokens in the order they are drawn, several of them in one pass.

  A model trained in random order has learned each token given any others. A
  group's tokens are predicted from those before the group alone, so by inputs
  at one position that differ in their target; then they become one chain for
  the next group, as if drawn one by one. With groups of one this is `draw`.

  Differs: within a group tokens are independent, which no single row of
  training asks for; that is what a pass less costs (MAR, arXiv 2406.11838).

  Args: those of `draw`, and how many tokens each group has.
  """
  prompt = _prefilled(decoder, params, conditions, sum(sizes))
  start, cache, b = prompt.slots, prompt.cache, len(first)
  slots, tokens, begun = np.arange(start + sum(sizes)), [first], -1
  for size in sizes:
    known = len(tokens) - 1
    # The first of the last group's inputs was that of a chain already.
    chain, group = range(begun + 1, known), range(known, known + size)
    x = [embed(tokens[i], i, i) for i in chain]
    x += [embed(tokens[known], known, i) for i in group]
    x = jnp.concatenate([jnp.stack(x, axis=1)] * len(conditions))
    last = np.asarray([*chain, *[known - 1] * size])[:, None]
    own = np.asarray([*chain, *group])[:, None]
    sees = (slots >= start) & ((slots <= start + last) | (slots == start + own))
    places = np.asarray([*chain, *[known] * size], np.int32)
    hidden, cache = decoder.apply(
      {"params": params["decoder"]},
      x.astype(prompt.dtype),
      prompt.length[:, None] + places,
      prompt.seen[:, None] | sees,
      cache,
      jnp.int32(start + begun + 1),
    )
    z = [
      hidden[k * b : (k + 1) * b, len(chain) :] for k in range(len(conditions))
    ]
    one = functools.partial(pick, place=known)
    drawn = jax.vmap(one, (1, 0), 1)(z, jnp.asarray(group))
    tokens += [drawn[:, j] for j in range(size)]
    begun = known
  return jnp.stack(tokens[1:], axis=1)


def known_first(
  cells: Int[Array, "B N"], redraw: Array, tokens: Float[Array, "B N C"]
) -> tuple[Int[Array, "B N"], Known]:
  """An order that begins with the cells that stay, and their tokens.

  Both parts keep the order that they have in `cells`.

  Args:
    cells: the order of drawing where nothing is known.
    redraw: bool[B, N] in raster order: cells that are drawn again.
    tokens: of the given images, in raster order.
  """
  again = jnp.take_along_axis(redraw, cells, axis=1)
  first = jnp.argsort(again, axis=1, stable=True)
  cells = jnp.take_along_axis(cells, first, axis=1)
  count = (~redraw).sum(axis=1, dtype=jnp.int32)
  return cells, Known(order.take_tokens(tokens, cells), count)


def images_of_stages(
  codec: Any,
  frozen: Any,
  tokens: Float[Array, "B N C"],
  cells: Int[Array, "B N"],
  most: int,
) -> Float[Array, "B S H W 3"]:
  """Images of the first tokens, of more, of all; undrawn cells are grey.

  Tokens that are not known yet are zeros to the codec, which is the mean.

  Args:
    codec: `codecs.kl_vae.KlVaeCodec`.
    frozen: its weights.
    tokens: in the order they were drawn.
    cells: that order.
    most: images per row, about equally many tokens apart; S is N if that is
      less.
  """
  side = math.isqrt(tokens.shape[1])
  placed, rank = order.put_tokens(tokens, cells), jnp.argsort(cells, axis=1)

  def decode(known: Bool[Array, "B N"]) -> Float[Array, "B H W 3"]:
    return codec.decode(frozen, jnp.where(known[..., None], placed, 0.0))

  return drawn_cells.images_of_stages(decode, rank, (side, side), most)
