"""The text loss by hand: smoothing, means; several images of a question."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems.conftest import examples, tiny
from unifluid_jax.core.types import EOS, PAD, UNK
from unifluid_jax.models import decoder
from unifluid_jax.systems.common import embed, packing, text_loss
from unifluid_jax.systems.unifluid import UniFluid

RNG = np.random.default_rng(0)
SUFFIX = np.array([[5, EOS, PAD, PAD], [7, 8, 9, EOS]], np.int32)


def losses(tied=True, **changes):
  """The loss of two answers, and the log-probabilities it is made of."""
  config = tiny(**changes)
  d = config.model.decoder
  table = RNG.normal(size=(d.vocab, d.width)).astype(np.float32)
  hidden = RNG.normal(size=(2, 9, d.width)).astype(np.float32)
  tables = {"embedder" if tied else "lm_head": {"table": jnp.asarray(table)}}
  suffix = jnp.asarray(SUFFIX)
  task = packing.prefix(jnp.zeros((2, 9, 1)), jnp.ones((2, 9), bool))
  loss, metrics = text_loss.text_loss(
    d,
    decoder.output_table({"embedder": {"table": 7 * table}, **tables}),
    *packing.read_out([jnp.asarray(hidden)], [task], [(0, suffix)]),
    text_loss.counts({"text": {"suffix": suffix}}),
    config.loss,
  )
  logits = decoder.logits(d, jnp.asarray(table), jnp.asarray(hidden[:, 5:]))
  return loss, metrics, np.asarray(jax.nn.log_softmax(logits), np.float64)


def nll(log_p, i, j, smoothing=0.0):
  """Cross entropy of one token with its smoothed target."""
  row = log_p[i, j]
  q = np.full(row.size, smoothing / (row.size - 1))
  q[SUFFIX[i, j]] = 1 - smoothing
  return -(q * row).sum()


def test_mean_over_tokens_or_over_answers():
  loss, _, p = losses()
  tokens = [nll(p, 0, j) for j in range(2)] + [nll(p, 1, j) for j in range(4)]
  np.testing.assert_allclose(loss, np.mean(tokens), rtol=1e-5)
  loss, metrics, p = losses(loss__text_mean="answers")
  short = np.mean([nll(p, 0, j) for j in range(2)])
  long = np.mean([nll(p, 1, j) for j in range(4)])
  np.testing.assert_allclose(loss, (short + long) / 2, rtol=1e-5)
  assert metrics["loss_text"] == loss


def test_an_output_table_of_its_own_scores_the_words():
  loss, _, p = losses(tied=False)
  tokens = [nll(p, 0, j) for j in range(2)] + [nll(p, 1, j) for j in range(4)]
  np.testing.assert_allclose(loss, np.mean(tokens), rtol=1e-5)


@pytest.mark.parametrize("mean", ["tokens", "answers"])
def test_parts_with_unequal_answers_add_up(mean):
  """Loss, accuracy and gradients, of two words and of four."""
  config = tiny(loss__text_mean=mean)
  d, suffix = config.model.decoder, jnp.asarray(SUFFIX)
  table = jnp.asarray(RNG.normal(size=(d.vocab, d.width)), jnp.float32)
  hidden = jnp.asarray(RNG.normal(size=(2, 4, d.width)), jnp.float32)
  counts = text_loss.counts({"text": {"suffix": suffix}})

  def loss(table, rows):
    return text_loss.text_loss(
      d, table, [hidden[rows]], [suffix[rows]], counts, config.loss
    )

  run = jax.value_and_grad(loss, has_aux=True)
  short, long, whole = (
    run(table, slice(*rows)) for rows in ((0, 1), (1, 2), (0, 2))
  )
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-5, atol=1e-7),
    short, long, whole,
  )  # fmt: skip


def test_smoothing_comes_from_the_configuration():
  loss, _, p = losses(loss__label_smoothing=0.3)
  tokens = [nll(p, 0, j, 0.3) for j in range(2)]
  tokens += [nll(p, 1, j, 0.3) for j in range(4)]
  np.testing.assert_allclose(loss, np.mean(tokens), rtol=1e-5)


def fed_words(monkeypatch, suffix, seed, share):
  """What the decoder reads of a question of three words and an answer."""
  system, seen = UniFluid(tiny(loss__word_dropout=share)), []
  width = system.config.model.decoder.width

  def embed_text(decoder, params, tokens):
    del decoder, params
    seen.append(np.asarray(tokens))
    return jnp.zeros((*tokens.shape, width))

  monkeypatch.setattr(embed, "text", embed_text)
  prefix = np.full((len(suffix), 3), 6, np.int32)
  example = {"prefix": jnp.asarray(prefix), "suffix": jnp.asarray(suffix)}
  system._pack_answer({}, example, jax.random.key(seed))
  np.testing.assert_array_equal(seen[0][:, :3], prefix)
  return seen[0][:, 3:]


def test_word_dropout_hides_words_of_the_answer_from_the_next(monkeypatch):
  """The share of the words fed back, never a pad; anew in every step."""
  suffix = np.tile(np.array([7, 8, 9, EOS, PAD, PAD], np.int32), (400, 1))
  fed, given = fed_words(monkeypatch, suffix, 0, 0.3), suffix[:, :-1]
  lost = fed == UNK
  np.testing.assert_array_equal(fed[~lost], given[~lost])
  # Four standard deviations, in each of the places that hold a word.
  np.testing.assert_allclose(lost[:, :4].mean(axis=0), 0.3, atol=0.092)
  assert not lost[:, 4:].any()
  assert (lost != (fed_words(monkeypatch, suffix, 1, 0.3) == UNK)).any()
  np.testing.assert_array_equal(fed_words(monkeypatch, suffix, 0, 0.0), given)


def test_several_images_are_seen_one_after_another():
  class Rows:
    """An encoder whose tokens are an image's rows."""

    def apply(self, variables, images, kernel):
      del variables, kernel
      return images.reshape(*images.shape[:2], -1)

  system = UniFluid(tiny())
  width = system.config.model.decoder.width
  kernel = RNG.normal(size=(6, width)).astype(np.float32)
  projector = {"kernel": jnp.asarray(kernel), "bias": jnp.ones(width)}
  pixels = RNG.uniform(-1, 1, (2, 3, 4, 2, 3)).astype(np.float32)
  params = {"vit": {}, "projector": projector}
  see = functools.partial(embed.pixels, Rows(), system.project, params)
  seen = see(jnp.asarray(pixels))
  want = pixels.reshape(2, 12, 6) @ kernel + 1
  np.testing.assert_allclose(seen, want, rtol=1e-5, atol=1e-5)
  one = see(jnp.asarray(pixels[:, 1]))
  np.testing.assert_allclose(one, want[:, 4:8], rtol=1e-5, atol=1e-5)


def test_likelihoods_are_those_of_the_loss_without_its_word_dropout(model):
  """Row by row the loss of one answer, summed over its words and EOS."""
  dropping = UniFluid(tiny(loss__word_dropout=0.7, loss__vocab_chunk=3))
  batch = examples(rows=4, text=True)
  for task in ("i2t", "text"):
    fields = batch[task]
    found = jax.jit(
      lambda fields, task=task: dropping.score(model.params, {}, {task: fields})
    )(fields)
    for i in range(4):
      row = {task: {k: x[i : i + 1] for k, x in fields.items()}}
      _, metrics = model.loss(model.params, {}, row, jax.random.key(0), 0)
      words = (row[task]["suffix"] != PAD).sum()
      want = -metrics["loss_text"] * words
      np.testing.assert_allclose(found[i], want, rtol=1e-4)
  assert len(np.unique(np.round(found, 3))) == 4
