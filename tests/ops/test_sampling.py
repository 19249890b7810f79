"""Guidance, token filters, text decoding, beam search against enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.core.types import EOS, PAD
from unifluid_jax.ops import sampling


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def test_guide():
  cond, null = jnp.asarray([[1.0, 4.0]]), jnp.asarray([[3.0, 2.0]])
  np.testing.assert_array_equal(sampling.guide(cond, null, 1.0), cond)
  np.testing.assert_array_equal(sampling.guide(cond, null, 0.0), null)
  np.testing.assert_array_equal(sampling.guide(cond, null, 3.0), [[-3.0, 8.0]])
  np.testing.assert_array_equal(sampling.guide(cond, cond, 7.0), cond)


def test_guide_edit():
  full, source, null = (jnp.asarray([[x]]) for x in (7.0, 3.0, 1.0))

  def guided(scale, image_scale):
    return sampling.guide_edit(full, source, null, scale, image_scale).item()

  # 1 + s_I (3 - 1) + s_T (7 - 3), InstructPix2Pix §3.2.1.
  assert guided(7.5, 1.5) == 1 + 3 + 30
  assert guided(0.0, 0.0) == 1 and guided(0.0, 1.0) == 3
  assert guided(1.0, 1.0) == 7
  for scale in (0.5, 2.0, 7.0):
    np.testing.assert_array_equal(
      guided(scale, scale), sampling.guide(full, null, scale)[0, 0]
    )
    np.testing.assert_array_equal(
      guided(scale, 1.0), sampling.guide(full, source, scale)[0, 0]
    )


def test_predictions_of_all_conditions_are_combined():
  """Rows of the conditions follow one another, two rows each."""
  full, source, null = [[7.0], [8.0]], [[3.0], [5.0]], [[1.0], [2.0]]

  def guided(conditions, *scales):
    made = sampling.Guided([jnp.zeros((2, 4))] * len(conditions), *scales)
    np.testing.assert_array_equal(
      made.same(jnp.asarray([[5.0], [6.0]])), [[5.0], [6.0]] * len(conditions)
    )
    return made.combine(jnp.concatenate(jnp.asarray(conditions))).tolist()

  assert guided([full], 9.0) == full
  assert guided([full, source], 2.0) == [[11.0], [11.0]]
  assert guided([full, source, null], 2.0, 3.0) == [[15.0], [17.0]]


def test_steps_fall_from_the_first_token_to_the_last():
  def counts(*given):
    found, which = sampling.steps_by_place(*given)
    return [found[i] for i in which]

  assert counts(50, 50, 4) == [50] * 4 and counts(9, 1, 1) == [9]
  assert counts(50, 10, 5) == [50, 40, 30, 20, 10]
  assert counts(2, 1, 5) == [2, 2, 2, 1, 1]
  assert counts(1, 3, 3) == [1, 2, 3]
  falling = counts(100, 5, 256)
  assert falling == sorted(falling, reverse=True) and len(set(falling)) == 5
  assert (falling[0], falling[-1]) == (100, 5) and falling.count(100) == 52


def test_cfg_scale():
  linear = [float(sampling.cfg_scale("linear", 3.0, i, 4)) for i in range(4)]
  assert linear == [1.5, 2.0, 2.5, 3.0]
  assert sampling.cfg_scale("constant", 3.0, 0, 4) == 3.0
  traced = jax.jit(lambda i: sampling.cfg_scale("linear", 3.0, i, 4))
  assert float(traced(jnp.int32(1))) == 2.0
  with pytest.raises(ValueError, match="'constant' or 'linear'"):
    sampling.cfg_scale("cosine", 3.0, 0, 4)


PROBS = jnp.asarray([0.15, 0.5, 0.05, 0.3])


def frequencies(**kw):
  n = 4000
  logits = jnp.broadcast_to(jnp.log(PROBS), (n, 4))
  picked = sampling.pick_token(keys(n), logits, **kw)
  assert picked.dtype == jnp.int32
  return np.bincount(picked, minlength=4) / n


@pytest.mark.parametrize(
  "kw, kept",
  [
    ({}, [0, 1, 2, 3]),
    ({"top_k": 1}, [1]),
    ({"top_k": 2}, [1, 3]),
    ({"top_k": 9}, [0, 1, 2, 3]),
    ({"top_p": 0.01}, [1]),
    ({"top_p": 0.49}, [1]),
    ({"top_p": 0.79}, [1, 3]),
    ({"top_p": 0.81}, [0, 1, 3]),
    # Of the best three, renormalised: 0.526 + 0.316 = 0.842.
    ({"top_k": 3, "top_p": 0.84}, [1, 3]),
    ({"top_k": 3, "top_p": 0.85}, [0, 1, 3]),
  ],
)
def test_filters(kw, kept):
  expected = np.zeros(4)
  expected[kept] = PROBS[jnp.asarray(kept)]
  expected /= expected.sum()
  got = frequencies(**kw)
  assert (got[expected == 0] == 0).all()
  np.testing.assert_allclose(got, expected, atol=0.03)


def test_temperature():
  np.testing.assert_allclose(
    frequencies(temperature=0.5), PROBS**2 / (PROBS**2).sum(), atol=0.03
  )


def test_nucleus_applies_after_temperature():
  # At temperature 0.5 the best token alone has 0.685.
  got = frequencies(temperature=0.5, top_p=0.6)
  np.testing.assert_array_equal(got, [0, 1, 0, 0])


def test_rows_draw_from_their_own_key():
  logits = jnp.zeros((6, 50))
  k = keys(6)
  whole = sampling.pick_token(k, logits)
  assert len(set(whole.tolist())) > 2
  alone = sampling.pick_token(k[3:4], logits[3:4])
  assert alone[0] == whole[3]


@pytest.mark.parametrize(
  "kw, message",
  [
    ({"temperature": 0.0}, "greedy"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_k": -1}, "top_k"),
  ],
)
def test_bad_settings(kw, message):
  with pytest.raises(ValueError, match=message):
    sampling.pick_token(keys(1), jnp.zeros((1, 4)), **kw)


def test_greedy():
  got = sampling.greedy(jnp.asarray([[0.0, 2, 1], [5, 2, 1]]))
  assert got.tolist() == [1, 0] and got.dtype == jnp.int32


# ------------------------------------------------------------------ decoding


def scripted(script):
  """A model that says `script` [B, A], counts its calls, notes its input."""
  calls = []
  table = jax.nn.one_hot(script, 9)

  def step(cache, token, i):
    jax.debug.callback(lambda t: calls.append(t.tolist()), token)
    return table[:, i + 1], cache + 1

  return step, table[:, 0], calls


def decode_greedily(step, first, length):
  run = jax.jit(
    lambda k: sampling.decode_text(
      step, jnp.int32(0), first, length, lambda _, x: sampling.greedy(x), k
    )
  )
  return run(keys(len(first)))


def test_decode_stops_and_pads():
  script = jnp.asarray([[5, 6, EOS, 7, 7, 7], [8, EOS, 3, 3, 3, 3]])
  step, first, calls = scripted(script)
  got = decode_greedily(step, first, 6)
  jax.effects_barrier()
  assert got.tolist() == [
    [5, 6, EOS, PAD, PAD, PAD], [8, EOS, PAD, PAD, PAD, PAD]
  ]  # fmt: skip
  assert sorted(calls) == sorted([[5, 8], [6, EOS]])


def test_decode_stops_at_another_vocabularys_eos():
  script = jnp.asarray([[5, EOS, 2, 7], [2, 3, 3, 3]])
  step, first, _ = scripted(script)
  got = jax.jit(
    lambda k: sampling.decode_text(
      step, 0, first, 4, lambda _, x: sampling.greedy(x), k, eos=2
    )
  )(keys(2))
  assert got.tolist() == [[5, EOS, 2, PAD], [2, PAD, PAD, PAD]]


def test_beams_end_at_another_vocabularys_eos():
  script = jnp.asarray([[5, EOS, 2, 7]])
  table = 20 * jax.nn.one_hot(script, 9)
  got = sampling.beam_search(
    lambda cache, token, i: (jnp.repeat(table[:, i + 1], 2, 0), cache),
    0, table[:, 0], 2, 4, lambda cache, rows: cache, eos=2,
  )  # fmt: skip
  assert got.tolist() == [[5, EOS, 2, PAD]]


def test_several_tokens_may_end_an_answer():
  """A hypothesis that one of them ends pays for nothing that comes after."""
  script = jnp.asarray([[5, 2, 6, 6], [EOS, 3, 3, 3]])
  step, first, _ = scripted(script)
  got = jax.jit(
    lambda k: sampling.decode_text(
      step, 0, first, 4, lambda _, x: sampling.greedy(x), k, eos=(EOS, 2)
    )
  )(keys(2))
  assert got.tolist() == [[5, 2, PAD, PAD], [EOS, PAD, PAD, PAD]]
  # Nine in ten rows go on with 2, after which nothing is likely.
  first = jnp.log(jnp.full((1, 9), 1e-6).at[0, jnp.array([EOS, 2])].set(
    jnp.array([0.1, 0.9])))  # fmt: skip
  for ends, want in (((EOS,), EOS), ((EOS, 2), 2)):
    got = sampling.beam_search(
      lambda cache, token, i: (jnp.zeros((2, 9)), cache),
      0, first, 2, 4, lambda cache, rows: cache, eos=ends,
    )  # fmt: skip
    assert got.tolist() == [[want, PAD, PAD, PAD]]


def test_decode_stops_at_the_limit():
  step, first, calls = scripted(jnp.full((1, 4), 5))
  got = decode_greedily(step, first, 3)
  jax.effects_barrier()
  assert got.tolist() == [[5, 5, 5]] and len(calls) == 2


def test_decode_draws_by_row_and_position():
  flat = jnp.zeros((3, 40)).at[:, EOS].set(-1e9)

  @jax.jit
  def run(rows):
    return sampling.decode_text(
      lambda cache, token, i: (flat[rows], cache),
      jnp.int32(0),
      flat[rows],
      8,
      lambda k, x: sampling.pick_token(k, x),
      keys(3)[rows],
    )

  whole = run(jnp.arange(3))
  assert len(set(whole[0].tolist())) > 3
  np.testing.assert_array_equal(run(jnp.asarray([2]))[0], whole[2])


# ---------------------------------------------------------------------- beam

VOCAB, LENGTH = 4, 4


@functools.partial(jax.jit, static_argnums=0)
def search(n, first, bias, table, push):
  def step(cache, token, i):
    history, bias = cache
    history = history + push[token]
    return table[token] + bias + history, (history, bias)

  def gather(cache, rows):
    return jax.tree.map(lambda a: a[rows], cache)

  cache = (jnp.zeros_like(bias), bias)
  return sampling.beam_search(step, cache, first, n, LENGTH, gather)


class Toy:
  """Logits depend on the row, the last token and the whole history."""

  def __init__(self, seed, batch):
    rng = np.random.default_rng(seed)
    self.first = rng.normal(size=(batch, VOCAB)) * 2
    self.bias = rng.normal(size=(batch, VOCAB))
    self.table = rng.normal(size=(VOCAB, VOCAB)) * 2
    self.push = 3 * rng.normal(size=(VOCAB, VOCAB))
    # Endings grow likelier with length, so that long answers win.
    self.first[:, EOS] -= 6
    self.bias[:, EOS] -= 6
    self.push[:, EOS] += 3

  def log_p(self, row, tokens):
    """Log-probabilities of what follows `tokens`, float64."""
    logits = self.first[row]
    if tokens:
      history = sum(self.push[t] for t in tokens)
      logits = self.table[tokens[-1]] + self.bias[row] + history
    return logits - np.log(np.exp(logits).sum())

  def score(self, row, tokens):
    return sum(self.log_p(row, tokens[:i])[t] for i, t in enumerate(tokens))

  def search(self, n):
    arrays = (self.first, self.bias, self.table, self.push)
    arrays = (jnp.asarray(a, jnp.float32) for a in arrays)
    out = np.asarray(search(n, *arrays)).tolist()
    for row in out:
      assert EOS in row and set(row[row.index(EOS) + 1 :]) <= {PAD}
    return [row[: row.index(EOS) + 1] for row in out]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wide_beam_is_exhaustive(seed):
  toy = Toy(seed, batch=4)
  words = [t for t in range(VOCAB) if t != EOS]
  answers = [
    [*body, EOS]
    for size in range(LENGTH)
    for body in itertools.product(words, repeat=size)
  ]
  got = toy.search(27)
  assert max(map(len, got)) > 2  # else nothing was gathered
  for row in range(4):
    assert got[row] == max(answers, key=lambda a: toy.score(row, a))


def reference_beam(toy, row, n):
  """The rules word by word for one row, without stopping early."""
  live, best = [(0.0, [])], (-np.inf, None)
  for _ in range(LENGTH):
    offers = []
    for score, tokens in live:
      log_p = toy.log_p(row, tokens).copy()
      best = max(best, (score + log_p[EOS], [*tokens, EOS]))
      log_p[EOS] = -np.inf
      for token in np.argsort(-log_p)[: n + 1]:
        offers.append((score + log_p[token], [*tokens, int(token)]))
    live = sorted(offers, reverse=True)[:n]
  return best[1]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_narrow_beam_follows_the_rules(n):
  lengths = set()
  for seed in range(3, 7):
    toy = Toy(seed, batch=4)
    got = toy.search(n)
    assert got == [reference_beam(toy, row, n) for row in range(4)]
    lengths |= {len(a) for a in got}
  assert len(lengths) > 2


def beam(step, first, n, length):
  run = jax.jit(
    lambda cache, first: sampling.beam_search(
      step, cache, first, n, length, lambda c, rows: c[rows]
    )
  )
  return run(jnp.zeros(len(first)), first)


def chain(rows):
  """A model given as next-token probabilities [V, V]."""
  calls = []
  log_p = jnp.log(jnp.asarray(rows) + 1e-9)

  def step(cache, token, i):
    jax.debug.callback(lambda: calls.append(1))
    return log_p[token], cache

  return step, calls


def test_beam_beats_greedy_by_hand():
  # 2 (0.6) then EOS (0.3): 0.18; 3 (0.4) then EOS (0.9): 0.36.
  step, calls = chain(
    [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0.3, 0.35, 0.35], [0.1, 0.9, 0, 0]]
  )
  first = jnp.log(jnp.asarray([[1e-9, 1e-9, 0.6, 0.4]]))
  got = beam(step, first, 2, 5)
  assert got.tolist() == [[3, EOS, PAD, PAD, PAD]]
  jax.effects_barrier()
  # After one call the best live hypothesis, 0.21, is below 0.36.
  assert len(calls) == 1


def test_beam_of_length_one_can_only_end():
  step, calls = chain(np.full((4, 4), 0.25))
  got = beam(step, jnp.zeros((2, 4)), 3, 1)
  assert got.tolist() == [[EOS], [EOS]] and not calls
