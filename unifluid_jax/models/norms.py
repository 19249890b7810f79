"""Norms over the last axis, float32 inside."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from unifluid_jax.models.stack import keep


def gemma_rms_norm(
  x: Float[Array, "*dims D"], scale: Float[Array, " D"], epsilon: float = 1e-6
) -> Float[Array, "*dims D"]:
  """Root-mean-square norm, times 1 + scale in float32 before the downcast."""
  return (_normed(x, epsilon) * (1 + scale)).astype(x.dtype)


def llama_rms_norm(
  x: Float[Array, "*dims D"], scale: Float[Array, " D"], epsilon: float = 1e-6
) -> Float[Array, "*dims D"]:
  """Root-mean-square norm, times scale after the downcast."""
  return (_normed(x, epsilon).astype(x.dtype) * scale).astype(x.dtype)


def layer_norm(
  x: Float[Array, "*dims D"], params: Any, epsilon: float = 1e-6
) -> Float[Array, "*dims D"]:
  """LayerNorm with scale and bias, before the downcast."""
  wide = x.astype(jnp.float32)
  centred = wide - keep(jnp.mean(wide, axis=-1, keepdims=True))
  variance = keep(jnp.mean(centred**2, axis=-1, keepdims=True))
  normed = centred * lax.rsqrt(variance + epsilon)
  return (normed * params["scale"] + params["bias"]).astype(x.dtype)


def _normed(
  x: Float[Array, "*dims D"], epsilon: float
) -> Float[Array, "*dims D"]:
  """Divided by its root mean square, in float32."""
  wide = x.astype(jnp.float32)
  mean_square = keep(jnp.mean(wide**2, axis=-1, keepdims=True))
  return wide * lax.rsqrt(mean_square + epsilon)
