"""Texts and images as inputs of a decoder."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unifluid_jax.core.types import PAD, Params
from unifluid_jax.models import stack
from unifluid_jax.models.decoder import cast_tables


def text(
  decoder: Any, params: Params, tokens: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
  """Token embeddings, scaled as the decoder scales them; pads become row 0."""
  ids = jnp.maximum(tokens, 0)
  return decoder.apply({"params": params["decoder"]}, ids, method="embed")


def fed_words(
  suffix: Int[Array, "B A"], dropout: float, unk: int, key: PRNGKeyArray | None
) -> Int[Array, "B n"]:
  """All tokens of answers but the last, as inputs.

  Args:
    suffix: the answers, padded.
    dropout: share of the words that are replaced by `unk`, so that the words
      after them must be predicted from the image (word dropout, arXiv
      1511.06349).
    unk: its id.
    key: of the dropout; None: nothing is replaced.
  """
  fed = suffix[:, :-1]
  if not dropout or key is None:
    return fed
  lost = (jax.random.uniform(key, fed.shape) < dropout) & (fed != PAD)
  return jnp.where(lost, unk, fed)


def pixels(
  vit: Any,
  projector: Any,
  params: Params,
  images: Float[Array, "B *F H W 3"],
  kernel: str = "plain",
) -> Float[Array, "B n D"]:
  """Vision features, projected; not scaled, as in PaliGemma.

  Features of F images are concatenated.
  `kernel` is that of the encoder's attention, see `attention.attend`.
  """
  frames = images.reshape(-1, *images.shape[-3:])
  features = vit.apply({"params": params["vit"]}, frames, kernel)
  x = projector.apply({"params": params["projector"]}, features)
  return x.reshape(images.shape[0], -1, x.shape[-1])


def cast_embedding(params: Params, dtype: Any) -> Params:
  """Parameters with vocabulary tables cast to the dtype of their uses.

  Gradients of lookups and of logits are then summed over devices in that
  dtype.
  """
  return params | {"decoder": cast_tables(params["decoder"], dtype)}


def cast_for_decoding(params: Params, dtype: Any) -> Params:
  """Decoder parameters cast once to their products' dtype, layer by layer.

  Otherwise each use casts them, and copies them out of the stack: all of them
  again for every token.
  """
  params = cast_embedding(params, dtype)
  layers = stack.narrow(params["decoder"]["layers"], dtype)
  own = {"layers": stack.unstacked(layers)}
  return params | {"decoder": params["decoder"] | own}
