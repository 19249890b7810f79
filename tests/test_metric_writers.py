"""Rows, TensorBoard events and wandb's calls of a run."""

import sys
import types

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from unifluid_jax.core import config, files, jsonl, metric_writers

OFF = config.LogConfig(every=1, tensorboard=False, wandb="", profile_start=0,
                       profile_steps=0)  # fmt: skip
BOARD = config.LogConfig(every=1, tensorboard=True, wandb="", profile_start=0,
                         profile_steps=0)  # fmt: skip
WANDB = config.LogConfig(every=1, tensorboard=False, wandb="paintings",
                         profile_start=0, profile_steps=0)  # fmt: skip
GREY = np.full((4, 6, 3), 90, np.uint8)


def events(folder):
  """(step, tag, kind) of a folder's event files, in TensorBoard's order."""
  found = []
  for file in sorted(files.path(folder).iterdir(), key=str):
    data, at = file.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], "little")
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      at += 12 + size + 4
      found += [
        (event.step, v.tag, v.WhichOneof("value")) for v in event.summary.value
      ]
  return found


def written(workdir, start=0):
  sinks = metric_writers.sinks(
    str(workdir), BOARD, "metrics", "r", {"lr": 1}, start
  )
  writer = metric_writers.MetricsWriter(str(workdir), sinks)
  writer.write(start + 1, {"loss": 2.0}, {"run_began": 7.0})
  writer.flush()
  writer.write(start + 2, {"loss": 1.0}, {"run_began": 7.0})
  return writer


def check(workdir):
  written(workdir).close()
  written(workdir, 2).close()
  rows = jsonl.read(f"{workdir}/metrics.jsonl")
  assert [r["step"] for r in rows] == [1, 2, 3, 4]
  assert rows[0] == {"step": 1, "loss": 2.0, "run_began": 7.0}
  found = events(f"{workdir}/events/metrics")
  losses = [step for step, tag, _ in found if tag == "loss"]
  assert losses == [1, 2, 3, 4]
  assert not [tag for _, tag, _ in found if tag == "run_began"]
  texts = [step for step, tag, _ in found if tag == "config/text_summary"]
  assert texts == [0, 2]


def test_rows_and_events_of_a_run_and_its_resumption(tmp_path):
  check(tmp_path)


def test_on_an_object_store_nothing_is_lost_either(gcs):
  check(f"{gcs}/writers")


def test_rows_show_at_once_locally_and_by_flushes_on_object_stores(
  tmp_path, gcs
):
  here, there = written(tmp_path), written(f"{gcs}/flushes")
  assert len(jsonl.read(tmp_path / "metrics.jsonl")) == 2
  assert len(jsonl.read(f"{gcs}/flushes/metrics.jsonl")) == 1
  losses = [e[0] for e in events(f"{gcs}/flushes/events/metrics")
            if e[1] == "loss"]  # fmt: skip
  assert losses == [1]
  for writer in (here, there):
    writer.close()
  assert len(jsonl.read(f"{gcs}/flushes/metrics.jsonl")) == 2


def test_images_become_events(tmp_path):
  (sink,) = metric_writers.sinks(str(tmp_path), BOARD, "eval", "r", None)
  sink.write(3, {"vqa/all": 0.5}, {"generated/a cat": GREY})
  sink.close()
  kinds = {(step, kind) for step, _, kind in events(tmp_path / "events/eval")}
  assert kinds == {(3, "simple_value"), (3, "image")}


class FakeWandb(types.ModuleType):
  """Notes how it is called."""

  def __init__(self):
    super().__init__("wandb")
    self.begun, self.logged, self.metrics, self.ended = [], [], [], 0

  def init(self, **given):
    self.begun.append(given)
    return self

  def define_metric(self, name, step_metric=None):
    self.metrics.append((name, step_metric))

  def log(self, row):
    self.logged.append(row)

  def finish(self):
    self.ended += 1

  def Image(self, image, caption):
    return image.shape, caption


def test_wandb_gets_a_run_per_job_that_is_resumed(tmp_path, monkeypatch):
  fake = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", fake)
  metric_writers.check(WANDB)
  for job in ("metrics", "metrics", "eval"):
    (sink,) = metric_writers.sinks(str(tmp_path), WANDB, job, "cats", {"lr": 1})
    sink.write(5, {"loss": 2.0}, {"a cat": GREY})
    sink.close()
  first, second, other = (given["id"] for given in fake.begun)
  assert first == second != other and fake.ended == 3
  given = fake.begun[0]
  assert given["project"] == "paintings" and given["name"] == "cats"
  assert given["config"] == {"lr": 1} and given["resume"] == "allow"
  assert ("*", "step") in fake.metrics
  assert fake.logged[0] == {
    "step": 5, "loss": 2.0, "a cat": (GREY.shape, "a cat")
  }  # fmt: skip


def test_missing_wandb_is_one_clear_error(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  metric_writers.check(OFF)
  with pytest.raises(
    config.ConfigError, match=r"log\.wandb.*pip install wandb"
  ):
    metric_writers.check(WANDB)
