"""Large files made in shards: by several processes, or over several starts.

Shards lie in a folder beside the file and are numbered: which process (or
worker of a cluster, see `core.workers`) makes one, and how many there are,
changes nothing in it. Each appears whole or not at all, so that an interrupted
job goes on where it stopped. The first process joins them.
"""

import contextlib
import functools
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import multihost

from unifluid_jax.core import files, lock, workers

SUFFIX = ".shards"
_CLAIM = "made_of.json"
_PATIENCE = 7 * 24 * 3600  # seconds; what has died is noticed much earlier


def make(
  path: str,
  made_of: Mapping[str, Any],
  count: int,
  write: Callable[[int, str], None],
  join: Callable[[Sequence[str]], None],
  made: Callable[[], bool],
  each: workers.Each = workers.here,
) -> None:
  """Makes the missing shards, then the file; all processes call it alike.

  While another command makes the same file, this one waits.

  Args:
    path: of the file, on a disk that all processes share.
    made_of: all that the shards depend on, as JSON; shards of something else
      are removed.
    count: of shards; process p of n makes shards p, p + n, p + 2n, ...
    write: (number, path) writes one shard, whole or not at all.
    join: makes the file of the shards' paths, in order; on process 0.
    made: whether the file is there; asked when nobody else makes it.
    each: has this process's shards made, maybe elsewhere.

  Raises:
    ValueError: the processes, or workers, share no disk.
  """
  with contextlib.ExitStack() as exits:
    if jax.process_index() == 0:
      exits.enter_context(lock.awaited(path))
    wait(f"{path} is locked")
    if not made():
      _make(path, made_of, count, write, join, each)


def _make(
  path: str,
  made_of: Mapping[str, Any],
  count: int,
  write: Callable[[int, str], None],
  join: Callable[[Sequence[str]], None],
  each: workers.Each,
) -> None:
  folder = Path(path + SUFFIX)
  if jax.process_index() == 0:
    _claim(folder, made_of)
  wait(f"{folder} is claimed")
  _check_claim(folder, made_of)
  shards = [folder / f"{k:05d}-of-{count:05d}" for k in range(count)]
  missing = [(k, os.fspath(shards[k])) for k in share(count)
             if not shards[k].exists()]  # fmt: skip
  each(functools.partial(_make_one, folder, made_of, write), missing)
  wait(f"{folder} is complete")
  if jax.process_index() == 0:
    join([os.fspath(shard) for shard in shards])
    shutil.rmtree(folder)
  wait(f"{path} is joined")


def _make_one(
  folder: Path,
  made_of: Mapping[str, Any],
  write: Callable[[int, str], None],
  shard: tuple[int, str],
) -> None:
  _check_claim(folder, made_of)
  write(*shard)


def share(count: int) -> range:
  """Which of `count` pieces of work are this process's."""
  return range(jax.process_index(), count, jax.process_count())


def wait(name: str) -> None:
  """Returns when all processes are here, however long the slowest takes.

  Collectives do not wait so long: on CPUs they give up after 30 seconds.

  Args:
    name: of the place in the program; equal in all processes.
  """
  everyone = set(range(jax.process_count()))
  multihost.sync_global_processes(name, timeout=_PATIENCE, processes=everyone)


def _claim(folder: Path, made_of: Mapping[str, Any]) -> None:
  """Notes what the shards are made of; removes those of something else."""
  if folder.exists() and _read_claim(folder) != _json(made_of):
    shutil.rmtree(folder)
  files.write(folder / _CLAIM, json.dumps(made_of))


def _check_claim(folder: Path, made_of: Mapping[str, Any]) -> None:
  if _read_claim(folder) != _json(made_of):
    raise ValueError(
      f"{socket.gethostname()} (process {os.getpid()}) does not find {folder} "
      "as the first process made it: config.data.root must lie on a disk that "
      "all processes and workers share"
    )


def _read_claim(folder: Path) -> Any:
  """What is noted; None where nothing is, or nothing that can be read."""
  try:
    return json.loads((folder / _CLAIM).read_text())
  except (OSError, ValueError):
    return None


def _json(made_of: Mapping[str, Any]) -> Any:
  return json.loads(json.dumps(made_of))
