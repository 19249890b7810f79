"""Writes the world of shapes to ArrayRecord through tensorflow-datasets.

No TensorFlow is needed to write or read it: images travel as PNG bytes. Read
with `tfds.builder_from_directory(directory).as_data_source(split)`.
"""

import base64
import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from unifluid_jax.core import files
from unifluid_jax.data.images import encode_image
from unifluid_jax.data.worlds import shapes, shapes_text, wordings
from unifluid_jax.data.worlds.shapes import Scene

VERSION = "2.0.0"  # minor: fields were added, the others are the same
SIZES = {"train": 16_000, "validation": 1024, "held_out": 512}

_RECIPE = "recipe.json"
_PROMPTS = 4
_CHUNK = 1024
_SHARD = 1 << 20

# Makes a file of numbered pieces, maybe with the help of others: see
# `core.shards.make` for the arguments.
Spread = Callable[
  [
    str,
    Mapping[str, Any],
    int,
    Callable[[int, str], None],
    Callable[[Sequence[str]], None],
    Callable[[], bool],
  ],
  None,
]


def build(
  directory: str | os.PathLike[str],
  world: shapes.World,
  sizes: Mapping[str, int] = SIZES,
  seed: int = 0,
  spread: Spread | None = None,
) -> pathlib.Path:
  """Makes the data set, or finds it made already.

  It is written beside `directory` and renamed when complete, so that an
  interrupted build leaves nothing that looks finished.

  Args:
    directory: where it shall be, on a local file system.
    world: what its scenes hold.
    sizes: records per split; splits are those of `shapes.SPLITS`.
    seed: record i of a split depends on seed, split and i alone.
    spread: divides the making of the records; default: all here. Changes
      nothing in the result.

  Returns:
    The directory.

  Raises:
    ValueError: the directory holds something else, or sizes name unknown
      or empty splits.
  """
  unknown = [s for s in sizes if s not in shapes.SPLITS]
  if unknown or not sizes or min(sizes.values()) < 1:
    raise ValueError(
      f"sizes={dict(sizes)}: give at least 1 record to some of the splits "
      f"{', '.join(shapes.SPLITS)}"
    )

  made_of = recipe(VERSION, world, sizes, seed)

  def write(records: Callable[[str], Iterator[dict[str, Any]]]) -> pathlib.Path:
    def fill(folder: pathlib.Path) -> None:
      splits = {split: records(split) for split in sizes}
      write_splits(folder, features(world.canvas), VERSION, splits)

    return write_once(directory, made_of, fill)

  if spread is None:
    return write(
      lambda split: _records(world, split, range(sizes[split]), seed)
    )
  target = pathlib.Path(
    files.local(directory, "a data set", "config.data.root")
  )
  pieces = [
    (split, range(start, min(start + _CHUNK, size)))
    for split, size in sizes.items()
    for start in range(0, size, _CHUNK)
  ]

  def join(paths: Sequence[str]) -> None:
    def records(split: str) -> Iterator[dict[str, Any]]:
      for (of, _), path in zip(pieces, paths, strict=True):
        if of == split:
          yield from _from_lines(path)

    write(records)

  made = functools.partial(_is_built, target, made_of)
  if not made():
    write_piece = functools.partial(_write_piece, world, seed, pieces)
    spread(os.fspath(target), made_of, len(pieces), write_piece, join, made)
  return target


def _write_piece(
  world: shapes.World,
  seed: int,
  pieces: Sequence[tuple[str, range]],
  number: int,
  path: str,
) -> None:
  split, places = pieces[number]
  files.write(path, _to_lines(_records(world, split, places, seed)))


