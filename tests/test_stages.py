"""The demo's stages, with stand-ins for its commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unifluid_jax import evaluation, stages
from unifluid_jax.core import config_files, stopping

REPO = Path(__file__).parent.parent
STAGES = stages.of_run("configs/shapes.py", 1500, "runs/shapes",
                       "configs/vae.py:shapes", 1000,
                       "runs/shapes/vae")  # fmt: skip


class Time:
  """A clock that stands until it is moved."""

  def __init__(self):
    self.seconds = 0.0

  def __call__(self):
    return self.seconds


def played(moves, todo=STAGES):
  """What is said when each command takes its moves: (seconds, line or status).

  Returns:
    The exit status, the lines, the commands.
  """
  now, said, called = Time(), [], []
  moves = iter(moves)

  def start(command):
    called.append(command)
    for seconds, line in next(moves):
      now.seconds += seconds
      yield line

  return stages.run(todo, start, said.append, now), said, called


def test_every_stage_says_where_it_stands_and_what_it_runs():
  status, said, called = played([[(s.seconds, 0)] for s in STAGES])
  assert status == 0 and called == [s.command for s in STAGES]
  heads = [line.strip() for line in said if line.startswith("\n==")]
  assert heads[0].startswith("== stage 1 of 5: data set and tokenizer; about 9")
  assert heads[3].startswith("== stage 4 of 5: training; about 7 minutes left")
  assert (
    heads[4] == "== stage 5 of 5: evaluation; about 1 minute left in all =="
  )
  silent = [i for i, line in enumerate(said) if "nothing is shown" in line]
  assert [said[i - 1].split(";")[0].split(": ")[1] for i in silent] == [
    "image tokenizer", "training"
  ]  # fmt: skip
  commands = [line for line in said if line.startswith("$ ")]
  assert (
    "unifluid_jax.main --config=configs/shapes.py --workdir=runs/shapes"
    in (commands[3])
  )
  assert commands[4].endswith("--workdir=runs/shapes --once")


def test_runs_that_a_run_starts_from_come_before_it(tmp_path):
  """In a file without an argument; as their configurations are loaded."""
  path = tmp_path / "mine.py"
  path.write_text('STAGES = (("shapes:raster", "runs/a"), ("debug", "b"))\n')
  assert config_files.stages(str(path)) == (
    ("shapes:raster", "runs/a"), ("debug", "b")
  )  # fmt: skip
  assert config_files.stages(f"{path}:argument") == ()
  assert config_files.stages("shapes") == ()
  todo = stages.of_run(
    "mine", 10, "runs/c", "vae", 5, "runs/v",
    [("shapes:raster", "runs/a", 100), ("debug", "b", 3)],
  )  # fmt: skip
  assert [s.command for s in todo[3:6]] == [
    ["main", "--config=shapes:raster", "--workdir=runs/a"],
    ["main", "--config=debug", "--workdir=b"],
    ["main", "--config=mine", "--workdir=runs/c"],
  ]
  assert todo[3].seconds > todo[5].seconds > todo[4].seconds
  assert all(s.compiles for s in todo[3:6]) and len(todo) == 7


def test_the_time_left_follows_what_stages_and_steps_take():
  """On a machine of half the speed every later stage is taken to last twice."""
  now = Time()
  watch = stages.Clock([10.0, 100.0, 30.0], now)
  assert watch.left() == 140
  now.seconds = 20.0
  watch.next_stage()
  speed = (60 + 20) / (60 + 10)  # a minute of trust in the guess
  assert watch.left() == pytest.approx(speed * 130)
  now.seconds = 80.0  # compiled: from here steps are counted
  watch.left(0, 100)
  now.seconds = 90.0
  assert watch.left(10, 100) == pytest.approx(90 * 1.0 + speed * 30)
  now.seconds = 500.0  # late: never less than nothing
  watch.next_stage()
  now.seconds = 10_000.0
  assert watch.left() == 0


def test_stages_that_were_done_before_say_nothing_about_speed():
  now = Time()
  watch = stages.Clock([100.0, 60.0], now)
  now.seconds = 2.0
  watch.next_stage()
  assert watch.left() == 60


def test_progress_lines_carry_the_time_of_all_stages():
  todo = [stages.Stage("a", ["main"], 100.0), stages.Stage("b", ["main"], 60.0)]
  lines = [(50.0, "train 1/101 (1 %)  loss 2"), (10.0, "train 11/101 (11 %)"),
           (0.0, "no progress 3/4"), (40.0, 0)]  # fmt: skip
  _, said, _ = played([lines, [(60.0, 0)]], todo)
  assert "train 11/101 (11 %)  all stages: 2:30" in said
  assert "no progress 3/4" in said


@pytest.mark.parametrize(
  "end, status, words", [(3, 1, "failed with status 3"), (-1, 130, "stopped")]
)
def test_a_stage_that_ends_early_ends_the_demo(end, status, words):
  left, said, called = played([[(1.0, 0)], [(1.0, "x"), (1.0, end)]])
  assert left == status and len(called) == 2
  assert said[-1].startswith(f"stage 2 of 5 {words}; the same command goes on")


COMMAND = """
import signal, sys, time
count = 0
def told(*_):
  global count
  count += 1
  print("told", count)
