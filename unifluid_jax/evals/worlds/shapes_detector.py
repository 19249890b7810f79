"""An analytic detector for the world of shapes, as GenEval needs one.

It stands where GenEval has Mask2Former and CLIP: connected components of what
differs from the background, the nearest of GenEval's ten colours, and the
best fitting of the world's shapes.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8
from scipy import ndimage

from unifluid_jax.data import transforms
from unifluid_jax.data.worlds import shapes
from unifluid_jax.evals.metrics.geneval import MIN_SCORE, Detection, box_of

_PALETTE = {**shapes.COLOURS, "black": (0, 0, 0), "white": (255, 255, 255)}
_NAMES = tuple(_PALETTE)
_MIN_CONTRAST = 24.0  # of 255; less is noise
_MIN_FILL = 0.18  # of the smallest bounding box; half a star
_IOU_CENTRE, _IOU_WIDTH = 0.62, 0.04
_SHAPE_WIDTH = 0.015


class _Templates(NamedTuple):
  """Masks of all shapes at one radius, around one pixel."""

  masks: np.ndarray  # f32[K, P*P]
  areas: np.ndarray  # f32[K]
  shape: np.ndarray  # i64[K] index into the world's shapes
  offset: np.ndarray  # f32[K, 2] centre's x, y from the pixel's corner


class ShapesDetector:
  """Finds the objects of one world."""

  def __init__(self, world: shapes.World):
    """Remembers what may be found.

    Args:
      world: gives shapes, sizes and the canvas.
    """
    self._world = world
    low = world.radius - world.radius_spread
    high = world.radius + world.radius_spread
    self._radii = np.arange(low, high + 0.25, 0.5)
    self._max_side = 2 * high + 5
    self._min_area = _MIN_FILL * (2 * low) ** 2

  def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Detection]:
    """All objects, with a score of how well shape and size fit.

    Args:
      image: any image; what is no drawing of the world gives no detections,
        or poor ones. Squares of other sizes are brought to the canvas, in
        whose pixels boxes are.
    """
    pixels = on_canvas(self._world, image).astype(np.float32)
    ground = ground_of(pixels)
    distance = np.sqrt(np.square(pixels - ground).sum(-1))
    return [
      self._fit(pixels, ground, distance, inside, window)
      for inside, window in self._components(pixels, ground, distance)
    ]

  def _components(
    self,
    pixels: Float[np.ndarray, "H W 3"],
    ground: Float[np.ndarray, "3"],
    distance: Float[np.ndarray, "H W"],
  ) -> Iterator[tuple[Bool[np.ndarray, "H W"], tuple[int, ...]]]:
    """Masks of single objects, and their windows y0, y1, x0, x1."""
    contrast = _contrast(self._world, ground)
    labels, boxes = _label(distance > max(0.4 * contrast, _MIN_CONTRAST))
    for k, window in boxes:
      inside = labels == k
      if inside.sum() < self._min_area:
        continue
      side = max(window[1] - window[0], window[3] - window[2])
      if side <= self._max_side:
        yield inside, window
        continue
      yield from self._split(pixels, ground, inside)

  def _split(
    self,
    pixels: Float[np.ndarray, "H W 3"],
    ground: Float[np.ndarray, "3"],
    inside: Bool[np.ndarray, "H W"],
  ) -> Iterator[tuple[Bool[np.ndarray, "H W"], tuple[int, ...]]]:
    """Touching objects: connected parts of one colour, strongest first.

    The blend at a seam is nearer to the background than to a colour. Blends
    around an object may resemble a third colour: parts centred in a stronger
    part's window are dropped.
    """
    nearest = np.where(inside, _nearest(pixels, ground), len(_NAMES))
    weight = np.square(pixels - ground).sum(-1).ravel()
    parts = []
    for colour in np.unique(nearest[nearest < len(_NAMES)]):
      labels, boxes = _label(nearest == colour)
      sizes = np.bincount(labels.ravel())
      strengths = np.bincount(labels.ravel(), weight)
      parts += [
        (float(strengths[k]), labels == k, window)
        for k, window in boxes
        if sizes[k] >= self._min_area
      ]
    kept: list[tuple[int, ...]] = []
    for _, part, window in sorted(parts, key=lambda p: -p[0]):
      y, x = (window[0] + window[1]) / 2, (window[2] + window[3]) / 2
      if not any(w[0] < y < w[1] and w[2] < x < w[3] for w in kept):
        kept.append(window)
        yield part, window

  def _fit(
    self,
    pixels: Float[np.ndarray, "H W 3"],
    ground: Float[np.ndarray, "3"],
    distance: Float[np.ndarray, "H W"],
    inside: Bool[np.ndarray, "H W"],
    window: tuple[int, ...],
  ) -> Detection:
    """The shape and colour that explain a component best."""
    colour, ink = _colour(self._world, pixels, distance, inside)
    ink = ink - ground
    alpha = np.clip((pixels - ground) @ ink / max(ink @ ink, 1.0), 0, 1)
    y0, y1, x0, x1 = _tight(alpha, inside, window)
    x, y = int((x0 + x1) / 2), int((y0 + y1) / 2)
    size = max(x1 - x0, y1 - y0) / 2
    best = np.full(len(self._world.shapes), -1.0)
    centre, radius = (x + 0.5, y + 0.5), self._radii[0]
    near = np.abs(self._radii - size) <= 1
    for r in self._radii[near] if near.any() else self._radii[[0, -1]]:
      table = _templates(self._world.shapes, float(r))
      patch = _crop(alpha, x, y, math.isqrt(table.masks.shape[1]) // 2)
      both = np.minimum(table.masks, patch).sum(1)
      iou = both / (table.areas + patch.sum() - both)
      k = int(iou.argmax())
      if iou[k] > best.max():
        centre = (x + table.offset[k, 0], y + table.offset[k, 1])
        radius = float(r)
      np.maximum.at(best, table.shape, iou)
    cx, cy = float(centre[0]), float(centre[1])
    return Detection(
      name=self._world.shapes[int(best.argmax())],
      score=_score(best),
      box=(cx - radius, cy - radius, cx + radius, cy + radius),
      colour=colour,
    )


def on_canvas(
  world: shapes.World, image: UInt8[np.ndarray, "H W 3"]
) -> UInt8[np.ndarray, "h w 3"]:
  """A square image at the size of the world's canvas.

  model.image_size may be another one, and lengths of the world are in pixels.
  """
  height, width = image.shape[:2]
  if height != width or height == world.canvas:
    return image
  return transforms.centre_crop_resize(image, world.canvas)


def scene_agreement(
  scene: shapes.Scene, detections: Sequence[Detection]
) -> bool:
  """Whether the detections are the scene: shapes, colours and places.

  Args:
    scene: what was drawn or asked for.
    detections: those of GenEval's minimal score count.
  """
  left = [d for d in detections if d.score > MIN_SCORE]
  for item in scene.items:
    for d in left:
      if shows(d, item):
        left.remove(d)
        break
    else:
      return False
  return not left


def shows(d: Detection, item: shapes.Item) -> bool:
  """Whether a detection agrees with an item in place, shape and colour."""
  x, y = d.centre
  near = max(abs(x - item.x), abs(y - item.y)) < item.radius
  return near and (d.name, d.colour) == (item.shape, item.colour)


def ground_of(image: Num[np.ndarray, "H W 3"]) -> Float[np.ndarray, "3"]:
  """The background: the border's median colour."""
  border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
  return np.median(border, axis=0)


