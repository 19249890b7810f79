"""Orbax directories: read leaf by leaf, and written piece by piece.

Orbax saves trees that are whole in memory; a converted one never is. So the
writer gives Orbax a handler of its own for leaves that arrive in pieces, and
leaves names, metadata and the atomic commit to it.
"""

import asyncio
import contextlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging

from unifluid_jax.core import checkpoint_files
from unifluid_jax.core.files import is_remote
from unifluid_jax.weights.rows import (
  COMPLETE,
  Source,
  WeightsError,
  all_or_nothing,
  nested,
)
from unifluid_jax.weights.untrusted import check_regular, is_shape, read_json

# Bytes of one file of an array: small enough to shard, large enough to read.
_CHUNK = 8 * 2**20
_MARKS = ("_METADATA", "checkpoint", "manifest.ocdbt")
_ITEMS = ("state", "default", "params")


def find_orbax(path: Path) -> Path | None:
  """The directory of the tree at or below `path`; None if it holds none."""
  saved = [
    p for p in (path / checkpoint_files.FOLDER).glob("*")
    if re.fullmatch("[0-9]{1,18}", p.name)
  ]  # fmt: skip
  newest = sorted(saved, key=lambda p: int(p.name))[-1:]
  inner = [p / part for p in (*newest, path) for part in _ITEMS]
  for place in (path, *inner):
    if any((place / mark).is_file() for mark in _MARKS):
      return place
  return None


class OrbaxSource(Source):
  """A saved tree; names are its keys joined by "/"."""

  def __init__(self, path: str, where: Path):
    """Reads the tree's metadata.

    Raises:
      WeightsError: damaged.
    """
    self.path = path
    self._where = where.resolve()
    _check_files(self._where)
    try:
      meta = ocp.PyTreeCheckpointHandler().metadata(self._where)
      tree = getattr(meta, "item_metadata", meta)
      tree = getattr(tree, "tree", tree)
      found = jax.tree_util.tree_leaves_with_path(tree)
    except Exception as error:  # of whatever kind: the reader is not ours
      raise WeightsError(
        f"{path} is damaged: {_first_line(error)}; copy it again"
      ) from error
    self._leaves = {}
    for keys, leaf in found:
      keys = tuple(str(getattr(k, "key", getattr(k, "idx", k))) for k in keys)
      name = "/".join(keys)
      if getattr(leaf, "shape", None) is None:
        continue
      if name in self._leaves:
        raise WeightsError(f"{path}: {name} is there twice; copy it again")
      if not is_shape(leaf.shape):
        raise WeightsError(f"{path}: {name} has no shape; copy it again")
      self._leaves[name] = (keys, leaf)

  def names(self) -> list[str]:
    """All arrays."""
    return list(self._leaves)

  def shape(self, name: str) -> tuple[int, ...]:
    """From the metadata."""
    return tuple(self._leaves[name][1].shape)

  def dtype(self, name: str) -> np.dtype:
    """From the metadata."""
    return np.dtype(self._leaves[name][1].dtype)

  def read(self, name: str) -> np.ndarray:
    """Restores one leaf."""
    keys, _ = self._leaves[name]
    item: Any = jax.ShapeDtypeStruct(self.shape(name), self.dtype(name))
    args: Any = ocp.RestoreArgs(restore_type=np.ndarray)
    for key in reversed(keys):
      item, args = {key: item}, {key: args}
    try:
      with ocp.PyTreeCheckpointer() as reader:
        got = reader.restore(
          self._where,
          args=ocp.args.PyTreeRestore(
            item=item, restore_args=args, partial_restore=True
          ),
        )
      for key in keys:
        got = got[key]
    except Exception as error:  # of whatever kind: the reader is not ours
      raise WeightsError(
        f"{self.path}: {name} is damaged: {_first_line(error)}; copy it again"
      ) from error
    got = np.asarray(got)
    if got.shape != self.shape(name):
      raise WeightsError(
        f"{self.path}: {name} is damaged: {got.shape}, expected "
        f"{self.shape(name)}; copy it again"
      )
    return got


def _check_files(where: Path) -> None:
  """Refuses what Orbax would wait for, and descriptions without end.

  Raises:
    WeightsError: a pipe or a device, or a description that is no JSON.
  """
  for folder, _, names in os.walk(where):
    for name in names:
      file = Path(folder) / name
      check_regular(file)
      if not name.startswith((".z", "_")) or not file.is_file():
        continue
      try:
        if file.stat().st_size:
          read_json(file)
      except WeightsError:
        raise
      except (OSError, ValueError) as error:
        raise WeightsError(
          f"{file} is damaged: {_first_line(error)}; copy it again"
        ) from error


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:200]}"


