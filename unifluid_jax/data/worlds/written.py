"""The procedural data sets that a configuration asks for, on disk."""

from etils import epath

from unifluid_jax.core.config import Config, DataConfig, SourceConfig
from unifluid_jax.data.worlds import (
  in_context,
  shapes,
  shapes_builder,
  signs_builder,
)

_SUFFIXES = (in_context.SUFFIX, signs_builder.SUFFIX)


def is_beside(data: DataConfig, source: SourceConfig) -> bool:
  """Whether a source is what is written beside the world's scenes.

  Its words are among those of the scenes' texts, letters apart.
  """
  return bool(data.world) and source.path.endswith(_SUFFIXES)


def write_world(config: Config) -> str:
  """The procedural data set, at the path its sources name."""
  options = dict(config.data.world)
  seed = options.pop("seed")
  sizes = {
    split: options.pop(split) for split in ("train", "validation", "held_out")
  }
  dialogues, drawn = options.pop("in_context", 0), options.pop("signs", 0)
  (path,) = {
    s.path for s in config.data.train.values() if not is_beside(config.data, s)
  }
  where = str(epath.Path(config.data.root) / path)
  done = _done(where)
  world = shapes.World(**options)
  shapes_builder.build(where, world, sizes, seed)
  counts = ", ".join(f"{n:,} {split}" for split, n in sizes.items())
  said = f"{done} the data set: {counts} scenes in {where}"
  if dialogues:
    beside = where + in_context.SUFFIX
    done = _done(beside)
    in_context.build(beside, world, dialogues, seed)
    said += f"; {done} {dialogues:,} dialogues in {beside}"
  if drawn:
    beside = where + signs_builder.SUFFIX
    done = _done(beside)
    signs_builder.build(beside, drawn, seed)
    said += f"; {done} {drawn:,} signs in {beside}"
  return said


def _done(where: str) -> str:
  return "kept" if epath.Path(where).exists() else "wrote"