def write_once(
  directory: str | os.PathLike[str],
  recipe: dict[str, Any],
  write: Callable[[pathlib.Path], None],
) -> pathlib.Path:
  """Calls `write` with a new folder, unless its recipe's is there already.

  Args:
    directory: where it shall be, on a local file system.
    recipe: all that determines the content, see `recipe`.
    write: fills a folder that is renamed when it returns.

  Returns:
    The directory.

  Raises:
    ValueError: the directory holds something else.
  """
  key = "config.data.root"
  target = pathlib.Path(files.local(directory, "a data set", key))
  if _is_built(target, recipe):
    return target
  try:
    with files.new_folder(target) as made:
      write(made)
      (made / _RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")
  except OSError:
    # Another process may have finished the same build meanwhile.
    if not _is_built(target, recipe):
      raise
  return target


def features(canvas: int) -> tfds.features.FeaturesDict:
  """What a record holds; images are canvas x canvas PNGs."""
  f = tfds.features
  image = f.Image(shape=(canvas, canvas, 3), encoding_format="png")
  question = {"question": f.Text(), "answer": f.Text(), "kind": f.Text()}
  return f.FeaturesDict(
    {
      "id": f.Text(),
      "image": image,
      "prompts": f.Sequence(f.Text()),
      "captions": f.Sequence(f.Text()),
      "questions": f.Sequence(question),
      "edit": {"instruction": f.Text(), "target": image, "scene": f.Text()},
      "scene": f.Text(),
    }
  )


def record(
  world: shapes.World, split: str, seed: int, index: int
) -> dict[str, Any]:
  """One example, as the features describe it.

  Args:
    world: what the scene may hold.
    split: "train", "validation" or "held_out".
    seed: of the data set.
    index: of the record in its split.

  Returns:
    id; image; prompts, drawn independently, so that some may be equal;
    captions, the canonical one; questions; edit, with the scene that it leads
    to; and scene; scenes are the JSON of `shapes.scene_to_json`.
  """
  rng = np.random.default_rng([seed, shapes.SPLITS.index(split), index])
  scene = shapes.sample_scene(world, rng, split)
  said = texts(world, scene, split, rng)
  after = said["edit"].pop("target")
  said["edit"]["target"] = png(shapes.draw(world, after))
  said["edit"]["scene"] = shapes.scene_to_json(after)
  return {
    "id": f"{split}-{index:06d}",
    "image": png(shapes.draw(world, scene)),
    **said,
    "scene": shapes.scene_to_json(scene),
  }


def texts(
  world: shapes.World, scene: Scene, split: str, rng: np.random.Generator
) -> dict[str, Any]:
  """All that a record says of its scene.

  Prompts, questions and instructions of the training split are reworded at
  random; the other splits have the plain forms that figures speak of.

  Returns:
    prompts, captions, questions, and edit: its instruction, and as target the
    scene that it leads to.
  """
  edit = shapes_text.edit(world, scene, rng)
  questions = shapes_text.questions(world, scene, rng, split)
  prompts = [shapes_text.prompt(scene, rng) for _ in range(_PROMPTS)]
  asked, instruction = [q.question for q in questions], edit.instruction
  if split == "train":
    questions.append(shapes_text.description(scene))
    asked = [wordings.reworded(q.form, q.slots, rng) for q in questions]
    prompts = [wordings.prompt(p, rng) for p in prompts]
    instruction = wordings.reworded(edit.form, edit.slots, rng)
  return {
    "prompts": prompts,
    "captions": [shapes_text.caption(scene)],
    "questions": [
      {"question": text, "answer": q.answer, "kind": q.kind}
      for text, q in zip(asked, questions, strict=True)
    ],
    "edit": {"instruction": instruction, "target": edit.target},
  }


def recipe(
  version: str, world: shapes.World, sizes: Mapping[str, int], seed: int
) -> dict[str, Any]:
  """All that determines the records, as JSON gives it back."""
  found = {
    "version": version,
    "world": dataclasses.asdict(world),
    "sizes": dict(sizes),
    "seed": seed,
  }
  return json.loads(json.dumps(found))


def _is_built(target: pathlib.Path, recipe: dict[str, Any]) -> bool:
  """Whether the finished data set of this recipe stands there."""
  if not target.exists() or target.is_dir() and not any(target.iterdir()):
    return False
  path = target / _RECIPE
  if not path.is_file():
    raise ValueError(
      f"{target} exists and is no data set of this kind: choose another "
      "directory"
    )
  there = json.loads(path.read_text())
  keys = [k for k in recipe if there.get(k) != recipe[k]]
  if "version" in keys and _major(there) == _major(recipe):
    keys.remove("version")
  if keys:
    raise ValueError(
      f"{target} was built with another {', '.join(keys)}: "
      f"{ {k: there.get(k) for k in keys} } instead of "
      f"{ {k: recipe[k] for k in keys} }; delete it or choose another directory"
    )
  return True


def _major(recipe: dict[str, Any]) -> str:
  """The part of the version that changes with the scenes."""
  return str(recipe.get("version")).partition(".")[0]


def _records(
  world: shapes.World, split: str, places: range, seed: int
) -> Iterator[dict[str, Any]]:
  """Some of a split."""
  return (record(world, split, seed, i) for i in places)


def _to_lines(records: Iterable[dict[str, Any]]) -> str:
  """Records as JSON lines, their files in base64."""

  def text(file: io.BytesIO) -> dict[str, str]:
    return {"base64": base64.b64encode(file.getvalue()).decode()}

  return "".join(json.dumps(r, default=text) + "\n" for r in records)


def _from_lines(path: str) -> Iterator[dict[str, Any]]:
  """The inverse of `_to_lines`."""

  def file(found: dict[str, Any]) -> Any:
    if found.keys() != {"base64"}:
      return found
    return io.BytesIO(base64.b64decode(found["base64"]))

  with open(path, encoding="utf-8") as lines:
    for line in lines:
      yield json.loads(line, object_hook=file)


def write_splits(
  directory: pathlib.Path,
  features: tfds.features.FeaturesDict,
  version: str,
  splits: Mapping[str, Iterator[dict[str, Any]]],
  name: str = "shapes",
  description: str = "Procedural scenes of coloured shapes.",
) -> None:
  """All splits' records and the metadata that tfds reads."""
  identity = tfds.core.DatasetIdentity(
    name=name,
    version=tfds.core.Version(version),
    data_dir=str(directory),
    module_name="",
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    features=features,
    description=description,
  )
  writer = tfds.core.SequentialWriter(info, _SHARD, file_format="array_record")
  writer.initialize_splits(list(splits))
  for split, records in splits.items():
    while chunk := list(itertools.islice(records, _CHUNK)):
      writer.add_examples({split: chunk})
  writer.close_all()


def png(image: np.ndarray) -> io.BytesIO:
  """The image as an encoded file."""
  return io.BytesIO(encode_image(image, compress_level=1))
