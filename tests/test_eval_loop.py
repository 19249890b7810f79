"""Weights on all devices, rows split over them; one model for a watch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

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


def test_checkpoints_of_a_watch_share_one_model(tmp_path, monkeypatch):
  system, seen = Brightness(), []

  def metric(subject, bench):
    del bench
    blank = np.zeros((32, 32, 3), np.uint8)
    seen.append(int(subject.reconstruct([blank] * 3)[0, 0, 0, 0]))
    return Outcome({"m": 1.0}, {}, {})

  c = config.resolve(debug.get_config())
  c = dataclasses.replace(c, eval=dataclasses.replace(c.eval, metrics=("m",)))
  monkeypatch.setitem(eval_loop.METRICS, "m", metric)
  monkeypatch.setattr(eval_loop.systems, "build", lambda _: system)
  monkeypatch.setattr(eval_loop.text.Tokenizer, "load", lambda _: None)
  monkeypatch.setattr(eval_loop.report_data, "write", lambda *_: None)
  monkeypatch.setattr(api, "read_params", lambda *_: {})
  evaluator = eval_loop.Evaluator(c, str(tmp_path), lambda _: None)
  assert evaluator.run(1) == evaluator.run(2) == []
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
