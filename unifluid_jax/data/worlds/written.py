"""The procedural data sets that a configuration asks for, on disk."""

from etils import epath

from unifluid_jax.core.config import Config
from unifluid_jax.data.worlds import in_context, shapes, shapes_builder


def write_world(config: Config) -> str:
  """The procedural data set, at the path its sources name."""
  options = dict(config.data.world)
  seed = options.pop("seed")
  sizes = {
    split: options.pop(split) for split in ("train", "validation", "held_out")
  }
  dialogues = options.pop("in_context", 0)
  (path,) = {
    s.path
    for s in config.data.train.values()
    if not in_context.is_written(config.data, s)
  }
  where = str(epath.Path(config.data.root) / path)
  done = _done(where)
  world = shapes.World(**options)
  shapes_builder.build(where, world, sizes, seed)
  counts = ", ".join(f"{n:,} {split}" for split, n in sizes.items())
  said = f"{done} the data set: {counts} scenes in {where}"
  if not dialogues:
    return said
  where += in_context.SUFFIX
  done = _done(where)
  in_context.build(where, world, dialogues, seed)
  return f"{said}; {done} {dialogues:,} dialogues in {where}"


def _done(where: str) -> str:
  return "kept" if epath.Path(where).exists() else "wrote"
