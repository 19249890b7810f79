"""Policy gradients, shown with a system whose images are eight colours."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems import test_liquid_sizes, test_var
from tests.systems.test_contract import (
  Space,
  registered,  # noqa: F401, a fixture
)
from unifluid_jax import policy, systems, train
from unifluid_jax.aot import lower
from unifluid_jax.core import parallel
from unifluid_jax.core.config import PolicyConfig
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import WEIGHT
from unifluid_jax.data import pipeline
from unifluid_jax.systems.common import packing

PROMPTS = ("a red circle", "two green squares")
WANTED = 5  # a colour


@pytest.fixture(scope="module")
def space(registered, tmp_path_factory):  # noqa: F811
  return Space(tmp_path_factory.mktemp("toy"))


class Favourite:
  """Rewards the share of cells that have one colour."""

  def __init__(self, colours):
    self.colours, self.asked = colours, []

  def prompts(self, count, rng):
    return [{"prompt": PROMPTS[i]} for i in rng.integers(2, size=count)]

  def judge(self, asked, images):
    self.asked.append([task["prompt"] for task in asked])
    cells = images[:, 4::8, 4::8].reshape(len(images), -1, 1, 3)
    pixels = (self.colours + 1) * 127.5
    code = np.abs(cells - pixels).sum(-1).argmin(-1)
    self.judged = (code == WANTED).mean(1)
    return self.judged

  def kind(self, asked):
    return "any"


def config_of(space, steps=30, devices=1, **changes):
  optim = dataclasses.replace(
    space.config.optim, lr=0.01, schedule="constant", ema=0.0
  )
  given = {"prompts": 4, "draws": 8, "sampling": {"cfg": 1.0}} | changes
  mesh = dataclasses.replace(space.config.mesh, data=1, fsdp=devices)
  loss = dataclasses.replace(space.config.loss, prompt_dropout=0.0)
  return dataclasses.replace(
    space.config, steps=steps, optim=optim, mesh=mesh, loss=loss,
    policy=PolicyConfig(**given),
  )  # fmt: skip


def run(space, config, devices=1, steps=None):
  """States and metrics of a run's first steps."""
  system, reward = systems.build(config), Favourite(space.colours)
  job = train.make_job(config, system, jax.devices()[:devices])
  with jax.set_mesh(job.mesh):
    job = policy.with_drawings(job, reward, space.tokenizer)
    state = jax.jit(
      lambda: train.init_state(system, job.optimizer, config),
      out_shardings=job.shardings,
    )()
    loader = pipeline.make_loader(
      config, system.inputs, space.tokenizer, start_step=0
    )
    frozen, told = space.frozen, []
    for _ in range(steps or config.steps):
      batch = parallel.to_global(next(loader), job.mesh)
      state, metrics = job.step(state, frozen, batch)
      told.append(jax.device_get(metrics))
  return SimpleNamespace(state=state, told=told, reward=reward, job=job)


def test_a_run_learns_to_draw_what_is_rewarded(space):
  found = run(space, config_of(space, weight=4.0))
  rewards = [x["reward"] for x in found.told]
  assert np.mean(rewards[:3]) < 0.25  # one of eight colours
  assert np.mean(rewards[-3:]) > 0.6
  assert all(0 <= x["reward_told_apart"] <= 1 for x in found.told)
  # It asks for several images of each prompt, side by side.
  first = np.reshape(found.reward.asked[0], (4, 8))
  assert (first == first[:, :1]).all()
  assert len(set(map(tuple, found.reward.asked))) > 5


def test_without_a_weight_it_trains_on_its_own_data_alone(space):
  """Rows of weight 0 leave the mean of the others, whatever was drawn."""
  config = config_of(space, weight=0.0)
  found = run(space, config, steps=2)
  off = dataclasses.replace(config, policy=PolicyConfig())
  job = train.make_job(off, found.job.system, jax.devices()[:1])
  with jax.set_mesh(job.mesh):
    state = train.init_state(job.system, job.optimizer, off)
    loader = pipeline.make_loader(
      off, job.system.inputs, space.tokenizer, start_step=0
    )
    for told in found.told:
      state, metrics = job.step(state, space.frozen, next(loader))
      for name in ("loss", "loss_image", "loss_text", "grad_norm"):
        np.testing.assert_allclose(told[name], metrics[name], rtol=1e-4)


def test_a_step_draws_the_same_again_on_eight_devices(space):
  """Drawings are those of the step's number, however they are split."""
  one = run(space, config_of(space), steps=2)
  many = run(space, config_of(space, devices=8), devices=8, steps=2)
  assert one.reward.asked == many.reward.asked
  for a, b in zip(one.told, many.told, strict=True):
    assert a["reward"] == b["reward"]
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)


def test_advantages_are_over_the_other_images_of_a_prompt():
  rewards = np.float32([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0.5, 0.25, 0.25]])
  found = policy.advantages(rewards, 1.0)
  np.testing.assert_array_equal(found[0], [0.5, -0.5, -0.5, 0.5])
  np.testing.assert_array_equal(found[1], 0)
  np.testing.assert_array_equal(found[2], [-0.25, 0.25, 0, 0])
  found = policy.advantages(rewards, 0.5)
  np.testing.assert_array_equal(found[0], [0.5, -0.25, -0.25, 0.5])


