"""What the entry points share: start, speech, errors in one line."""

from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging

from unifluid_jax import freeze, interrupt

# What a user can mend; anything else is a bug and shows its traceback.
USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError)


def run(entry: Callable[[list[str]], Any], positional: int = 0) -> None:
  """Runs an entry point under absl; user errors are one line, status 1.

  Arguments that are no flags are refused beyond `positional` of them.

  Libraries may warn; --verbosity=0 lets them inform, --verbosity=1 also shows
  the traceback of user errors. Ctrl-C ends the process at once, status 130,
  where the work does not catch it.
  """
  interrupt.listen()

  def guarded(argv):
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)
    if len(argv) > 1 + positional:
      unknown = " ".join(argv[1 + positional :])
      raise app.UsageError(f"unknown arguments: {unknown}")
    try:
      return entry(argv)
    except USER_ERRORS as error:
      if logging.get_verbosity() > logging.INFO:
        raise
      raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
      interrupt.leave()

  app.run(guarded)


def speaker() -> Callable[[str], None]:
  """print on process 0, silence elsewhere."""
  if jax.process_index() == 0:
    return lambda line: print(line, flush=True)
  return lambda line: None


def differences(tree: dict[str, Any], default: dict[str, Any]) -> list[str]:
  """Leaves of `tree` that `default` has not, or has with another value."""
  old, new = freeze.leaves(default), freeze.leaves(tree)
  return [
    f"{key} = {value!r}"
    for key, value in sorted(new.items())
    if key not in old or old[key] != value
  ]
