"""Exported models: a trained model as a folder that can be shared.

  config.json        the configuration, and what was exported
  model.safetensors  trained parameters, averaged ones by default; large ones
                     in shards with an index, as transformers reads them
  codec.safetensors  the image tokenizer with the statistics of its latents;
                     one file for each frozen part of the system
  tokenizer.model    of text, where the system reads any
  digests.json       checksums of the files above
  README.md          model card; licenses/ what the data asks to be kept

Tensors are named by their paths, "decoder/embedder/table". Nothing in it is
unpickled or run.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unifluid_jax import systems
from unifluid_jax.core import digests, files
from unifluid_jax.core.checkpoint import CheckpointError
from unifluid_jax.core.parallel import path_str
from unifluid_jax.core.types import Params, System
from unifluid_jax.weights import safetensors_file
from unifluid_jax.weights.rows import Source, nested
from unifluid_jax.weights.safetensors_file import Safetensors, Sharded
from unifluid_jax.weights.untrusted import read_json

CONFIG = "config.json"
LIBRARY = "unifluid_jax"
FORMAT = 1  # of the folder; a later one may not be readable here
SHARD = 5 * 10**9  # bytes of one file at most, as transformers shards
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_MODEL = "model"
_ENDINGS = (".safetensors", ".safetensors.index.json")
_AGAIN = "copy, download or export it again"


# ---------------------------------------------------------------- reading


def is_exported(folder: str) -> bool:
  """Whether a folder looks like an exported model, whole or not."""
  if files.is_remote(folder):
    return False
  beside = (f"{_MODEL}{ending}" for ending in _ENDINGS)
  return (Path(folder) / CONFIG).is_file() and any(
    (Path(folder) / name).is_file() for name in (digests.NAME, *beside)
  )


def read_settings(folder: str) -> dict[str, Any]:
  """The content of config.json.

  Raises:
    CheckpointError: damaged, of another library or of a later format.
  """
  path = Path(folder) / CONFIG
  try:
    found = read_json(path)
  except ValueError as error:
    raise CheckpointError(f"{path} is damaged: {error}: {_AGAIN}") from error
  if not isinstance(found, dict) or found.get("library") != LIBRARY:
    raise CheckpointError(
      f"{path} is of no model of {LIBRARY}: weights of others are converted "
      "with python -m unifluid_jax.weights"
    )
  if found.get("format") != FORMAT:
    raise CheckpointError(
      f"{folder} has format {found.get('format')!r}, this version of {LIBRARY} "
      f"reads {FORMAT}: install version {found.get('version')} or newer"
    )
  if not isinstance(found.get("config"), dict):
    raise CheckpointError(f"{path} holds no configuration: {_AGAIN}")
  return found


def read_weights(
  folder: str, system: System
) -> tuple[Params, dict[str, Params]]:
  """Trained parameters and frozen parts, floating-point numbers as float32.

  Args:
    folder: exported.
    system: of its configuration; no other path that the configuration names
      is read.

  Raises:
    CheckpointError: files are damaged, missing, or of another model.
  """
  problem = digests.problem(folder)
  if problem:
    raise CheckpointError(f"{folder} is damaged: {problem}: {_AGAIN}")
  params = _read(folder, _MODEL, systems.init_shapes(system))
  shapes = systems.frozen_shapes(system)
  return params, {name: _read(folder, name, shapes[name]) for name in shapes}


def _read(folder: str, name: str, like: Params) -> Params:
  source, want = _open(folder, name), _flat(like)
  have = {key: source.shape(key) for key in source.names()}
  wrong = [
    f"{key} is {have.get(key, 'missing')}, expected "
    f"{want[key].shape if key in want else 'none'}"
    for key in sorted(have.keys() | want.keys())
    if key not in want or have.get(key) != want[key].shape
  ]
  if wrong:
    shown = "; ".join(wrong[:3]) + (" ..." if len(wrong) > 3 else "")
    raise CheckpointError(
      f"{source.path} does not fit {CONFIG} beside it ({len(wrong)} arrays "
      f"differ): {shown}. {_AGAIN.capitalize()}"
    )
  return nested(
    {key: jnp.asarray(source.read(key), x.dtype) for key, x in want.items()}
  )


def _open(folder: str, name: str) -> Source:
  """The tensors of one part, in one file or in shards.

  Raises:
    CheckpointError: there is no file.
    WeightsError: a damaged one.
  """
  single, index = (Path(folder) / f"{name}{ending}" for ending in _ENDINGS)
  if index.is_file() and single.is_file():
    # One of them is what an earlier export left, in a repository of the Hub
    # say: its numbers would be taken for these.
    raise CheckpointError(
      f"{folder} holds both {single.name} and {index.name}, and an export "
      f"writes one of them: remove the older one, or {_AGAIN}"
    )
  if index.is_file():
    return Sharded(str(index), index, Safetensors)
  if single.is_file():
    return Safetensors(str(single))
  raise CheckpointError(f"{single} is missing: {_AGAIN}")


def _flat(tree: Params) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_str(path): leaf for path, leaf in leaves}


# ---------------------------------------------------------------- writing


def write(
  place: Path,
  settings: Mapping[str, Any],
  parts: Mapping[str, Params],
  tokenizer: bytes | None,
  shard: int = SHARD,
) -> int:
  """Writes all that `read_settings` and `read_weights` read.

  Args:
    place: an empty folder.
    settings: further content of config.json, "config" the configuration.
    parts: of `stored_parts`.
    tokenizer: the file.
    shard: bytes of one file at most.

  Returns:
    Bytes of the weights.
  """
  size = 0
  for name, tree in parts.items():
    tensors = {key: np.asarray(x) for key, x in _flat(tree).items()}
    safetensors_file.write_shards(place, name, tensors, shard)
    size += sum(x.nbytes for x in tensors.values())
  head = {"library": LIBRARY, "format": FORMAT}
  content = json.dumps(head | dict(settings), indent=2)
  (place / CONFIG).write_text(content + "\n", encoding="utf-8")
  if tokenizer is not None:
    (place / "tokenizer.model").write_bytes(tokenizer)
  digests.write(place)
  return size


def stored_parts(
  system: System, params: Params, frozen: Mapping[str, Params], dtype: str
) -> dict[str, Params]:
  """File name → its tree, in the dtype in which it is stored.

  As in evaluation, bfloat16 is for networks: scalars, such as the scale of
  latents, and parts that are `exact`, whose codes it would change, keep
  float32.
  """
  exact = {name for name, part in system.frozen.items() if part.exact}

  def stored(x):
    network = x.ndim > 0 and jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(DTYPES[dtype]) if network else x

  return {_MODEL: jax.tree.map(stored, params)} | {
    name: part if name in exact else jax.tree.map(stored, part)
    for name, part in frozen.items()
  }


def without_home(tree: Any) -> Any:
  """JSON whose paths below the home directory begin with ~.

  A shared folder does not tell who made it on which machine.
  """
  home = os.path.expanduser("~")
  if isinstance(tree, Mapping):
    return {key: without_home(value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [without_home(value) for value in tree]
  if isinstance(tree, str) and f"{tree}/".startswith(f"{home}/"):
    return f"~{tree.removeprefix(home)}"
  return tree
