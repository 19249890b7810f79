"""Drawing scale by scale, of a codec and a model that are a few lines each."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.systems.common import scale_decode

SIDES, V, Z, B = (1, 2, 3), 7, 3, 4
TABLE = np.random.default_rng(0).normal(size=(V, Z)).astype(np.float32)
HEAD = np.random.default_rng(1).normal(size=(2, 3, Z, V)).astype(np.float32)
BIAS = np.random.default_rng(2).normal(size=(2, 3, V)).astype(np.float32)


class Mean:
  """A codec whose f^ is one cell: the sum of the scales' mean vectors."""

  config = SimpleNamespace(scales=SIDES)

  def empty(self, rows):
    return jnp.zeros((rows, 1, 1, Z))

  def table(self, frozen):
    return jnp.asarray(TABLE)

  def next_input(self, latent, k):
    rows = jnp.broadcast_to(latent, (len(latent), SIDES[k], SIDES[k], Z))
    return rows.reshape(len(latent), -1, Z)

  def add(self, frozen, latent, k, codes):
    return self.add_vectors(frozen, latent, k, jnp.asarray(TABLE)[codes])

  def add_vectors(self, frozen, latent, k, h):
    return latent + h.mean(1)[:, None, None]

  def image(self, frozen, latent):
    return latent + frozen


def step(state, inputs, k):
  """Logits of both conditions; the state counts scales."""
  assert state == k
  return [0.3 * (inputs @ h[k]) + b[k] for h, b in zip(HEAD, BIAS, strict=True)
         ], state + 1  # fmt: skip


def alone(state, inputs, k):
  found, state = step(state, inputs, k)
  return found[:1], state


def keys(count, first=0):
  return jax.vmap(jax.random.key)(jnp.arange(first, first + count))


PLAIN = dict(run=alone)
GUIDED = dict(cfg=2.0, temperature=0.7, image_top_k=3)
SMOOTH = dict(cfg=1.0, smooth=True)


@functools.cache
def compiled(run=step, **how):
  sampling = dict(cfg=0.0, temperature=1.0, image_top_k=0, image_top_p=1.0,
                  smooth=False) | how  # fmt: skip
  return jax.jit(lambda rows: scale_decode.draw(
    Mean(), None, run, 0, rows, SimpleNamespace(**sampling)))  # fmt: skip


def draw(how, rows=None):
  return compiled(**how)(keys(B) if rows is None else rows)


@functools.cache
def noises_of_rows():
  """Gumbel noise of all slots, [B, N, V], each drawn from a key of its own."""

  def noise(key):
    slots = [
      jax.random.split(jax.random.fold_in(key, k), side**2)
      for k, side in enumerate(SIDES)
    ]
    return jax.vmap(lambda slot: jax.random.gumbel(slot, (V,)))(
      jnp.concatenate(slots)
    )

  return np.float64(jax.jit(jax.vmap(noise))(keys(B)))


def plain(row, cfg=0.0, temperature=1.0, top_k=V, smooth=False):
  """Codes of one row, slot by slot, and f^ after each scale."""
  latent, codes, noises = np.zeros(Z), [], iter(noises_of_rows()[row])
  sums = []
  for k, side in enumerate(SIDES):
    share = k / 2
    vectors = []
    for _ in range(side**2):
      cond, null = (0.3 * (latent @ h[k]) + b[k]
                    for h, b in zip(HEAD, BIAS, strict=True))  # fmt: skip
      scores = (1 + cfg * share) * cond - cfg * share * null
      scores = scores / temperature
      scores[scores < np.sort(scores)[-top_k]] = -np.inf
      noise = next(noises)
      codes.append((scores + noise).argmax())
      vector = TABLE[codes[-1]]
      if smooth:
        z = (scores * (1 + share) + noise) / (0.27 * (1 - 0.95 * share))
        weights = np.exp(z - z.max())
        vector = weights @ TABLE / weights.sum()
      vectors.append(vector)
    latent = latent + np.mean(vectors, axis=0)
    sums.append(latent)
  return codes, sums


@pytest.mark.parametrize("how", [PLAIN, GUIDED, SMOOTH],
                         ids=["plain", "guided", "smooth"])  # fmt: skip
def test_draws_are_those_of_a_loop_over_slots(how):
  drawn = draw(how)
  rest = {k.removeprefix("image_"): v for k, v in how.items() if k != "run"}
  for i in range(B):
    codes, sums = plain(i, **rest)
    np.testing.assert_array_equal(drawn.codes[i], codes)
    np.testing.assert_allclose(
      jnp.stack(drawn.sums)[:, i, 0, 0], sums, rtol=1e-4
    )
    np.testing.assert_array_equal(drawn.latent[i], drawn.sums[-1][i])
  assert len(np.unique(drawn.codes[:, 5:])) > 2


def test_the_first_scale_knows_no_guidance_and_no_other_row():
  one, guided = draw(PLAIN), draw(SMOOTH)
  np.testing.assert_array_equal(one.codes[:, 0], guided.codes[:, 0])
  assert (one.codes[:, 1:] != guided.codes[:, 1:]).any()
  moved = draw(PLAIN, rows=keys(B, first=2))
  np.testing.assert_array_equal(moved.codes[:2], one.codes[2:])


@pytest.mark.parametrize(
  "most, shown", [(1, [2]), (2, [0, 2]), (3, [0, 1, 2]), (9, [0, 1, 2])]
)
def test_stages_are_images_of_the_first_scales(most, shown):
  drawn = draw(SMOOTH)
  made = scale_decode.images_of_stages(Mean(), 5.0, drawn, most)
  want = np.stack([drawn.sums[k] + 5.0 for k in shown], axis=1)
  np.testing.assert_array_equal(made, want)
  assert made.shape == (B, len(shown), 1, 1, 3)


def test_conditions_that_a_step_needs():
  assert scale_decode.conditions(0.0) == 1
  assert scale_decode.conditions(1.0) == 2
