"""The judge of drawn emoji: retrieval by features of a small classifier.

A drawn picture is right if, among the true pictures of all concepts in the
asked style, that of the asked concept is the most alike. Alike are features of
a classifier of concept, style and skin tone, trained on other views (moved,
scaled, blurred, recoloured) of the true pictures that models are trained on.
It never sees a held-out picture: how well it finds those again, from another
view, says how far its verdicts on held-out pairs can be trusted.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from etils import epath
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from unifluid_jax.core import files
from unifluid_jax.data.worlds.emoji import STYLES, Picture
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.metrics import fid
from unifluid_jax.evals.worlds import emoji_album, scene_classifier
from unifluid_jax.evals.worlds.emoji_album import Album, identity

_GRID = 4  # cells a side that features keep apart
_EPOCHS = 64
_STEPS = 600  # at least, for few pictures
_BATCH = 64
_CHUNK = 256  # images through the classifier at once


@functools.lru_cache(maxsize=1)
def judge_of(bench: Bench) -> "Judge":
  """The judge of a configuration's data.

  Its classifier is trained once per data set and kept beside it; the name of
  its file holds a digest of pictures and labels.
  """
  album = emoji_album.album_of(bench)
  images = np.stack([e.image for e in album.trained])
  labels = labels_of(album)
  digest = files.digest(images.tobytes() + labels.tobytes())[:12]
  root = epath.Path(bench.config.data.root)
  path = root / f"emoji_classifier_{digest}.npz"
  if path.exists():
    return Judge(scene_classifier.load_classifier(path), album)
  logging.info("training the judge of drawn emoji, %d pictures", len(images))
  net = train(images, labels)
  net.save(path)
  return Judge(net, album)


def labels_of(album: Album) -> Int[np.ndarray, "n 3"]:
  """Concept, style and tone of each training picture, as numbers."""
  place = {concept: i for i, concept in enumerate(_concepts(album))}
  tones = ["", *sorted({e.picture.tone or "" for e in album.trained} - {""})]
  return np.array(
    [
      (place[p.concept], STYLES.index(p.style), tones.index(p.tone or ""))
      for p in (e.picture for e in album.trained)
    ],
    np.int32,
  )


def _concepts(album: Album) -> list[str]:
  """Of the training pictures, in the order of their labels."""
  return sorted({e.picture.concept for e in album.trained})


def train(
  images: UInt8[np.ndarray, "n S S 3"],
  labels: Int[np.ndarray, "n 3"],
  seed: int = 0,
) -> scene_classifier.SceneClassifier:
  """The classifier of training pictures; 84 s of one core for 1,000."""
  return scene_classifier.train_classifier(
    images,
    labels,
    seed,
    steps=max(_STEPS, _EPOCHS * len(images) // _BATCH),
    batch=_BATCH,
    grid=_GRID,
    augment=views,
  )


def views(key: Any, images: Float[Array, "B S S 3"]) -> Float[Array, "B S S 3"]:
  """Each image as another drawing of it may look.

  Scaled by up to a quarter and moved by up to a twelfth, edges continued;
  blurred, as far as blocks of 4 pixels; contrast and colours changed; noise.
  Never mirrored: arrows and flags would be others.

  Args:
    key: of all draws.
    images: in [-1, 1].
  """
  keys = jax.random.split(key, 6)
  count, side = images.shape[:2]

  def uniform(i, shape, low, high):
    shape = (count, *shape)
    return jax.random.uniform(keys[i], shape, minval=low, maxval=high)

  scale = jnp.exp(uniform(0, (1,), -0.22, 0.22))
  shift = uniform(1, (2,), -side / 12, side / 12)
  rows = _weights(side, scale, shift[:, :1])
  columns = _weights(side, scale, shift[:, 1:])
  x = jnp.einsum("bih,bhwc->biwc", rows, images)
  x = jnp.einsum("bjw,biwc->bijc", columns, x)
  small = (count, side // 4, side // 4, 3)
  blurred = jax.image.resize(x, small, "linear")
  blurred = jax.image.resize(blurred, x.shape, "linear")
  x += (blurred - x) * uniform(2, (1, 1, 1), 0, 1)
  x = x * uniform(3, (1, 1, 3), 0.8, 1.2) + uniform(4, (1, 1, 3), -0.15, 0.15)
  x += 0.05 * jax.random.normal(keys[5], x.shape)
  return x.clip(-1, 1)


def _weights(
  side: int, scale: Float[Array, "B 1"], shift: Float[Array, "B 1"]
) -> Float[Array, "B side side"]:
  """Linear interpolation along one axis: new position, old position."""
  middle = (side - 1) / 2
  at = (jnp.arange(side) - middle - shift) / scale + middle
  at = at.clip(0, side - 1)
  return jnp.maximum(0, 1 - abs(at[..., None] - jnp.arange(side)))


class Classifier(fid.FeatureNet, Protocol):
  """A `scene_classifier.SceneClassifier`, or what stands in for it."""

  def predict(self, images: Any) -> Any:
    """f32[B, H, W, 3] in [-1, 1] to i32[B, slots], the concept first."""


class Judge:
  """A classifier, and its features of all true pictures.

  Attributes:
    true_features: f32[n, F], of the album's entries.
  """

  def __init__(self, net: Classifier, album: Album):
    """Describes the album's pictures."""
    self.net = net
    self._concepts = _concepts(album)
    entries = album.entries
    self.true_features = self.features([e.image for e in entries])
    self._directions = _directions(self.true_features)
    self._styles = np.array([e.picture.style for e in entries])
    names = sorted({e.identity for e in entries}, key=str)
    self._place = {name: i for i, name in enumerate(names)}
    self._names = np.array([self._place[e.identity] for e in entries])

  def features(self, images: Any) -> Float[np.ndarray, "n F"]:
    """Standardised over the training pictures; images u8[H, W, 3] of a size."""
    parts = [
      np.asarray(self.net.features(_scaled(images[i : i + _CHUNK])))
      for i in range(0, len(images), _CHUNK)
    ]
    return np.concatenate(parts)

  def ranks(
    self, images: Any, asked: Sequence[Picture]
  ) -> Int[np.ndarray, " n"]:
    """How many other concepts of the asked style look more like each image.

    Concepts with different tones are different ones here. Similar is the
    cosine of features; several pictures of a concept in a style, e.g. over
    other grounds, count as the most similar of them.

    Args:
      images: u8[H, W, 3].
      asked: what each is to show.

    Raises:
      ValueError: the data have no true picture of what is asked.
    """
    found = []
    directions = _directions(self.features(images))
    for direction, picture in zip(directions, asked, strict=True):
      rows = np.flatnonzero(self._styles == picture.style)
      best = np.full(len(self._place), -np.inf)
      np.maximum.at(best, self._names[rows], self._directions[rows] @ direction)
      place = self._place.get(identity(picture))
      if place is None or best[place] == -np.inf:
        raise ValueError(
          f"the data have no picture of {picture.concept!r} in the style "
          f"{picture.style!r} to judge by: run unifluid_jax.prepare again"
        )
      # Equal ones are no better: some concepts share a drawing.
      found.append(int((best > best[place]).sum()))
    return np.array(found)

  def in_style(
    self, images: Any, asked: Sequence[Picture]
  ) -> Bool[np.ndarray, " n"]:
    """Whether, of the concept's true pictures, that of the style is nearest.

    Args:
      images: u8[H, W, 3].
      asked: what each is to show; as for `ranks`.
    """
    found = []
    directions = _directions(self.features(images))
    for direction, picture in zip(directions, asked, strict=True):
      rows = np.flatnonzero(self._names == self._place[identity(picture)])
      nearest = rows[np.argmax(self._directions[rows] @ direction)]
      found.append(self._styles[nearest] == picture.style)
    return np.array(found)

  def named(
    self, images: Any, asked: Sequence[Picture]
  ) -> Bool[np.ndarray, " n"]:
    """Whether the classifier gives each image the name of its concept.

    Args:
      images: u8[H, W, 3].
      asked: what each shows.
    """
    found = [
      self._concepts[i]
      for start in range(0, len(images), _CHUNK)
      for i in np.asarray(
        self.net.predict(_scaled(images[start : start + _CHUNK]))
      )[:, 0]
    ]
    pairs = zip(found, asked, strict=True)
    return np.array([name == picture.concept for name, picture in pairs])

  def choices(self, picture: Picture) -> tuple[int, int]:
    """How many concepts its style has, and how many styles its concept."""
    same = self._names == self._place[identity(picture)]
    concepts = np.unique(self._names[self._styles == picture.style])
    return len(concepts), len(np.unique(self._styles[same]))

  def other_views(
    self, images: Any, seed: int = 1
  ) -> list[UInt8[np.ndarray, "S S 3"]]:
    """Views of true pictures that training has not drawn."""
    found = views(jax.random.key(seed), _scaled(images))
    return list(np.asarray((found + 1) * 127.5).round().astype(np.uint8))


def _scaled(images: Any) -> Float[Array, "n S S 3"]:
  return scene_classifier.scaled(
    np.stack([emoji_album.sized(x) for x in images])
  )


def _directions(features: Float[np.ndarray, "n F"]) -> np.ndarray:
  """At length 1; those of a picture without features stay 0."""
  lengths = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(lengths, 1e-6)
