"""Liquid's figure 4 (arXiv 2412.04332): samples by size and training step.

Every cell shows the same prompts, drawn from the same seeds: what scoring the
checkpoints kept of them, so nothing is drawn again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unifluid_jax.evals.bench import Shown
from unifluid_jax.evals.report.contact_sheet import contact_sheet

_PROMPTS = 6  # of a cell, in rows of _ACROSS
_ACROSS = 3
_GAP = 1  # white pixels between a cell's images
_SIDE = 64  # smaller images are enlarged to about it

Cell = tuple[int, int]  # width of the decoder, step of the checkpoint
_Drawn = tuple[str, int]  # prompt and seed


class Figure(NamedTuple):
  """The picture, and the prompts of each cell, row by row."""

  picture: Image.Image
  prompts: tuple[str, ...]


def grid(shown: Mapping[Cell, Sequence[Shown]]) -> Figure | None:
  """Sizes as rows, checkpoints as columns; None where nothing was drawn.

  Args:
    shown: of every checkpoint that belongs into the figure, examples of its
      scoring; a cell without any is drawn white.
  """
  drawn = {cell: _images(examples) for cell, examples in shown.items()}
  whole = [images for images in drawn.values() if images]
  if not whole:
    return None
  common = [k for k in whole[0] if all(k in images for images in whole)]
  common = common[:_PROMPTS]
  if not common:
    return None
  blank = np.full_like(whole[0][common[0]], 255)
  widths, steps = (sorted({cell[i] for cell in shown}) for i in range(2))
  tiles, captions = [], []
  for width in widths:
    for step in steps:
      images = drawn.get((width, step))
      tiles.append(_tile([images[k] if images else blank for k in common]))
      captions.append(f"width {width}, step {step}" if images else "")
  scale = max(1, _SIDE // len(blank))
  sheet = contact_sheet(tiles, captions, columns=len(steps), scale=scale)
  return Figure(sheet, tuple(prompt for prompt, _ in common))


def _images(examples: Sequence[Shown]) -> dict[_Drawn, Any]:
  """What was drawn from prompts, by prompt and seed."""
  return {
    (s.prompt, s.seed): np.asarray(s.image)
    for s in examples
    if s.kind == "generated" and s.seed is not None
  }


def _tile(images: Sequence[Any]) -> UInt8[np.ndarray, "H W 3"]:
  """Images in rows of _ACROSS; the last row is filled with white."""
  high, wide, _ = images[0].shape
  across = min(_ACROSS, len(images))
  rows = -(-len(images) // across)
  size = (rows * (high + _GAP) - _GAP, across * (wide + _GAP) - _GAP, 3)
  out = np.full(size, 255, np.uint8)
  for i, image in enumerate(images):
    y, x = i // across * (high + _GAP), i % across * (wide + _GAP)
    out[y : y + high, x : x + wide] = image
  return out
