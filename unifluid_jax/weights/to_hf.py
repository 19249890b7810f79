"""The way back: our checkpoints as safetensors under Hugging Face names."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from unifluid_jax.weights import axes as notation
from unifluid_jax.weights import safetensors_file
from unifluid_jax.weights.rows import (
  Recipe,
  Row,
  Source,
  WeightsError,
  all_or_nothing,
  regex,
)

_PARAMS, _AVERAGE = "params/", "ema/"


class Params(Source):
  """The parameters of a checkpoint, by their paths below "params".

  Of a run that keeps averages those, as loading and export have them.

  Attributes:
    averaged: whether any is an average.
  """

  def __init__(self, checkpoint: Source):
    """Refuses what is no checkpoint of ours.

    Raises:
      WeightsError: it holds no "params".
    """
    self.path, self._inner = checkpoint.path, checkpoint
    there = checkpoint.names()
    self._places = {
      name.removeprefix(part): name
      for part in (_PARAMS, _AVERAGE)  # the latter over the former
      for name in there
      if name.startswith(part)
    }
    self.averaged = any(name.startswith(_AVERAGE) for name in there)
    if not any(name.startswith(_PARAMS) for name in there):
      shown = ", ".join(there[:3]) or "no array"
      raise WeightsError(
        f"{self.path} is no checkpoint of this project: expected arrays "
        f"below params/, found {shown}; name the --to of a conversion or the "
        "--workdir of a run"
      )

  def names(self) -> list[str]:
    """Paths below "params"."""
    return list(self._places)

  def shape(self, name: str) -> tuple[int, ...]:
    """From the metadata."""
    return self._inner.shape(self._places[name])

  def dtype(self, name: str) -> np.dtype:
    """From the metadata."""
    return self._inner.dtype(self._places[name])

  def read(self, name: str) -> np.ndarray:
    """The array."""
    return self._inner.read(self._places[name])


def write(directory: str, name: str, source: Source, recipe: Recipe) -> int:
  """Writes what `recipe` names, read backwards, as safetensors.

  Args:
    directory: must not exist; all of it is written or nothing.
    name: of the file in it, without its ending.
    source: parameters by their paths.
    recipe: its `like` lists what is written, its `files` are written too.

  Returns:
    How many tensors.

  Raises:
    WeightsError: `directory` exists, or an array has no Hugging Face name.
  """
  tensors = layout(source, recipe)
  with all_or_nothing(directory) as place:
    file = str(place / f"{name}.safetensors")
    safetensors_file.write(file, tensors, _tensors(source, recipe))
    for other, content in recipe.files.items():
      (place / other).write_text(json.dumps(content, indent=2))
  return len(tensors)


def layout(source: Source, recipe: Recipe) -> dict[str, Any]:
  """Hugging Face name → shape and dtype of all that `write` would write.

  Raises:
    WeightsError: an array has no Hugging Face name.
  """
  return {
    name: (shape, source.dtype(at))
    for at, inner in recipe.like.items()
    for name, (shape, _, _) in _parts(at, inner, recipe).items()
  }


def _tensors(
  source: Source, recipe: Recipe
) -> Iterator[tuple[str, np.ndarray]]:
  """One array of ours at a time, cut into its tensors."""
  for at, inner in recipe.like.items():
    whole = source.read(at)
    for name, (_, row, slot) in _parts(at, inner, recipe).items():
      x = whole if slot is None else whole[slot]
      move = notation.parse(row.axes)
      yield name, move.backward(x, _sizes(row, x.shape, recipe))


def _parts(
  path: str, shape: tuple[int, ...], recipe: Recipe
) -> dict[str, tuple[tuple[int, ...], Row, int | None]]:
  """Tensors that an array becomes: name to shape, row, place in the array."""
  for row in recipe.rows:
    match = regex(row.target).fullmatch(path)
    if not match:
      continue
    slots = range(shape[0]) if row.stacks else [None]
    inner = shape[1:] if row.stacks else shape
    out = {}
    for slot in slots:
      name = row.source.format(**match.groupdict(), **{row.stacks or "": slot})
      move = notation.parse(row.axes)
      out[name] = move.source_shape(_sizes(row, inner, recipe)), row, slot
    return out
  raise WeightsError(
    f"{path} {shape} has no Hugging Face name; --to-hf writes gemma, siglip "
    "and kl_vae: correct the kind in --from"
  )


def _sizes(row, shape, recipe):
  return dict(recipe.sizes) | notation.parse(row.axes).sizes_of(tuple(shape))