signal.signal(signal.SIGINT, told)
print("ready")
end = time.monotonic() + 30
while not count and time.monotonic() < end:
  time.sleep(0.01)
time.sleep(0.2)
"""


def test_ctrl_c_reaches_the_command_once_and_its_end_is_waited_for(tmp_path):
  """A parent in a group of its own, signalled as a terminal does: the group."""
  (tmp_path / "odd").mkdir()
  (tmp_path / "odd" / "__init__.py").touch()
  (tmp_path / "odd" / "waits.py").write_text(COMMAND)
  code = (
    "from unifluid_jax import stages\n"
    "from unifluid_jax.core import interrupt\n"
    "interrupt.listen()\n"  # as cli.run does
    "for line in stages.execute(['waits'], 'odd'): print(line, flush=True)\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code], cwd=tmp_path, text=True,
    env={"PYTHONPATH": f"{REPO}:{tmp_path}", "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE, start_new_session=True,
  )  # fmt: skip
  assert process.stdout.readline() == "ready\n"
  time.sleep(0.05)
  os.killpg(process.pid, signal.SIGINT)
  said, _ = process.communicate(timeout=60)
  assert said.splitlines() == ["told 1", "-1"]


def test_a_training_that_was_stopped_by_another_is_no_finished_stage(
  tmp_path, monkeypatch
):
  (tmp_path / "odd").mkdir()
  line = f"{stopping.TOLD}: saved step 3; the same command resumes"
  (tmp_path / "odd" / "stopped.py").write_text(f"print({line!r})")
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  assert [*stages.execute(["stopped"], "odd")] == [line, -1]


def test_the_verdict_is_one_line():
  targets = {"a/x": (">=", 0.5), "b": ("<=", 3.0), "c": (">=", 0.1)}
  met = {"a/x": 0.5, "b": 3.0, "c": 1.0}
  assert stages.verdict(met, targets) == "verdict: all 3 targets are met"
  text = stages.verdict({"a/x": 0.4996, "b": 3.2}, targets)
  assert text == (
    "verdict: 3 of 3 targets missed: a/x is 0.500, wanted >= 0.5; b is 3.200, "
    "wanted <= 3; c was not measured, wanted >= 0.1"
  )
  assert "no targets" in stages.verdict(met, {})


def test_the_end_shows_verdict_report_and_commands_that_fit(tmp_path):
  targets = config_files.targets("configs/shapes.py")
  rows = [
    {"step": step, "metric": name, "value": bound * (step == 9)}
    for name, (_, bound) in targets.items()
    for step in (3, 9)  # the last one counts
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / evaluation.RESULTS).write_text(text)
  lines = stages.summary("configs/shapes.py", str(tmp_path))
  assert f"verdict: all {len(targets)} targets are met" in lines
  assert f"report: file://{tmp_path}/report.html" in lines
  text = "\n".join(lines)
  assert f"generate --workdir={tmp_path} '--prompt=two green squares'" in text
  assert "configs/edit.py:shapes" in text and "configs/folder.py" in text
  assert config_files.targets("shapes:raster") == {}
  other = "\n".join(stages.summary("debug", str(tmp_path)))
  assert "no targets" in other and "edit.py" not in other


def test_a_configuration_says_how_long_steps_take_and_what_to_ask(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text('STEP_SECONDS = (1.0, 3.0)\nEXAMPLES = ("a fox", "who")\n')
  seconds = config_files.step_seconds(str(path))
  todo = stages.of_run("m", 100, "r", "v", 10, "v", step_seconds=seconds)
  start = todo[0].seconds
  assert [s.seconds - start for s in todo[1:4]] == [10.0, 0.0, 300.0]
  assert config_files.step_seconds(f"{path}:argument") is None
  assert config_files.step_seconds("shapes") is None
  assert config_files.examples(f"{path}:argument") == ("a fox", "who")
  end = "\n".join(stages.summary(str(path), str(tmp_path)))
  assert "'--prompt=a fox'" in end and "--question=who" in end


def test_the_targets_of_emoji_are_of_its_metrics():
  tree = config_files.load("emoji")
  for name in config_files.targets("emoji"):
    assert name.split("/")[0].removesuffix("_held_out") in tree.eval.metrics
  assert config_files.targets("emoji:full") == {}


def test_targets_are_names_that_the_evaluation_gives():
  """Of the metrics that the configuration asks for."""
  tree = config_files.load("shapes")
  parts = {"detector": "tokenizer", "geneval_held_out": "geneval",
           "captions_held_out": "captions"}  # fmt: skip
  for name, (sign, _) in config_files.targets("shapes").items():
    group = name.split("/")[0]
    assert parts.get(group, group) in tree.eval.metrics
    assert sign == ("<=" if group == "fid" else ">=")
