"""Weights on all devices, rows split over them; one model for a watch."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from configs import debug
from tests import test_metric_writers
from unifluid_jax import api, evaluation, identity, systems
from unifluid_jax.core import checkpoint
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import Part
from unifluid_jax.evals.bench import Outcome, Shown
from unifluid_jax.evals.report import data as report_data
from unifluid_jax.evals.report import run_results, samples
from unifluid_jax.evaluation import Replicas


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


def test_networks_are_bfloat16_and_constants_are_not():
  replicas = Replicas(rows=1)
  weights = {"w": np.float32([1.001]), "n": np.int32(257)}
  scale = np.float32(0.18215)  # of Stable Diffusion's latents
  replicas.load(weights, {"codec": {"latent_scale": scale}})
  kinds = replicas(lambda p, _, x: p["w"].astype("float32") + x)
  np.testing.assert_array_equal(kinds(np.zeros(1, np.float32)), 1.0)
  scaled = replicas(lambda _, f, x: f["codec"]["latent_scale"] * x)
  np.testing.assert_array_equal(scaled(np.ones(1, np.float32)), scale)
  counted = replicas(lambda p, _, x: p["n"] + x)
  np.testing.assert_array_equal(counted(np.zeros(1, np.int32)), 257)


def test_exact_parts_keep_their_precision():
  codes = np.float32([1.001])

  def system(exact):
    made = Brightness()
    made.frozen = {"codec": Part(dict, lambda: {"codes": codes}, exact)}
    return made

  replicas = Replicas(rows=1, devices=jax.local_devices()[:1])
  for exact, want in ((True, codes[0]), (False, 1.0)):
    parts = evaluation.exact_parts(system(exact))
    replicas.load({}, {"codec": {"codes": codes}}, parts)
    read = replicas(lambda _, f, x: f["codec"]["codes"].astype("float32") + x)
    np.testing.assert_array_equal(read(np.zeros(1, np.float32)), want)


def test_long_calls_say_how_far_they_are(monkeypatch):
  said = []
  replicas = Replicas(2, jax.local_devices()[:1], said.append)
  replicas.load({}, {})
  replicas.label = "step 3  geneval"
  call = replicas(lambda params, frozen, x: x)
  x = np.arange(5, dtype=np.float32)
  np.testing.assert_array_equal(call(x), x)
  assert said == []
  monkeypatch.setattr(evaluation, "_SAY_EVERY", -1.0)
  call(x)
  assert [line.partition(" (")[0] for line in said] == [
    "step 3  geneval 2/5", "step 3  geneval 4/5"
  ]  # fmt: skip
  assert all("ETA" in line for line in said)


class Brightness:
  """A system whose images are as bright as its only weight."""

  def __init__(self):
    self.traced = 0

  inputs: dict = {}
  parts: dict = {}
  held = ()
  codec = None
  frozen = {"light": Part(dict, lambda: {"offset": np.float32(0.5)})}

  def init(self, key):
    raise NotImplementedError

  counts = loss = revise = cost = generate = answer = init

  def reconstruct(self, params, frozen, images):
    del params
    self.traced += 1
    return jnp.full_like(images, frozen["light"]["offset"])


def evaluator(tmp_path, monkeypatch, system, **metrics):
  c = systems.resolve(debug.get_config())
  c = dataclasses.replace(
    c,
    eval=dataclasses.replace(c.eval, metrics=tuple(metrics)),
    log=dataclasses.replace(c.log, tensorboard=False),
  )
  for name, metric in metrics.items():
    monkeypatch.setitem(evaluation.METRICS, name, metric)
  monkeypatch.setattr(evaluation.systems, "build", lambda _: system)
  monkeypatch.setattr(api, "read_tokenizer", lambda *_: None)
  monkeypatch.setattr(evaluation.report_data, "write", lambda *_: None)
  monkeypatch.setattr(api, "read_params", lambda *_: {})
  monkeypatch.setattr(evaluation.identity, "check_model", lambda *_: None)
  return evaluation.Evaluator(c, str(tmp_path), lambda _: None)


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
  found = run_results.read(str(tmp_path))
  values = {r["metric"]: r["value"] for r in found if "value" in r}
  assert values == {"good": 1.0}
  assert list(run_results.failures(found)[1]) == ["bad"]
  # Another process may be waiting for this one's share of the rows.
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: x)
  with pytest.raises(ValueError, match="no such split"):
    job.run(2)


@pytest.mark.parametrize("use, average, want", [
  (True, 0.9, {}), (False, 0.9, {"ema": False}), (False, 0.0, {}),
])  # fmt: skip
def test_results_of_weights_that_are_not_averaged_say_so(
  use, average, want, tmp_path, monkeypatch
):
  def metric(subject, bench):
    return Outcome({"m": 1.0}, {}, {"images": 1})

  job = evaluator(tmp_path, monkeypatch, Brightness(), m=metric)
  c = job.config
  job.config = dataclasses.replace(
    c, eval=dataclasses.replace(c.eval, use_ema=use),
    optim=dataclasses.replace(c.optim, ema=average),
  )  # fmt: skip
  assert job.run(1) == []
  row = next(r for r in run_results.read(str(tmp_path)) if "value" in r)
  assert row["settings"] == {"images": 1} | want


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


def image(prompt, seed):
  return Shown("generated", np.full((4, 4, 3), 9, np.uint8), prompt, seed=seed)


def test_a_new_start_runs_only_what_failed_and_keeps_the_rest(
  tmp_path, monkeypatch
):
  ran, broken = [], [True]

  def good(subject, bench):
    ran.append("good")
    return Outcome({"good": 1.0}, {}, {}, [image("a", 0)])

  def bad(subject, bench):
    ran.append("bad")
    if broken[0]:
      raise ValueError("no such split")
    return Outcome({"bad": 2.0}, {}, {}, [image("b", 1)])

  job = evaluator(tmp_path, monkeypatch, Brightness(), good=good, bad=bad)
  monkeypatch.setattr(checkpoint, "steps", lambda _: [1, 2])
  assert len(evaluation.watch(job, True, None)) == 2
  assert ran == ["good", "bad"] * 2
  ran.clear()
  # A try per step and start of the job: it goes on to what is new.
  assert len(evaluation.watch(job, True, None)) == 2 and ran == ["bad"] * 2
  ran.clear()
  broken.clear()
  broken.append(False)
  assert evaluation.watch(job, True, None) == [] and ran == ["bad"] * 2
  rows = run_results.read(str(tmp_path))
  assert run_results.failures(rows) == {}
  assert {r["metric"] for r in rows if "value" in r} == {"good", "bad"}
  assert [s.prompt for s in samples.read(str(tmp_path), 1)] == ["a", "b"]
  ran.clear()
  assert evaluation.watch(job, True, None) == [] and ran == []


def test_a_checkpoint_that_vanishes_is_skipped(tmp_path, monkeypatch, caplog):
  def metric(subject, bench):
    return Outcome({"m": 1.0}, {}, {})

  def read(config, system, workdir, step, ema):
    if step == 1:
      raise checkpoint.CheckpointGone("no checkpoint at checkpoints/1")
    return {}

  job = evaluator(tmp_path, monkeypatch, Brightness(), m=metric)
  monkeypatch.setattr(checkpoint, "steps", lambda _: [1, 2])
  monkeypatch.setattr(api, "read_params", read)
  with caplog.at_level(logging.WARNING):
    assert evaluation.watch(job, True, None) == []
  assert "step 1 is skipped: no checkpoint at checkpoints/1" in caplog.text
  assert {r["step"] for r in run_results.read(str(tmp_path))} == {2}
  # If another process finds it gone, this one must not wait for its share.
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    multihost_utils, "process_allgather", lambda x: np.array([x, 1])
  )
  with pytest.raises(checkpoint.CheckpointGone, match="another process"):
    job.run(2)


def test_a_report_that_is_missing_or_old_is_written_again(
  tmp_path, monkeypatch
):
  write = report_data.write
  job = evaluator(tmp_path, monkeypatch, Brightness())
  monkeypatch.setattr(report_data, "write", write)
  monkeypatch.setattr(checkpoint, "steps", lambda _: [1])
  run, page = str(tmp_path), tmp_path / evaluation.REPORT
  row = {"step": 1, "metric": "vqa/all", "value": 0.25, "floor": None,
         "settings": {}}  # fmt: skip
  assert not evaluation.refresh(job.config, run)  # there is nothing to show
  run_results.append(run, [row])
  evaluation.watch(job, True, None)
  assert ">0.250<" in page.read_text()
  assert "<dt>sampling</dt><dd>4 steps, cfg 2.5</dd>" in page.read_text()
  written = page.stat().st_mtime_ns
  evaluation.watch(job, True, None)
  assert page.stat().st_mtime_ns == written
  # As where the job was killed between the two files.
  run_results.append(run, [row | {"value": 0.75}])
  evaluation.watch(job, True, None)
  assert ">0.750<" in page.read_text()


def test_scores_and_samples_are_charted(tmp_path, monkeypatch):
  def metric(subject, bench):
    return Outcome({"m": 1.0}, {}, {}, [image("a cat", 0), image("a cat", 1)])

  job = evaluator(tmp_path, monkeypatch, Brightness(), m=metric)
  job.run(1)
  assert not (tmp_path / "events").exists()
  log = dataclasses.replace(job.config.log, tensorboard=True)
  job.config = dataclasses.replace(job.config, log=log)
  job.run(2)
  found = test_metric_writers.events(tmp_path / "events" / "eval")
  assert len(found) == 3 and found[0] == (2, "m", "simple_value")
  assert {kind for _, _, kind in found[1:]} == {"image"}
  assert len({tag for _, tag, _ in found}) == 3


@pytest.mark.parametrize("argument, flag, message", [
  ("", ("model.decoder.rope_base", 1e4), r"rope_base=100\.0, not 10000\.0"),
  ("", ("system", "liquid"), "config.system='unifluid'"),
  ("raster", ("model.dtype", "bfloat16"), None),
  ("", ("model.head.fused", True), None),
])  # fmt: skip
def test_a_checkpoint_of_another_model_is_refused(
  argument, flag, message, monkeypatch
):
  """Its parameters may have the same shapes."""
  meta = {"config": json.loads(debug.get_config().to_json())}
  monkeypatch.setattr(checkpoint, "read_meta", lambda *_: meta)
  tree = debug.get_config(argument)
  tree.model.head.width = meta["config"]["model"]["head"]["width"] = 128
  c = systems.resolve(tree)
  key, value = flag
  *parents, last = key.split(".")
  nodes = [c]
  for name in parents:
    nodes.append(getattr(nodes[-1], name))
  for name, node in zip([*parents, last][::-1], nodes[::-1], strict=True):
    value = dataclasses.replace(node, **{name: value})
  if message is None:
    identity.check_model(value, "run", 7)
    return
  with pytest.raises(ConfigError, match=message):
    identity.check_model(value, "run", 7)


@pytest.mark.parametrize("use, average, want", [
  (True, 0.9, "ema"), (False, 0.9, "params"), (True, 0.0, "params"),
])  # fmt: skip
def test_averaged_weights_are_read_where_wanted(
  use, average, want, monkeypatch
):
  c = systems.resolve(debug.get_config())
  c = dataclasses.replace(
    c, eval=dataclasses.replace(c.eval, use_ema=use),
    optim=dataclasses.replace(c.optim, ema=average),
  )  # fmt: skip

  class Weights:
    def init(self, key):
      del key
      return {"w": jnp.zeros(2)}

  def restore(workdir, step, name, like):
    assert (workdir, step, like["w"].shape) == ("run", 7, (2,))
    return name

  monkeypatch.setattr(checkpoint, "restore_part", restore)
  assert api.read_params(c, Weights(), "run", 7, None) == want
  assert api.read_params(c, Weights(), "run", 7, False) == "params"
