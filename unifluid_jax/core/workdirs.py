"""What a training run does to its workdir before its first step."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from unifluid_jax.core import checkpoint, lock


@contextlib.contextmanager
def claimed(
  workdir: str,
  restored: checkpoint.Restored,
  say: Callable[[str], None],
) -> Iterator[Callable[[], None]]:
  """Holds the workdir's lock, and prepares the workdir for this run.

  Args:
    workdir: of the run.
    restored: what the run starts from, read before the lock was taken.
    say: prints a line.

  Yields:
    A check that the lock is still ours, for process 0 to call.

  Raises:
    lock.LockedError: another process trains there.
  """
  with contextlib.ExitStack() as exits:
    mine: list[lock.Lock] = []

    def prepare():
      mine.append(exits.enter_context(lock.held(workdir, say)))
      newer = set(checkpoint.steps(workdir)) - set(restored.damaged)
      if max(newer, default=None) != restored.step:
        raise lock.LockedError(
          f"{workdir} was trained by another process while this one started: "
          "run the same command again"
        )
      for step, problem in restored.damaged.items():
        kept = checkpoint.set_aside(workdir, step)
        say(f"{problem}\nstep {step} is skipped, and kept in {kept}")

    on_first(prepare)
    yield lambda: mine[0].check()


def on_first(action: Callable[[], None]) -> None:
  """Runs `action` on process 0; if it raises, all processes do."""
  error = None
  if jax.process_index() == 0:
    try:
      action()
    except Exception as e:  # the other processes wait for an answer
      error = e
  failed = error is not None
  if jax.process_count() > 1:
    failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failed)))
  if failed:
    raise error or ValueError("process 0 stopped; its message says why")
