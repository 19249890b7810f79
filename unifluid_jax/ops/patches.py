"""Latent maps as sequences of image tokens, in MAR's channel order."""

import math

from jaxtyping import Array, Float


def patchify(
  latents: Float[Array, "B h w c"], patch: int
) -> Float[Array, "B N C"]:
  """Merges patch x patch cells into a token, tokens in raster order.

  A token's channels run over (latent channel, row in patch, column in patch),
  as in MAR models/mar.py; C = c * patch**2.

  Raises:
    ValueError: the map does not divide into patches.
  """
  b, h, w, c = latents.shape
  if h % patch or w % patch:
    raise ValueError(
      f"latents of {h} x {w} do not divide into patches of {patch}: choose "
      "model.image_size as a multiple of VAE factor x model.patch"
    )
  rows, columns = h // patch, w // patch
  x = latents.reshape(b, rows, patch, columns, patch, c)
  x = x.transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(b, rows * columns, c * patch**2)


def unpatchify(
  tokens: Float[Array, "B N C"], patch: int, channels: int
) -> Float[Array, "B h w c"]:
  """Inverse of `patchify` for square maps.

  Args:
    tokens: raster order.
    patch: cells per side of a token.
    channels: c of the latent map.

  Raises:
    ValueError: N is no square, or C is not channels * patch**2.
  """
  b, n, width = tokens.shape
  side = math.isqrt(n)
  if side**2 != n or width != channels * patch**2:
    raise ValueError(
      f"{n} tokens of {width} channels are no square of patches "
      f"{patch} x {patch} x {channels}: check model.patch and vae.latent"
    )
  x = tokens.reshape(b, side, side, channels, patch, patch)
  x = x.transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(b, side * patch, side * patch, channels)
