"""Rows of texts and images, as `data/dialogue.py` lays them out, in ids."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unifluid_jax.core.types import PAD, Params
from unifluid_jax.data.tasks import DIALOGUE
from unifluid_jax.systems.common import packing
from unifluid_jax.systems.common.packing import Packed

FIELD = "row"  # what systems call the field in their inputs


def ids(
  fields: Mapping[str, Any], image_ids: Callable[[Any], Any]
) -> Int[Array, "B T"]:
  """Ids of rows, each code in its place; PAD where nothing stands.

  Args:
    fields: of the task, images encoded.
    image_ids: ids of codes i32[B, T].
  """
  row, cell, codes = (fields[f"{FIELD}.{k}"] for k in ("ids", "cell", "codes"))
  codes = codes.reshape(len(codes), -1)
  placed = jnp.take_along_axis(codes, jnp.maximum(cell, 0), axis=1)
  return jnp.where(cell >= 0, image_ids(placed), row)


def placed(
  x: Float[Array, "B T D"],
  places: Int[Array, "B T"],
  values: Float[Array, "B n D"],
) -> Float[Array, "B T D"]:
  """`x` with values in their places.

  Args:
    x: embedded rows.
    places: which of the values stands there; -1: none.
    values: of images: their codes or their features.
  """
  found = jnp.maximum(places, 0)[..., None]
  values = jnp.take_along_axis(values.astype(x.dtype), found, axis=1)
  return jnp.where(places[..., None] >= 0, values, x)


def places(cell: Int[Array, "B T"], count: int) -> Int[Array, "B n"]:
  """Where each of `count` codes stands, -1 where the row lacks it."""
  at = jnp.broadcast_to(jnp.arange(cell.shape[1]), cell.shape)
  rows = jnp.arange(len(cell))[:, None]
  found = jnp.full((len(cell), count), -1, jnp.int32)
  # Negative indices count from the end: no code goes beyond it.
  index = jnp.where(cell >= 0, cell, count)
  return found.at[rows, index].set(at, mode="drop")


def extended(fields: Mapping[str, Any], token: int) -> dict[str, Any]:
  """Rows to be continued, with one more token at their end."""
  more = {"ids": token, "cell": -1, "feature": -1}
  return dict(fields) | {
    f"{FIELD}.{k}": jnp.pad(
      fields[f"{FIELD}.{k}"], ((0, 0), (0, 1)), constant_values=value
    )
    for k, value in more.items()
    if f"{FIELD}.{k}" in fields
  }


def targets(
  fields: Mapping[str, Any], ids: Int[Array, "B T"]
) -> Int[Array, "B T"]:
  """The ids that count, PAD elsewhere."""
  return jnp.where(fields[f"{FIELD}.target"], ids, PAD)


def counts(
  fields: Mapping[str, Any], ends: tuple[int, ...]
) -> dict[str, Int[Array, ""]]:
  """How many targets rows have, before their images are encoded.

  Args:
    fields: of the task.
    ends: ids of what stands around images.

  Returns:
    "image" codes, "end" tokens around them, and "text", all others.
  """
  row, cell, target = (
    fields[f"{FIELD}.{k}"] for k in ("ids", "cell", "target")
  )
  end = jnp.isin(row, jnp.asarray(ends, jnp.int32)) & target
  image = (cell >= 0) & target
  return {
    "image": image.sum(),
    "end": end.sum(),
    "text": (target & ~image & ~end).sum(),
  }


def hidden_states(
  decoder: Any, params: Params, packed: Mapping[str, Packed], key: PRNGKeyArray
) -> dict[str, Float[Array, "b T D"]]:
  """Hidden states of each task's rows; see `packing.hidden_states`.

  Dialogues are several times as long as all else: a pass of their own costs
  less than padding everything to their length.
  """
  found = {}
  long = [t for t in packed if t == DIALOGUE]
  apart = long, [t for t in packed if t not in long]
  for i, tasks in enumerate(filter(None, apart)):
    rows, k = [packed[task] for task in tasks], jax.random.fold_in(key, i)
    states = packing.hidden_states(decoder, params, rows, k)
    found |= dict(zip(tasks, states, strict=True))
  return found
