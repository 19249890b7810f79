"""Ctrl-C: the process leaves at once, or as the work in progress decides.

Python handles signals between two instructions of the main thread. While XLA
compiles there is none for a minute; and a KeyboardInterrupt that is raised
inside a callback of the garbage collector (JAX installs one) or inside a
finaliser is printed and dropped. A thread therefore receives the signal.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

STATUS = 130  # what a shell reports for a command ended by Ctrl-C
_CLEANUP_SECONDS = 5.0  # an object store may not answer

_catchers: list[Callable[[], bool]] = []
_cleanups: list[Callable[[], None]] = []


def listen() -> None:
  """From now on Ctrl-C ends this process with one line and status 130.

  To be called by the main thread of a command. A SIGINT that is ignored
  already (a job in a script's background) stays ignored.
  """
  if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    return
  received, wake = os.pipe()
  os.set_blocking(wake, False)
  signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
  signal.signal(signal.SIGINT, lambda *_: None)
  threading.Thread(
    target=_receive, args=(received,), name="interrupt", daemon=True
  ).start()


def _receive(pipe: int) -> None:
  while True:
    for number in os.read(pipe, 64):
      if number == signal.SIGINT and not _caught():
        leave()


def _caught() -> bool:
  return bool(_catchers) and _catchers[-1]()


@contextlib.contextmanager
def caught_by(catcher: Callable[[], bool]) -> Iterator[None]:
  """Lets `catcher` answer Ctrl-C while the block runs.

  Args:
    catcher: returns True if the work will end by itself. Otherwise the
      process leaves at once; where `listen` was not called (a notebook, a
      test), KeyboardInterrupt is raised instead. Runs on another thread.
  """
  main = threading.current_thread() is threading.main_thread()
  default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
  _catchers.append(catcher)
  if main and default:
    signal.signal(signal.SIGINT, _raise_unless_caught)
  try:
    yield
  finally:
    _catchers.remove(catcher)
    if main and default:
      signal.signal(signal.SIGINT, signal.default_int_handler)


def _raise_unless_caught(*_) -> None:
  if not _caught():
    raise KeyboardInterrupt


def call(command: Sequence[str]) -> int:
  """Runs another of our commands on this terminal; returns its status.

  Raises:
    KeyboardInterrupt: after Ctrl-C, once the command has saved and left.
  """
  process, heard = subprocess.Popen(command), []

  def tell_it():
    # A terminal sends it SIGINT too; of that, a second one would not save.
    heard.append(signal.SIGINT)
    process.terminate()
    return len(heard) < 2

  with caught_by(tell_it):
    status = process.wait()
  if heard:
    raise KeyboardInterrupt
  return status


def ignore(worker: int, workers: int) -> None:
  """For data workers, which a terminal sends Ctrl-C too: their process decides.

  They leave with it, also if it is killed: else they would wait for ever, with
  its memory, and with the output that whoever started it reads to its end.

  Args:
    worker: index of this one.
    workers: how many there are.
  """
  del worker, workers
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  if parent := multiprocessing.parent_process():
    threading.Thread(
      target=_leave_with, args=(parent,), name="parent", daemon=True
    ).start()


def _leave_with(parent: Any) -> None:
  parent.join()
  os._exit(STATUS)


@contextlib.contextmanager
def cleanup(function: Callable[[], None]) -> Iterator[None]:
  """Runs `function` if Ctrl-C ends the process while the block runs."""
  _cleanups.append(function)
  try:
    yield
  finally:
    _cleanups.remove(function)


def leave() -> NoReturn:
  """Ends the process now, its data workers with it."""
  tell("interrupted")
  late = threading.Timer(_CLEANUP_SECONDS, os._exit, (STATUS,))
  late.daemon = True
  late.start()
  for function in reversed(_cleanups):
    with contextlib.suppress(Exception):  # nobody is left to mend it
      function()
  for child in multiprocessing.active_children():
    child.terminate()
  os._exit(STATUS)


def tell(line: str) -> None:
  """A line on stderr, whatever lock the main thread holds on it."""
  with contextlib.suppress(OSError):
    os.write(2, f"{line}\n".encode())
