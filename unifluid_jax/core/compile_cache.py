"""Compiled programs, kept on disk between starts by JAX's persistent cache.

JAX's keys hold the program, the versions, the compiler's options and the kind
of device; of a CPU that kind is "cpu", whatever its instructions. Programs
compiled for one CPU may hold instructions that another has not, so each set of
features has a folder of its own.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax
from absl import logging

# Below this a program is compiled again as fast as it is read.
_SECONDS = 0.1
_BYTES = 2 * 2**30


def enable() -> None:
  """Switches the cache on, unless the user's environment names another.

  $XDG_CACHE_HOME/unifluid_jax (by default ~/.cache/unifluid_jax); where that
  cannot be written, JAX warns and compiles as without it. What was made first
  is deleted beyond 2 GiB.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  where = folder()
  trim(where, _BYTES)
  jax.config.update("jax_compilation_cache_dir", str(where))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def trim(where: Path, limit: int) -> None:
  """Deletes the oldest files until the others have at most `limit` bytes."""
  total = 0
  try:
    found = [(x, x.stat()) for x in where.iterdir()] if where.is_dir() else []
    for path, info in sorted(found, key=lambda f: f[1].st_mtime, reverse=True):
      total += info.st_size
      if total > limit:
        path.unlink(missing_ok=True)
  except OSError as error:  # another process trims as well, or may not write
    logging.info("compiled programs are not trimmed: %s", error)


def folder() -> Path:
  """Where programs for this machine's CPU lie."""
  home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(home) / "unifluid_jax" / "compiled" / cpu_features()


def cpu_features() -> str:
  """Architecture and a digest of the instructions that this CPU has."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # no Linux
    lines = [f"flags: {platform.processor()}"]
  names = ("flags", "Features", "model name")
  found = sorted({x for x in lines if x.split(":")[0].strip() in names})
  digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
  return f"{platform.machine()}-{digest[:12]}"