def _contrast(world: shapes.World, ground: np.ndarray) -> float:
  """Distance from the background to the world's least distinct colour."""
  inks = np.asarray([shapes.COLOURS[c] for c in world.colours], np.float32)
  return float(np.linalg.norm(inks - ground, axis=1).min())


def _label(
  mask: Bool[np.ndarray, "H W"],
) -> tuple[np.ndarray, list[tuple[int, tuple[int, ...]]]]:
  """Connected components i32[H, W], and (label, (y0, y1, x0, x1)) of each."""
  labels, _ = ndimage.label(mask)
  return labels, [
    (k, (s[0].start, s[0].stop, s[1].start, s[1].stop))
    for k, s in enumerate(ndimage.find_objects(labels), start=1)
  ]


def _nearest(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
  """Index into _NAMES of every pixel, len(_NAMES) for the background."""
  inks = np.asarray([*_PALETTE.values(), ground], np.float32)
  return np.square(pixels[..., None, :] - inks).sum(-1).argmin(-1)


def _colour(
  world: shapes.World,
  pixels: Float[np.ndarray, "H W 3"],
  distance: Float[np.ndarray, "H W"],
  inside: Bool[np.ndarray, "H W"],
) -> tuple[str, Float[np.ndarray, "3"]]:
  """The component's colour: its name, and its mean as painted.

  Pixels vote with their squared distance: edges are blends.
  """
  inks = np.asarray(list(_PALETTE.values()), np.float32)
  if world.textures != ("solid",):
    inks = np.concatenate([inks, [shapes.TEXTURE_INK]]).astype(np.float32)
  colours, weight = pixels[inside], np.square(distance[inside])
  nearest = np.square(colours[:, None] - inks).sum(-1).argmin(-1)
  votes = np.bincount(nearest, weight, minlength=len(inks))[: len(_NAMES)]
  winner = int(votes.argmax())
  own = nearest == winner
  if not own.any():
    own[:] = True
  return _NAMES[winner], np.average(colours[own], axis=0, weights=weight[own])


def _tight(
  alpha: np.ndarray, inside: np.ndarray, window: tuple[int, ...]
) -> tuple[int, int, int, int]:
  """Bounds y0, y1, x0, x1 of the component's more than half covered part."""
  y0, y1, x0, x1 = window
  solid = (alpha[y0:y1, x0:x1] > 0.5) & inside[y0:y1, x0:x1]
  if not solid.any():
    return y0, y1, x0, x1
  left, top, right, bottom = map(int, box_of(solid))
  return y0 + top, y0 + bottom, x0 + left, x0 + right


def _crop(alpha: np.ndarray, x: int, y: int, half: int) -> np.ndarray:
  """The flattened patch around a pixel, zero outside the image."""
  padded = np.pad(alpha, half)
  return padded[y : y + 2 * half + 1, x : x + 2 * half + 1].ravel()


@functools.lru_cache(maxsize=256)
def _templates(names: tuple[str, ...], radius: float) -> _Templates:
  """All shapes at one radius, their centres on a half-pixel lattice."""
  steps = [float(f) for f in np.arange(-0.5, 1.75, 0.5)]
  rows = list(itertools.product(range(len(names)), steps, steps))
  masks = np.stack(
    [shapes.coverage(names[k], radius, fx, fy).ravel() for k, fx, fy in rows]
  )
  return _Templates(
    masks=masks,
    areas=masks.sum(1),
    shape=np.asarray([row[0] for row in rows]),
    offset=np.asarray([row[1:] for row in rows], np.float32),
  )


def _score(iou: np.ndarray) -> float:
  """Confidence: something of the world is there, and it is this shape.

  Calibrated so that slightly blurred drawings pass GenEval's 0.9 for counting.
  """
  top = float(iou.max())
  fits = 1 / (1 + math.exp((_IOU_CENTRE - top) / _IOU_WIDTH))
  return fits / float(np.exp((iou - top) / _SHAPE_WIDTH).sum())
