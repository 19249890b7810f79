"""A distilled head: what its teacher shows, and what it learns of that."""

import jax
import numpy as np

from tests.models.test_diffusion_head import normal
from tests.models.test_token_heads import (
  KEY,
  KINDS,
  C,
  Z,
  losses,
  random_params,
  rows_of,
)
from unifluid_jax.ops.sampling import Guided


def shown(teacher, conditions, scale, draws, steps, limit=np.inf):
  head = KINDS["distilled"]
  guided = Guided(conditions, scale)
  return head.shown(teacher, guided, KEY, draws, steps, limit)


def test_what_a_teacher_shows_is_what_a_flow_head_draws():
  """Row by row, each with its own key, guidance and bound included."""
  teacher = random_params("flow")
  z, null = normal(3, (2, 4, Z)), normal(5, (2, 4, Z))
  got = shown(teacher, [z, null], 2.5, 3, 5, 0.8)
  assert got.shape == (3, 2, 4, C)
  keys = jax.random.split(KEY, 2 * 4 * 3).reshape(2, 4, 3)
  for b, n, draw in ((0, 0, 0), (0, 1, 2), (1, 3, 1)):
    row = Guided([z[b, n][None], null[b, n][None]], 2.5)
    want = KINDS["flow"].sample(
      teacher, row, keys[b, n, draw][None], 5, 1.0, limit=0.8
    )
    np.testing.assert_allclose(got[draw, b, n], want[0], atol=2e-6)
  assert np.abs(got).max() <= 0.8 + 1e-6


def test_a_head_has_nothing_to_learn_of_what_it_draws_itself():
  """One unguided step of its own network: the loss is zero, and only there."""
  own, z = random_params("flow"), normal(3, (2, 4, Z))
  same = shown(own, [z, z], 1.0, 2, 1)
  assert losses("distilled", own, z, same, 2)["distillation"].max() < 1e-10
  other = shown(own, [z, z], 1.0, 2, 2)
  assert losses("distilled", own, z, other, 2)["distillation"].max() > 1e-4


def test_distillation_loss_by_hand():
  params, z = random_params("distilled"), normal(3, (2, 4, Z))
  x0 = normal(4, (3, 2, 4, C))
  noise = jax.vmap(lambda k: jax.random.normal(k, (C,)))(
    jax.random.split(KEY, 24)
  )
  noise = np.asarray(noise).reshape(2, 4, 3, C).transpose(2, 0, 1, 3)
  out = rows_of(params, noise, np.zeros(noise.shape[:-1]), z)
  want = np.square(out - (np.asarray(x0) - noise)).mean(-1)
  got = losses("distilled", params, z, x0, 3)["distillation"]
  np.testing.assert_allclose(got, want, rtol=2e-4)


def test_no_gradient_reaches_the_teacher_or_its_conditions():
  teacher, z = random_params("flow"), normal(3, (2, 4, Z))
  slope = jax.grad(lambda z: shown(teacher, [z, z], 2.0, 2, 2).sum())(z)
  assert not np.any(slope)
