"""UniFluid with a distilled head: it learns of a teacher, which stays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems.conftest import (
  Tiny,
  examples,
  right_aligned,
  tiny,
  whole_loss,
)
from unifluid_jax import systems
from unifluid_jax.core import optim
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.models import distilled_head, flow_head
from unifluid_jax.ops.sampling import Guided
from unifluid_jax.systems import unifluid_sampling
from unifluid_jax.systems.common import packing

SMALL = dict(
  model__patch=4, model__decoder__depth=1, sampling__steps=1, batch__i2t=0,
  loss__random_until=0, loss__raster_from=0,
)  # fmt: skip
DISTILLED = dict(
  SMALL, model__head__kind="distilled", sampling__cfg=1.0,
  init__all="run", init__teacher="run#head",
  optim__rates__decoder=0.0, optim__rates__image=0.0,
  loss__teacher_steps=3, loss__teacher_cfg=2.0, loss__draws=2,
)  # fmt: skip


@functools.cache
def base():
  """Four tokens an image; everything but the heads."""
  return Tiny(**SMALL)


@functools.cache
def model():
  """The system, and random parameters of which head and teacher are equal."""
  system = systems.build(tiny(**DISTILLED))
  rng = np.random.default_rng(0)
  head = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32),
    systems.init_shapes(system)["head"],
  )
  return system, {**base().params, "head": head, "teacher": head}


def loss_of(params, system=None, **changes):
  loss = whole_loss(system or model()[0])
  batch = {"t2i": {**examples()["t2i"], **changes}}
  return loss(params, base().frozen, batch, jax.random.key(1), 0)


def test_a_head_learns_what_its_guided_teacher_shows(monkeypatch):
  """Of the states of a row with its prompt, and of the same without it."""
  system, params = model()
  seen = []

  def watched(self, params, z, x0, key, draws):
    seen.append((z, x0, key))
    return {"distillation": jnp.zeros((draws, *z.shape[:2]))}

  monkeypatch.setattr(flow_head.FlowHead, "losses", watched)
  monkeypatch.setattr(distilled_head.DistilledHead, "losses", watched)
  loss_of(params)
  flow = {k: v for k, v in params.items() if k != "teacher"}
  plain = systems.build(
    tiny(**SMALL, model__head__kind="flow", loss__draws=2,
         loss__prompt_dropout=0.0, sampling__cfg=1.0)
  )  # fmt: skip
  text = examples()["t2i"]["prompt"]
  loss_of(flow, plain)
  loss_of(flow, plain, prompt=packing.null_prompt(text))
  (z, shown, key), (asked, x0, _), (null, _, _) = seen
  np.testing.assert_allclose(z, asked, atol=1e-5)
  assert np.abs(asked - null).max() > 1e-3
  guided = Guided([asked, null], 2.0)
  want = system.tokens.shown(params["teacher"], guided, key, 2, 3, limit=3.0)
  np.testing.assert_allclose(shown, want, atol=1e-5)
  assert np.abs(shown - x0).max() > 1e-2


def test_training_moves_the_head_and_leaves_the_teacher():
  system, params = model()
  config = dataclasses.replace(
    system.config.optim, rates={"decoder": 0.0, "vit": 0.0, "projector": 0.0,
                                "image": 0.0},
  )  # fmt: skip
  trains = optim.is_trained(config, system.held, params)
  assert not any(jax.tree.leaves(trains["teacher"]))
  assert all(jax.tree.leaves(trains["head"]))
  assert not any(jax.tree.leaves(trains["decoder"]))

  @jax.jit
  def step(head):
    def of(head):
      return loss_of({**params, "head": head})

    (loss, metrics), slope = jax.value_and_grad(of, has_aux=True)(head)
    return jax.tree.map(lambda p, g: p - 0.05 * g, head, slope), loss, metrics

  head, found = params["head"], []
  for _ in range(4):
    head, loss, metrics = step(head)
    assert set(metrics) == {
      "loss_visual", "distillation", "order_randomness"
    }  # fmt: skip
    np.testing.assert_allclose(loss, metrics["distillation"], rtol=1e-6)
    found.append(float(loss))
  assert found[-1] < found[0]


def test_it_draws_as_a_flow_head_does_in_one_step():
  system, params = model()
  plain = systems.build(tiny(**SMALL, model__head__kind="flow"))
  text = jnp.asarray(right_aligned(np.random.default_rng(1), 3, 5, 5))
  prompts = {"t2i": {"prompt": text}}
  images = []
  for each, given in (
    (system, params),
    (plain, {k: v for k, v in params.items() if k != "teacher"}),
  ):
    sampling = dataclasses.replace(each.config.sampling, steps=1, cfg=1.0)
    unifluid_sampling.check_sampling(each.config, sampling, "t2i")
    images.append(
      each.generate(given, base().frozen, prompts, jax.random.key(0), sampling)
    )
  np.testing.assert_array_equal(*images)


# -------------------------------------------------------------- configuration


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"init__teacher": ""},
     "'distilled' learns from a trained flow head: set config.init.teacher"),
    ({"init__teacher": "run"}, "set config.init.teacher to its run, as 'RUN#"),
    ({"init__teacher": "other#head"}, "this one is of 'run': set both to one"),
    ({"init__decoder": "other"}, "this one is of 'other': set both to one"),
    ({"optim__rates__decoder": 1.0}, "stand still: set optim.rates.decoder=0"),
    ({"optim__rates__image": 0.1}, "stand still: set optim.rates.image=0"),
    ({"batch__edit": 2}, "taught prompts alone: set batch.edit=0"),
    ({"policy__prompts": 4}, "not its own drawings: set policy.prompts=0"),
    ({"sampling__steps": 4}, "sampling.steps=4.*one evaluation: use steps=1"),
    ({"sampling__cfg": 2.0}, "sampling.cfg=2.0.*guidance: use cfg=1"),
    ({"loss__teacher_steps": 0}, "teacher_steps"),
  ],
)  # fmt: skip
def test_what_cannot_work_is_refused(changes, words):
  with pytest.raises(ConfigError, match=words):
    systems.build(tiny(**{**DISTILLED, **changes}))
