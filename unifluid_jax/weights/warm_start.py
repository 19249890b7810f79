"""Parameters from converted weights or another run, part by part.

UniFluid §4.1 starts from Gemma-2 and SigLIP; the projector, the image
embeddings and the diffusion head are new. What a run loads and what it starts
fresh is spelled out: nothing is skipped in silence.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from unifluid_jax.core import checkpoint, freeze, parallel
from unifluid_jax.core.config import PRESETS, ConfigError
from unifluid_jax.core.parallel import path_str
from unifluid_jax.core.parameter_rows import Parts, longest_prefix
from unifluid_jax.core.presets import DecoderConfig
from unifluid_jax.core.types import Params
from unifluid_jax.weights import new_rows
from unifluid_jax.weights.rows import nested

NEW = "new"  # a prefix that starts fresh
_ALL = "all"  # what has no path of its own


Init = Mapping[str, str]  # prefix of config.init → path, or `NEW`


def paths(init: Init) -> dict[str, str]:
  """Prefix → path, where one is given."""
  return {k: v for k, v in init.items() if v and v != NEW}


def _new(init: Init) -> tuple[str, ...]:
  """Prefixes that start fresh."""
  return tuple(k for k, v in init.items() if v == NEW)


def load(
  init: Init,
  fresh: Params,
  shapes: Params,
  parts: Parts,
  tables: Collection[str] = (),
  rule: str = "random",
  seed: int = 0,
) -> tuple[Params, list[str]]:
  """`fresh` with every leaf that `init` names replaced.

  Args:
    init: what comes from where.
    fresh: initialised parameters.
    shapes: the same as ShapeDtypeStructs with shardings.
    parts: rows of the system's networks.
    tables: paths of parameters whose first axis, the vocabulary, may differ.
    rule: how rows start that a table lacks; see `new_rows.fit`.
    seed: of what `rule` draws.

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
  fit = functools.partial(new_rows.fit, rule=rule, seed=seed)
  for path in dict.fromkeys(wanted.values()):
    names = [n for n, p in wanted.items() if p == path]
    if "#" in path:
      got, note = _read_renamed(path, names, init, _flat(shapes), parts, fit)
    else:
      got, note = _read(
        path, names, _flat(shapes), _new(init), parts, tables, fit
      )
    out |= got
    notes.append(note)
  notes += [f"fresh: {prefix}" for prefix in _new(init)]
  return nested(out), notes


def plan(init: Init, shapes: Params) -> dict[str, str]:
  """Leaf → path it is read from, of every leaf that is not new.

  Raises:
    ConfigError: see `load`.
  """
  leaves, given, new = _flat(shapes), paths(init), _new(init)
  for prefix in [*(p for p in given if p != _ALL), *new]:
    if all(longest_prefix([prefix], leaf) is None for leaf in leaves):
      parts = ", ".join(sorted({leaf.split("/")[0] for leaf in leaves}))
      raise ConfigError(f"config.init names {prefix!r}, the model has {parts}")
  entries, wanted = {**given, **dict.fromkeys(new, NEW)}, {}
  entries.pop(_ALL, None)
  for leaf in leaves:
    path = entries.get(longest_prefix(entries, leaf), given.get(_ALL))
    if path == NEW:
      continue
    if path is None:
      part = leaf.split("/")[0]
      raise ConfigError(
        f"config.init loads {', '.join(given)} but not {leaf}: set "
        f"config.init.{part} to a path, or to {NEW!r}"
      )
    wanted[leaf] = path
  return wanted


def other_settings(init: Init, model: Any) -> list[str]:
  """What the decoder was trained with and a run computes otherwise.

  Args:
    init: names the conversion or the run that it comes from.
    model: of the run; its fields are named like the parts.

  Returns:
    A sentence that names the keys, or nothing. The vocabulary may differ
    (see `load`), and a rate of dropout belongs to the run.

  Raises:
    checkpoint.CheckpointError: no, or a damaged checkpoint.
  """
  decoder, given = getattr(model, "decoder", None), paths(init)
  path = (given.get("decoder") or given.get(_ALL) or "").partition("#")[0]
  if decoder is None or not path or init.get("decoder") == NEW:
    return []
  meta = checkpoint.read_meta(path, checkpoint.latest_step(path))
  theirs = meta.get("weights", {}).get("decoder", {})
  if "config" in meta and isinstance(decoder, DecoderConfig):
    theirs = _settings(meta["config"])
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


