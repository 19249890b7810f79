"""Cross entropy over a large vocabulary without ever holding its logits.

Gemma's 256k rows times every answer position would be gigabytes in fp32, so
logits exist for a few positions at a time and are recomputed backwards, unless
all positions are few enough for one time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class TokenLosses(NamedTuple):
  """What the logits of every position say, float32 [B, A]."""

  nll: Any  # nats
  hits: Any  # 1.0 where the largest logit is the target
  log_z: Any  # logsumexp of the logits
  max_logit: Any


def chunked_cross_entropy(
  logits_of: Callable[[Any], Any],
  hidden: Float[Array, "B A D"],
  targets: Int[Array, "B A"],
  chunk: int,
  smoothing: float = 0.0,
) -> TokenLosses:
  """Negative log-likelihood of every position, and what regularisers need.

  With label smoothing e the target distribution is 1 - e on the id and
  e / (V - 1) on every other (big_vision's weighted_softmax_xent); the loss is
  the cross entropy with it, so that it does not reach 0.

  Args:
    logits_of: hidden [..., D] → float32 logits [..., V].
    hidden: decoder outputs at the answer positions.
    targets: ids to predict there.
    chunk: positions of the answer axis computed at once; the batch axis stays
      whole, so its sharding does too.
    smoothing: e, in [0, 1).

  Terms that are not used cost nothing: XLA drops them.
  """
  b, a, d = hidden.shape
  chunk = min(chunk, a)
  pad = -a % chunk
  hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
  targets = jnp.pad(targets, ((0, 0), (0, pad)))
  count = (a + pad) // chunk

  def one(
    h: Float[Array, "B chunk D"], t: Int[Array, "B chunk"]
  ) -> TokenLosses:
    logits = logits_of(h)
    # A sum and no lookup: the vocabulary may be split over devices.
    ids = jnp.arange(logits.shape[-1])
    picked = jnp.where(ids == t[..., None], logits, 0).sum(axis=-1)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = log_z - picked
    if smoothing:  # else the other logits need not be summed
      others = (logits.sum(axis=-1) - picked) / (logits.shape[-1] - 1)
      nll = nll + smoothing * (picked - others)
    hits = (jnp.argmax(logits, axis=-1) == t).astype(jnp.float32)
    return TokenLosses(nll, hits, log_z, logits.max(axis=-1))

  if count == 1:
    return jax.tree.map(lambda x: x[:, :a], one(hidden, targets))
  step = jax.checkpoint(one)
  _, losses = jax.lax.scan(
    lambda carry, xs: (carry, step(*xs)),
    None,
    (
      hidden.reshape(b, count, chunk, d).swapaxes(0, 1),
      targets.reshape(b, count, chunk).swapaxes(0, 1),
    ),
  )
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(b, a + pad)[:, :a], losses
  )
