"""One trainer per workdir: `<workdir>/train.lock` names the process that is.

Likewise one process makes a large file in shards: `<file>.lock`.

On a local or network file system the kernel's lock (flock) decides; it goes
with its process, however that ends. The file's content tells others who holds
it. A file system that does not share flock between hosts, or has none, and
object stores rely on the content alone: the holder renews it every
BEAT_SECONDS and counts as gone after STALE_SECONDS, or at once if it was a
process of this host that no longer runs. There two trainers that start within
SETTLE_SECONDS of each other are told apart by reading back what was written
last; a write that takes longer than that can slip through, and is noticed by
`Lock.check` before the next save. Clocks of hosts must agree to a minute.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging

from unifluid_jax.core import files, interrupt

NAME = "train.lock"
BEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
SETTLE_SECONDS = 2.0
POLL_SECONDS = 1.0
_TRAINED = (
  "is being trained by {}; wait for it, stop it, or choose another --workdir"
)


class LockedError(ValueError):
  """Another process holds the lock; the message says which."""


class Lock:
  """The lock of a workdir or a file; see `held` and `awaited`."""

  def __init__(self, path: Any, of: str, busy: str, say: Callable[[str], None]):
    """Does not touch the file yet.

    Args:
      path: of the lock file.
      of: what is locked.
      busy: what its holder does, with {} for the holder.
      say: told if the lock of a process that is gone was taken over.
    """
    self._path, self._of, self._busy, self._say = path, of, busy, say
    self._me = _this_process()
    self._fd: int | None = None  # of the locked file, where flock works
    self._deleted: list[int] = []  # of such files that others have deleted
    self._lost: Mapping[str, Any] | None = None
    self._stop = threading.Event()
    self._renewal = threading.Thread(
      target=self._renew, name=path.name, daemon=True
    )

  def acquire(self) -> None:
    """Takes the lock or raises.

    Raises:
      LockedError: names the process that holds it.
    """
    if files.is_remote(self._of) or not self._acquire_kernel_lock():
      self._acquire_by_content()
    self._renewal.start()

  def _acquire_kernel_lock(self) -> bool:
    """False if this file system has no flock."""
    self._path.parent.mkdir(parents=True, exist_ok=True)
    while True:
      fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
      try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        os.close(fd)
        raise self._refusal(_read_soon(self._path)) from None
      except OSError as error:
        logging.vlog(1, "%s: no flock here: %s", self._path, error)
        os.close(fd)
        return False
      if _is_file(fd, self._path):
        break
      os.close(fd)  # its holder has just removed it
    holder = _read(self._path)
    # Another host's lock may be invisible here, one of this kernel is not.
    if holder and holder.get("boot") != self._me["boot"] and _recent(holder):
      os.close(fd)
      raise self._refusal(holder)
    self._fd = fd
    self._tell_takeover(holder)
    self._write()
    return True

  def _acquire_by_content(self) -> None:
    holder = _read(self._path)
    if holder and _alive(holder):
      raise self._refusal(holder)
    self._tell_takeover(holder)
    self._write()
    time.sleep(SETTLE_SECONDS)
    last = _read(self._path)
    if not last or last.get("token") != self._me["token"]:
      raise self._refusal(last)

  def check(self) -> None:
    """Raises if another process has taken the lock meanwhile.

    A lock file that somebody deleted is made again: whoever starts next would
    lock another file of that name.

    Raises:
      LockedError: names it.
    """
    if self._lost is not None:
      raise self._refusal(self._lost)
    if self._fd is None or _is_file(self._fd, self._path):
      return
    # Not closed before the end: a renewal may be writing to it now.
    self._deleted.append(self._fd)
    self._acquire_kernel_lock()

  def release(self) -> None:
    """Gives the lock back; to be called once."""
    self._stop.set()
    if self._renewal.is_alive():
      self._renewal.join(timeout=BEAT_SECONDS)
    if self._lost is None and (
      self._fd is None or _is_file(self._fd, self._path)
    ):
      self._path.unlink(missing_ok=True)
    for fd in {self._fd, *self._deleted} - {None}:
      os.close(fd)

  def _write(self) -> None:
    text = json.dumps(self._me | {"beat": int(time.time())})
    if self._fd is None:
      files.write(self._path, text)
    else:
      os.pwrite(self._fd, text.encode(), 0)  # renewals have the same length
      os.ftruncate(self._fd, len(text.encode()))

  def _renew(self) -> None:
    while not self._stop.wait(BEAT_SECONDS):
      try:
        holder = _read(self._path) if self._fd is None else self._me
        if holder and holder.get("token") != self._me["token"]:
          self._lost = holder
          return
        self._write()
      except OSError as error:  # the next one may succeed
        logging.warning("%s was not renewed: %s", self._path, error)

  def _tell_takeover(self, holder: Mapping[str, Any] | None) -> None:
    if holder:
      self._say(f"took over the lock of {self._of}: {_name(holder)} is gone")

  def _refusal(self, holder: Mapping[str, Any] | None) -> LockedError:
    return LockedError(f"{self._of} {self._busy.format(_name(holder or {}))}")


@contextlib.contextmanager
def held(workdir: str, say: Callable[[str], None]) -> Iterator[Lock]:
  """Holds the lock of a workdir while the block runs.

  Args:
    workdir: local or on an object store; is made.
    say: told if the lock of a process that is gone was taken over.

  Raises:
    LockedError: names the process that trains there.
  """
  lock = Lock(files.path(workdir) / NAME, workdir, _TRAINED, say)
  lock.acquire()
  with _kept(lock):
    yield lock


@contextlib.contextmanager
def awaited(path: str) -> Iterator[None]:
  """Holds `<path>.lock` while the block makes the file at `path`.

  Waits as long as another process makes it, and logs which one does: the
  block is to look again whether the file is there.
  """
  where = files.path(f"{path}.lock")
  lock, told = Lock(where, path, "is being made by {}", logging.warning), False
  while True:
    try:
      lock.acquire()
      break
    except LockedError as error:
      if not told:
        logging.warning("%s: waiting", error)
      told = True
      time.sleep(POLL_SECONDS)
  with _kept(lock):
    yield


@contextlib.contextmanager
def _kept(lock: Lock) -> Iterator[None]:
  """Releases a lock that was acquired, however the block ends."""
  with interrupt.cleanup(lock.release):
    try:
      yield
    finally:
      lock.release()


def refuse_if_held(workdir: str) -> None:
  """A first look that changes nothing; `held` decides.

  Raises:
    LockedError: a process that certainly runs trains there.
  """
  holder = _read(files.path(workdir) / NAME)
  if not holder:
    return
  if holder.get("boot") == _this_process()["boot"]:
    # The workdir may be a copy of one that is being trained.
    if _same_processes(holder) and _runs(holder) and not _is_free(workdir):
      raise LockedError(f"{workdir} {_TRAINED.format(_name(holder))}")
  elif _recent(holder):
    raise LockedError(f"{workdir} {_TRAINED.format(_name(holder))}")


def _is_free(workdir: str) -> bool:
  """Whether the kernel knows of no holder; False where it cannot tell."""
  if files.is_remote(workdir):
    return False
  try:
    with open(files.path(workdir) / NAME, "rb") as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until it is closed
  except OSError:
    return False
  return True


def _name(holder: Mapping[str, Any]) -> str:
  if not holder:
    return "another process"
  return (
    f"process {holder.get('process')} on {holder.get('host')} since "
    f"{holder.get('since')}"
  )


# ------------------------------------------------------------- who is alive


def _this_process() -> dict[str, Any]:
  """Names this process for ever: numbers of processes are used again."""
  pid = os.getpid()
  return {
    "host": socket.gethostname(),
    "process": pid,
    "since": time.strftime("%Y-%m-%d %H:%M"),
    "started": _started(pid),
    "boot": _system_file("/proc/sys/kernel/random/boot_id"),
    "processes": _process_namespace(),
    "token": secrets.token_hex(8),
  }


def _alive(holder: Mapping[str, Any]) -> bool:
  if _same_processes(holder):
    return _runs(holder)
  return _recent(holder)


def _same_processes(holder: Mapping[str, Any]) -> bool:
  """Whether its process number means something to us (containers hide it)."""
  me = _this_process()
  return all(holder.get(k) == me[k] for k in ("host", "boot", "processes"))


def _runs(holder: Mapping[str, Any]) -> bool:
  pid = int(holder.get("process", 0))
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # another user's
  return holder.get("started") == _started(pid)


def _recent(holder: Mapping[str, Any]) -> bool:
  return time.time() - float(holder.get("beat", 0)) < STALE_SECONDS


def _started(pid: int) -> str:
  """When a process started, in ticks since the boot; "" where unknown."""
  stat = _system_file(f"/proc/{pid}/stat")
  return stat.rpartition(")")[2].split()[19] if stat else ""


def _process_namespace() -> str:
  try:
    return os.readlink("/proc/self/ns/pid")
  except OSError:
    return ""


def _system_file(path: str) -> str:
  """A file of Linux's /proc; "" elsewhere."""
  try:
    with open(path) as f:
      return f.read().strip()
  except OSError:
    return ""


# ------------------------------------------------------------------ the file


def _read(path: Any) -> dict[str, Any] | None:
  """The holder a lock file names; None without one."""
  try:
    holder = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  return holder if isinstance(holder, dict) else None


def _read_soon(path: Any) -> dict[str, Any] | None:
  """The same; a holder that has just locked the file still has to write."""
  for _ in range(20):
    if holder := _read(path):
      return holder
    time.sleep(0.05)
  return None


def _is_file(fd: int, path: Any) -> bool:
  """Whether an open file is still the one of that name."""
  try:
    return os.path.samestat(os.fstat(fd), os.stat(path))
  except FileNotFoundError:
    return False
