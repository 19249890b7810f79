"""Figure 4: which samples stand where."""

import numpy as np

from unifluid_jax.evals.bench import Shown
from unifluid_jax.evals.published import scaling_figure

SIDE, GAP = 32, 1
SCALE = 2


def drawn(width, step, seeds, kind="generated"):
  """One image per seed whose colour tells cell and seed."""
  return [
    Shown(kind, np.full((SIDE, SIDE, 3), (width, step, seed), np.uint8),
          f"prompt {seed}", seed=seed)
    for seed in seeds
  ]  # fmt: skip


def at(pixels, row, column, i):
  """Colour in the middle of image i of a cell."""
  wide = SCALE * (3 * (SIDE + GAP) - GAP) + 16
  high = (len(pixels) - 16) // 2
  y = 16 + row * high + SCALE * (i // 3 * (SIDE + GAP) + SIDE // 2)
  x = 16 + column * wide + SCALE * (i % 3 * (SIDE + GAP) + SIDE // 2)
  return tuple(int(c) for c in pixels[y, x])


def test_sizes_are_rows_steps_columns_and_prompts_the_same_everywhere():
  shown = {
    (96, 20): drawn(96, 20, (5, 4, 3, 2, 1, 0)),  # in another order
    (96, 10): [],
    (48, 10): drawn(48, 10, (0, 7, 1, 2, 3, 4, 5)),
    (48, 20): drawn(48, 20, range(6)) + drawn(1, 1, (7,), "caption"),
  }
  figure = scaling_figure.grid(shown)
  order = (5, 4, 3, 2, 1, 0)  # that of the first cell; 7 is not in all
  assert figure.prompts == tuple(f"prompt {i}" for i in order)
  pixels = np.asarray(figure.picture)
  for row, width in enumerate((48, 96)):
    for column, step in enumerate((10, 20)):
      for i, seed in enumerate(order):
        blank = (width, step) == (96, 10)
        wanted = (255, 255, 255) if blank else (width, step, seed)
        assert at(pixels, row, column, i) == wanted


def test_at_most_six_prompts_and_none_without_samples():
  assert scaling_figure.grid({(48, 10): [], (96, 10): []}) is None
  apart = {(48, 10): drawn(48, 10, (0,)), (96, 10): drawn(96, 10, (1,))}
  assert scaling_figure.grid(apart) is None
  many = scaling_figure.grid({(48, 10): drawn(48, 10, range(9))})
  assert len(many.prompts) == 6
  one = scaling_figure.grid({(48, 10): drawn(48, 10, (3,))})
  assert one.picture.width == 2 * 16 + SCALE * SIDE
