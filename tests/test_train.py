"""The loop on a toy Trainable: resume, accumulation, sharding, bad numbers."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base
from unifluid_jax import checkpoint, config, telemetry, train


class Toy:
  """Least squares with key-dependent noise, so that keys must resume too."""

  def __init__(self, poison_at=None):
    self.poison_at = poison_at

  def init(self, key):
    return {
      "projector": {
        "kernel": jax.random.normal(key, (8, 4)),
        "bias": jnp.zeros((4,)),
      }
    }

  def load_frozen(self):
    return {"shift": np.float32(1)}

  def loss(self, params, frozen, batch, key, step):
    p = params["projector"]
    noise = jax.random.normal(key, (4,))
    out = batch["x"] @ p["kernel"] + p["bias"]
    loss = jnp.mean((out - batch["y"] - frozen["shift"] - 0.1 * noise) ** 2)
    if self.poison_at is not None:
      loss = jnp.where(step == self.poison_at, jnp.nan, loss)
    return loss, {"loss": loss}


def make(tmp_path, toy=None, mesh=(1, -1, 1), devices=None, **changes):
  c = base()
  c.data.train = dict(a=dict(format="jsonl", path="a.jsonl"))
  c.steps = 8
  c.batch = dict(t2i=16, i2t=16)
  c.optim.update(lr=1e-2, warmup=1, ema=0.9)
  c.mesh = dict(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
  c.checkpoint.update(every=4, keep=5, keep_every=0)
  c.log.update(every=2, tensorboard=False)
  c.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return train.make_job(config.resolve(c), toy or Toy(), devices)


def loader(start):
  step = start
  while True:
    rng = np.random.default_rng(step)
    yield {
      "x": rng.normal(size=(16, 8)).astype(np.float32),
      "y": rng.normal(size=(16, 4)).astype(np.float32),
    }
    step += 1


def go(job, workdir, said=None):
  said = [] if said is None else said
  return train.run(job, str(workdir), loader, {"config": {}}, said.append)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_resume_is_bitwise(tmp_path):
  whole = go(make(tmp_path), tmp_path / "a")
  go(make(tmp_path, steps=4), tmp_path / "b")
  said = []
  resumed = go(make(tmp_path), tmp_path / "b", said)
  same(whole, resumed)
  assert "resumed from step 4" in said[0]
  same(go(make(tmp_path), tmp_path / "b"), whole)


def test_lost_checkpoint_repeats_its_steps_exactly(tmp_path):
  whole = go(make(tmp_path), tmp_path / "a")
  import shutil

  shutil.rmtree(tmp_path / "a" / "checkpoints" / "8")
  same(go(make(tmp_path), tmp_path / "a"), whole)


def test_sharded_equals_single_device(tmp_path):
  one = go(make(tmp_path, devices=jax.devices()[:1]), tmp_path / "one")
  eight = go(make(tmp_path, mesh=(2, 4, 1)), tmp_path / "eight")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
    one, eight,
  )  # fmt: skip


def test_accumulation_is_the_mean_over_parts(tmp_path):
  """Without the toy's noise, parts and whole give one gradient."""

  class Quiet(Toy):
    def loss(self, params, frozen, batch, key, step):
      p = params["projector"]
      out = batch["x"] @ p["kernel"] + p["bias"]
      loss = jnp.mean((out - batch["y"]) ** 2)
      return loss, {"loss": loss}

  def first_step(accumulate):
    job = make(tmp_path, Quiet(), mesh=(2, 4, 1), accumulate=accumulate,
               optim__name="adamw", batch__t2i=32, batch__i2t=32)  # fmt: skip
    state = train.init_state(job.system, job.optimizer, job.config)
    batch = jax.tree.map(
      lambda x: np.concatenate([x, x[::-1]]), next(loader(0))
    )
    with jax.set_mesh(job.mesh):
      return job.step(state, job.system.load_frozen(), batch)

  (_, ma), (_, mb) = first_step(1), first_step(4)
  np.testing.assert_allclose(ma["loss"], mb["loss"], rtol=1e-6)
  np.testing.assert_allclose(ma["grad_norm"], mb["grad_norm"], rtol=1e-5)


