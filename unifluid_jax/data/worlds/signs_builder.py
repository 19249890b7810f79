"""Writes the world of signs as a data set of questions about images."""

import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from unifluid_jax.data.worlds import shapes, shapes_builder, signs

VERSION = "1.0.0"
SUFFIX = "_signs"  # of the data set's folder, after the world's

_SPLIT = "train"  # what evaluation asks for, it draws itself
_STREAM = 2  # of random numbers, beside those of scenes and dialogues


def build(
  directory: str | os.PathLike[str], size: int, seed: int = 0
) -> pathlib.Path:
  """Makes a data set of training signs, or finds it made already.

  See `shapes_builder.build`. Record i depends on seed and i alone.

  Args:
    directory: where it shall be, on a local file system.
    size: records.
    seed: of the data set.

  Returns:
    The directory.

  Raises:
    ValueError: the directory holds something else.
  """
  recipe = {"version": VERSION, "sizes": {_SPLIT: size}, "seed": seed}
  records = (record(seed, i) for i in range(size))

  def write(folder: pathlib.Path) -> None:
    shapes_builder.write_splits(folder, features(), VERSION, {_SPLIT: records})

  return shapes_builder.write_once(directory, recipe, write)


def features() -> tfds.features.FeaturesDict:
  """What a record holds; images are PNGs of different sizes."""
  f = tfds.features
  image = f.Image(shape=(None, None, 3), encoding_format="png")
  question = {"question": f.Text(), "answer": f.Text(), "kind": f.Text()}
  return f.FeaturesDict(
    {"id": f.Text(), "image": image, "questions": f.Sequence(question)}
  )


def record(seed: int, index: int) -> dict[str, Any]:
  """One example, as the features describe it: an image and its question."""
  stream = [seed, shapes.SPLITS.index(_SPLIT), index, _STREAM]
  sign = signs.sample_sign(np.random.default_rng(stream), _SPLIT)
  asked = {
    "question": signs.QUESTION,
    "answer": signs.spelled(sign.word),
    "kind": sign.kind,
  }
  return {
    "id": f"sign-{index:06d}",
    "image": shapes_builder.png(signs.draw(sign)),
    "questions": [asked],
  }
