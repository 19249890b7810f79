"""Masks, rotary positions and grouped-query attention, as pure functions.

Sources: PaliGemma (arXiv 2407.07726) for the block mask, RoFormer
(arXiv 2104.09864) for rotations, Gemma 2 (arXiv 2408.00118) for the softcap
and the local window.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unifluid_jax.ops import (
  fused_attention,
  mosaic_attention,
  triton_attention,
)

# Finite, so that a row without any visible key gives a mean and not NaN.
MASKED = -2.3819763e38


def block_causal_mask(
  block: Int[Array, "B T"], valid: Bool[Array, "B T"]
) -> Bool[Array, "B T T"]:
  """Who sees whom: a query sees valid keys of its own and earlier blocks.

  Four examples, a row per query, a column per key.

  Causal text, block 0 1 2 3:

      1 0 0 0
      1 1 0 0
      1 1 1 0
      1 1 1 1

  Bidirectional prefix, then causal, block 0 0 1 2:

      1 1 0 0
      1 1 0 0
      1 1 1 0
      1 1 1 1

  Next-scale prediction with scales of 1, 2 and 2 tokens, block 0 1 1 2 2:

      1 0 0 0 0
      1 1 1 0 0
      1 1 1 0 0
      1 1 1 1 1
      1 1 1 1 1

  Right-aligned prompt with a pad, then causal, block 0 0 0 1 2, valid
  0 1 1 1 1; the pad's own row is computed and never used:

      0 1 1 0 0
      0 1 1 0 0
      0 1 1 0 0
      0 1 1 1 0
      0 1 1 1 1

  Args:
    block: block of every position; only the order of the numbers counts.
    valid: False where no query may look.

  Returns:
    True where query i (second axis) sees key j (last axis).
  """
  earlier = block[:, None, :] <= block[:, :, None]
  return earlier & valid[:, None, :]


def window_mask(
  query_positions: Int[Array, "B T"],
  key_positions: Int[Array, "B S"],
  window: int,
) -> Bool[Array, "B T S"]:
  """Keys nearer than `window` positions, on both sides of the query.

  A causal query thus sees at most `window` keys, itself included. The bound
  on later keys matters where a prefix is bidirectional (gemma gm/nn).
  """
  distance = key_positions[:, None, :] - query_positions[:, :, None]
  return (distance > -window) & (distance < window)


class Rotation(NamedTuple):
  """Cosines and sines of each position's angles, float32."""

  cos: Any  # [B, T, H/2]
  sin: Any  # [B, T, H/2]