def test_not_a_number_stops_with_the_window_and_the_last_good(tmp_path):
  words = r"steps 5\.\.6.*checkpoint: 4"
  with pytest.raises(train.NonFiniteError, match=words):
    go(make(tmp_path, Toy(poison_at=5)), tmp_path)
  assert checkpoint.steps(str(tmp_path)) == [4]


def test_sigterm_saves_and_resumes(tmp_path):
  class Killed(Toy):
    pass

  def killing(start):
    for i, batch in enumerate(loader(start)):
      if start + i == 2:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch

  said = []
  job = make(tmp_path, Killed())
  train.run(job, str(tmp_path / "a"), killing, {}, said.append)
  assert checkpoint.steps(str(tmp_path / "a")) == [3]
  assert "the same command resumes" in said[-1]
  whole = go(make(tmp_path), tmp_path / "b")
  same(go(make(tmp_path), tmp_path / "a"), whole)


def test_metrics_rows_and_progress(tmp_path):
  said = []
  go(make(tmp_path), tmp_path, said)
  rows = telemetry.read_metrics(tmp_path / "metrics.jsonl")
  assert [r["step"] for r in rows] == [1, 2, 4, 6, 8]
  assert {"loss", "grad_norm", "lr", "seconds_per_step"} <= set(rows[0])
  assert any("ETA" in line and "8/8 (100 %)" in line for line in said)
  assert "parameters, projector" in said[0] and "mesh" in said[0]


def test_torn_metrics_line_is_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
  assert telemetry.read_metrics(path) == [{"step": 1}]


def test_other_shapes_are_refused_by_name(tmp_path):
  go(make(tmp_path, steps=4), tmp_path)

  class Wider(Toy):
    def init(self, key):
      p = super().init(key)
      p["projector"]["kernel"] = jnp.zeros((8, 8))
      return p

  with pytest.raises(checkpoint.CheckpointError, match="projector/kernel"):
    go(make(tmp_path, Wider()), tmp_path)


def test_damaged_checkpoint_is_told(tmp_path):
  go(make(tmp_path, steps=4), tmp_path)
  state = tmp_path / "checkpoints" / "4" / "state"
  for f in state.rglob("*"):
    if f.is_file() and "d/" in str(f):
      f.write_bytes(f.read_bytes()[:10])
  with pytest.raises(checkpoint.CheckpointError, match="Delete this step"):
    go(make(tmp_path), tmp_path)


def test_restore_part_reads_one_tree(tmp_path):
  state = go(make(tmp_path), tmp_path)
  like = jax.eval_shape(Toy().init, jax.random.key(0))
  got = checkpoint.restore_part(str(tmp_path), 8, "params", like)
  same(got, state.params)
  part = checkpoint.restore_part(
    str(tmp_path), 8, "ema/projector", like["projector"]
  )
  same(part, state.ema["projector"])
  with pytest.raises(checkpoint.CheckpointError, match="holds no 'other'"):
    checkpoint.restore_part(str(tmp_path), 8, "other", like)


def test_parameters_and_moments_are_sharded(tmp_path):
  job = make(tmp_path, mesh=(1, 8, 1))
  places = job.shardings
  assert places.params["projector"]["kernel"].spec[0] == "fsdp"
  moments = [
    s.spec for x, s in zip(jax.tree.leaves(job.shapes.opt_state),
                           jax.tree.leaves(places.opt_state), strict=True)
    if x.shape == (8, 4)
  ]  # fmt: skip
  assert len(moments) == 2 and all(s[0] == "fsdp" for s in moments)
  assert dataclasses.is_dataclass(job.config)
