"""Weights on all devices, rows split over them; one model for a watch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import debug
from unifluid_jax import api, config, eval_loop
from unifluid_jax.eval_loop import Replicas
from unifluid_jax.evals.bench import Outcome


def test_the_next_checkpoint_needs_no_compilation():
  replicas, traced = Replicas(rows=2), []

  def function(params, frozen, x):
    traced.append(x.shape)
    return params["w"] * x + frozen["b"]

  replicas.load({"w": np.float32(2)}, {"b": np.float32(1)})
  call = replicas(function)
  x = np.arange(10, dtype=np.float32).reshape(5, 2)
  np.testing.assert_array_equal(call(x), 2 * x + 1)
  replicas.load({"w": np.float32(3)}, {"b": np.float32(0)})
  np.testing.assert_array_equal(call(x), 3 * x)
  assert traced == [(2, 2)]


def test_floating_weights_are_narrow_and_others_are_not():
  replicas = Replicas(rows=1)
  weights = {"w": np.float32(1.001), "n": np.int32(257)}
  replicas.load(weights, {})
  kinds = replicas(lambda p, _, x: p["w"].astype("float32") + x)
  np.testing.assert_array_equal(kinds(np.zeros(1, np.float32)), 1.0)
  counted = replicas(lambda p, _, x: p["n"] + x)
  np.testing.assert_array_equal(counted(np.zeros(1, np.int32)), 257)


def test_long_calls_say_how_far_they_are(monkeypatch):
  said = []
  replicas = Replicas(2, jax.local_devices()[:1], said.append)
  replicas.load({}, {})
  replicas.label = "step 3  geneval"
  call = replicas(lambda params, frozen, x: x)
  x = np.arange(5, dtype=np.float32)
  np.testing.assert_array_equal(call(x), x)
  assert said == []
  monkeypatch.setattr(eval_loop, "_SAY_EVERY", -1.0)
  call(x)
  assert [line.partition(" (")[0] for line in said] == [
    "step 3  geneval 2/5", "step 3  geneval 4/5"
  ]  # fmt: skip
  assert all("ETA" in line for line in said)


class Brightness:
  """A system whose images are as bright as its only weight."""

  def __init__(self):
    self.traced = 0

  def load_frozen(self):
    return {"offset": np.float32(0.5)}

  def reconstruct(self, frozen, images):
    self.traced += 1
    return jnp.full_like(images, frozen["offset"])


def evaluator(tmp_path, monkeypatch, system, **metrics):
  c = config.resolve(debug.get_config())
  c = dataclasses.replace(
    c, eval=dataclasses.replace(c.eval, metrics=tuple(metrics))
  )
  for name, metric in metrics.items():
    monkeypatch.setitem(eval_loop.METRICS, name, metric)
  monkeypatch.setattr(eval_loop.systems, "build", lambda _: system)
  monkeypatch.setattr(eval_loop.text.Tokenizer, "load", lambda _: None)
  monkeypatch.setattr(eval_loop.report_data, "write", lambda *_: None)
  monkeypatch.setattr(api, "read_params", lambda *_: {})
  return eval_loop.Evaluator(c, str(tmp_path), lambda _: None)


def test_a_failed_metric_lets_the_others_finish_in_one_process(
  tmp_path, monkeypatch
):
  def bad(subject, bench):
    raise ValueError("no such split")

  def good(subject, bench):
    return Outcome({"good": 1.0}, {}, {})

  job = evaluator(tmp_path, monkeypatch, Brightness(), bad=bad, good=good)
  (error,) = job.run(1)
  assert "no such split" in str(error)
  results = tmp_path / eval_loop.RESULTS
  found = [json.loads(line) for line in results.read_text().splitlines()]
  assert [r["metric"] for r in found] == ["bad", "good"]
  # Another process may be waiting for this one's share of the rows.
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="no such split"):
    job.run(2)


def test_checkpoints_of_a_watch_share_one_model(tmp_path, monkeypatch):
  system, seen = Brightness(), []

  def metric(subject, bench):
    del bench
    blank = np.zeros((32, 32, 3), np.uint8)
    seen.append(int(subject.reconstruct([blank] * 3)[0, 0, 0, 0]))
    return Outcome({"m": 1.0}, {}, {})

  job = evaluator(tmp_path, monkeypatch, system, m=metric)
  assert job.run(1) == job.run(2) == []
  assert seen == [191, 191] and system.traced == 1


def test_metrics_of_files_do_not_count_as_an_evaluation(tmp_path):
  rows = [
    {"step": 1, "metric": "vqa/all", "value": 0.5},
    {"step": 2, "metric": "coco_fid/distance", "value": 9.0, "by": "coco_fid"},
    {"step": 3, "metric": "vqa/all", "value": 0.5},
    {"step": 3, "metric": "fid", "error": "no"},
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / eval_loop.RESULTS).write_text(text)
  assert eval_loop.evaluated(str(tmp_path)) == {1}
