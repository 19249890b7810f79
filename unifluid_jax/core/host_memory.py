"""How the C library's allocator serves a process that computes on CPUs.

XLA's CPU backend asks for the temporary arrays of a step and frees them, at
every step. By default glibc gives blocks of this size back to the system and
gets them anew, page by page, which took a fifth of a training step of
configs/vargpt_shapes.py on two cores.
"""

import ctypes
import importlib.metadata
import importlib.util
import os

import jax

# Of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_LARGEST = 2**31 - 1
_PAD = 2**26


def keep_freed() -> bool:
  """Keeps what is freed for the next step; takes up to twice the memory.

  All threads share one arena then, which few threads of few large arrays do
  not notice: only where CPUs compute. Whoever has set MALLOC_... has chosen.
  Call it before JAX starts its backend.

  Returns:
    Whether anything was changed.
  """
  chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
               for name in os.environ)  # fmt: skip
  if chosen or not on_cpus():
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:  # another C library
    return False
  mallopt(_ARENA_MAX, 1)
  mallopt(_MMAP_MAX, 0)
  mallopt(_TRIM_THRESHOLD, _LARGEST)
  mallopt(_TOP_PAD, _PAD)
  return True


def on_cpus() -> bool:
  """Whether JAX will compute on CPUs, without starting it."""
  asked = jax.config.jax_platforms
  if asked:
    return asked == "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  packages = (importlib.util.find_spec(x) for x in ("jax_plugins", "libtpu"))
  return not plugins and not any(packages)
