"""The order in which image tokens are predicted, and how it is annealed.

RAR (arXiv 2411.00776) as UniFluid §3.3 uses it: whole-sequence permutations,
annealed to raster order by lowering the share of permuted samples.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


def randomness(
  step: int | Int[Array, ""],
  random_until: int,
  raster_from: int,
  share: float = 0.0,
) -> Float[Array, ""]:
  """Probability that a sample's order is random at a training step.

  1 up to `random_until`, then linear to 0 at `raster_from`, but never below
  `share`. Both steps 0: raster order from the start.
  """
  left = jnp.asarray(raster_from - step, jnp.float32)
  return jnp.clip(left / max(raster_from - random_until, 1), share, 1.0)


def permutations(keys: Key[Array, "B"], n: int) -> Int[Array, "B N"]:
  """A uniform permutation of range(n) for each key."""
  return jax.vmap(lambda key: jax.random.permutation(key, n))(keys)


def raster_orders(batch: int, n: int) -> Int[Array, "B N"]:
  """range(n) for each of `batch` samples."""
  return jnp.broadcast_to(jnp.arange(n), (batch, n))


def to_draw(
  kind: str, keys: Key[Array, "B"], n: int, passes: int = 0
) -> Int[Array, "B N"]:
  """The order of each row's drawing.

  Args:
    kind: "raster"; "random" by the row's key; "spread" or "farthest", for all
      rows alike.
    keys: one a row.
    n: tokens of an image.
    passes: of the decoder for an image, 1 to N; 0: one a token.
  """
  if kind == "random":
    return permutations(keys, n)
  if kind == "raster":
    return raster_orders(len(keys), n)
  if kind == "farthest":
    cells = farthest(n)
  else:
    cells = spread(n, group_sizes(n, passes, kind))
  return jnp.broadcast_to(jnp.asarray(cells), (len(keys), n))


def farthest(n: int) -> Int[np.ndarray, "N"]:
  """Each cell the one farthest from all before it, beginning with the first.

  The first ones lie all over the image and settle what is where, while each
  of the others is near one of them (farthest point strategy of progressive
  sampling, Eldar et al., IEEE Transactions on Image Processing 6(9), 1997).

  Args:
    n: tokens of a square image.
  """
  distance = _distances(n)
  cells = [0]
  while len(cells) < n:
    nearest = distance[:, cells].min(axis=1)
    nearest[cells] = -1
    cells.append(int(nearest.argmax()))
  return np.asarray(cells, np.int32)


def spread(n: int, sizes: Sequence[int]) -> Int[np.ndarray, "N"]:
  """An order whose groups are far apart and near what is known.

  Tokens of a group do not see one another: the nearer two cells are, the more
  that loses. Each cell is the one farthest from its group, less its distance
  from the nearest cell of earlier groups; the first in raster order of several.

  Differs: LPD (arXiv 2507.01957 §3.2) thresholds both distances, and relaxes
  them where too few cells are left.

  Args:
    n: tokens of a square image.
    sizes: of the groups.
  """
  distance = _distances(n)
  known: list[int] = []
  for size in sizes:
    context = distance[:, known].min(axis=1) if known else np.zeros(n)
    group: list[int] = []
    for _ in range(size):
      apart = distance[:, group].min(axis=1) if group else np.zeros(n)
      score = apart - context
      score[[*known, *group]] = -np.inf
      group.append(int(score.argmax()))
    known += group
  return np.asarray(known, np.int32)


def _distances(n: int) -> Float[np.ndarray, "N N"]:
  """Between the cells of a square image."""
  side = math.isqrt(n)
  at = np.stack(np.divmod(np.arange(n), side), axis=1).astype(float)
  return np.linalg.norm(at[:, None] - at[None], axis=-1)


def sample_orders(
  key: Key[Array, ""],
  batch: int,
  n: int,
  probability: float | Float[Array, ""],
  kind: str = "raster",
  passes: int = 0,
) -> Int[Array, "B N"]:
  """Each sample's order: a permutation with `probability`, else of a kind.

  The coin is thrown per sample, so a batch mixes both (1d-tokenizer
  modeling/rar.py).

  Args:
    key: of all draws.
    batch: B.
    n: tokens of an image.
    probability: of a permutation.
    kind: "raster" or "farthest".
    passes: of "farthest"; the order within each is random, so that every token
      of a pass is learned from those before the pass alone.
  """
  coin_key, order_key = jax.random.split(key)
  coin = jax.random.uniform(coin_key, (batch, 1)) < probability
  keys = jax.random.split(order_key, batch)
  if kind == "raster":
    return jnp.where(coin, permutations(keys, n), raster_orders(batch, n))
  sizes = group_sizes(n, passes, kind)
  group = np.repeat(np.arange(len(sizes)), sizes)
  u = jax.vmap(lambda k: jax.random.uniform(k, (n,)))(keys)
  cells = jnp.asarray(farthest(n))[jnp.argsort(group + u, axis=1)]
  return jnp.where(coin, permutations(keys, n), cells)


def group_sizes(n: int, passes: int, kind: str = "random") -> list[int]:
  """How many tokens each pass draws: few at first, then more and more.

  MAR's cosine (arXiv 2406.11838 §4.2): after pass p of P, n cos(pi/2 p/P) are
  left, rounded down; each pass draws at least one. In the order "farthest" the
  first cells settle the others, and after pass p only n ** (p/P)^3 are known.

  Args:
    n: tokens of an image.
    passes: P, 1 to n; 0: one a token.
    kind: of the order.
  """
  sizes: list[int] = []
  passes = passes or n
  for done in range(1, passes + 1):
    left, part = n - sum(sizes), done / passes
    if kind == "farthest":
      goal = n - math.floor(n**part**3 + 1e-9)
    else:
      goal = math.floor(n * math.cos(math.pi / 2 * part) + 1e-9)
    goal = min(max(goal, passes - done), left - 1)
    sizes.append(left - goal)
  return sizes


def take_tokens(
  x: Float[Array, "B N C"], order: Int[Array, "B N"]
) -> Float[Array, "B N C"]:
  """Raster tokens in prediction order: row i is cell order[i]."""
  return jnp.take_along_axis(x, order[..., None], axis=1)


def put_tokens(
  x: Float[Array, "B N C"], order: Int[Array, "B N"]
) -> Float[Array, "B N C"]:
  """Inverse of `take_tokens`: predicted tokens back in raster order."""
  return take_tokens(x, jnp.argsort(order, axis=1))


def current(
  table: Float[Array, "N D"], order: Int[Array, "B N"]
) -> Float[Array, "B N-1 D"]:
  """Position rows of the tokens that are fed: all but the last predicted.

  The image part's inputs are BOI, then tokens order[0] .. order[N-2]; these
  rows belong to the latter.
  """
  return table[order[:, :-1]]


def next(
  table: Float[Array, "N D"], order: Int[Array, "B N"]
) -> Float[Array, "B N D"]:
  """Rows that tell each image input which cell it predicts.

  BOI gets cell order[0], the token of cell order[i] gets order[i+1]
  (RAR's target-aware position embedding).
  """
  return table[order]
