"""Which codec a run was trained with: digests, and the run's own copy.

A run keeps weights and statistics of its codec in its own folder, so that it
can be used wherever it is moved.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from unifluid_jax.core import checkpoint, files, freeze
from unifluid_jax.core.config import PRESETS, ConfigError
from unifluid_jax.core.parallel import path_str
from unifluid_jax.core.types import ImageCodec, Params

STATS = "latents.json"  # what `encode` measured, beside the weights
COPY = "codec"  # folder of a run
_DIGEST = "weights_sha256"  # in the JSON beside the copy's weights
# Settings of a network that no shape of its parameters tells.
_UNSEEN = ("groups", "normalised", "phi_ratio")


def digest(params: Params) -> str:
  """SHA-256 of named float32 weights, the same on any device and storage."""
  leaves = {
    path_str(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  total = hashlib.sha256()
  for name in sorted(leaves):
    array = np.ascontiguousarray(np.asarray(leaves[name]), "<f4")
    total.update(f"{name} {array.shape}\n".encode())
    total.update(array.data)
  return total.hexdigest()


def restore(path: str, part: str, like: Params, config: Any) -> Params:
  """The newest weights at `path`; a copy is checked against its digest.

  Args:
    path: of a run or of converted weights.
    part: their name among the parameters there, and among the model's settings.
    like: their shapes.
    config: of the network that is to use them.

  Raises:
    ConfigError: they were trained as another network of the same shapes.
    checkpoint.CheckpointError: no, another or a damaged checkpoint.
  """
  step = checkpoint.latest_step(path)
  params = checkpoint.restore_part(path, step, f"params/{part}", like)
  meta = checkpoint.read_meta(path, step)
  _check_unseen(path, part, meta, config)
  wanted = meta.get(_DIGEST)
  if wanted is not None and wanted != digest(params):
    raise checkpoint.CheckpointError(
      f"{path} step {step} is damaged: its weights are not those that were "
      "copied there. Delete the folder and name the codec's origin instead"
    )
  return params


def _check_unseen(
  path: str, part: str, meta: Mapping[str, Any], config: Any
) -> None:
  """Refuses what would be read without a word and computed otherwise."""
  theirs = (meta.get("weights") or {}).get(part)
  if not theirs:
    node = ((meta.get("config") or {}).get("model") or {}).get(part)
    try:
      made = node and freeze.build(type(config), node, part, PRESETS)
    except ConfigError:
      return  # of a version with other keys
    theirs = dataclasses.asdict(made) if made else {}
  ours = dataclasses.asdict(config)
  wrong = [
    f"config.model.{part}.{k}={ours[k]!r} (there {theirs[k]!r})"
    for k in _UNSEEN
    if k in ours and k in theirs and ours[k] != theirs[k]
  ]
  if wrong:
    raise ConfigError(
      f"{path} was trained with other settings: {', '.join(wrong)}; set its own"
    )


def read_stats(path: str) -> dict[str, Any] | None:
  """A codec's measured statistics; None if there are none.

  Where `encode` wrote it, "weights" is the digest of the weights, and "data"
  that of the data set.
  """
  file = epath.Path(path) / STATS
  if not path or not file.exists():
    return None
  try:
    stats = json.loads(file.read_text())
    if not isinstance(stats, dict):
      raise ValueError("no JSON object")
    return stats
  except ValueError as error:
    raise ConfigError(
      f"{file} is damaged ({error!r}): delete it and measure again with "
      "python -m unifluid_jax.encode"
    ) from error


def located(path: str, workdir: str) -> str:
  """The path of a run's codec.

  The run's own copy if it has one, else the configured path: as it is, or
  below one of the workdir's parent folders.
  """
  own = epath.Path(workdir) / COPY
  places = [own] if (own / STATS).exists() else []
  if path:
    places.append(epath.Path(path))
    if not files.is_remote(workdir):
      places += [f / path for f in epath.Path(workdir).resolve().parents]
  found = (str(p) for p in places if checkpoint.steps(str(p)))
  return next(found, path)


def copy(
  codec: ImageCodec,
  frozen: Params,
  identity: Mapping[str, Any],
  workdir: str,
) -> None:
  """Writes weights and statistics to the workdir, unless they exist.

  Called by one process. The statistics come last: with them the copy counts
  as complete.

  Args:
    codec: knows its weights and where they were read from.
    frozen: its weights.
    identity: their `codec.identity`.
    workdir: of the run.
  """
  place = epath.Path(workdir) / COPY
  mark = place / STATS
  if mark.exists() and read_stats(str(place)) == identity:
    return
  mark.unlink(missing_ok=True)
  if (place / "checkpoints").exists():
    (place / "checkpoints").rmtree()
  params, settings = codec.saved(frozen)
  state = {"params": jax.tree.map(np.asarray, params)}
  meta = {
    _DIGEST: identity["weights"],
    "copy_of": codec.path,
    "weights": settings,  # as beside converted ones
  }
  checkpoint.write_once(str(place), state, meta)
  files.write(mark, json.dumps(dict(identity)))
