"""What the Python API hands to a system."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from configs import debug
from unifluid_jax import api, arguments, systems

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


class Torch:
  """What of a torch.Generator is asked."""

  def initial_seed(self):
    return 9


@pytest.fixture
def drawn(monkeypatch):
  """A model that draws nothing, and what it was asked to draw."""
  config = systems.resolve(debug.get_config())
  model = api.Model(config, systems.build(config), Blank(), lambda f: f)
  asked = []

  def images(prompts, seeds, sampling, sources=None):
    asked.append((prompts, seeds, sampling))
    return IMAGES[: len(prompts)]

  monkeypatch.setattr(model, "images", images)
  return model, asked


def test_options_may_have_the_names_of_diffusers(drawn):
  model, asked = drawn
  one = model("a", guidance_scale=3.5, num_inference_steps=7, generator=5)
  assert [x.size for x in one.images] == [(8, 8)]
  model.generate(["a", "b"], 5, cfg=3.5, steps=7)
  (_, seeds, sampling), (_, two, same) = asked
  assert (sampling.cfg, sampling.steps) == (3.5, 7) and sampling == same
  assert (seeds, two) == ([5], [5, 6])
  assert len(model(["a", "b"]).images) == 2 and asked[-1][1] == [0, 1]
  model.edit(IMAGES[0], "a", generator=Torch())
  assert asked[-1][1] == [9]
  source, wanted = np.random.default_rng(3), np.random.default_rng(3)
  for _ in range(2):
    model.generate("a", generator=source)
    assert asked[-1][1] == [int(wanted.integers(2**31))]


def test_an_option_that_is_none_is_left_as_it_is(drawn):
  model, asked = drawn
  model.generate("a", cfg=None, steps=None, solver=None)
  assert asked[-1][2] == model.config.sampling


@pytest.mark.parametrize("given, words", [
  ({"guidance_scale": 2.0, "cfg": 2.0}, "guidance_scale is another name of c"),
  ({"num_inference_steps": 3, "steps": 3}, "is another name of steps"),
  ({"generator": 3, "seed": 3}, "generator is another name of seed"),
  ({"generator": "x"}, "generator='x': give a whole number, a numpy Gen"),
  ({"generator": 2**32}, "seed=4294967296: a whole number from 0"),
  ({"guidance_scale": -1.0}, "cfg=-1.0 must be at least 0"),
  ({"guidance": 1.0}, "unknown sampling option 'guidance'"),
])  # fmt: skip
def test_one_option_under_two_names_is_refused(drawn, given, words):
  model, asked = drawn
  with pytest.raises(ValueError, match=words):
    model.generate("a", **given)
  assert not asked


def test_a_name_of_an_option_that_a_system_lacks_is_said():
  with pytest.raises(ValueError, match="num_inference_steps: this system has"):
    arguments.renamed(
      {"num_inference_steps": 3}, systems.spec("liquid").sampling
    )


# -------------------------------------------------------------- lists of images


@pytest.fixture
def asked(monkeypatch):
  """A model that says what it was asked, of how bright an image, and calls."""
  config = systems.resolve(debug.get_config())
  model, calls = (
    api.Model(config, systems.build(config), Blank(), lambda f: f),
    [],
  )

  def answers(images, questions, sampling=None):
    calls.append((len(images), sampling.top_k))
    pairs = zip(images, questions, strict=True)
    return [f"{q} {int(image.max())}" for image, q in pairs]

  monkeypatch.setattr(model, "answers", answers)
  return model, calls


GREYS = [np.full((8, 8, 3), v, np.uint8) for v in (1, 2, 3)]


def test_lists_of_images_are_answered_in_one_call(asked):
  model, calls = asked
  assert model.answer(GREYS[1], "what") == "what 2"
  assert model.answer(GREYS, "what", top_k=4) == ["what 1", "what 2", "what 3"]
  assert model.answer(tuple(GREYS[:2]), ["a", "b"]) == ["a 1", "b 2"]
  assert model.caption(GREYS) == [f"caption en {v}" for v in (1, 2, 3)]
  assert model.answer([], "what") == []
  assert [n for n, _ in calls] == [1, 3, 2, 3] and calls[1][1] == 4


@pytest.mark.parametrize("image, question", [
  (GREYS, ["a", "b"]), (GREYS[0], ["a"]), ([], ["a"]),
])  # fmt: skip
def test_questions_that_do_not_fit_the_images_are_refused(
  asked, image, question
):
  with pytest.raises(ValueError, match="one question for each"):
    asked[0].answer(image, question)
