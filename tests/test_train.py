"""The loop on a toy system: resume, sharding, bad numbers."""

import dataclasses
import json
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base
from unifluid_jax import systems, train
from unifluid_jax.core import checkpoint, config, lock, stopping, telemetry
from unifluid_jax.core.parameter_rows import Row
from unifluid_jax.core.types import Part
from unifluid_jax.models import decoder

SHIFT = jax.ShapeDtypeStruct((), np.float32)


class Toy:
  """Least squares with key-dependent noise, so that keys must resume too."""

  inputs: dict = {}
  codec = None
  parts = {
    "projector": (Row("kernel", ("fsdp", None)), Row("bias", (None,))),
    "decoder": decoder.ROWS,
  }
  held = ()

  def __init__(self, poison_at=None, noise=0.1):
    self.poison_at, self.noise = poison_at, noise

  def init(self, key):
    return {
      "projector": {
        "kernel": jax.random.normal(key, (8, 4)),
        "bias": jnp.zeros((4,)),
      }
    }

  @property
  def frozen(self):
    return {"shift": Part(lambda: {"by": SHIFT}, self.load_shift)}

  def load_shift(self):
    return {"by": np.float32(1)}

  def cost(self):
    return None

  def counts(self, batch):
    return {"values": batch["toy"]["y"].size}

  def loss(self, params, frozen, batch, counts, key, step):
    p, batch = params["projector"], batch["toy"]
    noise = self.noise * jax.random.normal(key, (4,))
    out = batch["x"] @ p["kernel"] + p["bias"]
    squares = (out - batch["y"] - frozen["shift"]["by"] - noise) ** 2
    loss = squares.sum() / counts["values"]
    if self.poison_at is not None:
      loss = jnp.where(step == self.poison_at, jnp.nan, loss)
    return loss, {"loss": loss}, {}

  def revise(self, params, seen, key, step):
    return None


def make(tmp_path, toy=None, mesh=(1, -1, 1), devices=None, **changes):
  c = base()
  c.data.train = dict(a=dict(format="jsonl", path="a.jsonl"))
  c.steps = 8
  c.batch = dict(t2i=16, i2t=16)
  c.optim.update(lr=1e-2, warmup=1, ema=0.9)
  c.mesh = dict(slices=1, data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
  c.checkpoint.update(every=4, keep=5, keep_every=0)
  c.log.update(every=2, tensorboard=False)
  c.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return train.make_job(systems.resolve(c), toy or Toy(), devices)


def loader(start):
  step = start
  while True:
    rng = np.random.default_rng(step)
    yield {
      "toy": {
        "x": rng.normal(size=(16, 8)).astype(np.float32),
        "y": rng.normal(size=(16, 4)).astype(np.float32),
      }
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


def test_not_a_number_stops_with_the_window_and_the_last_good(tmp_path):
  words = r"steps 5\.\.6.*checkpoint: 4"
  with pytest.raises(train.NonFiniteError, match=words):
    go(make(tmp_path, Toy(poison_at=5)), tmp_path)
  assert checkpoint.steps(str(tmp_path)) == [4]


def signalling(*at):
  """A loader that sends the process a signal before a batch: (batch, which)."""

  def batches(start):
    for i, batch in enumerate(loader(start)):
      for which in [which for step, which in at if step == start + i]:
        os.kill(os.getpid(), which)
      yield batch

  return batches


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_resumes(tmp_path, which):
  said = []
  job, batches = make(tmp_path), signalling((2, which))
  train.run(job, str(tmp_path / "a"), batches, {}, said.append)
  assert checkpoint.steps(str(tmp_path / "a")) == [3]
  assert "the same command resumes" in said[-1]
  whole = go(make(tmp_path), tmp_path / "b")
  same(go(make(tmp_path), tmp_path / "a"), whole)


def test_ctrl_c_leaves_at_once_the_second_time_and_before_a_step(tmp_path):
  """Without `interrupt.listen`, as here, by raising KeyboardInterrupt."""
  for batches, workdir in (
    (signalling((2, signal.SIGINT), (2, signal.SIGINT)), tmp_path / "a"),
    (signalling((0, signal.SIGINT)), tmp_path / "b"),
  ):
    with pytest.raises(KeyboardInterrupt):
      train.run(make(tmp_path), str(workdir), batches, {}, [].append)
    assert checkpoint.steps(str(workdir)) == []
    assert not (workdir / lock.NAME).exists()
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_one_of_several_processes_tells_all(monkeypatch):
  """jax.distributed passes on SIGTERM."""
  sent = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(os, "kill", lambda pid, which: sent.append((pid, which)))
  with stopping.Stop() as stop:
    stop.can_save = True
    signal.raise_signal(signal.SIGINT)
  assert sent == [(os.getpid(), signal.SIGTERM)]


def test_ruined_parameters_are_not_saved(tmp_path):
  """One step at a huge rate: its loss and its gradient are still finite."""
  huge = {"optim__lr": 1e38, "optim__warmup": 0, "checkpoint__every": 1}
  words = r"parameters not finite in steps 1\.\.1; .*: none was saved\."
  with pytest.raises(train.NonFiniteError, match=words):
    go(make(tmp_path, **huge), tmp_path)
  assert checkpoint.steps(str(tmp_path)) == []
  go(make(tmp_path, steps=4), tmp_path)
  words = r"parameters not finite in steps 5\.\.5; last good checkpoint: 4\."
  with pytest.raises(train.NonFiniteError, match=words):
    go(make(tmp_path, **huge), tmp_path)
  assert checkpoint.steps(str(tmp_path)) == [4]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25])
