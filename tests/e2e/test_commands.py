"""Every command of README, as a user types it, at its smallest."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import debug
from tests.evals import test_geneval_files as geneval_case
from unifluid_jax import evaluation, systems
from unifluid_jax.core import checkpoint, files, telemetry
from unifluid_jax.evals.report import run_results

REPO = Path(__file__).parent.parent.parent
# As in tests/conftest.py: what both compute is compared bit by bit.
FLAGS = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
)
ENV = dict(
  os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=FLAGS, PYTHONPATH=str(REPO)
)


def command(module, *args, devices=1, check=True, of="unifluid_jax", **env):
  flags = FLAGS + f"--xla_force_host_platform_device_count={devices}"
  done = subprocess.run(
    [sys.executable, "-m", f"{of}.{module}", *args],
    cwd=REPO, env=dict(ENV, XLA_FLAGS=flags, **env),
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  if check:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  return done


class Workspace:
  """One prepared data set and one trained run, shared by the tests."""

  def __init__(self, root):
    self.root, self.run, self.vae = root, root / "run", root / "vae"
    self.data = root / "data"

  def config(self, arg="", **changes):
    flags = [
      f"--config={REPO}/configs/debug.py" + (f":{arg}" if arg else ""),
      f"--config.data.root={self.data}",
      f"--config.text.tokenizer={self.data}/tokenizer.model",
    ]
    if arg != "vae":
      flags.append(f"--config.model.vae_path={self.vae}")
    return flags + [f"--config.{k}={v}" for k, v in changes.items()]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
  w = Workspace(tmp_path_factory.mktemp("space"))
  command("prepare", *w.config())
  command("main", *w.config("vae"), f"--workdir={w.vae}")
  command("encode", *w.config())
  w.said = command("main", *w.config(), f"--workdir={w.run}").stdout
  return w


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def losses(workdir):
  return {r["step"]: r["loss"] for r in rows(workdir / "metrics.jsonl")}


def test_training_says_what_it_does(space):
  for words in (
    "differs from configs/base.py", "optim: ", "name 'muon'", "mesh",
    "parameters, decoder", "3: no pretrained weights", "ETA", "20/20 (100 %)",
  ):  # fmt: skip
    assert words in space.said, words
  last = rows(space.run / "metrics.jsonl")[-1]
  for key in (
    "loss", "loss_visual", "loss_text", "mse", "vb", "text_accuracy",
    "grad_norm", "lr", "order_randomness", "seconds_per_step",
    "tokens_per_second",
  ):  # fmt: skip
    assert np.isfinite(last[key]), key
  assert list((space.run / "events" / "metrics").iterdir())


def test_second_call_says_that_it_is_done(space):
  before = (space.run / "metrics.jsonl").read_text()
  again = command("main", *space.config(), f"--workdir={space.run}")
  assert "nothing to do: step 20 of 20" in again.stdout
  assert (space.run / "metrics.jsonl").read_text() == before
  assert "kept" in command("prepare", *space.config()).stdout


def test_another_run_is_refused_before_anything_is_written(space):
  args = space.config(**{"model.decoder.width": 64, "steps": 30})
  before = {f: f.stat().st_mtime_ns for f in space.run.rglob("*")}
  done = command("main", *args, f"--workdir={space.run}", check=False)
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "config.model.decoder.width=32, not 64" in done.stderr
  assert {f: f.stat().st_mtime_ns for f in space.run.rglob("*")} == before


def test_evaluate_writes_results_and_report(space):
  done = command("evaluate", *space.config(), f"--workdir={space.run}",
                 "--once", devices=2)  # fmt: skip
  results = rows(space.run / "metrics_eval.jsonl")
  names = {r["metric"] for r in results if r["step"] == 20}
  expected = {
    "geneval/overall", "captions/cider_d", "vqa/all", "fid/generated",
    "tokenizer/psnr", "captions_held_out/exact", "paraphrases/accuracy",
  }  # fmt: skip
  assert expected <= names
  assert all(np.isfinite(r["value"]) for r in results if "value" in r)
  page = (space.run / "report.html").read_text()
  assert "<svg" in page and "data:image/png;base64" in page
  assert 'id="captions"' in page and 'id="questions"' in page
  assert "report.html" in done.stdout
  kept = rows(space.run / "samples" / "20.jsonl")
  assert {s["kind"] for s in kept} == {"generated", "caption", "answer"}
  again = command("evaluate", *space.config(), f"--workdir={space.run}",
                  "--once")  # fmt: skip
  assert rows(space.run / "metrics_eval.jsonl") == results
  assert "step 20  geneval" not in again.stdout


def test_a_failing_metric_leaves_the_others_and_status_1(space, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(space.run, copy)
  (copy / "metrics_eval.jsonl").unlink(missing_ok=True)
  done = command(
    "evaluate", *space.config(**{"eval.metrics": "('tokenizer','fid')",
                                 "data.eval.validation.limit": "1"}),
    f"--workdir={copy}", "--step=20", check=False,
  )  # fmt: skip
  assert done.returncode == 1
  found = rows(copy / "metrics_eval.jsonl")
  assert {r["metric"] for r in found if "error" in r} == {"fid"}
  assert "tokenizer/psnr" in {r["metric"] for r in found}


def test_scores_of_files_join_the_run_and_runs_are_compared(space, tmp_path):
  copy, images = tmp_path / "copy", tmp_path / "images"
  shutil.copytree(space.run, copy)
  (copy / "metrics_eval.jsonl").unlink(missing_ok=True)
  by = {"run": "debug", "workdir": str(copy.resolve()), "step": 20, "cfg": 2.0}
  geneval_case.draw(images, by=by)
  geneval_case.detections(tmp_path / "found.json")
  score = ["--metrics=geneval_score", f"--images={images}",
           f"--detections={tmp_path}/found.json"]  # fmt: skip
  command("evaluate", *score, f"--workdir={copy}")
  found = {r["metric"]: r for r in rows(copy / "metrics_eval.jsonl")}
  overall = found["geneval_raw/overall"]
  assert overall["value"] == pytest.approx(5 / 12)
  assert overall["step"] == 20 and overall["settings"]["cfg"] == 2.0
  page = (copy / "report.html").read_text()
  assert "The benchmark&#x27;s own prompts" in page and "0.417" in page
  left = run_results.to_run(run_results.read(str(copy)), ("geneval",))
  assert left == {}  # the job's work is to come
  wrong = command("evaluate", *score, f"--workdir={space.run}", check=False)
  assert wrong.returncode == 1 and "not by" in wrong.stderr
  out, other = tmp_path / "compare.html", tmp_path / "other"
  shutil.copytree(copy, other)
  command("evaluate", f"--compare={copy},{other}", f"--out={out}")
  assert "0.417" in out.read_text() and ">0.000<" in out.read_text()


def moved_elsewhere(space, folder, monkeypatch):
  """The run, loaded from a copy where nothing else of it can be found."""
  import unifluid_jax

  shutil.copytree(space.run, folder / "copy")
  hidden = space.root.rename(space.root.with_name("hidden"))
  monkeypatch.chdir(folder)
  try:
    return unifluid_jax.load("copy")
  finally:
    hidden.rename(space.root)


def test_generate_answer_and_python_api(space, tmp_path, monkeypatch):
  out = tmp_path / "out.png"
  run = f"--workdir={space.run}"
  command("generate", run, "--prompt=a red circle", f"--out={out}", "--seed=3")
  assert Image.open(out).size == (32, 32)
  said = command("generate", run, f"--image={out}",
                 "--question=what colour is the circle")  # fmt: skip
  assert said.stdout.strip() or said.stdout == "\n"
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("two green stars\n\na red circle\n")
  many = command(
    "generate", run, f"--prompts={prompts}", f"--out={tmp_path}/many",
    "--seed=2", "--cfg=1.5", "--steps=2", "--order=random",
  )  # fmt: skip
  assert "never seen 'stars': 'two green stars'" in many.stderr
  assert len(list((tmp_path / "many").glob("*.png"))) == 2
  model = moved_elsewhere(space, tmp_path / "there", monkeypatch)
  one = model.generate("a red circle", seed=3)
  np.testing.assert_array_equal(np.asarray(one), np.asarray(Image.open(out)))
  assert model.unknown_words("A red Hexagon?") == ["hexagon"]
  both = model.generate(["two green stars", "a red circle"], seed=2)
  difference = np.asarray(both[1], int) - np.asarray(one, int)
  assert np.abs(difference).max() <= 1
  assert isinstance(model.caption(one), str)
  with pytest.raises(ValueError, match="was not trained on 'edit'"):
    model.edit(one, "change the red circle to blue")
  with pytest.raises(ValueError, match="unknown sampling option 'cgf'"):
    model.generate("a red circle", cgf=2.0)
  for call, words in (
    (lambda: model.generate(" "), "the text is empty"),
    (lambda: model.generate(["a", "b"], seed=2**32 - 1), "seed=4294967295"),
    (lambda: model.generate("a", steps=0), "steps=0 must be in"),
    (lambda: model.answer(one, "what", top_p=2.0), "top_p=2.0"),
    (lambda: model.caption(str(prompts)), "prompts.txt: image of"),
  ):
    with pytest.raises(ValueError, match=words):
      call()
  assert model.generate([]) == []


def test_kill_in_the_middle_of_a_save_then_resume(space, tmp_path):
  """kill -9 as soon as a half-written checkpoint shows; nothing is lost."""
  args = space.config("i2t_only", **{
    "steps": 20, "checkpoint.every": 2, "checkpoint.keep": 20, "log.every": 1,
  })  # fmt: skip
  whole = tmp_path / "whole"
  command("main", *args, f"--workdir={whole}")
  torn = tmp_path / "torn"
  process = subprocess.Popen(
    [sys.executable, "-m", "unifluid_jax.main", *args, f"--workdir={torn}"],
    cwd=REPO, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline:
    if list((torn / "checkpoints").glob("1*orbax-checkpoint-tmp*")):
      break
    assert process.poll() is None, "finished before it could be killed"
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert max(losses(torn)) < 20
  command("main", *args, f"--workdir={torn}")
  a, b = losses(whole), losses(torn)
  assert a.keys() == b.keys() and a == b


def started(*args):
  """A training process whose output can be read line by line."""
  return subprocess.Popen(
    [sys.executable, "-m", "unifluid_jax.main", *args], cwd=REPO, env=ENV,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def test_ctrl_c_leaves_at_once_or_saves(space, tmp_path):
  long = {"steps": 100_000, "checkpoint.every": 100_000, "log.every": 1}
  args = [*space.config("i2t_only", **long), f"--workdir={tmp_path}/run"]
  for line, status in (("-- start --", 130), ("ETA", 0)):
    process = started(*args)
    said = ""
    while line not in said:  # it compiles; it has made a step
      said += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "interrupted" in err and "Traceback" not in err
    steps = checkpoint.steps(str(tmp_path / "run"))
    assert len(steps) == (status == 0)
    assert not (tmp_path / "run" / "train.lock").exists()
  assert f"told to stop: saved step {steps[0]}; the same command" in out


def test_a_damaged_checkpoint_is_told_in_one_line(space, tmp_path):
  for name, last in (("run", space.run), ("vae", space.vae)):
    shutil.copytree(last, tmp_path / name)
    file = next((tmp_path / name / "checkpoints").glob("20/state/d/*"))
    file.write_bytes(file.read_bytes()[:-1])
  done = command("generate", f"--workdir={tmp_path}/run", "--prompt=a",
                 f"--out={tmp_path}/a.png", check=False)  # fmt: skip
  assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
  assert f"error: {tmp_path}/run/checkpoints/20 is damaged" in done.stderr
  words = f"{tmp_path}/vae/checkpoints/20 is damaged: state/d/"
  c = debug.get_config()
  c.model.vae_path = str(tmp_path / "vae")
  with pytest.raises(checkpoint.CheckpointDamagedError, match=words):
    systems.build(systems.resolve(c)).codec.weights()


def test_a_run_in_a_bucket_is_killed_goes_on_and_is_used(space, gcs, tmp_path):
  """Training, kill -9, resumption, evaluation, generation; VAE there too.

  Data lie on the local disk, as ArrayRecord needs. The emulator's docstring
  says what it cannot show.
  """
  run, vae = f"{gcs}/run", f"{gcs}/vae"
  files.upload(str(space.vae), vae)
  for step in checkpoint.steps(str(space.vae)):  # a copy is no save
    files.write(f"{vae}/checkpoints/{step}/commit_success.txt", "")
  args = space.config("t2i_only", **{
    "steps": 12, "checkpoint.every": 2, "checkpoint.keep": 2, "log.every": 1,
    "model.vae_path": vae, "eval.metrics": "('samples',)",
  })  # fmt: skip
  args.append(f"--workdir={run}")
  env = {
    "JAX_COMPILATION_CACHE_DIR": f"{tmp_path}/compiled",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    **{k: v for k, v in os.environ.items() if k.startswith(
      ("STORAGE_", "TENSORSTORE_", "GOOGLE_", "GCSFS_"))},
  }  # fmt: skip
  process = subprocess.Popen(
    [sys.executable, "-m", "unifluid_jax.main", *args], cwd=REPO,
    env=dict(ENV, **env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  deadline = time.monotonic() + 240
  while not checkpoint.steps(run):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert max(checkpoint.steps(run)) < 12
  done = command("main", *args, **env)
  assert "1: resumed from step" in done.stdout
  assert checkpoint.steps(run) == [10, 12]
  logged = telemetry.read_metrics(f"{run}/metrics.jsonl")
  assert [r["step"] for r in logged] == list(range(1, 13))
  assert all(np.isfinite(r["loss"]) for r in logged)
  done = command("evaluate", *args, "--once", **env)
  assert f"report: {run}/report.html" in done.stdout
  assert {r["step"] for r in run_results.read(run)} == {10, 12}
  there = files.path(run)
  assert "data:image/png" in (there / "report.html").read_text()
  assert len(list((there / "samples").iterdir())) == 2
  for job in ("metrics", "eval"):
    assert list((there / "events" / job).iterdir())
  out = tmp_path / "out.png"
  command("generate", f"--workdir={run}", "--prompt=a red circle",
          f"--out={out}", **env)  # fmt: skip
  assert Image.open(out).size == (32, 32)
  assert not (REPO / "gs:").exists()  # nothing was written beside


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


def test_two_processes_equal_one(space, tmp_path):
  args = space.config("i2t_only", **{
    "steps": 4, "log.every": 1, "mesh.fsdp": 2, "mesh.data": 2,
    "checkpoint.every": 2, "model.decoder.depth": 1,
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
  assert left == made - {"scene_classifier.npz"}  # of an evaluation


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


# -------------------------------------------- a run trained on its own drawings

REWARD = """
from configs import debug
from configs.base import source

