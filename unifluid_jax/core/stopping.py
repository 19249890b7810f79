"""How a training run is told to stop."""

import contextlib
import os
import signal
import threading

import jax

from unifluid_jax.core import checkpoint, interrupt

# How a run begins its last line where it was stopped: it leaves with status 0.
TOLD = "told to stop"


class Stop(contextlib.ExitStack):
  """Turns SIGTERM and Ctrl-C into "save and leave" after the current step.

  Ctrl-C ends the process at once before the first step, when there is nothing
  to save, and the second time, also while saving.
  """

  def __init__(self):
    """Listens once it is entered; `can_save` is set after the first step."""
    super().__init__()
    self.can_save = False
    self._flag, self._interrupts = threading.Event(), 0

  def __enter__(self):
    # In a run of several processes jax.distributed listens for the signal; a
    # handler of ours would take its place, and nobody would hear of it.
    main = threading.current_thread() is threading.main_thread()
    if main and jax.process_count() == 1:
      old = signal.signal(signal.SIGTERM, lambda *_: self._flag.set())
      self.callback(signal.signal, signal.SIGTERM, old)
    self.enter_context(interrupt.caught_by(self._interrupted))
    return self

  def _interrupted(self) -> bool:
    self._interrupts += 1
    if self._interrupts > 1 or not self.can_save:
      return False
    interrupt.tell("interrupted: saving; once more leaves at once")
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # tells all processes
    self._flag.set()
    return True

  def requested(self, step: int) -> bool:
    """Whether to stop after this step; all processes answer alike."""
    if jax.process_count() > 1:
      return checkpoint.reached_preemption(step)
    return self._flag.is_set()
