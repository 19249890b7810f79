"""Every command of README, as a user types it, at its smallest."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from configs import debug
from tests.e2e.commands import ENV, REPO, command, losses, rows
from tests.evals import test_geneval_files as geneval_case
from unifluid_jax import systems
from unifluid_jax.core import checkpoint, files, telemetry
from unifluid_jax.evals.report import run_results


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