def write(
  directory: str,
  leaves: Mapping[str, Any],
  meta: Mapping[str, Any],
  files: Mapping[str, Any],
) -> None:
  """Writes `directory/checkpoints/0`, all of it or nothing.

  Args:
    directory: must not exist.
    leaves: path below "params" to `engine.Leaf`.
    meta: JSON beside the weights.
    files: further JSON files of `directory`.

  Raises:
    WeightsError: `directory` exists, or a source turns out to be damaged.
  """
  with all_or_nothing(directory) as temporary:
    steps = temporary / checkpoint_files.FOLDER
    _write_tree(steps, {"params": nested(leaves)}, meta)
    for name, content in files.items():
      (temporary / name).write_text(json.dumps(content))
    if is_remote(directory):
      (steps / "0" / COMPLETE).write_text("")


def _write_tree(directory, tree, meta):
  leaf = type(jax.tree.leaves(tree)[0])
  handlers = ocp.type_handlers.create_type_handler_registry(
    (leaf, _Pieces()), (jax.Array, ocp.type_handlers.ArrayHandler())
  )
  options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
  with (
    _quiet(),
    ocp.CheckpointManager(
      directory,
      options=options,
      item_names=("state", "meta"),
      item_handlers={
        "state": ocp.PyTreeCheckpointHandler(
          use_ocdbt=False, type_handler_registry=handlers
        ),
        "meta": ocp.JsonCheckpointHandler(),
      },
    ) as manager,
  ):
    manager.save(
      0,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(tree), meta=ocp.args.JsonSave(dict(meta))
      ),
    )


@contextlib.contextmanager
def _quiet():
  """Without Orbax's warning that there are no OCDBT files to merge."""
  verbosity = logging.get_verbosity()
  if verbosity == logging.WARNING:
    logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


class _Pieces(ocp.type_handlers.TypeHandler):
  """Writes leaves one after another, piece by piece; read as any array is."""

  def typestr(self) -> str:
    return "jax.Array"

  async def metadata(self, infos):
    raise NotImplementedError("only writes")

  async def deserialize(self, infos, args=None):
    raise NotImplementedError("only writes")

  async def serialize(self, values, infos, args=None):
    del args
    for leaf, info in zip(values, infos, strict=True):
      await info.await_path_creation()
      await asyncio.to_thread(_write_leaf, leaf, info.parent_dir / info.name)
    return []


def _write_leaf(leaf, path):
  chunks = chunk_shape(leaf.shape, leaf.dtype.itemsize, leaf.rowwise)
  bf16 = leaf.dtype.name == "bfloat16"
  array = ts.open(
    {
      "driver": "zarr",
      "kvstore": {"driver": "file", "path": str(path)},
      "metadata": {
        "shape": list(leaf.shape),
        "chunks": list(chunks),
        "dtype": "bfloat16" if bf16 else leaf.dtype.str,
        "compressor": None,  # random-looking mantissas do not shrink
        "fill_value": None,
      },
    },
    create=True,
  ).result()
  done = 0
  for start, block in leaf.blocks(multiple=chunks[0] if chunks else 1):
    if leaf.shape:
      array[start : start + len(block)].write(block).result()
      done += len(block)
    else:
      array.write(block).result()
  if leaf.shape and done != leaf.shape[0]:
    raise WeightsError(
      f"{leaf.source.path}: {leaf.pieces[0].name} ended after {done} of "
      f"{leaf.shape[0]} rows; copy or download it again"
    )


def chunk_shape(
  shape: tuple[int, ...], itemsize: int, rowwise: bool
) -> tuple[int, ...]:
  """Shape of the pieces that a stored array consists of.

  Halves the leading axis, then the longest, until a piece fits `_CHUNK`.

  Args:
    shape: of the array.
    itemsize: bytes of a number.
    rowwise: it is written one entry of the leading axis at a time.
  """
  chunk = list(shape)
  if rowwise:
    chunk[0] = 1
  while math.prod(chunk) * itemsize > _CHUNK:
    axis = 0 if chunk[0] > 1 else int(np.argmax(chunk))
    chunk[axis] = -(-chunk[axis] // 2)
  return tuple(max(size, 1) for size in chunk)
