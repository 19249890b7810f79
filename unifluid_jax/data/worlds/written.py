"""The procedural data sets that a configuration asks for, on disk."""

from etils import epath

from unifluid_jax.core.config import Config, DataConfig, SourceConfig
from unifluid_jax.data.worlds import (
  chats,
  in_context,
  shapes,
  shapes_builder,
  signs_builder,
)

# Beside the scenes: key of data.world that says how many there are.
BESIDE = {"in_context": in_context, "dialogues": chats, "signs": signs_builder}


def is_beside(data: DataConfig, source: SourceConfig) -> bool:
  """Whether a source is written beside the world's scenes.

  Its words are among those of the scenes' texts, letters of signs apart.
  """
  folder = source.path.partition("/")[0]
  suffixes = tuple(kind.SUFFIX for kind in BESIDE.values())
  return bool(data.world) and folder.endswith(suffixes)


def write_world(
  config: Config,
  spread: shapes_builder.Spread | None = None,
  first: bool = True,
) -> str:
  """The procedural data set, at the path its sources name.

  Args:
    config: names it.
    spread: divides the scenes among processes, which all call this.
    first: whether this is the process that writes what is beside them.

  Returns:
    What was done, for the log.
  """
  options = dict(config.data.world)
  seed = options.pop("seed")
  sizes = {
    split: options.pop(split) for split in ("train", "validation", "held_out")
  }
  counts = {key: options.pop(key, 0) for key in BESIDE}
  (path,) = {
    s.path for s in config.data.train.values() if not is_beside(config.data, s)
  }
  where = str(epath.Path(config.data.root) / path)
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


def _done(where: str) -> str:
  return "kept" if epath.Path(where).exists() else "wrote"
