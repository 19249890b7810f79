"""Orbax checkpoints: asynchronous, atomic, resumable, self-describing.

A workdir holds `checkpoints/<step>/{state,meta}`: the training state, and a
JSON with the configuration, the data position and the tokenizer's digest.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from unifluid_jax.config import CheckpointConfig

_MEND = (
  "Delete this step to go on from an older one, or choose another --workdir"
)


class CheckpointError(ValueError):
  """A checkpoint that cannot be used; the message says which and why."""


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: str, config: CheckpointConfig):
    """Opens `workdir/checkpoints` for saving and restoring."""
    self._manager = ocp.CheckpointManager(
      epath.Path(workdir).resolve() / "checkpoints",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.keep,
        keep_period=config.keep_every or None,
        enable_async_checkpointing=True,
      ),
      item_names=("state", "meta"),
    )

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts writing; a step that is already there is left alone."""
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
      ),
      force=True,
    )

  def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """State and meta of a step.

    Args:
      step: which.
      like: the state as ShapeDtypeStructs with shardings.

    Raises:
      CheckpointError: the files are damaged or hold other shapes.
    """
    where = self._manager.directory / str(step)
    check_shapes(where, like)
    try:
      got = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore()
        ),
      )
    except (ValueError, KeyError, FileNotFoundError, TypeError) as e:
      raise CheckpointError(
        f"cannot restore {where}: {_first_line(e)}. {_MEND}"
      ) from e
    return got.state, got.meta

  def wait(self) -> None:
    """Blocks until what was saved is on disk."""
    self._manager.wait_until_finished()

  def reached_preemption(self, step: int) -> bool:
    """Whether all processes were told to stop (multi-process runs)."""
    return self._manager.reached_preemption(step)

  def close(self) -> None:
    """Finishes writing and releases the directory."""
    self._manager.close()


def steps(workdir: str) -> list[int]:
  """Complete checkpoints of a workdir, oldest first."""
  root = epath.Path(workdir) / "checkpoints"
  if not root.exists():
    return []
  names = [p.name for p in root.iterdir() if p.name.isdigit()]
  done = [n for n in names if (root / n / "_CHECKPOINT_METADATA").exists()]
  return sorted(int(n) for n in done)


def read_meta(workdir: str, step: int) -> dict[str, Any]:
  """The JSON saved beside a state.

  Raises:
    CheckpointError: it is missing or torn.
  """
  path = epath.Path(workdir) / "checkpoints" / str(step) / "meta" / "metadata"
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, json.JSONDecodeError) as e:
    raise CheckpointError(f"{path}: {_first_line(e)}") from e


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


def saved_part(workdir: str, step: int, name: str) -> Any:
  """The tree of a part, its leaves with `shape` and `dtype`; reads no array.

  Raises:
    CheckpointError: missing or damaged.
  """
  path = _state(workdir, step)
  if not path.exists():
    raise CheckpointError(f"no checkpoint at {path.parent}")
  saved = _saved_shapes(path)
  for part in name.split("/"):
    saved = (saved or {}).get(part)
  if not saved:
    raise CheckpointError(f"{path.parent} holds no {name!r}")
  return saved


def read_part(workdir: str, step: int, name: str, like: Any) -> Any:
  """`restore_part` of some leaves only, whose shapes the caller has checked."""
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
  with ocp.PyTreeCheckpointer() as reader:
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
  return epath.Path(workdir).resolve() / "checkpoints" / str(step) / "state"


def latest_step(workdir: str) -> int:
  """The newest complete step.

  Raises:
    CheckpointError: there is none.
  """
  found = steps(workdir)
  if not found:
    raise CheckpointError(
      f"no complete checkpoint under {Path(workdir) / 'checkpoints'}: train "
      "first (python -m unifluid_jax.main), or correct the path"
    )
  return found[-1]


def check_shapes(step_dir: Any, like: Any) -> None:
  """Compares a saved state with what the configuration builds.

  Raises:
    CheckpointError: lists arrays that are missing, extra or of other shape.
  """
  saved = _saved_shapes(epath.Path(step_dir) / "state")
  _compare(step_dir, saved, like)


def _saved_shapes(path: Any) -> Any:
  """The metadata tree of a saved state."""
  try:
    meta = ocp.PyTreeCheckpointHandler().metadata(path)
  except (ValueError, KeyError, FileNotFoundError) as e:
    raise CheckpointError(
      f"{path} is damaged: {_first_line(e)}. {_MEND}"
    ) from e
  tree = getattr(meta, "item_metadata", meta)
  tree = getattr(tree, "tree", tree)
  if not jax.tree.leaves(tree):
    raise CheckpointError(f"{path} is damaged: no array is listed. {_MEND}")
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


def _first_line(error: Exception) -> str:
  text = str(error).strip().splitlines()
  logging.vlog(1, "%s", error)
  return f"{type(error).__name__}: {text[0] if text else ''}"
