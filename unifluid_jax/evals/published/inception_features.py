"""How images become the 299 x 299 input of the Inception distance.

Three conventions are in use, and distances under one cannot be compared with
distances under another: the resize of the original TensorFlow graph, that of
pytorch-fid, and that of clean-fid (Parmar et al. 2022, arXiv 2104.11222).
Always say which one a number comes from. All three are linear along each
axis, so each is a pair of small matrices.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

SIZE = 299  # pixels a side, as models/inception.py reads


def tf1(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B 299 299 3"]:
  """As the graph of Heusel et al. 2017, torch-fidelity and the ADM suite.

  TensorFlow 1's bilinear resize: output pixel i reads at i * size / 299 (the
  corners of pixels, not their centres), without a low-pass filter; then
  (x - 128) / 128.
  """
  return _resize(images, _tf1_weights) / 128 - 1


def pytorch_fid(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B 299 299 3"]:
  """As pytorch-fid.

  x / 255, bilinear between the centres of pixels without a low-pass filter
  (torch's `interpolate`, align_corners=False), then 2x - 1.
  """
  return _resize(images, _centre_weights) / 127.5 - 1


def clean_fid(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B 299 299 3"]:
  """As clean-fid.

  Pillow's bicubic resize of float channels, which filters when it shrinks,
  clipped to [0, 255] and not rounded; then (x - 128) / 128.
  """
  return jnp.clip(_resize(images, _cubic_weights), 0, 255) / 128 - 1


_OUTPUTS = np.arange(SIZE, dtype=np.float64)

CONVENTIONS = {"tf1": tf1, "pytorch-fid": pytorch_fid, "clean-fid": clean_fid}


def _resize(images, weights):
  rows, columns = (
    jnp.asarray(weights(size), jnp.float32) for size in images.shape[1:3]
  )
  return jnp.einsum(
    "ih,BhwC,jw->BijC",
    rows,
    images.astype(jnp.float32),
    columns,
    precision=lax.Precision.HIGHEST,
  )


# The originals keep scale and position in float32, which shows at 1e-5.
def _tf1_weights(size: int) -> Float[np.ndarray, "299 size"]:
  return _linear(np.float32(_OUTPUTS * np.float32(size / SIZE)), size)


def _centre_weights(size: int) -> Float[np.ndarray, "299 size"]:
  where = (_OUTPUTS + 0.5) * np.float32(size / SIZE) - 0.5
  return _linear(np.float32(where), size)


def _linear(where: np.ndarray, size: int) -> np.ndarray:
  """Linear interpolation at positions in pixels; the edges are extended."""
  where = np.clip(where, 0, size - 1)
  low = np.floor(where).astype(int)
  high = np.minimum(low + 1, size - 1)
  out = np.zeros((SIZE, size), np.float32)
  rows = np.arange(SIZE)
  np.add.at(out, (rows, low), 1 - (where - low))
  np.add.at(out, (rows, high), where - low)
  return out


def _cubic_weights(size: int) -> Float[np.ndarray, "299 size"]:
  """Keys' cubic with a = -1/2, stretched by the factor of a reduction.

  Pixels count where they begin within the support; weights sum to 1 also at
  the edges, where part of the support has no pixels.
  """
  scale = size / SIZE
  stretch = max(scale, 1.0)
  centres = (np.arange(SIZE)[:, None] + 0.5) * scale
  pixels = np.arange(size)[None]
  low = np.maximum(np.floor(centres - 2 * stretch + 0.5), 0)
  high = np.minimum(np.floor(centres + 2 * stretch + 0.5), size)
  x = np.abs(pixels + 0.5 - centres) / stretch
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  out = np.where(x < 1, near, np.where(x < 2, far, 0.0))
  out = np.where((pixels >= low) & (pixels < high), out, 0.0)
  return out / out.sum(axis=1, keepdims=True)