def _settings(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A run's decoder; nothing of a version with other keys."""
  node = (tree.get("model") or {}).get("decoder")
  try:
    made = node and freeze.build(DecoderConfig, node, "decoder", PRESETS)
  except ConfigError:
    return {}
  settings = dataclasses.asdict(made) if made else {}
  settings.pop("dropout", None)
  return settings


def other_ids(
  wanted: Mapping[str, str],
  tables: Collection[str],
  special: Mapping[str, Any],
  model: Any,
  meta: Mapping[str, Any],
) -> list[str]:
  """Whether rows of the vocabulary were other words in the run they are of.

  Args:
    wanted: leaf → path; see `plan`.
    tables: paths of parameters whose first axis is the vocabulary.
    special: config.text.special of this run.
    model: config.model of this run.
    meta: JSON of this run.

  Returns:
    A sentence for each path that says what differs, or nothing.

  Raises:
    checkpoint.CheckpointError: no, or a damaged checkpoint.
  """
  out = []
  for path in dict.fromkeys(wanted[name] for name in tables if name in wanted):
    place = path.partition("#")[0]
    was = checkpoint.read_meta(place, checkpoint.latest_step(place))
    found = []
    theirs, ours = (m.get("tokenizer_sha256") for m in (was, meta))
    if theirs and ours and theirs != ours:
      found.append(
        f"tokenizer {theirs[:8]}, config.text.tokenizer is {ours[:8]}"
      )
    tree = was.get("config") or {}
    named = (tree.get("text") or {}).get("special") or {}
    found += [
      f"config.text.special.{role}={named[role]!r}, here {here!r}"
      for role, here in special.items()
      if named.get(role, here) != here
    ]
    offset = getattr(model, "code_offset", None)
    before = (tree.get("model") or {}).get("code_offset", offset)
    if before != offset:
      found.append(f"config.model.code_offset={before}, here {offset}")
    if found:
      out.append(
        f"warning: rows of the vocabulary of {path} are of other words: there "
        f"{'; '.join(found)}"
      )
  return out


def _read_renamed(
  path: str,
  names: list[str],
  init: Init,
  shapes: Mapping[str, Any],
  parts: Parts,
  fit: Callable[[Any, Any, str], Any],
) -> tuple[dict[str, Any], str]:
  """The leaves of "PATH#NAME", a part that has another name here.

  Raises:
    ConfigError: several parts, or all, are to be read from it.
  """
  here = [prefix for prefix, p in init.items() if p == path]
  if len(here) != 1 or here == [_ALL]:
    raise ConfigError(
      f"config.init.{here[0]}={path!r}: one part is read from a part; give "
      "each its own path"
    )
  (prefix,), (source, _, name) = here, path.partition("#")
  below = {
    name + leaf.removeprefix(prefix): leaf
    for leaf in shapes
    if longest_prefix([prefix], leaf)
  }
  new = tuple(
    name + other.removeprefix(prefix)
    for other in _new(init)
    if longest_prefix([prefix], other)
  )
  wanted = [there for there, ours in below.items() if ours in names]
  like = {there: shapes[ours] for there, ours in below.items()}
  got, note = _read(source, wanted, like, new, parts, (), fit)
  return {below[there]: x for there, x in got.items()}, f"{prefix}: {note}"


def _read(
  path: str,
  names: list[str],
  shapes: Mapping[str, Any],
  new: tuple[str, ...],
  rows: Parts,
  tables: Collection[str],
  fit: Callable[[Any, Any, str], Any],
) -> tuple[dict[str, Any], str]:
  """The named leaves of one checkpoint."""
  step = checkpoint.latest_step(path)
  saved = _flat(checkpoint.saved_part(path, step, "params"))
  parts = {name.split("/")[0] for name in names}
  like, wrong = {}, []
  for name in names:
    want = shapes[name]
    have = tuple(saved[name].shape) if name in saved else "missing"
    if name in tables and have != "missing" and have[1:] == want.shape[1:]:
      # Rows may differ in number; both are laid out alike.
      want = _of_rows(name, want, have, rows)
    elif have != want.shape:
      wrong.append(f"{name}: there {have}, here {want.shape}")
    like[name] = want
  wrong += [
    f"{name}: there {tuple(leaf.shape)}, here none"
    for name, leaf in saved.items()
    if name.split("/")[0] in parts
    and name not in shapes
    and longest_prefix(new, name) is None
  ]
  if wrong:
    shown = "; ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else "")
    raise checkpoint.CheckpointError(
      f"{path} step {step} does not fit this model ({len(wrong)} arrays): "
      f"{shown}. Choose the model's preset, or set what is new to "
      "'new' in config.init"
    )
  got = _flat(checkpoint.read_part(path, step, "params", nested(like)))
  note = f"{', '.join(sorted(parts))} from {path} step {step}"
  for name in (n for n in tables if n in got):
    have, want = got[name].shape[0], shapes[name].shape[0]
    if have == want:
      continue
    got[name] = fit(got[name], shapes[name], name)
    note += (
      f"; {have - want} vocabulary rows left out" if have > want
      else f"; {want - have} vocabulary rows fresh"
    )  # fmt: skip
  count = sum(math.prod(x.shape) for x in got.values())
  return got, f"{note} ({count:,} parameters)"


def _of_rows(name: str, like: Any, shape: tuple[int, ...], parts: Parts) -> Any:
  """The table with another number of rows, laid out by the same rule."""
  place = getattr(like, "sharding", None)
  if place is not None:
    spec = parallel.spec_of(parts, name, shape, place.mesh)
    place = jax.sharding.NamedSharding(place.mesh, spec)
  return jax.ShapeDtypeStruct(shape, like.dtype, sharding=place)


def _flat(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_str(path): leaf for path, leaf in leaves}