def rotation(
  positions: Int[Array, "B T"],
  size: int,
  base: float | Float[Array, ""],
  scale: float | Float[Array, ""] = 1.0,
  original_length: int = 0,
) -> Rotation:
  """Angles of rotary embeddings: position / scale * base^(-2i/H).

  Args:
    positions: of the tokens.
    size: of a head, H; even.
    base: of the geometric series of frequencies; may be traced.
    scale: positions are divided by it; may be traced.
    original_length: context length before Llama 3.1 extended it. Pairs that
      rotate at least four times within it keep their frequency, those that
      rotate at most once are slowed down by `scale`, those between in part.
      0 divides every position by `scale`.
  """
  exponents = jnp.arange(size // 2, dtype=jnp.float32) / (size // 2)
  frequencies = jnp.asarray(base, jnp.float32) ** -exponents
  if original_length:
    rotations = original_length / (2 * jnp.pi) * frequencies
    kept = jnp.clip((rotations - 1) / 3, 0, 1)
    frequencies = frequencies * (kept + (1 - kept) / scale)
    scale = 1.0
  angles = (positions.astype(jnp.float32) / scale)[..., None] * frequencies
  return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(
  x: Float[Array, "B T N H"], angles: Rotation
) -> Float[Array, "B T N H"]:
  """Rotates channel pairs (i, i + H/2), in float32, to the dtype of `x`."""
  cos, sin = (part[:, :, None, :] for part in angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def soft_cap(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
  """Squeezes values into (-cap, cap), smoothly; a cap of 0 is none."""
  return cap * jnp.tanh(x / cap) if cap else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_product(
  equation: str, a: Float[Array, "..."], b: Float[Array, "..."]
) -> Float[Array, "..."]:
  """An einsum summed in float32, with gradients in the dtype of its factors.

  Left to itself, a float32 gradient makes both products of the backward pass
  float32 ones, at a fraction of the speed; rounded to the factors' dtype
  first, as flash attention does (arXiv 2205.14135), they cost what the
  product itself does. Float32 factors are not rounded.

  Args:
    equation: of `jnp.einsum`, two factors.
    a: first factor.
    b: second factor, in the dtype of `a`.

  Returns:
    The product in float32.
  """
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _wide_product_back(
  equation: str,
  factors: Any,  # (a, b) of `wide_product`
  gradient: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  rounded = gradient.astype(factors[0].dtype)
  return jax.vjp(functools.partial(jnp.einsum, equation), *factors)[1](rounded)


wide_product.defvjp(
  lambda equation, a, b: (wide_product(equation, a, b), (a, b)),
  _wide_product_back,
)


def attend(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Bool[Array, "B T S"] | None,
  angles: Rotation | None = None,
  *,
  softcap: float,
  scale: float,
  kernel: str = "plain",
) -> Float[Array, "B T N H"]:
  """Grouped-query attention: query head n reads key/value head n // (N/K).

  Differs: gemma scales the queries before the product; here the float32
  logits are scaled, which rounds less in bfloat16 and is equal otherwise.

  Args:
    q: queries of N heads; N is a multiple of K.
    k: keys, in the dtype of `q`.
    v: values, in the dtype of `q`.
    mask: True where a key is visible; None: everywhere. A row without any
      visible key gives finite values without meaning.
    angles: queries and keys are rotated by them first; S is T then. None:
      they are already, or have no positions.
    softcap: of the scaled logits, before the mask; 0: none.
    scale: of the logits.
    kernel: "plain", the reference, or a fused one: "mosaic" for TPUs, see
      `mosaic_attention.attention`; "splash", for TPUs and long sequences,
      which takes a mask only, see `fused_attention.splash`; "triton" for
      NVIDIA GPUs, see `triton_attention.flash`.

  Returns:
    Attended values in the dtype of `q`. From the product's accumulation to
    the end of the softmax everything is float32; see `wide_product` for the
    gradients.
  """
  if kernel == "mosaic":
    return mosaic_attention.attention(
      q, k, v, mask, angles, softcap=softcap, scale=scale
    )
  if angles is not None:
    q, k = rotate(q, angles), rotate(k, angles)
  fused = {"splash": fused_attention.splash, "triton": triton_attention.flash}
  if kernel in fused:
    return fused[kernel](q, k, v, mask, softcap=softcap, scale=scale)
  b, t, n, h = q.shape
  kv = k.shape[2]
  grouped = q.reshape(b, t, kv, n // kv, h)
  logits = scale * wide_product("BTKGH,BSKH->BKGTS", grouped, k)
  weights = _weights(logits, mask, softcap).astype(v.dtype)
  out = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v)
  return out.reshape(b, t, n, h)


def attend_cached(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B K H S"],
  v: Float[Array, "B K S H"],
  mask: Bool[Array, "B T S"],
  *,
  softcap: float,
  scale: float,
) -> Float[Array, "B T N H"]:
  """`attend` of keys and values as a cache keeps them; see models/key_cache."""
  b, t, n, h = q.shape
  kv = k.shape[1]
  grouped = q.reshape(b, t, kv, n // kv, h)
  logits = scale * wide_product("BTKGH,BKHS->BKGTS", grouped, k)
  weights = _weights(logits, mask, softcap).astype(v.dtype)
  out = jnp.einsum("BKGTS,BKSH->BTKGH", weights, v)
  return out.reshape(b, t, n, h)


def _weights(
  logits: Float[Array, "B K G T S"], mask: Bool[Array, "B T S"] | None,
  softcap: float,
) -> Float[Array, "B K G T S"]:  # fmt: skip
  logits = soft_cap(logits, softcap)
  if mask is not None:
    logits = jnp.where(mask[:, None, None], logits, MASKED)
  return jax.nn.softmax(logits, axis=-1)
