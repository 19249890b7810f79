"""Sequences of several tasks as one batch for one backbone pass.

All tasks share one layout: a bidirectional prefix (image features, text
aligned to its right end), then causal tokens. Static slots make every read-out
a slice, and training and decoding see the same positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from unifluid_jax.core import parallel
from unifluid_jax.core.types import BOS, PAD, WEIGHT, Params
from unifluid_jax.ops.attention import block_causal_mask

_FAR = 2.0  # times the mean loss of the rows that are to be learned


class Packed(NamedTuple):
  """Embedded sequences with the mask rule's two inputs."""

  x: Any  # f[B, T, D]
  block: Any  # i32[B, T] 0 in the prefix, then one block per causal token
  valid: Any  # bool[B, T]


def prefix(x: Any, valid: Any) -> Packed:
  """Bidirectional tokens: block 0."""
  return Packed(x, jnp.zeros(valid.shape, jnp.int32), valid)


def causal(x: Any, valid: Any) -> Packed:
  """Causal tokens after a prefix: blocks 1, 2, ..."""
  steps = jnp.arange(1, x.shape[1] + 1, dtype=jnp.int32)
  return Packed(x, jnp.broadcast_to(steps, valid.shape), valid)


def causal_sequence(x: Any, valid: Any) -> Packed:
  """A whole sequence of causal tokens, without a prefix: blocks 0, 1, 2, ..."""
  steps = jnp.arange(x.shape[1], dtype=jnp.int32)
  return Packed(x, jnp.broadcast_to(steps, valid.shape), valid)


def join(parts: Sequence[Packed]) -> Packed:
  """Parts of one task, concatenated along the sequence."""
  return Packed(
    *(jnp.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
  )


def all_valid(x: Any) -> Bool[Array, "B T"]:
  """A validity mask for tokens none of which is padding."""
  return jnp.ones(x.shape[:2], bool)


def text_valid(tokens: Int[Array, "B T"]) -> Bool[Array, "B T"]:
  """True at every id that is no pad."""
  return tokens != PAD


def null_prompt(
  text: Int[Array, "B P"], tokens: Sequence[int] = (BOS,)
) -> Int[Array, "B P"]:
  """The null condition of guidance: BOS alone, or these tokens."""
  empty = jnp.full_like(text, PAD)
  return empty.at[:, -len(tokens) :].set(jnp.asarray(tokens, text.dtype))


def hide_source(prompts: Packed, text: int, hidden: Bool[Array, "B"]) -> Packed:
  """Prompts with an unseen source image: the null condition of edits.

  The source's slots become invalid. No query sees them and positions do not
  count them, so what is left equals a prompt that never had a source.

  Args:
    prompts: source parts, then the slot of the instruction.
    text: P, width of that slot.
    hidden: rows whose source is hidden.
  """
  slots = jnp.arange(prompts.x.shape[1])
  source = slots < prompts.x.shape[1] - text
  return prompts._replace(valid=prompts.valid & ~(hidden[:, None] & source))


def positions(valid: Bool[Array, "B T"]) -> Int[Array, "B T"]:
  """Sequence positions that count valid tokens only; pads repeat one."""
  counted = jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1
  return jnp.maximum(counted, 0)


def merge(tasks: Sequence[Packed], groups: int) -> Packed:
  """Tasks padded to one length and stacked on the batch axis.

  Rows are interleaved in `groups` equal parts: with the batch split over that
  many shards, row block g of every task stays on its device, so merging moves
  no data.

  Args:
    tasks: one Packed per task, batch sizes divisible by `groups`.
    groups: batch shards of the mesh.
  """
  length = max(t.x.shape[1] for t in tasks)

  def padded(a):
    widths = [(0, 0)] * a.ndim
    widths[1] = (0, length - a.shape[1])
    return jnp.pad(a, widths).reshape(groups, -1, length, *a.shape[2:])

  def stacked(*arrays):
    whole = jnp.concatenate([padded(a) for a in arrays], axis=1)
    return whole.reshape(-1, *whole.shape[2:])

  return Packed(*(stacked(*arrays) for arrays in zip(*tasks, strict=True)))


def split(x: Any, sizes: Sequence[int], groups: int) -> list[Any]:
  """Undoes `merge` along the batch axis; lengths stay the merged one."""
  grouped = x.reshape(groups, -1, *x.shape[1:])
  out, start = [], 0
  for size in sizes:
    part = grouped[:, start : start + size // groups]
    out.append(part.reshape(size, *x.shape[1:]))
    start += size // groups
  return out


def hidden_states(
  decoder: Any, params: Params, tasks: Sequence[Packed], key: Any = None
) -> list[Float[Array, "b T D"]]:
  """One decoder pass over all tasks; hidden states per task.

  Args:
    decoder: the network.
    params: all parameters.
    tasks: one Packed per task.
    key: of the decoder's dropout.
  """
  groups = parallel.batch_groups()
  whole = merge(tasks, groups)
  hidden, _ = decoder.apply(
    {"params": params["decoder"]},
    parallel.constrain(whole.x, "BTD"),
    positions(whole.valid),
    block_causal_mask(whole.block, whole.valid),
    dropout_key=key,
  )
  return split(hidden, [t.x.shape[0] for t in tasks], groups)


def hidden_states_apart(
  decoder: Any, params: Params, tasks: Sequence[Packed], key: PRNGKeyArray
) -> list[Float[Array, "b T D"]]:
  """`hidden_states`, a pass for each task.

  For tasks of very different lengths: none is padded to the longest.
  """
  found = []
  for i, task in enumerate(tasks):
    k = jax.random.fold_in(key, i)
    found += hidden_states(decoder, params, [task], k)
  return found


def weigh(
  losses: Float[Array, "*n B N"], fields: Sequence[Mapping[str, Any]]
) -> Float[Array, "*n B N"]:
  """Losses of drawn rows, each times its row's weight; see `types.WEIGHT`.

  A row of negative weight, whose loss is to grow, counts only while it is not
  far above the others' mean: nothing else bounds how far it can be driven.

  Args:
    losses: of the tokens of all rows.
    fields: of the tasks whose rows these are, one after another.
  """
  if not any(WEIGHT in task for task in fields):
    return losses
  of_rows = [t.get(WEIGHT, jnp.ones(len(t["prompt"]))) for t in fields]
  weights = jnp.concatenate(of_rows)
  row = jax.lax.stop_gradient(losses).mean((*range(losses.ndim - 2), -1))
  wanted = weights > 0
  mean = (row * wanted).sum() / jnp.maximum(wanted.sum(), 1)
  counts = (weights >= 0) | (row <= _FAR * mean)
  return losses * jnp.where(counts, weights, 0.0)[:, None]


def read_out(
  hidden: Sequence[Any],
  tasks: Sequence[Packed],
  targets: Sequence[tuple[int, Any]],
) -> tuple[list[Any], list[Any]]:
  """The states [B, n, D] that predict the targets [B, n, ...], and these."""
  states = []
  for i, target in targets:
    end = tasks[i].x.shape[1]
    states.append(hidden[i][:, end - target.shape[1] : end])
  return states, [target for _, target in targets]
