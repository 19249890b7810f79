"""Images while they appear, and images of which cells are drawn again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems.conftest import tiny
from tests.systems.test_decode import (
  SAMPLING,
  TEXT,
  drawn_orders,
  keys,
  plain,
  plain_and_null,
  recomputed,
)
from unifluid_jax.core import types
from unifluid_jax.core.config import ConfigError
from unifluid_jax.systems.common import continuous_decode
from unifluid_jax.systems.unifluid_sampling import check_redraw, check_sampling

# Bool, 4 x 4 cells in raster order: five and nine are drawn again.
AGAIN = np.zeros((2, 16), bool)
AGAIN[0, [0, 3, 6, 10, 15]] = True
AGAIN[1, 7:] = True


def test_the_system_offers_both(model):
  assert isinstance(model.system, types.Redrawer)
  assert isinstance(model.system, types.Stager)
  assert model.system.grid == (4, 4)


def test_redrawing_equals_full_recomputation_that_is_fed_what_stays(model):
  """Known cells come first in the row's own order, rows of different counts."""
  text, k = jnp.asarray(TEXT[:2]), keys(3, 4)
  rng = np.random.default_rng(0)
  given = jnp.asarray(rng.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
  frozen = model.frozen["codec"]
  moments = model.system.codec.encode(frozen, given)
  tokens = model.system.codec.tokens(frozen, moments, None)
  cells = np.asarray(drawn_orders(k))
  want_order = np.stack(
    [
      [c for c in row if not again[c]] + [c for c in row if again[c]]
      for row, again in zip(cells, AGAIN, strict=True)
    ]
  )
  want = recomputed(
    model, plain_and_null(text), k, jnp.asarray(want_order),
    known=(tokens, jnp.asarray([11, 7])),
  )  # fmt: skip
  got = jax.jit(
    lambda: model.system.redraw(
      model.params,
      model.frozen,
      plain(text),
      k,
      SAMPLING,
      given,
      jnp.asarray(AGAIN),
    )  # fmt: skip
  )()
  np.testing.assert_allclose(got, want, atol=2e-4)


def test_tokens_that_stay_are_those_of_the_given_image_bit_by_bit():
  tokens = np.random.default_rng(1).normal(size=(2, 16, 3)).astype(np.float32)
  cells = jnp.stack([jnp.arange(16), jnp.arange(16)[::-1]])
  order, known = continuous_decode.known_first(
    cells, jnp.asarray(AGAIN), jnp.asarray(tokens)
  )
  np.testing.assert_array_equal(known.count, [11, 7])
  for row in range(2):
    stays = np.asarray(order[row, : known.count[row]])
    assert not AGAIN[row, stays].any()
    assert list(stays) == sorted(stays, reverse=bool(row))
    np.testing.assert_array_equal(
      known.tokens[row, : len(stays)], tokens[row, stays]
    )
    assert sorted(np.asarray(order[row]).tolist()) == list(range(16))


def test_stages_are_the_image_as_its_cells_appear(model):
  text, k = jnp.asarray(TEXT[:2]), keys(3, 4)

  def run(most):
    prompts, s = plain(text), model.system
    given = model.params, model.frozen, prompts, k, SAMPLING
    return s.stages(*given, most), s.generate(*given)

  stages, whole = jax.jit(run, static_argnums=0)(5)
  assert stages.shape == (2, 5, 32, 32, 3)
  np.testing.assert_array_equal(stages[:, -1], whole)
  rank = np.argsort(np.asarray(drawn_orders(k)), axis=1).reshape(2, 4, 4)
  for i, count in enumerate([3, 6, 9, 12]):
    shown = np.kron(rank < count, np.ones((8, 8))) > 0
    got = np.asarray(stages[:, i])
    assert not got[~shown].any() and got[shown].any(-1).all()


def test_images_of_stages_are_decoded_from_what_is_known():
  """By a codec whose pixels are its tokens and, in hundreds, their sum."""

  class Copy:
    def decode(self, frozen, tokens):
      sums = 100 * tokens.sum(axis=1, keepdims=True)
      pixels = frozen + (tokens + sums).reshape(-1, 2, 2, 1)
      return jnp.repeat(pixels, 3, axis=3)

  tokens = jnp.asarray([[[5.0], [6.0], [7.0], [8.0]]])  # in drawing order
  cells = jnp.asarray([[2, 0, 3, 1]])
  out = continuous_decode.images_of_stages(Copy(), 1.0, tokens, cells, 99)
  np.testing.assert_array_equal(out[0, :, :, :, 0], [
    [[0, 0], [506, 0]], [[1107, 0], [1106, 0]], [[1807, 0], [1806, 1808]],
    [[2607, 2609], [2606, 2608]],
  ])  # fmt: skip


@pytest.mark.parametrize(
  "until, order, cells, fits",
  [
    (20, "raster", [5, 6], False),  # trained to raster order at the end
    (20, "raster", [13, 14, 15], True),
    (20, "raster", [13, 15], False),
    (20, "random", [5, 6], True),  # asked for
    (10**9, "raster", [5, 6], True),  # still random when training ended
  ],
)
def test_cells_are_drawn_again_where_the_order_allows(
  until, order, cells, fits
):
  config = tiny(loss__raster_from=until)
  sampling = dataclasses.replace(config.sampling, order=order)
  again = np.zeros((4, 4), bool)
  again.reshape(-1)[cells] = True
  if fits:
    return check_redraw(config, sampling, again)
  with pytest.raises(ValueError, match="raster order: choose a cell and all"):
    check_redraw(config, sampling, again)


def test_a_share_of_random_orders_to_the_end_draws_any_cell():
  changes = dict(loss__raster_from=20, loss__prompt_dropout=0.1)
  config = tiny(**changes, loss__random_share=0.1, sampling__passes=4)
  again = np.zeros((4, 4), bool)
  again[1, 2] = True
  check_redraw(config, config.sampling, again)


@pytest.mark.parametrize(
  "until, passes, words",
  [
    (20, 0, None),
    (20, 16, None),  # one by one
    (20, 4, "passes=4 draws several tokens at once, and this run ends in"),
    (10**9, 4, None),
    (10**9, 17, "passes=17: an image has 16 tokens"),
  ],
)
def test_groups_are_drawn_where_training_ended_in_random_order(
  until, passes, words
):
  changes = dict(loss__raster_from=until, loss__prompt_dropout=0.1)
  config = tiny(**changes)
  sampling = dataclasses.replace(config.sampling, passes=passes)
  if words is None:
    check_sampling(config, sampling, "t2i")
    tiny(**changes, sampling__passes=passes)
    return
  with pytest.raises(ValueError, match=words):
    check_sampling(config, sampling, "t2i")
  with pytest.raises(ConfigError, match=f"sampling.{words}"):
    tiny(**changes, sampling__passes=passes)


FARTHEST = dict(
  loss__raster_from=20, loss__prompt_dropout=0.1, loss__order="farthest",
  loss__passes=4, sampling__order="farthest", sampling__passes=4,
)  # fmt: skip


@pytest.mark.parametrize(
  "order, passes, words",
  [
    ("farthest", 4, None),
    ("farthest", 5, None),
    ("farthest", 0, None),
    ("farthest", 3, "passes=3: this run has learned loss.passes=4"),
    ("raster", 0, "order='raster': this run ends in order 'farthest' alone"),
  ],
)
def test_a_run_in_farthest_order_draws_in_the_passes_that_it_learned(
  order, passes, words
):
  config = tiny(**FARTHEST)
  sampling = dataclasses.replace(config.sampling, order=order, passes=passes)
  if words is None:
    return check_sampling(config, sampling, "t2i")
  with pytest.raises(ValueError, match=words):
    check_sampling(config, sampling, "t2i")


def test_a_run_in_farthest_order_alone_draws_whole_images():
  again = np.zeros((4, 4), bool)
  again[3, 3] = True
  config = tiny(**FARTHEST)
  with pytest.raises(ValueError, match="ends in order 'farthest' alone"):
    check_redraw(config, config.sampling, again)
  config = tiny(**FARTHEST, loss__random_share=0.1)
  check_redraw(config, config.sampling, again)


def test_passes_of_another_order_are_refused():
  with pytest.raises(ConfigError, match="is of loss.order='farthest'"):
    tiny(loss__passes=4)


def test_more_passes_than_tokens_are_refused():
  with pytest.raises(ConfigError, match="loss.passes=17: an image has 16"):
    tiny(**{**FARTHEST, "loss__passes": 17})
