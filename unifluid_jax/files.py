"""Files, local or on an object store: paths, atomic writes, digests.

Every file that a run leaves behind is written by `write` or `replaced`:
whoever reads it, at any moment, finds the old content or the new one, whole.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator

from etils import epath


def path(name: str | os.PathLike[str]) -> epath.Path:
  """A path on this machine or, as gs://bucket/..., on an object store."""
  return epath.Path(name)


def is_remote(name: str | os.PathLike[str]) -> bool:
  """Whether a path lies on an object store."""
  return "://" in os.fspath(name)


def write(name: str | os.PathLike[str], data: bytes | str) -> None:
  """Replaces a file's content at once; makes its folder.

  Args:
    name: the file.
    data: bytes, or text that is stored as UTF-8.
  """
  content = data.encode() if isinstance(data, str) else data
  if is_remote(name):
    path(name).write_bytes(content)  # an object appears whole or not at all
    return
  with replaced(name) as partial, open(partial, "wb") as f:
    f.write(content)
    f.flush()
    os.fsync(f.fileno())


@contextlib.contextmanager
def replaced(name: str | os.PathLike[str]) -> Iterator[str]:
  """A name beside a local file, which takes its place when the block ends.

  If the block raises, the file stays as it was and nothing is left beside it.
  """
  target = path(name)
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
  try:
    yield os.fspath(partial)
    partial.replace(target)
  finally:
    partial.unlink(missing_ok=True)


def digest(data: bytes) -> str:
  """SHA-256 in hexadecimal."""
  return hashlib.sha256(data).hexdigest()
