"""What the Python API hands to a system."""

import collections
import dataclasses

import jax
import numpy as np

from configs import debug
from unifluid_jax import api, systems

IMAGES = np.zeros((5, 8, 8, 3), np.uint8)


class Blank:
  """A tokenizer without words; its text is the ids."""

  special = collections.defaultdict(int)

  def encode(self, text):
    return []

  def fit(self, ids, room):
    return ids

  def decode(self, ids):
    return str(ids)


def test_a_sampled_answer_draws_from_its_row_and_the_seed_alone(monkeypatch):
  config = systems.resolve(debug.get_config())
  system = systems.build(config)
  monkeypatch.setattr(
    system, "answer", lambda p, f, prompts, keys, s: jax.random.key_data(keys)
  )

  def answers(count, seed=0, rows=4):
    model = api.Model(config, system, Blank(), api.jitted({}, {}, rows))
    sampling = dataclasses.replace(config.sampling, seed=seed)
    return model.answers(list(IMAGES[:count]), [""] * count, sampling)

  five = answers(5)
  assert len(set(five)) == 5
  assert answers(3) == five[:3] and answers(5, rows=2) == five
  assert not set(answers(5, seed=1)) & set(five)
