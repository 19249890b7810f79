"""Cross entropy of texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unifluid_jax.core import parallel
from unifluid_jax.core.types import PAD, Batch, Metrics
from unifluid_jax.models.decoder import logits
from unifluid_jax.ops.cross_entropy import chunked_cross_entropy
from unifluid_jax.systems.common.token_loss import token_losses


def counts(batch: Batch) -> dict[str, Any]:
  """Answers and answer tokens (at least 1) of a whole batch."""
  suffixes = [f["suffix"] for f in batch.values() if "suffix" in f]
  words = sum((suffix != PAD).sum() for suffix in suffixes)
  return {
    "answer_tokens": jnp.maximum(words, 1),
    "answers": sum(map(len, suffixes)),
  }


def text_loss(
  decoder: Any,
  table: Float[Array, "V D"],
  hidden: Sequence[Float[Array, "B A D"]],
  targets: Sequence[Int[Array, "B A"]],
  counts: Mapping[str, Any],
  config: Any,
) -> tuple[Float[Array, ""], Metrics]:
  """Cross entropy of the answers; labels smoothed if configured.

  The mean is over all answer tokens, or within each answer first, as
  PaliGemma's, which gives a word of a long answer less weight. UniFluid
  does not say; captions of the procedural world are learned faster the first
  way (docs/log.md), transfers take the second.

  Args:
    decoder: its configuration.
    table: of the output layer.
    hidden: the states that predict the answers, of each task.
    targets: the answers.
    counts: of the whole batch, see `counts`.
    config: vocab_chunk, label_smoothing and text_mean.
  """
  # Each device scores its part of the vocabulary for all rows of its fsdp
  # group: the states of some answers travel, not the table nor its gradient.
  h = parallel.constrain(jnp.concatenate(hidden), "GTD")
  suffix = parallel.constrain(jnp.concatenate(targets), "GT")

  def logits_of(x):
    return parallel.constrain(logits(decoder, table, x), "GTV")

  nll, hits, *_ = chunked_cross_entropy(
    logits_of, h, suffix, config.vocab_chunk, config.label_smoothing
  )
  mask = (suffix != PAD).astype(jnp.float32)
  count, nll = counts["answer_tokens"], nll * mask
  loss, accuracy = nll.sum() / count, (hits * mask).sum() / count
  if config.text_mean == "answers":
    lengths = jnp.maximum(mask.sum(axis=1), 1)
    loss = (nll.sum(axis=1) / lengths).sum() / counts["answers"]
  return loss, {"loss_text": loss, "text_accuracy": accuracy}


def log_likelihood(
  decoder: Any,
  table: Float[Array, "V D"],
  hidden: Float[Array, "B A D"],
  targets: Int[Array, "B A"],
  chunk: int,
) -> Float[Array, "B"]:
  """Log-probability of each row's answer, in nats; labels are not smoothed.

  Arguments are those of `token_losses`.
  """
  return -token_losses(decoder, table, hidden, targets, chunk).nll.sum(axis=1)
