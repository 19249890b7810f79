"""Small classifier of drawn scenes, the feature network of their distances.

Networks trained on photographs know nothing of a drawn world, and random
convolutions do not tell its scenes apart; features that name the content of
every cell do. Distances hold for one trained classifier only: train it once a
data set, with one seed, and keep the file.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from absl import logging
from etils import epath
from flax import linen as nn
from flax import traverse_util
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from unifluid_jax.core import files

_EVAL_BATCH = 256


class _Net(nn.Module):
  """Strided convolutions, mean pooling to `grid` cells a side, linear heads."""

  slots: int
  classes: int
  width: int
  grid: int
  cell_features: int

  @nn.compact
  def __call__(self, images):
    """[B, H, W, 3] in [-1, 1] to features [B, F] and logits [B, S, classes]."""
    x = nn.Conv(self.width, (6, 6), strides=4, name="conv0")(images)
    x = nn.Conv(self.width, (3, 3), strides=2, name="conv1")(nn.gelu(x))
    x = nn.gelu(x)
    x = nn.Dense(self.cell_features, name="cells")(x)
    b, h, w, c = x.shape
    if h % self.grid or w % self.grid:
      raise ValueError(
        f"images of {images.shape[1:3]} leave {h} x {w} positions, which "
        f"{self.grid} x {self.grid} cells do not divide: choose another grid"
      )
    x = x.reshape(b, self.grid, h // self.grid, self.grid, w // self.grid, c)
    x = nn.gelu(x.mean(axis=(2, 4)).reshape(b, -1))
    logits = nn.Dense(self.slots * self.classes, name="slots")(x)
    return x, logits.reshape(b, self.slots, self.classes)


@dataclasses.dataclass(frozen=True)
class SceneClassifier:
  """A trained classifier: a `FeatureNet` that also names what it sees."""

  net: _Net
  params: Any  # nested dict of f32
  mean: Any  # f32[F] of the features over the training images
  std: Any  # f32[F]

  def features(
    self, images: Float[Array | np.ndarray, "B H W 3"]
  ) -> Float[Array, "B F"]:
    """Penultimate activations, standardised over the training images.

    Standardising gives every feature unit variance on real scenes, so that
    distances under classifiers of different seeds are of one size.

    Args:
      images: in [-1, 1].

    Returns:
      One vector an image; cell by cell, so the layout stays in it.
    """
    raw, _ = _forward(self.net, self.params, images)
    return (raw - self.mean) / self.std

  def predict(
    self, images: Float[Array | np.ndarray, "B H W 3"]
  ) -> Int[Array, "B S"]:
    """Most likely class of each slot."""
    _, logits = _forward(self.net, self.params, images)
    return logits.argmax(axis=-1)

  def save(self, path: str | epath.PathLike) -> None:
    """Writes weights and sizes to one .npz."""
    flat = traverse_util.flatten_dict(self.params, sep="/")
    net = {
      f.name: getattr(self.net, f.name)
      for f in dataclasses.fields(_Net)
      if f.name not in ("parent", "name")
    }
    files.write_npz(
      path,
      **{f"params/{k}": np.asarray(v) for k, v in flat.items()},
      **{f"net/{k}": np.asarray(v) for k, v in net.items()},
      mean=np.asarray(self.mean),
      std=np.asarray(self.std),
    )


def load_classifier(path: str | epath.PathLike) -> SceneClassifier:
  """Reads what `SceneClassifier.save` wrote."""
  with epath.Path(path).open("rb") as f:
    data = np.load(f, allow_pickle=False)
    flat, net = {}, {}
    for key in data.files:
      group, _, name = key.partition("/")
      if group == "params":
        flat[name] = data[key]
      elif group == "net":
        net[name] = data[key].item()
    params = traverse_util.unflatten_dict(flat, sep="/")
    return SceneClassifier(_Net(**net), params, data["mean"], data["std"])


def train_classifier(
  images: UInt8[np.ndarray, "n H W 3"],
  labels: Int[np.ndarray, "n S"],
  seed: int = 0,
  steps: int = 800,
  batch: int = 64,
  grid: int = 2,
  augment: Callable[[Any, Any], Any] | None = None,
) -> SceneClassifier:
  """Trains the classifier by Adam; under ten seconds on one core at 32 x 32.

  Args:
    images: drawn scenes.
    labels: class of each slot (a cell of the canvas, the background, ...),
      from 0; the number of classes is the largest label plus one.
    seed: of weights and batches.
    steps: updates.
    batch: images an update.
    grid: cells a side that features keep apart; 16 features each.
    augment: (key, f32[B, H, W, 3] in [-1, 1]) → changed images, of every
      update; None: the images as they are.

  Returns:
    The trained classifier.

  Raises:
    ValueError: labels that do not fit the images, or sizes the grid does not
      divide.
  """
  if len(images) != len(labels) or len(images) < 2 or labels.min() < 0:
    raise ValueError(
      f"need one row of labels >= 0 for each of at least 2 images, not "
      f"labels {labels.shape} from {labels.min(initial=0)} for images "
      f"{images.shape}"
    )
  net = _Net(labels.shape[1], int(labels.max()) + 1, 64, grid, 16)
  rng = np.random.default_rng(seed)
  params = _init(net, rng, images.shape[1:])
  tx = optax.adam(optax.cosine_decay_schedule(4e-3, steps))
  opt_state = tx.init(params)
  for step in range(steps):
    rows = rng.integers(len(images), size=batch)
    key = jax.random.fold_in(jax.random.key(seed), step)
    params, opt_state, loss = _update(
      net, tx, augment, params, opt_state, images[rows], labels[rows], key
    )
    if step % 200 == 0 or step == steps - 1:
      logging.info("scene classifier: step %d loss %.4f", step, float(loss))
  mean, std = _moments(net, params, images)
  return SceneClassifier(net, params, mean, std)


def scaled(images: UInt8[Any, "*n H W 3"]) -> Float[Array, "*n H W 3"]:
  """Bytes as float32 in [-1, 1]."""
  return jnp.asarray(images, jnp.float32) / 127.5 - 1


def _init(net, rng, image_shape):
  """He-normal weights drawn on the host: no compilation for a tiny net."""
  sample = jnp.zeros((1, *image_shape))
  shapes = jax.eval_shape(net.init, jax.random.key(0), sample)["params"]

  def draw(leaf):
    if len(leaf.shape) == 1:
      return jnp.zeros(leaf.shape)
    std = (2 / np.prod(leaf.shape[:-1])) ** 0.5
    return jnp.asarray(rng.normal(0, std, leaf.shape), jnp.float32)

  return jax.tree.map(draw, shapes)


@functools.partial(jax.jit, static_argnums=0)
def _forward(net, params, images):
  return net.apply({"params": params}, images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _update(net, tx, augment, params, opt_state, images, labels, key):
  images = scaled(images)
  if augment is not None:
    images = augment(key, images)

  def loss_fn(params):
    _, logits = net.apply({"params": params}, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()

  loss, grads = jax.value_and_grad(loss_fn)(params)
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state, loss


def _moments(net, params, images):
  """Mean and standard deviation of raw features, at most 4096 images."""
  chunks = [
    np.asarray(_forward(net, params, scaled(images[i : i + _EVAL_BATCH]))[0])
    for i in range(0, min(len(images), 4096), _EVAL_BATCH)
  ]
  features = np.concatenate(chunks)
  # A feature that never moves must not blow up rounding noise.
  return features.mean(axis=0), np.maximum(features.std(axis=0), 1e-3)