@pytest.mark.parametrize("where", ["params", "ema"])
def test_is_finite_looks_at_parameters_and_averages(tmp_path, where, value):
  job = make(tmp_path, mesh=(2, 4, 1))
  with jax.set_mesh(job.mesh):
    make_state = jax.jit(
      lambda: train.init_state(job.system, job.optimizer, job.config),
      out_shardings=job.shardings,
    )
    state = make_state()
    assert train.is_finite(state)
    tree = getattr(state, where)
    kernel = tree["projector"]["kernel"].at[7, 3].set(value)
    tree = {"projector": dict(tree["projector"], kernel=kernel)}
    assert not train.is_finite(state._replace(**{where: tree}))


class Unloadable(Toy):
  def load_shift(self):
    raise ValueError("no frozen weights")


class OtherShapes(Toy):
  def init(self, key):
    return {"projector": {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(4)}}


def unreadable(start):
  raise ValueError("no data")


@pytest.mark.parametrize(
  "toy, batches, changes, words",
  [
    (Unloadable(), loader, {}, "no frozen weights"),
    (Toy(), unreadable, {}, "no data"),
    (OtherShapes(), loader, {}, "another configuration"),
    (Toy(), loader, {"init__all": "/nowhere"}, "nowhere"),
  ],
)
def test_a_refused_start_changes_nothing(
  tmp_path, toy, batches, changes, words
):
  run = tmp_path / "run"
  if not changes:
    go(make(tmp_path, steps=4), run)
  before = {f: f.stat().st_mtime_ns for f in run.rglob("*")}
  kept = []
  with pytest.raises(ValueError, match=words):
    train.run(make(tmp_path, toy, **changes), str(run), batches, {},
              [].append, kept.append)  # fmt: skip
  assert not kept
  assert {f: f.stat().st_mtime_ns for f in run.rglob("*")} == before
  assert run.exists() == (not changes)


