"""Rules of inference: guidance, token picking, text decoding, beam search.

Text rules are those of PaliGemma (big_vision trainers/proj/paligemma
predict_fns.py); guidance is Ho and Salimans' (arXiv 2207.12598), of edits
InstructPix2Pix's (arXiv 2211.09800 §3.2.1).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from unifluid_jax.core.types import EOS, PAD

# (cache, token i32[B], i) -> (logits [B, V], cache): feeds answer token i and
# predicts token i + 1.
Step = Callable[[Any, Array, Any], tuple[Array, Any]]


def guide(
  cond: Float[Array, "*rows C"],
  null: Float[Array, "*rows C"],
  scale: float | Float[Array, ""],
) -> Float[Array, "*rows C"]:
  """Guided prediction null + scale (cond - null); scale 1 is no guidance."""
  return null + scale * (cond - null)


def guide_edit(
  cond: Float[Array, "*rows C"],
  source: Float[Array, "*rows C"],
  null: Float[Array, "*rows C"],
  scale: float | Float[Array, ""],
  image_scale: float | Float[Array, ""],
) -> Float[Array, "*rows C"]:
  """Guided prediction of an edit.

  null + image_scale (source - null) + scale (cond - source): with equal scales
  `guide` between cond and null, with image_scale 1 between cond and source.

  Args:
    cond: given source image and instruction.
    source: given the source image alone.
    null: given neither.
    scale: towards the instruction.
    image_scale: towards the source image.
  """
  return guide(source, null, image_scale) + scale * (cond - source)


class Guided(NamedTuple):
  """Conditions of the same rows, and how predictions for them are combined.

  Attributes:
    conditions: each [B, ...]: what is asked for; then without its text; then
      of edits without text and source.
    scale: towards the text; unused with one condition.
    image_scale: towards the source; unused with fewer than three.
  """

  conditions: Sequence[Any]
  scale: Any
  image_scale: Any = 1.0

  def same(self, x: Float[Array, "B *rest"]) -> Float[Array, "KB *rest"]:
    """What all K conditions see alike, once for each."""
    return jnp.concatenate([x] * len(self.conditions))

  def combine(self, prediction: Float[Array, "KB C"]) -> Float[Array, "B C"]:
    """The guided prediction from those of all conditions."""
    cond, *others = jnp.split(prediction, len(self.conditions))
    if not others:
      return cond
    if len(others) == 1:
      return guide(cond, *others, self.scale)
    return guide_edit(cond, *others, self.scale, self.image_scale)


def steps_by_place(
  first: int, last: int, places: int, levels: int = 5
) -> tuple[list[int], Int[np.ndarray, "N"]]:
  """Fewer and fewer sampling steps from an image's first token to its last.

  DiSA (arXiv 2505.20297): those drawn before leave late tokens little choice,
  so that they need few steps. Linear in the place.

  Differs: neighbours share a count, as each one is a program to compile.

  Args:
    first: steps of the first token.
    last: steps of the last one.
    places: N, tokens of an image.
    levels: different counts at most.

  Returns:
    The counts, and which of them each token is drawn by.
  """
  levels = min(levels, places, abs(first - last) + 1)
  counts = np.rint(np.linspace(first, last, levels)).astype(int)
  which = np.arange(places, dtype=np.int32) * levels // places
  return [int(count) for count in counts], which


def cfg_scale(
  kind: str,
  cfg: float | Float[Array, ""],
  i: int | Int[Array, ""],
  n: int,
) -> float | Float[Array, ""]:
  """Guidance scale of token i of n.

  "linear" is MAR's ramp 1 + (cfg - 1) (i + 1) / n for one token per step.
  Differs: the last token gets `cfg` itself, where MAR's clamp stops one step
  short.

  Raises:
    ValueError: `kind` is neither "constant" nor "linear".
  """
  if kind == "constant":
    return cfg
  if kind == "linear":
    return 1.0 + (cfg - 1.0) * (i + 1) / n
  raise ValueError(f"cfg_schedule={kind!r}: choose 'constant' or 'linear'")


def greedy(logits: Float[Array, "B V"]) -> Int[Array, "B"]:
  """The likeliest token."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def pick_token(
  keys: Key[Array, "B"],
  logits: Float[Array, "B V"],
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Int[Array, "B"]:
  """Draws a token for each row.

  Args:
    keys: one per row.
    logits: before temperature.
    temperature: static, above 0.
    top_k: static; only logits at least as large as the k-th; 0 is off.
    top_p: static; of those, only logits at least as large as the one at which
      the sorted cumulative probability first reaches p; 1 is off.

  Raises:
    ValueError: a value outside its range.
  """
  logits = filtered(logits, temperature, top_k, top_p)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def filtered(
  logits: Float[Array, "B V"], temperature: float, top_k: int, top_p: float
) -> Float[Array, "B V"]:
  """Logits over the temperature, -inf where a token cannot be drawn.

  Args:
    logits: before temperature.
    temperature: as `pick_token` takes it, and likewise the others.
    top_k: static.
    top_p: static.

  Raises:
    ValueError: a value outside its range.
  """
  if temperature <= 0:
    raise ValueError(f"temperature={temperature}: must be > 0, or use greedy")
  if top_k < 0 or not 0 < top_p <= 1:
    raise ValueError(f"top_k={top_k} must be >= 0, top_p={top_p} in (0, 1]")
  logits = logits.astype(jnp.float32) / temperature
  if top_k or top_p < 1:
    logits = jnp.where(_kept(logits, top_k, top_p), logits, -jnp.inf)
  return logits


