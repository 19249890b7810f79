"""The stages of a whole run as commands, their time, and the verdict."""

import dataclasses
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from unifluid_jax import evaluation
from unifluid_jax.core import config_files, interrupt, stopping, telemetry
from unifluid_jax.evals.report import data as report_data
from unifluid_jax.evals.report import run_results

# Seconds on two CPU cores, the first guess of the time that is left: start
# and compilation of a stage, and each step of it, the image tokenizer's and the
# run's, where its configuration does not say.
_START = 20.0
_STEPS = (0.05, 0.22)
# Seconds that the guess counts beside what was measured: a first stage of half
# a minute says little about the speed of hours.
_TRUST = 60.0
_PROGRESS = re.compile(r"\b(\d+)/(\d+) \(\d+ %\)")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One command, and what it takes."""

  title: str
  command: list[str]  # module of this package, then its arguments
  seconds: float  # guessed
  compiles: bool = False  # a training step, silently


def of_run(
  config: str,
  steps: int,
  workdir: str,
  codec_config: str,
  codec_steps: int,
  codec_workdir: str,
  before: Sequence[tuple[str, str, int]] = (),
  step_seconds: tuple[float, float] | None = None,
) -> list[Stage]:
  """The five commands of a run, and those of the runs that it starts from.

  Args:
    config: of the run, as for --config.
    steps: that it trains.
    workdir: of the run.
    codec_config: of its image tokenizer.
    codec_steps: that the image tokenizer trains.
    codec_workdir: of the image tokenizer: where the run looks for it.
    before: configuration, workdir and steps of each run before it.
    step_seconds: of the image tokenizer and of the run, on two CPU cores.
  """
  codec_step, step = step_seconds or _STEPS
  run_flags, here = [f"--config={config}"], f"--workdir={workdir}"
  codec_flags = [f"--config={codec_config}", f"--workdir={codec_workdir}"]
  return [
    Stage("data set and tokenizer", ["prepare", *run_flags], _START),
    Stage("image tokenizer", ["main", *codec_flags],
          _START + codec_step * codec_steps, compiles=True),
    Stage("encoding", ["encode", *run_flags], _START),
    *(Stage(f"training {name}",
            ["main", f"--config={name}", f"--workdir={where}"],
            _START + step * count, compiles=True)
      for name, where, count in before),
    Stage("training", ["main", *run_flags, here],
          _START + step * steps, compiles=True),
    Stage("evaluation", ["evaluate", *run_flags, here, "--once"], 2 * _START),
  ]  # fmt: skip


class Clock:
  """How long all stages will take, from a guess and from what they took."""

  def __init__(self, guesses: Sequence[float], now: Callable[[], float]):
    """Starts with the first stage.

    Args:
      guesses: seconds of each stage.
      now: a clock in seconds.
    """
    self._guesses, self._now = list(guesses), now
    self._stage, self._begin = 0, now()
    self._first: tuple[int, float] | None = None
    self._took: list[tuple[float, float]] = []  # guess, measured

  def next_stage(self) -> None:
    """The stage has ended, the next one begins."""
    guess, took = self._guesses[self._stage], self._now() - self._begin
    if took > guess / 4:  # else it had been done before: says nothing
      self._took.append((guess, took))
    self._stage, self._begin, self._first = self._stage + 1, self._now(), None

  def left(self, done: int = 0, total: int = 0) -> float:
    """Seconds until the last stage ends.

    Args:
      done: steps of this stage so far.
      total: its steps; 0: not known.
    """
    guessed = _TRUST + sum(guess for guess, _ in self._took)
    speed = (_TRUST + sum(took for _, took in self._took)) / guessed
    later = speed * sum(self._guesses[self._stage + 1 :])
    here = speed * self._guesses[self._stage] - (self._now() - self._begin)
    if total:
      self._first = self._first or (done, self._now())
      steps, start = done - self._first[0], self._first[1]
      if steps > 0:
        here = (total - done) * (self._now() - start) / steps
    return max(here, 0.0) + later


def run(
  todo: Sequence[Stage],
  start: Callable[[Sequence[str]], Iterator[str | int]],
  say: Say,
  now: Callable[[], float] = time.monotonic,
) -> int:
  """Runs stages in order and says how far they are.

  Args:
    todo: the stages.
    start: runs a command; yields its lines, then its exit status, negative if
      it was told to stop.
    say: takes a line.
    now: a clock in seconds.

  Returns:
    0, or the status to leave with.
  """
  watch = Clock([stage.seconds for stage in todo], now)
  for i, stage in enumerate(todo, 1):
    left = math.ceil(watch.left() / 60)
    minutes = f"{left} minute{'s' * (left != 1)}"
    say(f"\n== stage {i} of {len(todo)}: {stage.title}; "
        f"about {minutes} left in all ==")  # fmt: skip
    if stage.compiles:
      say("(compiling comes first: nothing is shown for about a minute)")
    say(f"$ {shown(stage.command)}")
    status = 0
    for line in start(stage.command):
      if isinstance(line, int):
        status = line
        continue
      found = _PROGRESS.search(line)
      if found:
        rest = telemetry.clock(watch.left(int(found[1]), int(found[2])))
        line = f"{line}  all stages: {rest}"
      say(line)
    if status:
      what = "stopped" if status < 0 else f"failed with status {status}"
      say(f"stage {i} of {len(todo)} {what}; the same command goes on from it")
      return 130 if status < 0 else 1
    watch.next_stage()
  return 0


def shown(command: Sequence[str]) -> str:
  """A command as it is typed in this directory."""
  module, *rest = command
  python = os.path.relpath(sys.executable)
  python = "python" if python.startswith("..") else python
  return shlex.join([python, "-m", f"unifluid_jax.{module}", *rest])


def execute(
  command: Sequence[str], package: str = "unifluid_jax"
) -> Iterator[str | int]:
  """A command's lines, then its exit status; -1 if it was told to stop.

  Also if another told it alone: the next stage is not to go on from half of it.

  Ctrl-C is passed on: training saves and leaves by one, and leaves at once by
  a second. The command has a session of its own, so that a terminal's Ctrl-C
  does not reach it twice.
  """
  module, *rest = command
  told = []
  process = subprocess.Popen(
    [sys.executable, "-m", f"{package}.{module}", *rest],
    stdout=subprocess.PIPE, text=True, errors="replace",
    start_new_session=True, env=dict(os.environ, PYTHONUNBUFFERED="1"),
  )  # fmt: skip

  def forward(number: int = signal.SIGINT, _: object = None) -> bool:
    told.append(number)
    if process.poll() is None:
      process.send_signal(number)
    return True  # this process ends when the command has

  before = signal.signal(signal.SIGTERM, forward)
  try:
    with interrupt.caught_by(forward):
      for line in process.stdout:
        if line.startswith(stopping.TOLD):
          told.append(signal.SIGTERM)
        yield line.rstrip("\n")
      status = process.wait()
  finally:
    signal.signal(signal.SIGTERM, before)
    process.stdout.close()
    if process.poll() is None:  # whoever reads has gone
      process.terminate()
      process.wait()
  yield -1 if told else abs(status)


# ------------------------------------------------------------------ The verdict


def verdict(
  scores: Mapping[str, float], targets: Mapping[str, tuple[str, float]]
) -> str:
  """One line: all targets are met, or which were missed.

  Args:
    scores: metric → value.
    targets: metric → (">=" or "<=", bound).
  """
  if not targets:
    return "verdict: this configuration sets no targets"
  missed = []
  for name, (sign, bound) in targets.items():
    value = scores.get(name, math.nan)
    if not (value >= bound if sign == ">=" else value <= bound):
      have = "was not measured" if math.isnan(value) else f"is {value:.3f}"
      missed.append(f"{name} {have}, wanted {sign} {bound:g}")
  if not missed:
    return f"verdict: all {len(targets)} targets are met"
  return f"verdict: {len(missed)} of {len(targets)} targets missed: " + (
    "; ".join(missed)
  )


def summary(config: str, workdir: str) -> list[str]:
  """The verdict, where the report lies, and what can be done next."""
  found = report_data.by_metric(run_results.read(workdir))
  last = max((step for each in found.values() for step in each), default=0)
  scores = {
    name: each[last]["value"] for name, each in found.items() if last in each
  }
  page = Path(workdir, evaluation.REPORT).resolve()
  prompt, question = config_files.examples(config)
  lines = [
    "",
    verdict(scores, config_files.targets(config)),
    f"report: {page.as_uri()}",
    "next:",
    "  draw an image, then ask about it:",
    _command("generate", f"--workdir={workdir}", f"--prompt={prompt}"),
    _command("generate", f"--workdir={workdir}", "--image=out.png",
             f"--question={question}"),
  ]  # fmt: skip
  if config_files.find(config.partition(":")[0]).stem == "shapes":
    edit = ["--config=configs/edit.py:shapes", "--workdir=runs/edit"]
    lines += [
      "  teach it edits, from this run:",
      _command("main", *edit),
      "  train on a folder of your own images (README, Your own images):",
      _command("prepare", "--config=configs/folder.py",
               "--config.data.root=DIR"),
    ]  # fmt: skip
  return lines


def _command(*words: str) -> str:
  return f"    {shown(words)}"
