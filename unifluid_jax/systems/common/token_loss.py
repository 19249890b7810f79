"""Cross entropy over one vocabulary of texts and image codes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unifluid_jax.core import parallel
from unifluid_jax.core.types import PAD
from unifluid_jax.models.decoder import logits
from unifluid_jax.ops.cross_entropy import TokenLosses, chunked_cross_entropy
from unifluid_jax.systems.common import packing


def token_losses(
  decoder: Any,
  table: Float[Array, "V D"],
  hidden: Float[Array, "B n D"],
  targets: Int[Array, "B n"],
  chunk: int,
) -> TokenLosses:
  """What the logits of every target say; zeros where there is none.

  Args:
    decoder: its configuration.
    table: of the output layer.
    hidden: the states that predict the targets.
    targets: ids, PAD where nothing is to be predicted.
    chunk: positions whose logits exist at once, of all rows.
  """
  h = parallel.constrain(hidden, "GTD")
  ids = parallel.constrain(targets, "GT")

  def logits_of(x):
    return parallel.constrain(logits(decoder, table, x), "GTV")

  losses = chunked_cross_entropy(logits_of, h, ids, chunk)
  counted = ids != PAD
  # No product with 0: a state that counts nowhere may be infinite.
  return jax.tree.map(lambda x: jnp.where(counted, x, 0.0), losses)


def weighed(
  losses: TokenLosses, fields: Sequence[Mapping[str, Any]]
) -> TokenLosses:
  """Losses of rows to draw, times their rows' weights; see `packing.weigh`."""
  return losses._replace(nll=packing.weigh(losses.nll, fields))


def positive(count: Any) -> Any:
  """A count to divide by: a batch may have no token of a kind."""
  return max(count, 1) if isinstance(count, int) else jnp.maximum(count, 1)