def _kept(
  logits: Float[Array, "B V"], top_k: int, top_p: float
) -> Bool[Array, "B V"]:
  """Which logits are as large as the smallest that is kept, in each row.

  Those that rank among the kept are named by their place too: a compiler may
  compute logits twice and round them differently, so that the last one kept
  could be below itself.
  """
  vocab = logits.shape[-1]
  best, where = jax.lax.top_k(logits, min(top_k, vocab) if top_k else vocab)
  last = jnp.full(len(logits), best.shape[-1] - 1)
  if top_p < 1:
    mass = jnp.cumsum(jax.nn.softmax(best, axis=-1), axis=-1)
    # Rounding can keep the last sum below p: then every candidate stays.
    last = jnp.minimum((mass < top_p).sum(-1), last)
  limit = jnp.take_along_axis(best, last[:, None], axis=-1)
  ranked = jnp.arange(best.shape[-1]) <= last[:, None]
  rows = jnp.arange(len(logits))[:, None]
  named = jnp.zeros(logits.shape, bool).at[rows, where].set(ranked)
  return named | (logits >= limit)


def decode_text(
  step: Step,
  cache: Any,
  first_logits: Float[Array, "B V"],
  length: int,
  pick: Callable[[Array, Array], Array],
  keys: Key[Array, "B"],
  eos: int | Sequence[int] = EOS,
) -> Int[Array, "B A"]:
  """Generates until every row has emitted EOS, or `length` tokens.

  Args:
    step: see `Step`; finished rows are fed PAD.
    cache: of the prefilled prompt.
    first_logits: predict the first answer token.
    length: A, static.
    pick: (keys [B], logits [B, V]) -> tokens i32[B]; token i of row b gets
      `fold_in(keys[b], i)`.
    keys: one per row.
    eos: its id; several end an answer alike.

  Returns:
    Tokens up to and including EOS, then PAD.
  """
  ends = jnp.asarray(eos)
  fold = jax.vmap(jax.random.fold_in, (0, None))

  def emit(
    i: int | Int[Array, ""],
    logits: Float[Array, "B V"],
    tokens: Int[Array, "B A"],
    done: Bool[Array, "B"],
  ) -> tuple[Int[Array, "B"], Int[Array, "B A"], Bool[Array, "B"]]:
    token = jnp.where(done, PAD, pick(fold(keys, i), logits)).astype(jnp.int32)
    return token, tokens.at[:, i].set(token), done | jnp.isin(token, ends)

  # The state: i, token i32[B], tokens i32[B, A], done bool[B], cache.
  def unfinished(state: Any) -> Bool[Array, ""]:
    i, _, _, done, _ = state
    return (i < length) & ~done.all()

  def advance(state: Any) -> tuple[Any, ...]:
    i, token, tokens, done, cache = state
    logits, cache = step(cache, token, i - 1)
    return i + 1, *emit(i, logits, tokens, done), cache

  batch = first_logits.shape[0]
  tokens = jnp.full((batch, length), PAD, jnp.int32)
  first = emit(0, first_logits, tokens, jnp.zeros(batch, bool))
  state = (jnp.asarray(1), *first, cache)
  return jax.lax.while_loop(unfinished, advance, state)[2]


