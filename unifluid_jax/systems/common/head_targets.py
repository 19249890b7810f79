"""What a head of continuous tokens learns from: data, or another head."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from unifluid_jax.core import parallel
from unifluid_jax.ops import sampling


def of_tasks(
  tokens: Any,
  params: Mapping[str, Any],
  read_out: tuple[Sequence[Any], Sequence[Any]],
  key: PRNGKeyArray,
  config: Any,
) -> tuple[Float[Array, "B N D"], Float[Array, "*draws B N C"]]:
  """States, and the tokens that they are to predict.

  Args:
    tokens: the head, a `models.token_head.TokenHead`.
    params: all parameters.
    read_out: per task the states [B, N, D], and the tokens [B, N, C] of the
      data. With a head that is taught: of one task, with its prompts and
      without them.
    key: the one that the head's `losses` gets.
    config: of the run.
  """
  z, x0 = read_out
  if not tokens.taught:
    states = parallel.constrain(jnp.concatenate(z), "BTD")
    return states, parallel.constrain(jnp.concatenate(x0), "BTC")
  loss = config.loss
  guided = sampling.Guided(z, loss.teacher_cfg)
  limit = config.sampling.clip or math.inf
  shown = tokens.shown(
    params["teacher"], guided, key, loss.draws, loss.teacher_steps, limit
  )
  return z[0], shown