def test_a_locked_workdir_is_refused_before_its_files_change(
  tmp_path, monkeypatch
):
  go(make(tmp_path, steps=4), tmp_path)
  with lock.held(str(tmp_path), [].append):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(lock.LockedError, match=f"process {os.getpid()}"):
      go(make(tmp_path, Unloadable()), tmp_path)  # nothing is loaded for it
    monkeypatch.setattr(lock, "refuse_if_held", lambda workdir: None)
    with pytest.raises(lock.LockedError, match=f"process {os.getpid()}"):
      go(make(tmp_path), tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
  go(make(tmp_path), tmp_path)
  assert not (tmp_path / lock.NAME).exists()


def test_a_run_that_another_one_overtook_while_loading_stops(tmp_path):
  def overtaken(start):
    go(make(tmp_path, steps=4), tmp_path)
    return loader(start)

  with pytest.raises(lock.LockedError, match="while this one started"):
    train.run(make(tmp_path), str(tmp_path), overtaken, {}, [].append)
  assert checkpoint.steps(str(tmp_path)) == [4]


def test_a_stolen_lock_stops_the_run_before_it_saves(tmp_path, monkeypatch):
  def stolen(self):
    raise lock.LockedError("taken by another")

  monkeypatch.setattr(lock.Lock, "check", stolen)
  with pytest.raises(lock.LockedError, match="taken by another"):
    go(make(tmp_path), tmp_path)
  assert checkpoint.steps(str(tmp_path)) == []


def test_what_a_run_keeps_is_written_under_its_lock(tmp_path):
  def keep(frozen):
    assert frozen["shift"]["by"] == 1
    assert (tmp_path / lock.NAME).exists()
    assert not (tmp_path / "checkpoints").exists()
    (tmp_path / "kept").touch()

  train.run(make(tmp_path, steps=2), str(tmp_path), loader, {}, [].append, keep)
  assert (tmp_path / "kept").exists()


class Late:
  """A number that a device has not worked out before it is waited for."""

  def __init__(self, value):
    self.value, self.done = value, False

  def block_until_ready(self):
    self.done = True
    return self

  def __array__(self, dtype=None, copy=None):
    self.done = True
    return np.asarray(self.value, dtype)


def test_a_run_is_never_many_steps_ahead_of_its_device(tmp_path):
  """Else a signal is answered when all of them are done, too late."""
  job, handed, ahead = make(tmp_path, log__every=8, checkpoint__every=8), [], []

  def step(*args):
    ahead.append(sum(not late.done for late in handed))
    state, metrics = job.step(*args)
    handed.append(Late(metrics["loss"]))
    return state, {**metrics, "loss": handed[-1]}

  go(job._replace(step=step), tmp_path / "run")
  # The first step is waited for, as a window of its own.
  assert ahead == [0, 0, 1, 2, 2, 2, 2, 2]
  assert all(late.done for late in handed)


def test_metrics_rows_and_progress(tmp_path):
  said = []
  go(make(tmp_path), tmp_path, said)
  rows = telemetry.read_metrics(tmp_path / "metrics.jsonl")
  assert [r["step"] for r in rows] == [1, 2, 4, 6, 8]
  assert {"loss", "grad_norm", "lr", "seconds_per_step"} <= set(rows[0])
  assert any("ETA" in line and "8/8 (100 %)" in line for line in said)
  assert "parameters, projector" in said[0] and "mesh" in said[0]


def test_goodput_goes_on_where_the_run_was_left(tmp_path):
  said = []
  go(make(tmp_path, steps=4), tmp_path, said)
  go(make(tmp_path), tmp_path, said)
  rows = telemetry.read_metrics(tmp_path / "metrics.jsonl")
  assert len({r["run_began"] for r in rows}) == 1
  spent = [r["step_seconds"] for r in rows]
  assert spent == sorted(spent) and spent[0] == 0
  first = [r["step"] for r in rows].index(5)
  assert spent[first] == spent[first - 1]  # it compiles again
  assert 0 < rows[-1]["goodput"] < 1
  assert "goodput" in said[-1]


def test_rows_lie_in_a_bucket_before_the_state_that_they_lead_to(
  gcs, monkeypatch
):
  run, seen = f"{gcs}/toy", []
  save = checkpoint.Checkpoints.save

  def watched(self, step, *rest):
    rows = telemetry.read_metrics(f"{run}/metrics.jsonl")
    seen.append((step, [r["step"] for r in rows]))
    save(self, step, *rest)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", watched)
  go(make(None), run)
  assert seen == [(4, [1, 2, 4]), (8, [1, 2, 4, 6, 8])]
  assert checkpoint.steps(run) == [4, 8]


def test_missing_wandb_is_refused_before_anything_is_written(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(config.ConfigError, match="pip install wandb"):
    go(make(tmp_path, log__wandb="paintings"), tmp_path / "run")
  assert not (tmp_path / "run").exists()


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