class _Beams(NamedTuple):
  """n live hypotheses per row, and the best that has ended."""

  tokens: Any  # i32[B, n, A]
  scores: Any  # f32[B, n] summed log-probability
  best: Any  # i32[B, A] finished, PAD after EOS
  best_score: Any  # f32[B]


def beam_search(
  step: Step,
  cache: Any,
  first_logits: Float[Array, "B V"],
  n: int,
  length: int,
  gather: Callable[[Any, Array], Any],
  eos: int | Sequence[int] = EOS,
) -> Int[Array, "B A"]:
  """The best finished hypothesis under raw summed log-probability.

  At each position every live beam offers to end, and the best ending ever
  seen is kept; then every beam proposes its n + 1 likeliest tokens other than
  EOS and the best n of all survive. There is no length penalty. A row is
  settled when its best live score is below its best finished one.

  Args:
    step: as in `decode_text`, on B * n rows: beam j of row b is b * n + j.
    cache: of the prefilled prompt, B rows.
    first_logits: predict the first answer token.
    n: beams, static.
    length: A, static, EOS included.
    gather: (cache, rows i32[B * n]) -> cache whose row j is the given cache's
      row rows[j]; called first to spread B rows to B * n.
    eos: its id; several end a hypothesis alike.

  Returns:
    Tokens up to and including EOS, then PAD.
  """
  batch, ends = first_logits.shape[0], jnp.atleast_1d(jnp.asarray(eos))
  first = jnp.repeat(jnp.arange(batch), n)

  # The state: i, beams, cache.
  def unsettled(state: Any) -> Bool[Array, ""]:
    i, beams, _ = state
    open_rows = beams.scores.max(-1) >= beams.best_score
    return (i < length) & open_rows.any()

  def advance(state: Any) -> tuple[Any, ...]:
    i, beams, cache = state
    token = beams.tokens[:, :, i - 1].reshape(-1)
    logits, cache = step(cache, token, i - 1)
    beams, parents = _extend(beams, logits.reshape(batch, n, -1), i, ends)
    return i + 1, beams, gather(cache, parents)

  beams = _Beams(
    tokens=jnp.full((batch, n, length), PAD, jnp.int32),
    # Copies of one prompt are one hypothesis: only the first is alive.
    scores=jnp.where(jnp.arange(n) == 0, jnp.zeros((batch, 1)), -jnp.inf),
    best=jnp.full((batch, length), PAD, jnp.int32),
    best_score=jnp.full(batch, -jnp.inf),
  )
  logits = jnp.repeat(first_logits[:, None], n, axis=1)
  beams, _ = _extend(beams, logits, 0, ends)
  state = (jnp.asarray(1), beams, gather(cache, first))
  return jax.lax.while_loop(unsettled, advance, state)[1].best


def _extend(
  beams: _Beams,
  logits: Float[Array, "B n V"],
  i: int | Int[Array, ""],
  ends: Int[Array, "E"],
) -> tuple[_Beams, Int[Array, "B*n"]]:
  """Fills position i; also the parent rows of the new beams."""
  batch, n, vocab = logits.shape
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)

  ended = beams.scores[:, :, None] + log_p[:, :, ends]
  ended = ended.reshape(batch, -1)
  winner = ended.argmax(-1)
  ended = jnp.take_along_axis(ended, winner[:, None], axis=1)[:, 0]
  beam, end = jnp.divmod(winner, len(ends))
  ending = jnp.take_along_axis(beams.tokens, beam[:, None, None], axis=1)
  better = ended > beams.best_score
  ending = ending[:, 0].at[:, i].set(ends[end])
  best = jnp.where(better[:, None], ending, beams.best)
  best_score = jnp.where(better, ended, beams.best_score)

  log_p = log_p.at[:, :, ends].set(-jnp.inf)
  gains, choices = jax.lax.top_k(log_p, min(n + 1, vocab))
  offers = (beams.scores[:, :, None] + gains).reshape(batch, -1)
  scores, where = jax.lax.top_k(offers, n)
  parent = where // gains.shape[-1]
  choice = jnp.take_along_axis(choices.reshape(batch, -1), where, axis=1)
  tokens = jnp.take_along_axis(beams.tokens, parent[:, :, None], axis=1)
  tokens = tokens.at[:, :, i].set(choice)
  parents = parent + n * jnp.arange(batch)[:, None]
  return _Beams(tokens, scores, best, best_score), parents.reshape(-1)
