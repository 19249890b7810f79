"""One step of a toy system: parts of a batch, draws, the average."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.test_train import Toy, loader, make
from unifluid_jax import systems, train
from unifluid_jax.core import parallel


def test_accumulated_parts_add_up(tmp_path):
  """Without the toy's noise, parts and whole give one gradient."""

  def first_step(accumulate):
    job = make(tmp_path, Toy(noise=0.0), mesh=(2, 4, 1), accumulate=accumulate,
               optim__name="adamw", batch__t2i=32, batch__i2t=32)  # fmt: skip
    state = train.init_state(job.system, job.optimizer, job.config)
    batch = jax.tree.map(
      lambda x: np.concatenate([x, x[::-1]]), next(loader(0))
    )
    with jax.set_mesh(job.mesh):
      return job.step(state, systems.load_frozen(job.system), batch)

  (_, ma), (_, mb) = first_step(1), first_step(4)
  np.testing.assert_allclose(ma["loss"], mb["loss"], rtol=1e-6)
  np.testing.assert_allclose(ma["grad_norm"], mb["grad_norm"], rtol=1e-5)


def test_micro_batches_stay_on_their_devices():
  """Each takes the next rows of every device, none of another's."""
  mesh = jax.make_mesh((2, 2, 2), parallel.AXES)
  with jax.set_mesh(mesh):
    parts = train.micro_batches({"x": np.arange(16)}, 2)["x"]
  want = [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
  np.testing.assert_array_equal(parts, want)


def first_steps(tmp_path, **changes):
  """A job of one device, its state, and its step on one batch."""
  job = make(tmp_path, devices=jax.devices()[:1], **changes)
  batch = next(loader(0))

  def step(state):
    with jax.set_mesh(job.mesh):
      copied = jax.tree.map(jnp.copy, state)  # the step donates it
      return job.step(copied, systems.load_frozen(job.system), batch)

  return train.init_state(job.system, job.optimizer, job.config), step


def test_draws_differ_from_step_to_step(tmp_path):
  """Of the same parameters and batch, by the step and by the run's seed."""
  state, step = first_steps(tmp_path)
  losses = [step(state._replace(step=jnp.int32(n)))[1]["loss"] for n in (0, 1)]
  assert losses[0] == step(state)[1]["loss"] != losses[1]


def test_draws_differ_from_part_to_part(tmp_path):
  class Draws(Toy):
    def loss(self, params, frozen, batch, counts, key, step):
      loss, _ = super().loss(params, frozen, batch, counts, key, step)
      draw = jax.random.uniform(key)
      return loss, {"mean": draw / 2, "square": draw**2 / 2}

  job = make(tmp_path, Draws(), devices=jax.devices()[:1], accumulate=2)
  state = train.init_state(job.system, job.optimizer, job.config)
  with jax.set_mesh(job.mesh):
    _, metrics = job.step(
      state, systems.load_frozen(job.system), next(loader(0))
    )
  assert abs(metrics["square"] - metrics["mean"] ** 2) > 1e-3


def test_average_is_of_the_new_parameters_and_warms_up(tmp_path):
  """min(.9, (1 + t) / (10 + t)) at steps t of 0 and 1000."""
  state, step = first_steps(tmp_path)
  for t, decay in ((0, 0.1), (1000, 0.9)):
    old = state._replace(step=jnp.int32(t))
    new, _ = step(old)
    assert new.step == t + 1
    for e, p, q in zip(
      *map(jax.tree.leaves, (new.ema, new.params, old.params)), strict=True
    ):
      assert np.abs(p - q).max() > 5e-3
      np.testing.assert_allclose(e, decay * q + (1 - decay) * p, atol=1e-6)
