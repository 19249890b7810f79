"""The Inception network with converted weights, as a map from files' pixels.

It runs on all local devices: replicated weights, batches split over them.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32

from unifluid_jax.core import checkpoint
from unifluid_jax.core.types import Params
from unifluid_jax.evals.published.inception_features import CONVENTIONS
from unifluid_jax.models import inception


class InceptionNet:
  """Images of any size to the features of the Fréchet distance.

  Attributes:
    convention: how images become the network's input.
    weights: where its weights come from.
    digest: of the weights' values, to compare stored statistics by.
    width: features.
    rows: images that run at once.
  """

  def __init__(
    self,
    params: Params,
    convention: str,
    weights: str = "",
    rows: int = 32,
    devices: Sequence[Any] | None = None,
  ):
    """Copies the weights to the devices.

    Args:
      params: of `Inception`.
      convention: a key of CONVENTIONS.
      weights: their path, for results.
      rows: images a device and call.
      devices: default all local ones.

    Raises:
      ValueError: an unknown convention.
    """
    if convention not in CONVENTIONS:
      raise ValueError(
        f"convention {convention!r} is unknown; known: {', '.join(CONVENTIONS)}"
      )
    devices = devices or jax.local_devices()
    self.convention, self.weights = convention, weights
    self.digest = digest(params)
    self.width = inception.FEATURES
    self.rows = rows * len(devices)
    mesh = jax.make_mesh(
      (len(devices),), ("rows",), (AxisType.Auto,), devices=devices
    )
    self._split = NamedSharding(mesh, P("rows"))
    self._params = jax.device_put(params, NamedSharding(mesh, P()))
    self._resize = jax.jit(CONVENTIONS[convention])
    self._net = jax.jit(
      lambda p, x: inception.Inception().apply({"params": p}, x).features
    )

  def features(
    self, images: Sequence[np.ndarray]
  ) -> Float32[np.ndarray, "B F"]:
    """Features of uint8 RGB images, at most `rows`, of any sizes."""
    if len({image.shape for image in images}) == 1:
      inputs = self._resize(self._place(np.stack(images)))
    else:  # a program a size, so only the small one
      one_by_one = [np.asarray(self._resize(image[None])) for image in images]
      inputs = self._place(np.concatenate(one_by_one))
    return np.asarray(self._net(self._params, inputs))[: len(images)]

  def _place(self, batch: np.ndarray) -> Any:
    """On the devices, filled up with zeros to `rows`."""
    padding = [(0, self.rows - len(batch))] + [(0, 0)] * (batch.ndim - 1)
    return jax.device_put(np.pad(batch, padding), self._split)


def load(path: str) -> Params:
  """Converted weights, in float32.

  Raises:
    checkpoint.CheckpointError: no Inception there; says how to get one.
  """
  side = inception.SIZE
  like = jax.eval_shape(
    lambda: inception.Inception().init(
      jax.random.key(0), jnp.zeros((1, side, side, 3))
    )
  )["params"]
  try:
    step = checkpoint.latest_step(path)
    return checkpoint.restore_part(path, step, "params/inception", like)
  except checkpoint.CheckpointError as error:
    raise checkpoint.CheckpointError(
      f"{error}. --weights={path} must be what python -m unifluid_jax.weights "
      f"--from=inception:FILE --to={path} writes"
    ) from error


def digest(params: Params) -> str:
  """Sixteen hexadecimal digits of names and float32 values of all leaves."""
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    found.update(jax.tree_util.keystr(path).encode())
    found.update(np.asarray(leaf, np.float32).tobytes())
  return found.hexdigest()[:16]
