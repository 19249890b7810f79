"""The steps of a workdir as files: complete, intact, damaged or gone."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from unifluid_jax.core import digests, files

FOLDER = "checkpoints"  # of a workdir: a folder per step
_HINT = "delete this step to use an older one, or choose another run"
_VANISHING_SECONDS = 2.0  # deleting a checkpoint takes a moment


class CheckpointError(ValueError):
  """A checkpoint that cannot be used; the message says which and why."""


class CheckpointDamagedError(CheckpointError):
  """Its files are cut, missing or changed."""


class CheckpointGone(CheckpointError):
  """It was deleted, e.g. by its run, which keeps only the newest ones."""


def root(workdir: str) -> Any:
  """The folder that holds a folder per step."""
  return files.absolute(workdir) / FOLDER


def step_path(workdir: str, step: int) -> Any:
  """The folder of one step."""
  return root(workdir) / str(step)


def steps(workdir: str) -> list[int]:
  """Complete checkpoints of a workdir, oldest first."""
  try:
    found = [p for p in root(workdir).iterdir() if p.name.isdigit()]
  except (FileNotFoundError, NotADirectoryError):
    return []
  return sorted(int(p.name) for p in found if is_complete(p))


def is_complete(folder: Any) -> bool:
  """Whether Orbax has committed a step: by a rename, or by a marker object."""
  return folder.is_dir() and ocp.path.step.is_path_finalized(folder)


@contextlib.contextmanager
def reading(folder: Any) -> Iterator[None]:
  """Names the step, in one line, if its files cannot be read.

  Raises:
    CheckpointError: from whatever the libraries raise over damaged files.
  """
  try:
    yield
  except CheckpointError:
    raise
  except (ValueError, KeyError, OSError, TypeError, AttributeError) as e:
    raise_if_gone(folder)
    check(folder)  # the digests may know the file
    raise CheckpointDamagedError(
      f"{folder} is damaged: {_first_line(e)}; {_HINT}"
    ) from e


def check(folder: Any, part: str = "") -> None:
  """Compares the files of a step, or of a part of it, with their digests.

  Raises:
    CheckpointError: names the step and the first file that differs.
  """
  try:
    problem = digests.problem(folder, part)
  except OSError as error:
    problem = _first_line(error)
  if problem:
    raise_if_gone(folder)
    raise CheckpointDamagedError(f"{folder} is damaged: {problem}; {_HINT}")


def raise_if_gone(folder: Any) -> None:
  """Tells a deleted checkpoint, or one that is being deleted, from damage.

  Raises:
    CheckpointGone: the step is not there, or goes within two seconds.
  """
  deadline = time.monotonic() + _VANISHING_SECONDS
  while is_complete(folder):
    if time.monotonic() > deadline:
      return
    time.sleep(0.1)
  raise CheckpointGone(f"no checkpoint at {folder}")


def _first_line(error: Exception) -> str:
  text = str(error).strip().splitlines()
  logging.vlog(1, "%s", error)
  return f"{type(error).__name__}: {text[0][:200] if text else ''}"
