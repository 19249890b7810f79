"""What ran: one row in starts.jsonl for each command that worked on a run.

A row is {"step", "work", "time", "command", "config", "targets", "commit",
"versions", "hardware"}; `step` is where the command found the run. A report
shows them, so that a number can be made again.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from unifluid_jax.core import config_files, files, jsonl

FILE = "starts.jsonl"  # of a workdir
TRAINING, EVALUATION = "training", "evaluation"
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
_GIT_SECONDS = 10
_RECORDED: set[tuple[str, str]] = set()  # workdir and work, by this process


def record(workdir: str, step: int, work: str) -> None:
  """Adds a row about this process, once; for process 0 to call.

  Args:
    workdir: of the run.
    step: where the run is.
    work: TRAINING or EVALUATION.
  """
  if (workdir, work) in _RECORDED:
    return
  _RECORDED.add((workdir, work))
  row = {"step": step, "work": work, "time": time.time()}
  row |= describe(sys.argv)
  jsonl.append(files.path(workdir) / FILE, [row])


def read(workdir: str) -> list[jsonl.Row]:
  """The rows of a run, the oldest first; none of runs older than this file."""
  return jsonl.read(files.path(workdir) / FILE)


def describe(argv: Sequence[str]) -> dict[str, Any]:
  """Command, code and machine of a process that was started by `argv`."""
  typed = command(argv)
  config = config_flag(argv) if typed else None
  overridden = any(word.startswith("--config.") for word in argv)
  return {
    "command": typed,
    "config": config,
    # Another setting makes another run, which the targets say nothing of.
    "targets": (
      config_files.targets(config) if config and not overridden else {}
    ),
    "commit": commit(),
    "versions": versions(),
    "hardware": hardware(),
  }


def command(argv: Sequence[str]) -> str | None:
  """As it is typed; None for programs that are not of this package."""
  path = Path(argv[0]).resolve()
  if path.parent != _PACKAGE:
    return None
  words = ["python", "-m", f"{_PACKAGE.name}.{path.stem}", *argv[1:]]
  return shlex.join(words)


def config_flag(argv: Sequence[str]) -> str | None:
  """The value of --config=VALUE or --config VALUE; None without one."""
  for word, after in zip(argv, [*argv[1:], None], strict=True):
    name, equals, value = word.partition("=")
    if name in ("--config", "-config"):
      return value if equals else after
  return None


def commit() -> str | None:
  """The commit of the code, "-dirty" after it if files differ; None: unknown.

  Read from the checkout, or from what pip keeps of an installation from git.
  A repository that merely holds the environment is not the code's.
  """
  root = _PACKAGE.parent
  if (root / ".git").exists():
    describes = ["git", "-C", str(root), "describe", "--always", "--dirty",
                 "--abbrev=12", "--exclude=*"]  # fmt: skip
    try:
      found = subprocess.run(
        describes, capture_output=True, text=True, timeout=_GIT_SECONDS
      )
    except (OSError, subprocess.TimeoutExpired):
      return None  # no git, or one that hangs: a run must start all the same
    return found.stdout.strip() or None
  try:
    origin = metadata.distribution(_PACKAGE.name).read_text("direct_url.json")
  except metadata.PackageNotFoundError:
    return None
  found = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
  return found[:12] if found else None


def versions() -> dict[str, str]:
  """Name → version of what computes, Python first."""
  found = {"python": platform.python_version()}
  for name in (_PACKAGE.name, *_LIBRARIES):
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue  # a checkout that is used without being installed
  return found


def hardware() -> str:
  """Devices of all processes, e.g. "8 × TPU v5e, 2 processes"."""
  devices = jax.devices()
  text = f"{len(devices)} × {devices[0].device_kind}"
  if devices[0].platform == "cpu":
    text = f"{os.cpu_count()} cores of {_cpu()}"
  processes = jax.process_count()
  return f"{text}, {processes} processes" if processes > 1 else text


def _cpu() -> str:
  """The processor's name; Linux alone tells more than the architecture."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    name, _, value = line.partition(":")
    if name.strip() == "model name":
      return value.strip()
  return platform.processor() or platform.machine()
