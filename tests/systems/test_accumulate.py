"""One objective, however a batch is cut: into parts, over devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.systems.conftest import examples
from unifluid_jax import train
from unifluid_jax.core import parallel
from unifluid_jax.core.config import MeshConfig
from unifluid_jax.core.types import EOS, PAD
from unifluid_jax.systems.unifluid import UniFluid

# Passes gradients on as its state, and changes nothing.
KEEP = optax.GradientTransformation(
  lambda params: params, lambda g, _, p: (jax.tree.map(jnp.zeros_like, p), g)
)


def lopsided(batch):
  """Long answers come first: parts hold unequal numbers of words."""
  rows, length = batch["i2t"]["suffix"].shape
  lengths = np.linspace(length, 1, rows).astype(int)[:, None]
  slots = np.arange(length)
  words = np.where(slots < lengths - 1, 7 + slots, EOS)
  suffix = jnp.asarray(np.where(slots < lengths, words, PAD), jnp.int32)
  batch = batch | {"i2t": batch["i2t"] | {"suffix": suffix}}
  if "text" in batch:
    batch["text"] = batch["text"] | {"suffix": suffix[::-1]}
  return batch


def step(system, model, batch, accumulate, mesh):
  """Gradients, metrics and parameters of one training step."""
  config = dataclasses.replace(system.config, accumulate=accumulate)
  devices = jax.devices()[: int(np.prod(mesh))]
  mesh = parallel.make_mesh(MeshConfig(*mesh), devices)
  run = functools.partial(
    train.train_step, system=system, optimizer=KEEP, config=config
  )
  with jax.set_mesh(mesh):
    places = parallel.shardings(model.params, model.params, system.parts, mesh)
    params = jax.device_put(model.params, places)
    state = train.TrainState(jnp.int32(0), params, params, params)
    state, metrics = jax.jit(run)(
      state, model.frozen, parallel.to_global(batch, mesh)
    )
  return jax.device_get((state.opt_state, metrics, state.params))


def assert_one_objective(system, model, batch, cuts):
  """The step is that of one device and one part; returns its metrics."""
  want = step(system, model, batch, 1, (1, 1, 1))
  for accumulate, mesh in cuts:
    got = step(system, model, batch, accumulate, mesh)
    for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want),
      strict=True,
    ):  # fmt: skip
      # A key's bias moves no attention: its gradient is rounding alone.
      limit = max(1e-5 * np.abs(b).max(), 1e-8 * want[1]["grad_norm"])
      message = f"{accumulate} parts on {mesh}: {parallel.path_str(path)}"
      np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=message)
  return want[1]


def certain(model):
  """The same model, without dropped prompts."""
  loss = dataclasses.replace(model.config.loss, prompt_dropout=0.0)
  return UniFluid(dataclasses.replace(model.config, loss=loss))


def test_all_losses_add_up_over_parts_and_devices(model, without_draws):
  system = certain(model)
  batch = lopsided(examples(rows=32, text=True))
  metrics = assert_one_objective(
    system, model, batch, [(4, (2, 1, 1)), (2, (2, 2, 2))]
  )
  assert metrics["order_randomness"] == 1