def test_what_is_unlearned_counts_until_it_is_far_from_the_others():
  """Twice the mean loss of rows with a positive weight, noise draws together.

  What is to be learned counts however far it is.
  """
  rows = np.array([1.0, 9.0, 9.9, 10.1, 10.1, 50.0])
  weights = jnp.array([1.0, 0.5, -3.0, -3.0, 0.0, -1.0])
  losses = rows[:, None] * np.array([0.25, 1.75])  # two tokens
  losses = jnp.asarray(np.stack([losses * 1.5, losses * 0.5]))  # two draws
  fields = [{WEIGHT: weights[:4], "prompt": rows[:4]},
            {WEIGHT: weights[4:], "prompt": rows[4:]}]  # fmt: skip
  found, counted = jax.jvp(
    lambda x: packing.weigh(x, fields), (losses,), (jnp.ones_like(losses),)
  )
  wanted = np.array([1.0, 0.5, -3.0, 0.0, 0.0, 0.0])
  np.testing.assert_array_equal(
    counted, np.broadcast_to(wanted[:, None], losses.shape)
  )
  np.testing.assert_allclose(found, losses * wanted[:, None])


def test_no_run_runs_away_from_what_is_wrong(space):
  """Were all of it counted, the loss would fall to -1.8."""
  found = run(space, config_of(space, steps=60, weight=16.0))
  assert min(x["loss_image"] for x in found.told) > 0
  assert np.mean([x["reward"] for x in found.told[-10:]]) > 0.8


def test_rows_are_weighed_so_that_each_kind_is_a_mean_by_itself(space):
  """8 of its own weigh 1 in the mean over them, 32 drawn ones w A."""
  system = systems.build(config_of(space))
  config = config_of(space, weight=3.0)
  job = train.make_job(config, system, jax.devices()[:1])
  seen = {}

  def noted(state, frozen, batch):
    seen.update(batch)
    return state, {}

  job = job._replace(step=noted)
  with jax.set_mesh(job.mesh):
    state = train.init_state(system, job.optimizer, config)
    reward = Favourite(space.colours)
    wrapped = policy.with_drawings(job, reward, space.tokenizer)
    loader = pipeline.make_loader(
      config, system.inputs, space.tokenizer, start_step=0
    )
    _, told = wrapped.step(state, space.frozen, next(loader))
  weights = np.asarray(seen["t2i"][WEIGHT])
  np.testing.assert_array_equal(weights[:8], 40 / 8)
  assert len(seen["t2i"]["prompt"]) == len(weights) == 40
  drawn = weights[8:].reshape(4, 8)
  np.testing.assert_allclose(drawn.sum(axis=1), 0, atol=1e-6)
  assert told["reward_told_apart"] == (drawn.std(axis=1) > 0).mean()
  earned = reward.judged.reshape(4, 8).astype(np.float32)
  wanted = 3.0 * policy.advantages(earned, 1.0) * 40 / 32
  np.testing.assert_allclose(drawn, wanted, rtol=1e-5)
  assert np.abs(drawn).max() > 0


@pytest.mark.parametrize("changes, message", [
  ({"sampling": {"steps": 3}}, "config.policy.sampling: unknown sampling opt"),
  ({"sampling": {"temperature": 0.0}}, "config.policy.sampling: temperature"),
  ({"prompts": 3, "draws": 5}, "config.batch.policy=15 must be a multiple of"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused(space, changes, message):
  config = config_of(space, devices=8, **changes)
  job = train.make_job(config, systems.build(config), jax.devices()[:8])
  with pytest.raises(ConfigError, match=message):
    policy.with_drawings(job, Favourite(space.colours), space.tokenizer)


def test_rows_of_other_fields_are_refused_before_anything_is_drawn(space):
  """VAR draws classes, and Liquid images of several sizes."""
  var = test_var.tiny()
  liquid = test_liquid_sizes.tiny()
  for config in (var, liquid):
    config = dataclasses.replace(config, policy=PolicyConfig(prompts=4))
    job = train.make_job(config, systems.build(config), jax.devices()[:1])
    with pytest.raises(ConfigError, match="a prompt and an image of one size"):
      policy.with_drawings(job, Favourite(space.colours), None)


def test_a_run_without_rows_to_draw_is_refused(space):
  config = dataclasses.replace(config_of(space), batch={"i2t": 8})
  job = train.make_job(config, systems.build(config), jax.devices()[:1])
  with pytest.raises(ConfigError, match="needs batch.t2i"):
    policy.with_drawings(job, Favourite(space.colours), space.tokenizer)


@pytest.mark.parametrize("task", ["edit", "dialogue"])
def test_rows_that_draw_in_other_tasks_are_refused(space, task):
  config = config_of(space)
  job = train.make_job(config, systems.build(config), jax.devices()[:1])
  config = dataclasses.replace(config, batch={**config.batch, task: 4})
  job = job._replace(config=config)
  with pytest.raises(ConfigError, match=f"with batch.{task}: .* set it to 0"):
    policy.with_drawings(job, Favourite(space.colours), space.tokenizer)


def test_no_speed_is_told_that_leaves_out_what_is_drawn(space):
  config = config_of(space)
  job = train.make_job(config, systems.build(config), jax.devices()[:1])
  plain = job._replace(
    config=dataclasses.replace(config, policy=PolicyConfig())
  )
  assert train.speed(plain, 1.0)["tokens_per_second"] > 0
  assert train.speed(job, 1.0) == {}
  with pytest.raises(ConfigError, match="policy.prompts=0"):
    lower.programs(config, "train", jax.devices()[:1])


def test_rows_of_a_process_need_not_be_neighbours():
  """On v5e-16 an axis of 16 gives host 0 rows 0, 1, 6 and 15."""
  shards = [
    SimpleNamespace(index=(slice(i, i + 1),), data=np.full((1, 2), i))
    for i in (6, 0, 15, 1, 0, 6, 1, 15)  # twice: along tensor
  ]
  x = SimpleNamespace(addressable_shards=shards)
  assert policy.local_rows(x)[:, 0].tolist() == [0, 1, 6, 15]
