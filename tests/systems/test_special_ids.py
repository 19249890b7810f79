"""UniFluid with the special tokens of another tokenizer.

Two systems, the same but for the order of the vocabulary, embed the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems import conftest
from unifluid_jax.systems import unifluid
from unifluid_jax.systems.unifluid import UniFluid

# Where SmolLM2's are; the rest of the ids move too.
SPECIAL = {"bos": 1, "eos": 2, "unk": 0}
_CHANGES = dict(loss__word_dropout=0.5, loss__prompt_dropout=0.5)


@pytest.fixture(scope="module")
def pair(model):
  """Systems, their parameters, and the new id of every old one."""
  systems = [
    UniFluid(conftest.tiny(**_CHANGES, **special))
    for special in ({}, {"text__special": SPECIAL})
  ]
  old = {"bos": 2, "eos": 1, "unk": 3}
  place = {old[role]: i for role, i in SPECIAL.items()}
  free = [i for i in range(24) if i not in place.values()]
  rest = [i for i in range(24) if i not in place]
  place |= dict(zip(rest, free, strict=True))
  moved = np.array([place[i] for i in range(24)])
  table = model.params["decoder"]["embedder"]["table"]
  params = jax.tree.map(jnp.copy, model.params)
  params["decoder"]["embedder"]["table"] = table.at[moved].set(table)
  return systems, (model.params, params), moved


def both(pair, fields):
  """Each system, its parameters, and fields with its ids; pads stay."""
  systems, params, moved = pair
  ids = ("prompt", "prefix", "suffix")
  renamed = {
    name: jnp.where(x < 0, x, jnp.asarray(moved)[x]) if name in ids else x
    for name, x in fields.items()
  }
  return zip(systems, params, (fields, renamed), strict=True)


def same(packed):
  """What is valid is embedded alike."""
  want, got = packed
  np.testing.assert_array_equal(got.valid, want.valid)
  valid = np.asarray(want.valid)
  np.testing.assert_array_equal(
    np.asarray(got.x)[valid], np.asarray(want.x)[valid]
  )


def test_dropped_words_are_its_unk(pair):
  fields = conftest.examples()["i2t"]
  key = jax.random.key(0)
  same(
    system._pack_answer(params, named, key)
    for system, params, named in both(pair, fields)
  )


def test_the_null_condition_is_its_bos(pair, model):
  fields = {"prompt": conftest.examples()["t2i"]["prompt"]}
  config = model.config.sampling
  assert config.cfg != 1
  found = [
    system._conditions(params, model.frozen, named, config)
    for system, params, named in both(pair, fields)
  ]
  assert len(found[0]) == 2
  for packed in zip(*found, strict=True):
    same(packed)


def test_dropped_prompts_are_the_null_condition(pair, model):
  fields = conftest.examples()["t2i"]
  key = jax.random.key(0)
  same(
    system._pack_image(params, model.frozen, named, key, jnp.float32(0), 0.2)[0]
    for system, params, named in both(pair, fields)
  )


def test_answers_end_with_its_eos(pair, model, monkeypatch):
  """Decoding itself is tested with any EOS."""
  seen = []

  def answer(*args):
    seen.append(args[-1])
    return jnp.zeros((8, 4), jnp.int32)

  monkeypatch.setattr(unifluid.text_decode, "answer", answer)
  fields = conftest.examples()["i2t"]
  keys = jax.random.split(jax.random.key(0), 8)
  for system, params, named in both(pair, fields):
    prompts = {"i2t": {k: named[k] for k in ("seen", "prefix")}}
    system.answer(params, model.frozen, prompts, keys, model.config.sampling)
  assert seen == [1, 2]
