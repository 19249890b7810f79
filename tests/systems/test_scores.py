"""Likelihoods of texts and losses on data, as the evaluation asks for them."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import debug
from tests.systems.test_accumulate import certain
from unifluid_jax import api, scores, systems
from unifluid_jax.codecs.inputs import encode_pixels
from unifluid_jax.core.types import BOS, EOS, PAD
from unifluid_jax.data import fields, tasks
from unifluid_jax.data.records import Record
from unifluid_jax.data.worlds import shapes, shapes_builder
from unifluid_jax.evals import held_out
from unifluid_jax.evals.bench import Bench


class Lengths:
  """A tokenizer of words: each is its length."""

  special = {"bos": BOS, "eos": EOS, "newline": 23}

  def encode(self, text):
    return [len(word) for word in text.split()]

  def fit(self, ids, room):
    return ids[:room]


def scorer(monkeypatch, **batch):
  """A model whose likelihoods name the rows that the system was given."""
  config = systems.resolve(debug.get_config())
  config = dataclasses.replace(config, batch={**config.batch, **batch})
  system, given = systems.build(config), []

  def score(params, frozen, prompts):
    given.append(jax.tree.map(lambda x: x.shape, prompts))
    fields = prompts["text"]
    weights = 10.0 ** -jax.numpy.arange(fields["suffix"].shape[1])
    asked = (fields["prefix"] != PAD).sum(1)
    return 100 * asked + (fields["suffix"] * weights).sum(1)

  monkeypatch.setattr(system, "score", score)
  model = api.Model(config, system, Lengths(), api.jitted({}, {}, 4))
  return model, config.text.suffix, given


def test_likelihoods_are_of_a_text_and_its_end_after_its_question(monkeypatch):
  model, slot, given = scorer(monkeypatch, text=8)
  asked = [(None, "a bb ccc"), ("why", "bb"), ("who is", "bb"), (None, "")]
  found = model.log_likelihoods(*zip(*asked, strict=True))
  rest = -(10.0 ** -np.arange(slot))  # PAD

  def row(*ids):
    return sum(i * 10.0**-k for k, i in enumerate(ids)) + rest[len(ids) :].sum()

  # Alone a text follows BOS; a question stands between BOS and newline.
  want = [
    100 + row(1, 2, 3, EOS), 300 + row(2, EOS), 400 + row(2, EOS),
    100 + row(EOS),
  ]  # fmt: skip
  np.testing.assert_allclose(found, want, rtol=1e-6)
  (shapes,) = given
  assert set(shapes["text"]) == {"prefix", "suffix"}


def test_texts_that_cannot_be_scored_are_refused(monkeypatch):
  model, slot, _ = scorer(monkeypatch, text=8)
  model.log_likelihoods([None], ["a " * (slot - 1)])
  with pytest.raises(ValueError, match=f"text.suffix={slot} has no room for"):
    model.log_likelihoods([None], ["a " * slot])
  model, _, _ = scorer(monkeypatch, text=0)
  with pytest.raises(ValueError, match="was not trained on 'text'"):
    model.log_likelihoods([None], ["a"])
  monkeypatch.setattr(scores, "Scorer", str)
  model, _, _ = scorer(monkeypatch, text=8)
  with pytest.raises(ValueError, match="'unifluid' says no likelihoods"):
    model.log_likelihoods([None], ["a"])


def records(n):
  out = []
  for i in range(n):
    r = shapes_builder.record(shapes.World(), "validation", 0, i)
    questions = tuple((q["question"], q["answer"]) for q in r["questions"])
    out.append(Record(id=r["id"], image=r["image"].getvalue(),
                      prompts=tuple(r["prompts"]), questions=questions,
                      captions=tuple(r["captions"])))  # fmt: skip
  return out


def scored(model, **changes):
  """A run that answers with the fixture's weights, four rows at a time."""
  config = dataclasses.replace(model.config, **changes)
  mapper = api.jitted(model.params, model.frozen, 4)
  return api.Model(config, systems.build(config), Lengths(), mapper)


