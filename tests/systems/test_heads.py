"""UniFluid with each few-step head: trained, drawn with, refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from tests.systems.conftest import (
  Tiny,
  examples,
  right_aligned,
  tiny,
  whole_loss,
)
from unifluid_jax import systems
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.models import flow_head
from unifluid_jax.systems import unifluid_sampling

# Terms of the objective, and options to draw with.
KINDS = {
  "flow": (("velocity",), {"steps": 3, "last_steps": 2, "solver": "heun"}),
  "shortcut": (("velocity", "consistency"), {"steps": 2}),
  "energy": (("distance", "spread"), {"steps": 1}),
}
TEXT = right_aligned(np.random.default_rng(1), 3, 5, 5)
SMALL = dict(
  model__patch=4, model__decoder__depth=1, sampling__steps=1,
  batch__i2t=0, loss__random_until=1000, loss__raster_from=10**6,
)  # fmt: skip


@functools.cache
def base():
  """Four tokens an image; all but the head of every kind's model."""
  return Tiny(**SMALL)


@functools.cache
def model(kind):
  """A system and random parameters."""
  system = systems.build(tiny(model__head__kind=kind, **SMALL))
  rng = np.random.default_rng(0)
  head = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32),
    systems.init_shapes(system)["head"],
  )
  return system, {**base().params, "head": head}


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_of_training(kind):
  """The loss of the same draws falls, and the whole head moves."""
  system, params = model(kind)
  loss, batch = whole_loss(system), {"t2i": examples()["t2i"]}

  @jax.jit
  def step(params):
    (_, metrics), slope = jax.value_and_grad(loss, has_aux=True)(
      params, base().frozen, batch, jax.random.key(1), 0
    )
    return jax.tree.map(lambda p, g: p - 0.01 * g, params, slope), metrics

  once, first = step(params)
  twice, second = step(once)
  terms, _ = KINDS[kind]
  for metrics in (first, second):
    assert set(metrics) == {"loss_visual", "order_randomness", *terms}
    total = sum(float(metrics[name]) for name in terms)
    np.testing.assert_allclose(metrics["loss_visual"], total, rtol=1e-5)
  assert 0 < second["loss_visual"] < first["loss_visual"]
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), params["head"], twice["head"]
  )
  assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize(
  "kind, passes",
  [("flow", 0), ("flow", 2), ("shortcut", 2), ("energy", 2)],
)
def test_an_image_depends_on_its_own_seed_and_prompt_only(kind, passes):
  """One token or two in a pass of the decoder, with guidance."""
  system, params = model(kind)
  sampling = dataclasses.replace(
    system.config.sampling, cfg=2.0, clip=3.0, order="random", passes=passes,
    **KINDS[kind][1],
  )  # fmt: skip
  unifluid_sampling.check_sampling(system.config, sampling, "t2i")

  @jax.jit
  def run(text, seeds):
    keys = jax.vmap(jax.random.key)(seeds)
    prompts = {"t2i": {"prompt": text}}
    return system.generate(params, base().frozen, prompts, keys, sampling)

  a = run(jnp.asarray(TEXT), jnp.asarray([3, 4, 5]))
  b = run(jnp.asarray(TEXT[::-1]), jnp.asarray([5, 7, 3]))
  np.testing.assert_allclose(a[0], b[2], atol=1e-5)
  np.testing.assert_allclose(a[2], b[0], atol=1e-5)
  assert np.abs(a[1] - b[1]).max() > 1e-3


def test_options_reach_the_head(monkeypatch):
  """Steps of each place, temperature, bound, solver and both scales."""
  system, params = model("flow")
  seen = []

  def watched(self, params, guided, keys, steps, temperature, **options):
    seen.append((
      steps, temperature, options, len(guided.conditions),
      guided.scale, guided.image_scale,
    ))  # fmt: skip
    return jnp.zeros((len(keys), 64))

  monkeypatch.setattr(flow_head.FlowHead, "sample", watched)
  sampling = dataclasses.replace(
    system.config.sampling, steps=3, last_steps=2, solver="heun", clip=2.5,
    temperature=0.7, cfg=4.0, image_cfg=1.0,
  )  # fmt: skip
  prompts = {"t2i": {"prompt": jnp.asarray(TEXT)}}
  jax.eval_shape(
    lambda: system.generate(
      params, base().frozen, prompts, jax.random.key(0), sampling
    )
  )
  told = {"limit": 2.5, "solver": "heun"}
  assert seen == [(n, 0.7, told, 2, 4.0, 1.0) for n in (3, 2)]


# -------------------------------------------------------------- configuration


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"head__kind": "gan"}, r"config.model.head.kind='gan': choose one of"),
    ({"head__kind": "energy", "steps": 3},
     r"sampling.steps=3: an energy head .* use steps=1"),
    ({"head__kind": "shortcut", "steps": 3},
     r"sampling.steps=3: a shortcut head .* a power of two up to 128"),
    ({"solver": "heun"}, r"sampling.solver='heun' is for heads of kind 'flow'"),
    ({"head__kind": "energy", "steps": 1, "draws": 1},
     r"loss.draws=1: heads of kind 'energy' .* loss.draws to 2 or more"),
    ({"head__kind": "shortcut", "steps": 1, "draws": 1},
     r"loss.draws=1: heads of kind 'shortcut' .* loss.draws to 2 or more"),
  ],
)  # fmt: skip
def test_refused_configurations(changes, words):
  nodes = {"head__kind": "model", "draws": "loss"}
  flat = {f"{nodes.get(k, 'sampling')}__{k}": v for k, v in changes.items()}
  with pytest.raises(ConfigError, match=words) as error:
    tiny(**flat)
  assert "\n" not in str(error.value)


def test_a_run_refuses_steps_that_its_head_has_not_learned():
  config = model("energy")[0].config
  asked = dataclasses.replace(config.sampling, steps=4)
  with pytest.raises(ValueError, match="^steps=4: an energy head"):
    unifluid_sampling.check_sampling(config, asked, "t2i")
  prompts = {"t2i": {"prompt": jnp.asarray(TEXT)}}
  with pytest.raises(ValueError, match="^steps=4: an energy head"):
    model("energy")[0].generate({}, {}, prompts, jax.random.key(0), asked)


def test_older_runs_have_mars_head():
  """Trees without the keys, as runs and exported models have them."""
  config = shapes.get_config()
  config.model.head.kind = "ddpm"
  tree = config.to_dict()
  whole = systems.resolve(tree)
  del tree["model"]["head"]["kind"], tree["sampling"]["solver"]
  assert systems.resolve(tree) == whole
  assert (whole.model.head.kind, whole.sampling.solver) == ("ddpm", "euler")
  assert systems.summary(systems.resolve(tree))["head"].startswith("ddpm, ")
