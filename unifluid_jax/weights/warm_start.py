"""Parameters from converted weights or another run, part by part.

UniFluid §4.1 starts from Gemma-2 and SigLIP; the projector, the image
embeddings and the diffusion head are new. What a run loads and what it starts
fresh is spelled out: nothing is skipped in silence.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unifluid_jax.core import checkpoint, parallel
from unifluid_jax.core.config import ConfigError, InitConfig
from unifluid_jax.core.parallel import path_str
from unifluid_jax.core.presets import DecoderConfig
from unifluid_jax.core.types import Params
from unifluid_jax.weights.rows import nested

_TABLE = "decoder/embedder/table"
_NEW_ROW_STD = 0.02  # of vocabulary rows the file lacks (PaliGemma §5.3)


def load(
  init: InitConfig, fresh: Params, shapes: Params
) -> tuple[Params, list[str]]:
  """`fresh` with every leaf that `init` names replaced.

  Args:
    init: what comes from where.
    fresh: initialised parameters.
    shapes: the same as ShapeDtypeStructs with shardings.

  Returns:
    Parameters in the dtypes and shardings of `shapes`, and a line for each
    source that says what it gave.

  Raises:
    ConfigError: a part that is neither loaded nor listed as new, or one that
      does not exist.
    checkpoint.CheckpointError: no, a damaged or another checkpoint.
  """
  wanted = plan(init, shapes)
  out, notes = _flat(fresh), []
  for path in dict.fromkeys(wanted.values()):
    names = [n for n, p in wanted.items() if p == path]
    got, note = _read(path, names, _flat(shapes), init.new)
    out |= got
    notes.append(note)
  notes += [f"fresh: {prefix}" for prefix in init.new]
  return nested(out), notes


def plan(init: InitConfig, shapes: Params) -> dict[str, str]:
  """Leaf → path it is read from, of every leaf that is not new.

  Raises:
    ConfigError: see `load`.
  """
  leaves, paths = _flat(shapes), init.paths
  for prefix in [*(p for p in paths if p != "all"), *init.new]:
    if not any(_below(leaf, prefix) for leaf in leaves):
      parts = ", ".join(sorted({leaf.split("/")[0] for leaf in leaves}))
      raise ConfigError(f"config.init names {prefix!r}, the model has {parts}")
  wanted = {}
  for leaf in leaves:
    if any(_below(leaf, prefix) for prefix in init.new):
      continue
    path = paths.get(leaf.split("/")[0]) or paths.get("all")
    if path is None:
      part = leaf.split("/")[0]
      raise ConfigError(
        f"config.init loads {', '.join(paths)} but not {leaf}: set "
        f"config.init.{part}, or add {part!r} to config.init.new"
      )
    wanted[leaf] = path
  return wanted


def other_settings(init: InitConfig, decoder: DecoderConfig) -> list[str]:
  """What a converted decoder was trained with and a run computes otherwise.

  Args:
    init: names the conversion, if it is one.
    decoder: of the run.

  Returns:
    A sentence that names the keys, or nothing. The vocabulary may differ
    (see `load`), and a rate of dropout belongs to the run.

  Raises:
    checkpoint.CheckpointError: no, or a damaged checkpoint.
  """
  path = init.decoder or init.all
  fresh = any(_below("decoder", prefix) for prefix in init.new)
  if not path or fresh:
    return []
  meta = checkpoint.read_meta(path, checkpoint.latest_step(path))
  theirs = meta.get("weights", {}).get("decoder", {})
  found = []
  for key, value in theirs.items():
    ours = getattr(decoder, key, None)
    value = tuple(value) if isinstance(value, list) else value
    if key != "vocab" and ours != value:
      found.append(f"--config.model.decoder.{key}={ours} (there {value})")
  if not found:
    return []
  return [
    f"warning: the decoder of {path} was trained with other settings: "
    f"{', '.join(found)}; set those that are not meant"
  ]


def _read(
  path: str, names: list[str], shapes: Mapping[str, Any], new: tuple[str, ...]
) -> tuple[dict[str, Any], str]:
  """The named leaves of one checkpoint."""
  step = checkpoint.latest_step(path)
  saved = _flat(checkpoint.saved_part(path, step, "params"))
  parts = {name.split("/")[0] for name in names}
  like, wrong = {}, []
  for name in names:
    want = shapes[name]
    have = tuple(saved[name].shape) if name in saved else "missing"
    if name == _TABLE and have != "missing" and have[1:] == want.shape[1:]:
      # Rows may differ in number; both are laid out alike.
      want = _of_rows(want, have)
    elif have != want.shape:
      wrong.append(f"{name}: there {have}, here {want.shape}")
    like[name] = want
  wrong += [
    f"{name}: there {tuple(leaf.shape)}, here none"
    for name, leaf in saved.items()
    if name.split("/")[0] in parts
    and name not in shapes
    and not any(_below(name, prefix) for prefix in new)
  ]
  if wrong:
    shown = "; ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else "")
    raise checkpoint.CheckpointError(
      f"{path} step {step} does not fit this model ({len(wrong)} arrays): "
      f"{shown}. Choose the model's preset, or list what is new in "
      "config.init.new"
    )
  got = _flat(checkpoint.read_part(path, step, "params", nested(like)))
  note = f"{', '.join(sorted(parts))} from {path} step {step}"
  if _TABLE in got and got[_TABLE].shape != shapes[_TABLE].shape:
    have, want = got[_TABLE].shape[0], shapes[_TABLE].shape[0]
    got[_TABLE] = _fit_rows(got[_TABLE], shapes[_TABLE])
    note += (
      f"; {have - want} vocabulary rows left out" if have > want
      else f"; {want - have} vocabulary rows fresh"
    )  # fmt: skip
  count = sum(math.prod(x.shape) for x in got.values())
  return got, f"{note} ({count:,} parameters)"


def _of_rows(like: Any, shape: tuple[int, ...]) -> Any:
  """The table with another number of rows, laid out by the same rule."""
  place = getattr(like, "sharding", None)
  if place is not None:
    spec = parallel.spec_of(_TABLE, shape, place.mesh)
    place = jax.sharding.NamedSharding(place.mesh, spec)
  return jax.ShapeDtypeStruct(shape, like.dtype, sharding=place)


def _fit_rows(table: Any, like: Any) -> Any:
  """Cuts the table, or adds rows drawn as PaliGemma draws new ones."""
  rows = like.shape[0]
  extra = max(rows - table.shape[0], 0)
  new = _NEW_ROW_STD * jax.random.normal(
    jax.random.key(0), (extra, *like.shape[1:]), like.dtype
  )
  whole = jnp.concatenate([table, new])[:rows]
  place = getattr(like, "sharding", None)
  return whole if place is None else jax.device_put(whole, place)


def _below(name: str, prefix: str) -> bool:
  return f"{name}/".startswith(f"{prefix}/")


def _flat(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_str(path): leaf for path, leaf in leaves}
