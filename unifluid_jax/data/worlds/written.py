"""The procedural data sets that a configuration asks for, on disk."""

from etils import epath

from unifluid_jax.core.config import Config, DataConfig, SourceConfig
from unifluid_jax.data.worlds import (
  chats,
  in_context,
  shapes,
  shapes_builder,
)

# Dialogues beside the scenes: key of data.world that says how many there are.
DIALOGUES = {"in_context": in_context, "dialogues": chats}


def write_world(config: Config) -> str:
  """The procedural data set, at the path its sources name."""
  options = dict(config.data.world)
  seed = options.pop("seed")
  sizes = {
    split: options.pop(split) for split in ("train", "validation", "held_out")
  }
  counts = {key: options.pop(key, 0) for key in DIALOGUES}
  (path,) = {
    s.path
    for s in config.data.train.values()
    if not is_dialogues(config.data, s)
  }
  where = str(epath.Path(config.data.root) / path)
  done = _done(where)
  world = shapes.World(**options)
  shapes_builder.build(where, world, sizes, seed)
  listed = ", ".join(f"{n:,} {split}" for split, n in sizes.items())
  said = [f"{done} the data set: {listed} scenes in {where}"]
  for key, kind in DIALOGUES.items():
    if counts[key]:
      beside = where + kind.SUFFIX
      done = _done(beside)
      kind.build(beside, world, counts[key], seed)
      said.append(f"{done} {counts[key]:,} dialogues in {beside}")
  return "; ".join(said)


def is_dialogues(data: DataConfig, source: SourceConfig) -> bool:
  """Whether a source is dialogues that `write_world` writes, if it does."""
  folder = source.path.partition("/")[0]
  return bool(data.world) and any(
    folder.endswith(kind.SUFFIX) for kind in DIALOGUES.values()
  )


def _done(where: str) -> str:
  return "kept" if epath.Path(where).exists() else "wrote"