def get_config():
  c = debug.get_config()
  c.steps, c.checkpoint.every = 2, 2
  c.init.all = "{run}"
  c.data.root = "{data}"
  c.text.tokenizer = "{data}/tokenizer.model"
  c.model.vae_path = "{run}/codec"
  c.data.train.rewarded = source(
    "rewarded", format="imagefolder", tasks=("t2i",), moments="rewarded"
  )
  c.eval.metrics = ("tokenizer",)
  return c
"""


def test_rounds_of_drawing_and_training(space, tmp_path):
  file, out = tmp_path / "own.py", tmp_path / "out"
  file.write_text(REWARD.format(run=space.run, data=space.data))
  before = (space.run / "codec" / "latents.json").read_text()
  call = [
    "reward", f"--config={file}", f"--workdir={out}", "--rounds=2",
    "--prompts=6", "--draws=2",
  ]  # fmt: skip
  # An untrained run draws nothing right.
  said = command(*call, "--least=0").stdout
  for number in (1, 2):
    table = (out / f"drawn_{number}" / "metadata.jsonl").read_text()
    assert len(table.splitlines()) == 6
    assert (out / f"drawn_{number}_encoded").exists()
    steps = rows(out / f"round_{number}" / "metrics.jsonl")
    assert steps[-1]["step"] == 2
  first, second = (
    [json.loads(row)["text"] for row in
     (out / f"drawn_{n}" / "metadata.jsonl").read_text().splitlines()]
    for n in (1, 2)
  )  # fmt: skip
  assert first != second
  assert f"decoder, head, image, projector, vit from {out}/round_1" in said
  assert "tokenizer/psnr" in said and (out / "round_2/report.html").exists()
  # Statistics of latents stay those of the run that it goes on from.
  assert (space.run / "codec" / "latents.json").read_text() == before
  copied = json.loads((out / "round_2" / "codec" / "latents.json").read_text())
  assert copied["scale"] == json.loads(before)["scale"]


def test_policy_gradients_on_what_a_run_draws(space, tmp_path):
  """They resume as any training does: a step draws what it would have."""
  file = tmp_path / "own.py"
  text = REWARD.format(run=space.run, data=space.data)
  source = text[text.index("  c.data.train.rewarded") : text.index("  c.eval")]
  policy = """
  c.policy.update(prompts=2, draws=4)
  c.optim.schedule = "constant"
