"""Orbax checkpoints: asynchronous, atomic, resumable, self-describing.

A workdir holds `checkpoints/<step>/{state,meta}`: the training state, and a
JSON with the configuration, the data position and the tokenizer's digest.
`digests.json` beside them is written once the step is complete; a step without
it (of an older run, or of one that was killed just then) is read unchecked.
"""

import json
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from unifluid_jax.core import digests, files
from unifluid_jax.core.checkpoint_files import (
  CheckpointDamagedError,
  CheckpointError,
  check,
  is_complete,
  raise_if_gone,
  reading,
  root,
  step_path,
  steps,
)
from unifluid_jax.core.checkpoint_files import CheckpointGone as CheckpointGone
from unifluid_jax.core.config import CheckpointConfig

DAMAGED = "damaged"  # folder of a workdir: steps that training set aside


class Checkpoints:
  """Saves the checkpoints of one workdir."""

  def __init__(self, workdir: str, config: CheckpointConfig):
    """Opens `workdir/checkpoints` for saving, and makes it if need be."""
    self._workdir = workdir
    self._manager = ocp.CheckpointManager(
      root(workdir),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.keep,
        keep_period=config.keep_every or None,
        enable_async_checkpointing=True,
        # Of saves that a kill or a full disk cut short: a state's size each.
        cleanup_tmp_directories=True,
      ),
      item_names=("state", "meta"),
    )
    self._sealing: threading.Thread | None = None
    self._finished = threading.Event()  # Orbax is, with what is being sealed

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts writing; a step that is already there is left alone."""
    self.wait()  # the newest step's digests come before deletions of old ones
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
      ),
      force=True,
    )
    if jax.process_index() == 0:
      self._finished = threading.Event()
      self._sealing = threading.Thread(
        target=_seal,
        args=(step_path(self._workdir, step), self._finished),
        daemon=True,
      )
      self._sealing.start()

  def wait(self) -> None:
    """Blocks until what was saved is on disk."""
    try:
      self._manager.wait_until_finished()
    finally:
      self._finished.set()
    if self._sealing is not None:
      self._sealing.join()
      self._sealing = None

  def close(self) -> None:
    """Finishes writing and releases the directory."""
    try:
      self.wait()
    finally:
      self._manager.close()


def _seal(folder: Any, finished: threading.Event) -> None:
  """Records the digests of a step once all of its files are there."""
  pause = 2.0 if files.is_remote(folder) else 0.05
  while not is_complete(folder):
    if finished.wait(pause) and not is_complete(folder):
      return  # saving failed: whoever waits for it raises
  try:
    digests.write(folder)
  except OSError as error:
    logging.warning("%s: no digests: %s", folder, error)


def reached_preemption(step: int) -> bool:
  """Whether all processes were told to stop (multi-process runs)."""
  return ocp.utils.reached_preemption(step)


# ----------------------------------------------------------------- steps


class Restored(NamedTuple):
  """Where a run goes on from."""

  step: int | None  # None: nothing was saved
  state: Any
  damaged: dict[int, str]  # newer steps that cannot be used: why


def restore_newest(workdir: str, like: Any) -> Restored:
  """The newest state whose files are whole; changes nothing on disk.

  In runs of several processes the first one checks the digests for all.

  Args:
    workdir: of the run.
    like: the state as ShapeDtypeStructs with shardings.

  Raises:
    CheckpointError: of other shapes than `like`, or none is whole.
  """
  step, damaged = newest_whole(workdir)
  while step is not None:
    try:
      return Restored(step, restore(workdir, step, like), damaged)
    except CheckpointDamagedError as error:
      # Without digests damage shows while reading, and maybe to one process.
      if jax.process_count() > 1:
        raise
      damaged = damaged | {step: str(error)}
      step, damaged = newest_whole(workdir, damaged)
  return Restored(None, None, {})


def newest_whole(
  workdir: str, damaged: Mapping[int, str] | None = None
) -> tuple[int | None, dict[int, str]]:
  """The newest step with intact files, and what is wrong with newer ones.

  Args:
    workdir: of the run.
    damaged: steps known to be damaged, and why.

  Returns:
    The step, None if nothing was saved; the same on all processes. What is
    wrong is known to the first process only.

  Raises:
    CheckpointDamagedError: there are checkpoints, but none is whole.
  """
  damaged, found = dict(damaged or {}), None
  if jax.process_index() == 0:
    for step in reversed(steps(workdir)):
      if step in damaged:
        continue
      try:
        check(step_path(workdir, step))
      except CheckpointDamagedError as error:
        damaged[step] = str(error)
      else:
        found = step
        break
  nothing = -1 if not damaged else -2
  code = nothing if found is None else found
  if jax.process_count() > 1:
    code = int(multihost_utils.broadcast_one_to_all(np.int64(code)))
  if code == -2:
    raise CheckpointDamagedError(
      "no checkpoint is whole: " + "; ".join(damaged.values())
      if damaged else f"no checkpoint of {workdir} is whole"
    )  # fmt: skip
  return (None if code == -1 else code), damaged


def set_aside(workdir: str, step: int) -> Any:
  """Moves a damaged step to `<workdir>/damaged`, where no step is sought.

  Returns:
    Its new path.
  """
  folder = files.path(workdir) / DAMAGED
  folder.mkdir(parents=True, exist_ok=True)
  names = [str(step), *(f"{step}.{i}" for i in range(1, 1000))]
  target = next(folder / n for n in names if not (folder / n).exists())
  step_path(workdir, step).rename(target)
  return target


def latest_step(workdir: str) -> int:
  """The newest complete step.

  Raises:
    CheckpointError: there is none.
  """
  found = steps(workdir)
  if not found and (files.path(workdir) / "config.json").exists():
    raise CheckpointError(
      f"{workdir} holds an exported model or another library's, here a run is "
      "read: name its workdir, or what python -m unifluid_jax.weights made of "
      "another library's model"
    )
  if not found:
    raise CheckpointError(
      f"no complete checkpoint under {workdir}/checkpoints: train "
      "first (python -m unifluid_jax.main), or correct the path"
    )
  return found[-1]


# ---------------------------------------------------------------- reading


def restore(workdir: str, step: int, like: Any) -> Any:
  """The whole state of a step.

  Args:
    workdir: of the run.
    step: which.
    like: the state as ShapeDtypeStructs with shardings.

  Raises:
    CheckpointError: the files are damaged, gone, or hold other shapes.
  """
  path = _state(workdir, step)
  _compare(path.parent, _saved_shapes(path), like)
  with reading(path.parent), ocp.StandardCheckpointer() as reader:
    return reader.restore(path, like)


def fingerprint(workdir: str, step: int) -> str:
  """Tells a saved state from any other, e.g. of a later run; "" if unknown."""
  path = step_path(workdir, step) / digests.NAME
  return files.digest(path.read_bytes()) if path.exists() else ""


def read_meta(workdir: str, step: int) -> dict[str, Any]:
  """The JSON saved beside a state.

  Raises:
    CheckpointError: it is missing or torn.
  """
  folder = step_path(workdir, step)
  check(folder, "meta")
  path = folder / "meta" / "metadata"
  with reading(folder):
    meta = json.loads(path.read_text())
    if not isinstance(meta, dict):
      raise ValueError(f"{path} is no JSON object")
  return meta


def read_config(workdir: str, step: int) -> dict[str, Any]:
  """The configuration of the run that saved a state.

  Raises:
    CheckpointError: see `read_meta`; or weights of no run.
  """
  config = read_meta(workdir, step).get("config")
  if not isinstance(config, dict):
    raise CheckpointError(
      f"{workdir} holds weights alone, no run: name the workdir of a run "
      "(python -m unifluid_jax.main)"
    )
  return config


def restore_part(workdir: str, step: int, name: str, like: Any) -> Any:
  """One top-level part of a saved state, e.g. "params" or "ema".

  Args:
    workdir: of the run.
    step: which checkpoint.
    name: field of TrainState, or a path into it: "params/vae".
    like: that part as ShapeDtypeStructs (with shardings where wanted).

  Raises:
    CheckpointError: missing, damaged, or of other shapes than `like`.
  """
  _compare(_state(workdir, step).parent, saved_part(workdir, step, name), like)
  return read_part(workdir, step, name, like)


def write_once(directory: str, state: Any, meta: Mapping[str, Any]) -> None:
  """Saves numpy arrays as step 0 of a directory, by one process alone.

  Args:
    directory: as a workdir; holds no checkpoint yet.
    state: nested dict of arrays.
    meta: JSON beside them.
  """
  folder = root(directory)
  folder.mkdir(parents=True, exist_ok=True)
  me = jax.process_index()
  options = ocp.CheckpointManagerOptions(
    create=False,
    enable_async_checkpointing=False,
    # Else it would wait for the other processes.
    multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix="once"
    ),
  )
  with ocp.CheckpointManager(
    folder, options=options, item_names=("state", "meta")
  ) as manager:
    manager.save(
      0,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
      ),
    )
  digests.write(step_path(directory, 0))


def saved_part(workdir: str, step: int, name: str) -> Any:
  """The tree of a part of an intact state: leaves with `shape` and `dtype`.

  Raises:
    CheckpointError: missing or damaged.
  """
  path = _state(workdir, step)
  check(path.parent, "state")
  saved = _saved_shapes(path)
  for part in name.split("/"):
    saved = (saved or {}).get(part)
  if not saved:
    raise CheckpointError(f"{path.parent} holds no {name!r}")
  return saved


def read_part(workdir: str, step: int, name: str, like: Any) -> Any:
  """`restore_part` of some leaves, which `saved_part` has shown to fit."""
  path = _state(workdir, step)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  item = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device
    ),
    like,
  )
  for part in reversed(name.split("/")):
    item = {part: item}
  with reading(path.parent), ocp.PyTreeCheckpointer() as reader:
    got = reader.restore(
      path,
      args=ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
      ),
    )
  for part in name.split("/"):
    got = got[part]
  return got


def _state(workdir: str, step: int) -> Any:
  return step_path(workdir, step) / "state"


def _saved_shapes(path: Any) -> Any:
  """The metadata tree of a saved state."""
  if not path.exists():
    raise_if_gone(path.parent)
  with reading(path.parent):
    meta = ocp.PyTreeCheckpointHandler().metadata(path)
    tree = getattr(meta, "item_metadata", meta)
    tree = getattr(tree, "tree", tree)
    if not jax.tree.leaves(tree):
      raise ValueError("no array is listed")
  return tree


def _compare(where: Any, saved: Any, like: Any) -> None:
  def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
      "/".join(_key(p) for p in path): tuple(x.shape) for path, x in leaves
    }

  have, want = flat(saved), flat(like)
  wrong = [
    f"{k}: checkpoint {have.get(k, 'missing')}, config {want.get(k, 'none')}"
    for k in sorted(have.keys() | want.keys())
    if have.get(k) != want.get(k)
  ]
  if wrong:
    shown = "; ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else "")
    raise CheckpointError(
      f"{where} was saved with another configuration ({len(wrong)} arrays "
      f"differ): {shown}. Use that run's config or another --workdir"
    )


def _key(entry: Any) -> str:
  for name in ("key", "name", "idx"):
    if hasattr(entry, name):
      return str(getattr(entry, name))
  return str(entry)
