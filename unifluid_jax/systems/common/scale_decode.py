"""Images drawn scale by scale, all codes of a scale at once.

Source: VAR (arXiv 2404.02905; FoundationVision/VAR models/var.py). The number
of scales is small and each has a shape of its own: the loop is unrolled.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from unifluid_jax.ops import sampling as sampling_ops
from unifluid_jax.systems.common import drawn_cells

# (state, inputs f32[B, P_k^2, Z], k) → logits f32[B, P_k^2, V] of each
# condition, and the next state. A system's own networks and their caches.
Step = Callable[[Any, Array, int], tuple[Sequence[Array], Any]]


class Drawn(NamedTuple):
  """An image before it is decoded."""

  codes: Any  # i32[B, N]
  sums: Any  # a tuple of f32[B, g, g, Z]: of the first scale, of two, of all

  @property
  def latent(self) -> Float[Array, "B g g Z"]:
    """The sum of all scales."""
    return self.sums[-1]


def draw(
  codec: Any,
  frozen: Any,
  step: Step,
  state: Any,
  keys: Key[Array, "B"],
  sampling: Any,
) -> Drawn:
  """Draws all scales; the same codes feed all conditions.

  Args:
    codec: a `codecs.multiscale_vq.MultiscaleVqCodec`.
    frozen: its weights.
    step: predicts scale k from its inputs, which are 0 at scale 0.
    state: of `step` before scale 0.
    keys: one per row; slot i of scale k draws from the i-th of the keys that
      `fold_in(key, k)` is split into.
    sampling: cfg, temperature, image_top_k, image_top_p, smooth.
  """
  scales = codec.config.scales
  latent, codes, sums = codec.empty(len(keys)), [], []
  for k in range(len(scales)):
    inputs = codec.next_input(latent, k)
    found, state = step(state, inputs, k)
    share = k / max(len(scales) - 1, 1)
    scores = guided(found, sampling.cfg * share)
    scores = sampling_ops.filtered(
      scores.reshape(-1, scores.shape[-1]), sampling.temperature,
      sampling.image_top_k, sampling.image_top_p,
    )  # fmt: skip
    slots = slot_keys(keys, k, inputs.shape[1])
    # As `sampling.pick_token` draws.
    drawn = jax.vmap(jax.random.categorical)(slots, scores)
    codes.append(drawn.astype(jnp.int32).reshape(inputs.shape[:2]))
    if sampling.smooth:
      mean = _mean_vectors(slots, scores, share, codec.table(frozen))
      latent = codec.add_vectors(frozen, latent, k, mean.reshape(inputs.shape))
    else:
      latent = codec.add(frozen, latent, k, codes[-1])
    sums.append(latent)
  return Drawn(jnp.concatenate(codes, axis=1), tuple(sums))


def images_of_stages(
  codec: Any, frozen: Any, drawn: Drawn, most: int
) -> Float[Array, "B S H W 3"]:
  """Images of the first scales, of more, of all: coarse at first.

  Args:
    codec: a `codecs.multiscale_vq.MultiscaleVqCodec`.
    frozen: its weights.
    drawn: scale by scale.
    most: images per row, about equally many scales apart; S is the number of
      scales if that is less.
  """
  sizes = drawn_cells.stage_sizes(len(drawn.sums), most)
  sums = jnp.stack([drawn.sums[size - 1] for size in sizes])
  images = jax.lax.map(lambda latent: codec.image(frozen, latent), sums)
  return images.swapaxes(0, 1)


def conditions(cfg: float) -> int:
  """How many conditions a step predicts: two where there is guidance."""
  return 2 if cfg else 1


def guided(
  found: Sequence[Float[Array, "B n V"]], t: float
) -> Float[Array, "B n V"]:
  """(1 + t) cond - t null, of the logits of one or two conditions.

  VAR's guidance grows over the scales from t = 0, which is none, to cfg.
  """
  return found[0] if len(found) == 1 else sampling_ops.guide(*found, 1 + t)


def slot_keys(keys: Key[Array, "B"], k: int, count: int) -> Key[Array, "rows"]:
  """Keys of the slots of scale k, row after row."""
  folded = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
  return jax.vmap(lambda key: jax.random.split(key, count))(folded).reshape(-1)


def _mean_vectors(
  keys: Key[Array, "rows"],
  scores: Float[Array, "rows V"],
  share: float,
  table: Float[Array, "V Z"],
) -> Float[Array, "rows Z"]:
  """Means of codes under a Gumbel softmax, for smoother pictures.

  Source: VAR's `more_smooth`. The softmax grows sharper over the scales. It
  keeps a slot's noise: its largest weight is not always the code drawn.

  Args:
    keys: of the slots.
    scores: logits, -inf where a code cannot be drawn.
    share: of the scales that are done, from 0 to 1.
    table: the codebook.
  """
  tau = max(0.27 * (1 - 0.95 * share), 0.005)
  noise = jax.vmap(lambda key: jax.random.gumbel(key, table.shape[:1]))(keys)
  weights = jax.nn.softmax((scores * (1 + share) + noise) / tau, axis=-1)
  return jnp.matmul(weights, table, precision=jax.lax.Precision.HIGHEST)