"""
  file.write_text(text.replace(source, policy))

  def train(name, *more):
    command("main", f"--config={file}", f"--workdir={tmp_path / name}", *more)
    found = rows(tmp_path / name / "metrics.jsonl")
    return {row["step"]: row for row in found}

  whole = train("whole")
  assert 0 <= whole[2]["reward"] <= 1 and "reward_told_apart" in whole[2]
  train("parts", "--config.steps=1")
  parts = train("parts")
  for name in ("loss", "reward", "loss_visual"):
    assert parts[2][name] == whole[2][name], name


def test_one_thing_divides_the_work():
  wrong = command("prepare", "--config=debug", "--ray=auto",
                  "--coordinator=host:1", check=False)  # fmt: skip
  assert wrong.returncode == 1
  assert wrong.stderr == (
    "error: --ray and --coordinator: one of them divides the work\n"
  )


def test_a_run_without_drawings_is_refused(tmp_path):
  wrong = command("reward", "--config=debug", f"--workdir={tmp_path}/out",
                  check=False)  # fmt: skip
  assert wrong.returncode == 1
  assert "config.data.train.rewarded: set both" in wrong.stderr
  remote = command("best_of", "--workdir=nowhere", "--to=gs://bucket/drawn",
                   check=False)  # fmt: skip
  assert "must lie on a local disk" in remote.stderr
  assert "change --to" in remote.stderr
  assert not (tmp_path / "out").exists()
