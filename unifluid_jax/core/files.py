"""Files, local or on an object store: paths, atomic writes, digests.

Every file that a run leaves behind is written by `write` or `replaced`, every
folder that must be whole by `new_folder`: whoever reads it, at any moment,
finds the old content or the new one, whole.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from fsspec import config as fsspec_config

# gcsfs would list a folder once and never again: an evaluation job would wait
# for ever for the next checkpoint, and a lock would see no other.
fsspec_config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def path(name: str | os.PathLike[str]) -> epath.Path:
  """A path on this machine or, as gs://bucket/..., on an object store.

  Raises:
    ValueError: an object store without the package that reaches it.
  """
  if os.fspath(name).startswith("gs://") and not _reaches_gcs():
    raise ValueError(
      f"{os.fspath(name)}: gs:// needs the package gcsfs: pip install gcsfs"
    )
  return epath.Path(name)


@functools.cache
def _reaches_gcs() -> bool:
  # epath prefers TensorFlow's file system where TensorFlow is installed.
  return any(map(importlib.util.find_spec, ("gcsfs", "tensorflow")))


def absolute(name: str | os.PathLike[str]) -> epath.Path:
  """The path from any working directory.

  epath's own `resolve` would make a local path of one on an object store.
  """
  there = path(name)
  return there if is_remote(there) else there.resolve()


def local(name: str | os.PathLike[str], what: str, key: str) -> str:
  """The path, for readers that know no object stores.

  Args:
    name: the path.
    what: lies there, as the error calls it.
    key: of the configuration, or a flag: where it is set.

  Raises:
    ValueError: the path is on an object store; says how to go on.
  """
  if is_remote(name):
    raise ValueError(
      f"{os.fspath(name)}: {what} must lie on a local disk: copy it there "
      f"(gcloud storage cp -r) and change {key}"
    )
  return os.fspath(name)


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


def write_npz(name: str | os.PathLike[str], /, **arrays: Any) -> None:
  """Replaces a file of named arrays, without compression."""
  data = io.BytesIO()
  np.savez(data, **arrays)
  write(name, data.getvalue())


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


@contextlib.contextmanager
def new_folder(name: str | os.PathLike[str]) -> Iterator[Path]:
  """A folder beside a local one, which becomes it when the block ends.

  If the block raises, nothing is left.

  Args:
    name: the folder; may exist as long as it is empty.

  Raises:
    OSError: it cannot be written, or holds something in the end.
  """
  target = Path(name).absolute()
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f".{target.name}.tmp-", dir=target.parent
  ) as private:
    made = Path(private) / target.name
    made.mkdir()  # unlike the temporary one, others may read it
    yield made
    made.rename(target)


@contextlib.contextmanager
def local_folder(name: str | os.PathLike[str]) -> Iterator[str]:
  """A local folder for libraries that write where they like.

  It is the folder itself or, for one on an object store, a temporary one that
  is copied there when the block ends, whatever ends it.
  """
  if not is_remote(name):
    yield os.fspath(name)
    return
  with tempfile.TemporaryDirectory() as folder:
    try:
      yield folder
    finally:
      upload(folder, name)


def upload(folder: str, target: str | os.PathLike[str], last: str = "") -> None:
  """Copies all files of a local folder to one on an object store.

  Args:
    folder: the local one.
    target: the other.
    last: files of this name say that all beside and below them is there:
      they are copied last, the outermost in the end.
  """

  def order(file: Path):
    return (1, -len(file.parts), file) if file.name == last else (0, 0, file)

  for file in sorted(Path(folder).rglob("*"), key=order):
    if file.is_file():
      destination = path(target) / file.relative_to(folder).as_posix()
      with file.open("rb") as source, destination.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 24)


def digest(data: bytes) -> str:
  """SHA-256 in hexadecimal."""
  return hashlib.sha256(data).hexdigest()


def check_regular(name: str | os.PathLike[str]) -> None:
  """Refuses FIFOs, devices and folders where a file is to be read.

  Raises:
    OSError: as opening it would.
    ValueError: it is no regular file.
  """
  if is_remote(name):
    return
  if not stat.S_ISREG(os.stat(name).st_mode):
    raise ValueError(f"{os.fspath(name)} is no regular file")
