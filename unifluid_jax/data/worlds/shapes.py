"""A procedural world of coloured shapes: scenes and their antialiased drawing.

The eight chromatic colours are those GenEval asks for (GenEval
evaluation/evaluate_images.py), so that all six of its tasks can be posed.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SPLITS = ("train", "validation", "held_out")

COLOURS = {
  "red": (222, 36, 36),
  "orange": (246, 140, 20),
  "yellow": (244, 224, 48),
  "green": (36, 160, 68),
  "blue": (36, 84, 220),
  "purple": (128, 44, 172),
  "pink": (252, 140, 196),
  "brown": (124, 72, 32),
}
BACKGROUNDS = {"light": (236, 236, 236), "dark": (36, 36, 44)}
TEXTURE_INK = (128, 128, 128)
TEXTURES = ("solid", "striped", "dotted")
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring", "star")
MAX_COUNT = 4

_GAP = 2.0  # px between bounding boxes, so that objects never touch
_STEPS = 4  # positions are multiples of 1/4 px: masks can be cached
_SUPERSAMPLE = 8
_TRIES = 1000


@dataclasses.dataclass(frozen=True)
class World:
  """What may occur in a scene, and where; lengths are in pixels.

  Attributes:
    canvas: side of the square image.
    grid: cells a side, one object per cell; 0 places objects freely.
    jitter: largest offset of an object from its cell's centre, each axis.
    radius: half the side of an object's bounding box.
    radius_spread: radii are uniform in radius +- spread.
    shapes: names out of SHAPES.
    colours: names out of COLOURS.
    backgrounds: names out of BACKGROUNDS.
    textures: names out of TEXTURES.
    held_out: (colour, shape) pairs that training never shows.
  """

  canvas: int = 32
  grid: int = 2
  jitter: float = 1.0
  radius: float = 6.0
  radius_spread: float = 0.0
  shapes: tuple[str, ...] = ("circle", "square", "triangle", "cross")
  colours: tuple[str, ...] = tuple(COLOURS)
  backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
  textures: tuple[str, ...] = ("solid",)
  held_out: tuple[tuple[str, str], ...] = (
    ("purple", "circle"),
    ("yellow", "square"),
    ("blue", "triangle"),
    ("red", "cross"),
  )

  def __post_init__(self) -> None:
    """Refuses worlds that cannot be drawn or told apart.

    Raises:
      ValueError: unknown names, too few of them, or objects that would touch.
    """
    for field, known in (
      ("shapes", SHAPES),
      ("colours", COLOURS),
      ("backgrounds", BACKGROUNDS),
      ("textures", TEXTURES),
    ):
      names = getattr(self, field)
      unknown = [name for name in names if name not in known]
      if unknown or not names:
        raise ValueError(
          f"World.{field}={names!r}: choose out of {', '.join(known)}"
        )
    if min(len(self.shapes), len(self.colours)) < 3:
      raise ValueError("World needs at least 3 shapes and 3 colours")
    room = 2 * (self.radius + self.radius_spread) + _GAP
    if self.grid == 1 or self.grid < 0:
      raise ValueError("World.grid must be 0 (free placement) or at least 2")
    if self.grid and room + 2 * self.jitter > self.cell:
      raise ValueError(
        f"objects would touch: cells of {self.cell} px need radius + "
        f"radius_spread + jitter <= {self.cell / 2 - _GAP / 2}"
      )
    if not self.grid and 3.5 * room > self.canvas:
      raise ValueError(
        f"free placement of {MAX_COUNT} objects of up to {room} px needs "
        f"World.canvas >= {math.ceil(3.5 * room)}, or a smaller radius"
      )

  @property
  def cell(self) -> float:
    """Side of a grid cell; the canvas when placement is free."""
    return self.canvas / max(self.grid, 1)

  def pairs(self, split: str) -> tuple[tuple[str, str], ...]:
    """(colour, shape) pairs of a split; for held_out the held-out ones only."""
    held = [p for p in self.held_out
            if p[0] in self.colours and p[1] in self.shapes]  # fmt: skip
    if split == "held_out":
      if not held:
        raise ValueError("World.held_out names no pair of this world")
      return tuple(held)
    return tuple(
      (c, s) for s in self.shapes for c in self.colours if (c, s) not in held
    )


@dataclasses.dataclass(frozen=True)
class Item:
  """One object; x runs right and y down from the image's corner, in pixels."""

  shape: str
  colour: str
  x: float
  y: float
  radius: float
  texture: str = "solid"

  @property
  def pair(self) -> tuple[str, str]:
    """(colour, shape)."""
    return self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
  """A background and one to four objects."""

  background: str
  items: tuple[Item, ...]

  @property
  def identical(self) -> bool:
    """Whether several objects share one shape and colour."""
    return len(self.items) > 1 and len({i.pair for i in self.items}) == 1


