"""Checksums of a folder's files, kept beside them in `digests.json`.

CRC-32 finds accidental damage (cut files, flipped bits), not forgery. Object
stores verify contents themselves: there only names and sizes are compared.
"""

import json
import os
import zlib
from collections.abc import Iterator
from concurrent import futures
from typing import Any

from absl import logging

from unifluid_jax.core import files

NAME = "digests.json"
_BLOCK = 1 << 22  # bytes
_THREADS = 4  # zlib and reads release the interpreter's lock


def write(folder: str | os.PathLike[str]) -> None:
  """Records all files of a folder that nobody writes to any more."""
  root = files.path(folder)
  names = [n for n in _walk(root) if not n.rsplit("/", 1)[-1].startswith(".")]
  rows = _map(lambda name: _measure(root / name), names)
  table = dict(zip(names, rows, strict=True))
  files.write(root / NAME, json.dumps({"crc32": table}, indent=0))


def problem(folder: str | os.PathLike[str], under: str = "") -> str | None:
  """What is wrong with the files of a folder; None if nothing is known.

  Args:
    folder: as given to `write`.
    under: check only files of this subfolder.

  Returns:
    One line that names the file, or None: all agree, or no digests were
    recorded.
  """
  root = files.path(folder)
  try:
    table = json.loads((root / NAME).read_text())["crc32"]
    wanted = {
      name: (int(size), crc)
      for name, (size, crc) in table.items()
      if name.startswith(f"{under}/" if under else "")
    }
  except FileNotFoundError:
    logging.vlog(1, "%s has no %s and is read unchecked", root, NAME)
    return None
  except (ValueError, KeyError, TypeError, AttributeError):
    return f"{NAME} cannot be read"

  def compare(name):
    size, crc = wanted[name]
    try:
      found, now = _measure(root / name, size)
    except FileNotFoundError:
      return f"{name} is missing"
    if found != size:
      return f"{name} has {found:,} bytes instead of {size:,}"
    changed = None not in (crc, now) and crc != now
    return f"{name} has changed since it was saved" if changed else None

  return next(filter(None, _map(compare, wanted)), None)


def _measure(path: Any, size: int | None = None) -> tuple[int, int | None]:
  """Bytes and CRC-32; the latter only locally and where `size` is right."""
  length = path.stat().length
  if files.is_remote(path) or size not in (None, length):
    return length, None
  crc = 0
  with open(path, "rb") as f:
    while block := f.read(_BLOCK):
      crc = zlib.crc32(block, crc)
  return length, crc


def _walk(folder: Any, prefix: str = "") -> Iterator[str]:
  """Relative names of all files below, sorted."""
  for path in sorted(folder.iterdir(), key=lambda p: p.name):
    if path.is_dir():
      yield from _walk(path, f"{prefix}{path.name}/")
    elif prefix or path.name != NAME:
      yield f"{prefix}{path.name}"


def _map(function, names) -> list[Any]:
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(function, names))