def whole(model, system, task, given):
  """The loss of all examples in one piece."""
  options = tasks.Options(Lengths(), "caption en")
  rows = []
  for i, r in enumerate(given):
    rng = np.random.default_rng([0, i])
    example = tasks.TASKS[task](r, rng, options)
    inputs = {
      name: dataclasses.replace(f, file=False) if name == "image" else f
      for name, f in system.inputs[task].items()
    }
    rows.append(fields.arrays(inputs, example, rng))
  batch = {task: {k: np.stack([r[k] for r in rows]) for k in rows[0]}}
  counts = system.counts(batch)
  step = model.config.steps

  @jax.jit
  def loss(batch):
    batch = encode_pixels(system, model.frozen, batch)
    return system.loss(
      model.params, model.frozen, batch, counts, jax.random.key(3), step
    )[:2]

  total, metrics = loss(batch)
  return {"loss": total, **metrics}


@pytest.mark.parametrize("task", ["t2i", "i2t", "text"])
def test_losses_of_rows_add_up_to_the_loss_of_all(
  model,
  without_draws,
  task,
):
  """Six records in parts of four: none counts twice, none weighs more."""
  system = certain(model)
  one = scored(model, loss=system.config.loss)
  found, count = one.losses(task, records(6))
  assert count == 6
  want = whole(model, system, task, records(6))
  assert set(found) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


def test_draws_are_a_rows_own_and_the_same_each_time(model):
  one, (first, second) = scored(model), records(2)
  alone, _ = one.losses("t2i", [first])
  again, _ = one.losses("t2i", [first])
  assert alone == again
  twice, _ = one.losses("t2i", [first, first])
  assert twice["loss"] != pytest.approx(alone["loss"], rel=1e-3)
  # Not of the training step: the run's last one counts.
  assert alone["order_randomness"] == 0.0
  both, _ = one.losses("t2i", [first, second])
  assert both["loss"] != pytest.approx(twice["loss"], rel=1e-3)


def test_records_without_an_example_are_left_out(model):
  one, (good, other) = scored(model), records(2)
  broken = [good, other._replace(captions=(), questions=()),
            other._replace(image=b"no image")]  # fmt: skip
  found, count = one.losses("i2t", broken)
  assert count == 1 and found == one.losses("i2t", [good])[0]
  with pytest.raises(ValueError, match="no record of the split is an example"):
    one.losses("i2t", broken[1:])


class Teller:
  """Tells a loss that names what it was asked for."""

  def losses(self, task, records):
    return {"loss": float(len(task) + len(records)), "accuracy": 0.5}, len(
      records
    )


def test_validation_losses_are_of_trained_tasks_and_all_splits(model):
  batch = {"t2i": 8, "i2t": 0, "text": 8}
  made = Bench(dataclasses.replace(model.config, batch=batch), "")
  of = {"validation": records(2), "held_out": records(3)}
  made.records = of.__getitem__
  out = held_out.validation_loss(Teller(), made)
  name = "validation_loss"
  assert out.values == {
    f"{name}/t2i/loss": 5.0, f"{name}/t2i/accuracy": 0.5,
    f"{name}/text/loss": 6.0, f"{name}/text/accuracy": 0.5,
    f"{name}_held_out/t2i/loss": 6.0, f"{name}_held_out/t2i/accuracy": 0.5,
    f"{name}_held_out/text/loss": 7.0, f"{name}_held_out/text/accuracy": 0.5,
  }  # fmt: skip
  objective = out.settings.pop("objective")
  assert out.settings == {
    "validation t2i": 2, "validation text": 2, "held_out t2i": 3,
    "held_out text": 3,
  }  # fmt: skip
  assert out.floors == {}
  loss = dataclasses.replace(model.config.loss, text_weight=0.5)
  made.config = dataclasses.replace(made.config, loss=loss)
  other = held_out.validation_loss(Teller(), made)
  assert other.values == out.values
  assert other.settings["objective"] != objective