def scene_to_json(scene: Scene) -> str:
  """The scene as one line of JSON."""
  return json.dumps(dataclasses.asdict(scene), sort_keys=True)


def scene_from_json(text: str | bytes) -> Scene:
  """Inverse of `scene_to_json`."""
  node = json.loads(text)
  items = tuple(Item(**item) for item in node["items"])
  return Scene(background=node["background"], items=items)


def relation(a: Item, b: Item) -> str | None:
  """Where `a` is relative to `b`; None if too diagonal for one answer."""
  dx, dy = a.x - b.x, a.y - b.y
  if abs(dx) >= 3 * abs(dy):
    return "left of" if dx < 0 else "right of"
  if abs(dy) >= 3 * abs(dx):
    return "above" if dy < 0 else "below"
  return None


def sample_scene(
  world: World, rng: np.random.Generator, split: str = "train"
) -> Scene:
  """One object (25 %), two different (50 %), or two to four alike (25 %).

  Two objects differ in shape and in colour and stand in one row or column.
  Scenes of "held_out" hold at least one held-out pair, the others none.

  Args:
    world: what may occur.
    rng: source of all randomness.
    split: "train", "validation" or "held_out".

  Raises:
    ValueError: an unknown split, or a world without held-out pairs.
  """
  if split not in SPLITS:
    raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
  kind = rng.random()
  first = _pick(rng, world.pairs(split))
  if kind < 0.25:
    pairs = [first]
  elif kind < 0.75:
    pairs = [first, other_pair(world, rng, (first,))]
    if rng.random() < 0.5:
      pairs.reverse()
  else:
    pairs = [first] * int(rng.integers(2, MAX_COUNT + 1))
  aligned = 0.25 <= kind < 0.75
  texture = _pick(rng, world.textures)
  return arrange(world, rng, pairs, aligned, texture)


def arrange(
  world: World,
  rng: np.random.Generator,
  pairs: Sequence[tuple[str, str]],
  aligned: bool,
  texture: str,
) -> Scene:
  """These (colour, shape) pairs somewhere, before some background.

  Args:
    world: what may occur.
    rng: source of all randomness.
    pairs: of the objects.
    aligned: see `place`.
    texture: of all objects.

  Raises:
    ValueError: no place was found for all.
  """
  for _ in range(_TRIES):
    items: list[Item] = []
    for pair in pairs:
      item = place(world, rng, tuple(items), pair, aligned, texture)
      if item is None:
        break
      items.append(item)
    else:
      return Scene(_pick(rng, world.backgrounds), tuple(items))
  raise ValueError("World is too crowded: enlarge canvas or shrink radius")


def other_pair(
  world: World,
  rng: np.random.Generator,
  taken: tuple[tuple[str, str], ...],
) -> tuple[str, str]:
  """An ordinary (colour, shape) that shares neither with those taken."""
  colours = {colour for colour, _ in taken}
  shapes = {shape for _, shape in taken}
  options = [
    p for p in world.pairs("train")
    if p[0] not in colours and p[1] not in shapes
  ]  # fmt: skip
  return _pick(rng, options)


def place(
  world: World,
  rng: np.random.Generator,
  others: tuple[Item, ...],
  pair: tuple[str, str],
  aligned: bool,
  texture: str = "solid",
) -> Item | None:
  """An object somewhere free; None if no place was found.

  Args:
    world: what may occur.
    rng: source of all randomness.
    others: objects already there.
    pair: (colour, shape) of the new one.
    aligned: whether it must stand clearly beside, above or below others[0].
    texture: its texture.
  """
  for _ in range(_TRIES):
    radius = world.radius + _steps(rng, world.radius_spread)
    if world.grid:
      half, jitter = world.cell / 2, world.jitter
      x = float(rng.integers(world.grid)) * world.cell + half
      y = float(rng.integers(world.grid)) * world.cell + half
    else:
      x = y = world.canvas / 2
      jitter = world.canvas / 2 - radius - _GAP / 2
    x, y = x + _steps(rng, jitter), y + _steps(rng, jitter)
    item = Item(pair[1], pair[0], x, y, radius, texture)
    apart = all(
      max(abs(x - o.x), abs(y - o.y)) >= radius + o.radius + _GAP
      for o in others
    )
    beside = not (aligned and others) or relation(item, others[0]) is not None
    if apart and beside:
      return item
  return None


def _steps(rng: np.random.Generator, spread: float) -> float:
  """Uniform over the multiples of 1/4 in [-spread, spread]."""
  n = int(spread * _STEPS)
  return float(rng.integers(-n, n + 1)) / _STEPS if n else 0.0


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
  return options[int(rng.integers(len(options)))]


