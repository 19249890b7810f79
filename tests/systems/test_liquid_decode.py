"""Liquid draws and answers as teacher forcing without a cache does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems.test_liquid import (
  BOI,
  BOS,
  CODEC,
  EOI,
  FIRST,
  NULL,
  K,
  N,
  V,
  examples,
  full_logits,
  tiny,
)
from tests.systems.test_liquid import model as model
from unifluid_jax import systems
from unifluid_jax.core.types import PAD


def how(model, **options):
  return dataclasses.replace(model.config.sampling, **options)


def keys(count):
  return jax.vmap(jax.random.key)(jnp.arange(count))


def test_drawing_with_a_cache_is_teacher_forcing(model):
  """Row by row, without cache, pads or batch; null rows likewise."""
  prompt = examples(rows=3)["t2i"]["prompt"]
  options = how(model, cfg=2.0, temperature=0.7, image_top_k=5)
  draw = jax.jit(lambda p: model.system.draw(
    p, prompt, model.system.null(prompt), keys(3), options))  # fmt: skip
  codes = np.asarray(draw(model.params))
  assert len(np.unique(codes, axis=0)) == 3
  image = slice(FIRST, FIRST + K)
  for row, drawn in enumerate(codes):
    given = [int(t) for t in prompt[row] if t != PAD]
    c, u = (
      full_logits(model, [*start, *(FIRST + drawn[:-1])])[len(start) - 1 :]
      for start in (given, [BOS, NULL, BOI])
    )
    scores = (u + 2.0 * (c - u))[:, image] / 0.7
    for i in range(N):
      kept = np.sort(scores[i])[-5]
      z = jnp.where(scores[i] < kept, -jnp.inf, scores[i])
      key = jax.random.fold_in(jax.random.key(row), i)
      assert drawn[i] == jax.random.categorical(key, z), (row, i)


@pytest.mark.parametrize("k, p", [(0, 1.0), (4, 1.0), (0, 0.6), (6, 0.5)])
def test_codes_are_masked_before_they_are_filtered(model, k, p):
  """Text ids have the largest logits of all and are never drawn."""
  rng = np.random.default_rng(3)
  states = [jnp.float32(rng.normal(size=(64, 32))) for _ in range(2)]
  table = rng.normal(size=(V, 32)) * np.where(
    (np.arange(V) >= FIRST) & (np.arange(V) < FIRST + K), 0.3, 3.0
  )[:, None]  # fmt: skip
  params = {"decoder": {"embedder": {"table": jnp.float32(table)}}}
  options = how(model, cfg=3.0, temperature=0.8, image_top_k=k, image_top_p=p)
  got = model.system.pick(params, states, keys(64), options)
  # The same in numpy over the whole vocabulary, in the stated order.
  c, u = (3.0 * np.tanh(np.float64(h) @ table.T / 3.0) for h in states)
  z = (u + 3.0 * (c - u)) / 0.8
  outside = np.ones(V, bool)
  outside[FIRST : FIRST + K] = False
  z[:, outside] = -np.inf
  if k:
    z[z < np.sort(z, axis=1)[:, -k][:, None]] = -np.inf
  order = np.argsort(-z, axis=1)
  ranked = np.take_along_axis(z, order, 1)
  mass = np.exp(ranked - ranked[:, :1])
  mass /= mass.sum(1, keepdims=True)
  before = np.cumsum(mass, axis=1) - mass
  if p < 1:
    np.put_along_axis(z, order, np.where(before > p, -np.inf, ranked), 1)
  want = jax.vmap(jax.random.categorical)(
    keys(64), jnp.float32(z[:, FIRST : FIRST + K])
  )
  np.testing.assert_array_equal(got, want)
  assert len(np.unique(got)) > 3


def test_guidance_of_1_is_none_and_null_prompts_lead_nowhere(model):
  prompt = examples()["t2i"]["prompt"]

  def draw(cfg):
    return jax.jit(lambda prompt: model.system.draw(
      model.params, prompt, model.system.null(prompt), keys(8),
      how(model, cfg=cfg)))  # fmt: skip

  plain, guided = draw(1.0), draw(4.0)
  one, null = plain(prompt), model.system.null(prompt)
  np.testing.assert_array_equal(one, draw(1.0 + 1e-7)(prompt))
  assert (one != guided(prompt)).any(axis=1).sum() > 4
  np.testing.assert_array_equal(plain(null), guided(null))


@pytest.mark.parametrize("task", ["i2t", "text"])
def test_greedy_answers_are_teacher_forced_and_end_with_the_named_eos(
  model, task
):
  given = {k: x for k, x in examples(rows=6)[task].items() if k != "suffix"}
  starts = []
  for row in range(6):
    seen = (
      [FIRST + int(k) for k in given["codes"][row]] if "codes" in given else []
    )
    start = [BOS, BOI, *seen] if seen else []
    starts.append([*start, *(int(t) for t in given["prefix"][row] if t != PAD)])
  # The second word of the first answer is made the end of answers.
  said = list(starts[0])
  for _ in range(2):
    said.append(int(np.argmax(full_logits(model, said)[-1])))
  eos = said[-1]
  config = tiny(text__suffix=6, text__special=dict(
    boi=BOI, eoi=EOI, unconditional=NULL, eos=eos))  # fmt: skip
  system = systems.build(config)
  answer = jax.jit(lambda p: system.answer(
    p, CODEC, {task: given}, keys(6), config.sampling))  # fmt: skip
  ended = []
  for start, got in zip(starts, np.asarray(answer(model.params)), strict=True):
    said = [int(t) for t in got if t != PAD]
    best = np.argmax(full_logits(model, [*start, *said]), axis=-1)
    np.testing.assert_array_equal(best[len(start) - 1 : -1], said)
    ended.append(said[-1] == eos)
    assert eos not in said[:-1] and (ended[-1] or len(said) == 6)
  assert ended[0]
