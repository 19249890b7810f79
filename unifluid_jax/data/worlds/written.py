"""The data sets that `config.data.world` asks for, on disk.

`data.world.kind` says which world it is: "shapes" where nothing is said.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from unifluid_jax.core.config import Config, DataConfig, SourceConfig
from unifluid_jax.data.worlds import (
  chats,
  emoji_builder,
  in_context,
  shapes,
  shapes_builder,
  signs_builder,
)

# Beside the scenes: key of data.world that says how many there are.
BESIDE = {"in_context": in_context, "dialogues": chats, "signs": signs_builder}
SHAPES, EMOJI = "shapes", "emoji"
_SPLITS = ("train", "validation", "held_out")  # of shapes, by their sizes


def is_beside(data: DataConfig, source: SourceConfig) -> bool:
  """Whether a source is written beside the world's scenes.

  Its words are among those of the scenes' texts, letters of signs apart.
  """
  folder = source.path.partition("/")[0]
  suffixes = tuple(kind.SUFFIX for kind in BESIDE.values())
  return bool(data.world) and folder.endswith(suffixes)


def kind_of(data: DataConfig) -> str:
  """Which world the data are of.

  Raises:
    ValueError: it is none that is known.
  """
  kind = data.world.get("kind", SHAPES)
  if kind not in _WRITERS:
    raise ValueError(f"data.world.kind={kind!r}: {' or '.join(_WRITERS)}")
  return kind


def write_world(
  config: Config,
  spread: shapes_builder.Spread | None = None,
  first: bool = True,
) -> str:
  """The data set of the world, at the path its sources name.

  Args:
    config: names it.
    spread: divides scenes of shapes among processes, which all call this.
    first: whether this is the process that writes all else.

  Returns:
    What was done, for people.

  Raises:
    ValueError: options that the world has not, or another data set's place.
  """
  options = dict(config.data.world)
  options.pop("kind", None)
  kind = kind_of(config.data)
  if kind == SHAPES:
    return _write_shapes(config, options, spread, first)
  return _WRITERS[kind](config, options) if first else ""


def _write_shapes(
  config: Config,
  options: dict[str, Any],
  spread: shapes_builder.Spread | None = None,
  first: bool = True,
) -> str:
  _check_shapes(options)
  seed = options.pop("seed")
  sizes = {split: options.pop(split) for split in _SPLITS}
  counts = {key: options.pop(key, 0) for key in BESIDE}
  where = _where(config)
  done = _done(where)
  world = shapes.World(**options)
  shapes_builder.build(where, world, sizes, seed, spread)
  listed = ", ".join(f"{n:,} {split}" for split, n in sizes.items())
  said = [f"{done} the data set: {listed} scenes in {where}"]
  for key, kind in BESIDE.items():
    if counts[key] and first:
      beside = where + kind.SUFFIX
      done = _done(beside)
      signs = kind is signs_builder  # which show no scenes
      kind.build(beside, *(() if signs else (world,)), counts[key], seed)
      noun = "signs" if signs else "dialogues"
      said.append(f"{done} {counts[key]:,} {noun} in {beside}")
  return "; ".join(said)


def _check_shapes(options: Mapping[str, Any]) -> None:
  """Refuses keys that the world has not, and sizes that are no numbers."""
  fields = [field.name for field in dataclasses.fields(shapes.World)]
  needed = ("seed", *_SPLITS)
  known = {*fields, *needed, *BESIDE}
  if wrong := sorted(set(options) - known):
    raise ValueError(
      f"data.world has no {', '.join(wrong)}; known: {', '.join(sorted(known))}"
    )
  for key in needed:
    if type(options.get(key)) is not int:
      raise ValueError(f"data.world.{key}={options.get(key)!r}: a whole number")


def _write_emoji(config: Config, options: dict[str, Any]) -> str:
  packages = options.pop("packages", "")
  known = {field.name for field in dataclasses.fields(emoji_builder.World)}
  if wrong := sorted(set(options) - known):
    raise ValueError(
      f"data.world has no {', '.join(wrong)}; known: packages, "
      f"{', '.join(sorted(known))}"
    )
  options = {k: tuple(v) if isinstance(v, list) else v
             for k, v in options.items()}  # fmt: skip
  world, where = emoji_builder.World(**options), _where(config)
  done = _done(where)
  made = emoji_builder.build(where, world, packages)
  notice = made / emoji_builder.ATTRIBUTION
  sizes = emoji_builder.sizes(made)
  listed = ", ".join(f"{n:,} {split}" for split, n in sizes.items())
  return (
    f"{done} the data set: {listed} records of {', '.join(world.sets)} emoji "
    f"in {where}; authors and licences: {notice}"
  )


_WRITERS = {SHAPES: _write_shapes, EMOJI: _write_emoji}


def _where(config: Config) -> str:
  """The folder of the world's records, the same of all its sources."""
  (path,) = {
    s.path for s in config.data.train.values() if not is_beside(config.data, s)
  }
  return str(epath.Path(config.data.root) / path)


def _done(where: str) -> str:
  return "kept" if epath.Path(where).exists() else "wrote"