def draw(world: World, scene: Scene) -> np.ndarray:
  """The scene as an image.

  Args:
    world: gives the canvas.
    scene: objects that lie inside the canvas.

  Returns:
    u8[canvas, canvas, 3].
  """
  pad = max((_patch_half(item.radius) for item in scene.items), default=0)
  side = world.canvas + 2 * pad
  image = np.empty((side, side, 3), np.float32)
  image[:] = BACKGROUNDS[scene.background]
  for item in scene.items:
    fx, fy = item.x % 1, item.y % 1
    alpha = coverage(item.shape, item.radius, fx, fy)[..., None]
    ink = np.asarray(COLOURS[item.colour], np.float32)
    if item.texture != "solid":
      share = _texture(item.texture, item.radius, fx, fy)[..., None]
      ink = ink * (1 - share) + np.asarray(TEXTURE_INK, np.float32) * share
    half = alpha.shape[0] // 2
    top, left = int(item.y) + pad - half, int(item.x) + pad - half
    window = image[top : top + 2 * half + 1, left : left + 2 * half + 1]
    window += alpha * (ink - window)
  end = pad + world.canvas
  return (image[pad:end, pad:end] + 0.5).astype(np.uint8)


def _patch_half(radius: float) -> int:
  """Pixels a mask reaches on either side of its centre pixel."""
  return math.ceil(radius) + 1


def _grid(
  radius: float, fx: float, fy: float
) -> tuple[np.ndarray, np.ndarray, int]:
  """Sub-pixel coordinates of a mask in units of the radius, and its side."""
  half = _patch_half(radius)
  side = 2 * half + 1
  sub = (np.arange(side * _SUPERSAMPLE) + 0.5) / _SUPERSAMPLE - half
  return (sub[None, :] - fx) / radius, (sub[:, None] - fy) / radius, side


def _area(inside: np.ndarray, side: int) -> np.ndarray:
  """Share of every pixel that is inside, f32[side, side], read-only."""
  shape = (side, _SUPERSAMPLE, side, _SUPERSAMPLE)
  area = inside.reshape(shape).mean((1, 3), dtype=np.float32)
  area.flags.writeable = False
  return area


@functools.lru_cache(maxsize=8192)
def coverage(shape: str, radius: float, fx: float, fy: float) -> np.ndarray:
  """Share of every pixel that the shape covers.

  Args:
    shape: name out of SHAPES.
    radius: half the side of its bounding box.
    fx: its centre's distance from the centre pixel's left edge, -1 to 2.
    fy: the same from the upper edge, downwards.

  Returns:
    f32[P, P] with P odd; the centre pixel is (P // 2, P // 2).
  """
  x, y, side = _grid(radius, fx, fy)
  return _area(_inside(shape, x, y), side)


@functools.lru_cache(maxsize=1024)
def _texture(name: str, radius: float, fx: float, fy: float) -> np.ndarray:
  """Share of every pixel that is texture ink, f32[P, P]."""
  x, y, side = _grid(radius, fx, fy)
  u, v = (x * 2) % 1 - 0.5, (y * 2) % 1 - 0.5
  if name == "striped":
    return _area(np.broadcast_to(np.abs(u) < 0.16, (len(y), x.size)), side)
  return _area(u * u + v * v < 0.07, side)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Whether points lie in the shape that fills the box [-1, 1]^2."""
  box = (np.abs(x) <= 1) & (np.abs(y) <= 1)
  if shape == "circle":
    return x * x + y * y <= 1
  if shape == "square":
    return box
  if shape == "triangle":
    return box & (2 * np.abs(x) <= y + 1)
  if shape == "cross":
    return box & (np.minimum(np.abs(x), np.abs(y)) <= 0.34)
  if shape == "diamond":
    return np.abs(x) + np.abs(y) <= 1
  if shape == "ring":
    square = x * x + y * y
    return (square <= 1) & (square >= 0.25)
  if shape == "star":
    return _in_star(x, y)
  raise ValueError(f"shape={shape!r}: choose out of {', '.join(SHAPES)}")


def _in_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Five-pointed star, one point up, stretched to fill its box."""
  tenth = math.pi / 5
  # A regular star of circumradius 1 spans [-cos 18°, cos 18°] across and
  # [-1, cos 36°] downwards.
  x = x * math.cos(math.pi / 10)
  y = (y + 1) * (1 + math.cos(tenth)) / 2 - 1
  angle = np.abs((np.arctan2(x, -y) + tenth) % (2 * tenth) - tenth)
  rho = np.hypot(x, y)
  inner = math.cos(2 * tenth) / math.cos(tenth)
  px, py = rho * np.cos(angle), rho * np.sin(angle)
  qx, qy = inner * math.cos(tenth), inner * math.sin(tenth)
  # The edge runs from the point (1, 0) to the notch (qx, qy).
  return (px - 1) * qy - (qx - 1) * py <= 0
