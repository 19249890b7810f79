"""Files of JSON rows that grow: a run's metrics.jsonl and metrics_eval.jsonl.

A local file is appended to. An object cannot be appended to: on an object
store each call of `append` adds an object below `metrics/` or
`metrics_eval/`, named by the time, so that nothing is ever written over.
`read` takes whatever is there, also of a run that was copied from the one
kind of storage to the other. All readers of these files use it.
"""

import datetime
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from concurrent import futures
from typing import Any

from absl import logging
from etils import epath

from unifluid_jax.core import files

Row = dict[str, Any]
_THREADS = 16  # reading an object is mostly waiting


def append(
  name: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]
) -> None:
  """Adds rows, all of them or none; after a torn line they start a new one.

  Args:
    name: the file; its folder is made.
    rows: mappings with a "step".
  """
  text = "".join(json.dumps(row) + "\n" for row in rows)
  if not text:
    return
  path = files.path(name)
  if files.is_remote(path):
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
    files.write(_parts(path) / f"{now}-{uuid.uuid4().hex[:8]}.jsonl", text)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "ab+") as f:
    if f.tell():
      f.seek(-1, os.SEEK_END)
      text = text if f.read(1) == b"\n" else "\n" + text
    f.write(text.encode())


def read(name: str | os.PathLike[str]) -> list[Row]:
  """The rows in the order they were added; none if there is no file.

  Lines that are torn, as by a kill, are dropped and named in a warning.
  """
  path = files.path(name)
  whole, parts = [path] if path.exists() else [], []
  if _parts(path).is_dir():
    parts = sorted(_parts(path).glob("*.jsonl"), key=os.fspath)
  # What this storage adds to comes last.
  found = whole + parts if files.is_remote(path) else parts + whole
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    texts = list(pool.map(lambda p: p.read_bytes(), found))
  return [
    row
    for path, text in zip(found, texts, strict=True)
    for row in _rows(path, text)
  ]


def exists(name: str | os.PathLike[str]) -> bool:
  """Whether there is anything to read."""
  path = files.path(name)
  return path.exists() or _parts(path).is_dir()


def _parts(path: epath.Path) -> epath.Path:
  """The folder of the objects that stand for the file."""
  return path.parent / path.stem


def _rows(path: epath.Path, text: bytes) -> list[Row]:
  rows = []
  for number, line in enumerate(text.split(b"\n"), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("no row")
      rows.append(row)
    except ValueError:  # of JSON and of UTF-8 too
      logging.warning("%s:%d: dropped a torn line", path, number)
  return rows
