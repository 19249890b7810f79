"""Several processes do what one does, end together, and go on."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.e2e.commands import ENV, FLAGS, REPO, command, losses, rows
from unifluid_jax import evaluation


def two_processes(module, *args):
  """What each says; together they have the four devices of one."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, "-m", f"unifluid_jax.{module}", *args,
       f"--coordinator=localhost:{port}", "--num_processes=2",
       f"--process_id={i}"],
      cwd=REPO,
      env=dict(
        ENV, XLA_FLAGS=FLAGS + "--xla_force_host_platform_device_count=2",
        # One that finds its program waits for the other only 30 seconds.
        JAX_ENABLE_COMPILATION_CACHE="false",
      ),
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  said = [p.communicate(timeout=240)[0] for p in processes]
  assert all(p.returncode == 0 for p in processes), said[0][-3000:]
  return said


@pytest.mark.parametrize(
  "mesh", [dict(data=2, fsdp=2), dict(data=1, fsdp=1, tensor=4)]
)
def test_two_processes_equal_one(space, tmp_path, mesh):
  args = space.config("i2t_only", **{
    "steps": 4, "log.every": 1, "checkpoint.every": 2, "model.decoder.depth": 1,
    "model.decoder.heads": 4, **{f"mesh.{k}": v for k, v in mesh.items()},
  })  # fmt: skip
  one, two = tmp_path / "one", tmp_path / "two"
  command("main", *args, f"--workdir={one}", devices=4)
  said = two_processes("main", *args, f"--workdir={two}")
  assert "2 process" in said[0] and "ETA" not in said[1]
  a, b = losses(one), losses(two)
  assert a.keys() == b.keys() == {1, 2, 3, 4}
  np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5)


def test_two_processes_prepare_and_encode_what_one_does(space, tmp_path):
  """Each with two devices of its own; nothing but the results is left."""
  there = tmp_path / "data"
  shutil.copytree(space.vae, tmp_path / "vae")  # whose statistics are of data
  args = space.config(**{
    "data.root": there, "text.tokenizer": there / "tokenizer.model",
    "model.vae_path": tmp_path / "vae",
  })  # fmt: skip
  said = two_processes("prepare", *args)
  assert "wrote the data set" in said[0] and "wrote" not in said[1]
  one, two = (tfds.builder_from_directory(root / "shapes")
              for root in (space.data, there))  # fmt: skip
  for split in one.info.splits:
    rows = one.as_data_source(split), two.as_data_source(split)
    assert len(rows[0]) == len(rows[1]) == one.info.splits[split].num_examples
    for a, b in zip(*rows, strict=True):
      jax.tree.map(np.testing.assert_array_equal, a, b)
  one = space.data / "tokenizer.model"
  assert (there / "tokenizer.model").read_bytes() == one.read_bytes()
  said = two_processes("encode", *args, "--shard=64")
  assert "moments of shapes: written" in said[0]
  one = space.data / "shapes_moments"
  assert (there / "shapes_moments").read_bytes() == one.read_bytes()
  left = {p.name for p in there.iterdir()}
  made = {p.name for p in space.data.iterdir()}
  kept = {n for n in made if n.startswith("scene_classifier")}
  assert left == made - kept  # of an evaluation


def test_two_processes_train_on_images_and_keep_one_codec(space, tmp_path):
  """The frozen weights come to all devices; one process writes the copy."""
  args = space.config("t2i_only", **{
    "steps": 1, "optim.name": "adamw", "model.decoder.depth": 1,
    "loss.draws": 1, "batch.t2i": 4,
  })  # fmt: skip
  run = tmp_path / "run"
  two_processes("main", *args, f"--workdir={run}")
  assert np.isfinite(losses(run)[1])
  for name in ("tokenizer.model", "codec/latents.json"):
    assert (run / name).exists()
  weights = json.loads((run / "codec" / "latents.json").read_text())["weights"]
  assert (
    weights == json.loads((space.vae / "latents.json").read_text())["weights"]
  )


def launched(job, space, *args):
  """launch/local.sh: two processes with a CPU device each; compiles once."""
  return subprocess.Popen(
    ["bash", f"{REPO}/launch/local.sh", job, "--cpu_devices=1", "--", *args],
    cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    env=dict(
      ENV, PYTHON=sys.executable,
      JAX_COMPILATION_CACHE_DIR=f"{space.root}/compiled",
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    ),
  )  # fmt: skip


def told_to_stop(process, when):
  """What it says, if it gets a SIGTERM as soon as `when` is there."""
  deadline = time.monotonic() + 240
  while not when():
    assert process.poll() is None, process.communicate()[0][-3000:]
    assert time.monotonic() < deadline
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  return process.communicate(timeout=120)[0]


def test_launched_processes_stop_by_sigterm_and_go_on(space, tmp_path):
  run, long = tmp_path / "run", {"steps": 100_000, "checkpoint.every": 100_000}
  args = space.config("i2t_only", **{"log.every": 1, **long})
  process = launched("train", space, *args, f"--workdir={run}")
  said = told_to_stop(process, (run / "metrics.jsonl").exists)
  (last,) = [int(x.name) for x in (run / "checkpoints").iterdir()]
  assert process.returncode == 0 and "2 process" in said
  assert f"told to stop: saved step {last}; the same command" in said
  args += [f"--config.steps={last + 2}"]
  process = launched("train", space, *args, f"--workdir={run}")
  said = process.communicate(timeout=240)[0]
  assert f"1: resumed from step {last} of this workdir" in said, said[-3000:]
  assert sorted(losses(run)) == list(range(1, last + 3))


def test_a_launched_evaluation_that_waits_ends_by_sigterm(space, tmp_path):
  shutil.copy(space.run / "tokenizer.model", tmp_path)
  process = launched(
    "evaluate", space, *space.config(), f"--workdir={tmp_path}"
  )
  said = ""
  while "is connected to 1 peer" not in said:  # they wait for a checkpoint
    line = process.stdout.readline()
    assert line, said
    said += line
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM


def test_two_processes_evaluate_what_one_does(space, tmp_path):
  """Seven prompts, which two processes and their devices do not divide."""
  found = []
  for name in ("one", "two"):
    run = tmp_path / name
    shutil.copytree(space.run, run)
    (run / evaluation.RESULTS).unlink(missing_ok=True)
    args = space.config(**{
      "eval.metrics": "('tokenizer','captions')", "eval.examples": 7,
    })  # fmt: skip
    args += [f"--workdir={run}", "--step=20"]
    if name == "one":
      command("evaluate", *args)
    else:
      first, second = two_processes("evaluate", *args)
      assert "captions/cider_d" in first and "captions" not in second
    found.append(
      {
        r["metric"]: r["value"]
        for r in rows(run / evaluation.RESULTS)
        if "value" in r
      }
    )
  assert len(found[0]) > 3
  assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_one_thing_divides_the_work():
  wrong = command("prepare", "--config=debug", "--ray=auto",
                  "--coordinator=host:1", check=False)  # fmt: skip
  assert wrong.returncode == 1
  assert wrong.stderr == (
    "error: --ray and --coordinator: one of them divides the work\n"
  )
