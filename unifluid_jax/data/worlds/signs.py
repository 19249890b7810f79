"""A procedural world of signs: scenes with one small word, wide, tall or large.

Letters are three pixels wide, under a grain as coarse as a pixel. Where a whole
scene is squashed to one square view their strokes run together and drown in the
grain; the crops of an any-resolution grid (UniToken, arXiv 2504.04423, §3.1)
show them as they were drawn.

As in a terminal, letters stand in cells of 4 x 8 pixels, so that a small
vision encoder meets each of them in few places of its patches.
"""

import functools
import itertools
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from unifluid_jax.data.worlds.shapes import BACKGROUNDS, COLOURS

Size = tuple[int, int]  # width, height

# Not 32 x 64: letters are still legible at half their height alone.
SIZES: tuple[Size, ...] = ((64, 32), (96, 32), (32, 96), (64, 64))
QUESTION = "what does the sign say"
LENGTH = 3  # letters of a word
CELL = (4, 8)  # width and height, in pixels

INK = (24, 24, 30)  # darker than the dark background
# All much lighter than the ink.
BOARDS = ("orange", "yellow", "pink", "white")
# That every pixel is lighter or darker. Without it nothing is lost: of a letter
# whose place is known, a linear classifier reads 95 % in the squashed view.
GRAIN = 30

_WHITE = (236, 236, 236)
_HELD_OUT = 8  # one word in so many
_FIRST_ROW = 1  # of a letter in its cell, whose first column is its own first

# Three by five pixels each, row by row. All are letters of `shapes_text`'s
# texts: a tokenizer that learned those can write them.
_GLYPHS = {
  "a": "010 101 111 101 101",
  "b": "110 101 110 101 110",
  "c": "011 100 100 100 011",
  "d": "110 101 101 101 110",
  "e": "111 100 110 100 111",
  "f": "111 100 110 100 100",
  "g": "011 100 101 101 011",
  "i": "111 010 010 010 111",
  "m": "101 111 111 101 101",
  "n": "111 101 101 101 101",
  "o": "111 101 101 101 111",
  "p": "110 101 110 100 100",
  "s": "011 100 010 001 110",
  "t": "111 010 010 010 010",
  "w": "101 101 111 111 101",
  "y": "101 101 010 010 010",
}
LETTERS = "".join(_GLYPHS)


class Sign(NamedTuple):
  """One scene: a word on a board before a plain background."""

  word: str
  size: Size
  column: int  # of the cell of the first letter
  row: int
  board: str  # out of BOARDS
  background: str  # out of `shapes.BACKGROUNDS`
  grain: int  # seed of it

  @property
  def kind(self) -> str:
    """See `kind_of`."""
    return kind_of(self.size)


def kind_of(size: Size) -> str:
  """What questions about scenes of a size are called, e.g. "96x32"."""
  return "{}x{}".format(*size)


@functools.cache
def words(split: str) -> tuple[str, ...]:
  """The words of a split; those of "held_out" are in no other, for any seed."""
  every = map("".join, itertools.product(LETTERS, repeat=LENGTH))
  held = split == "held_out"
  return tuple(word for word in every if _is_held_out(word) == held)


def _is_held_out(word: str) -> bool:
  return zlib.crc32(word.encode()) % _HELD_OUT == 0


def spelled(word: str) -> str:
  """The answer to `QUESTION`: the letters one by one."""
  return " ".join(word)


def sample_sign(rng: np.random.Generator, split: str = "train") -> Sign:
  """A word of a split on a board somewhere in a scene.

  Args:
    rng: source of all randomness.
    split: "train", "validation" or "held_out".
  """

  def pick(options):
    return options[int(rng.integers(len(options)))]

  size = pick(SIZES)
  columns, rows = size[0] // CELL[0], size[1] // CELL[1]
  # Half a cell of the board stands on either side of the word.
  column = int(rng.integers(1, columns - LENGTH))
  row = int(rng.integers(rows))
  board, background = pick(BOARDS), pick([*BACKGROUNDS])
  grain = int(rng.integers(1 << 31))
  return Sign(pick(words(split)), size, column, row, board, background, grain)


def draw(sign: Sign) -> UInt8[np.ndarray, "H W 3"]:
  """The scene as an image."""
  image = plain(sign).astype(np.int16)
  lighter = np.random.default_rng(sign.grain).integers(2, size=image.shape[:2])
  image += np.where(lighter, GRAIN, -GRAIN)[..., None].astype(np.int16)
  return np.clip(image, 0, 255).astype(np.uint8)


def plain(sign: Sign) -> UInt8[np.ndarray, "H W 3"]:
  """The scene without its grain."""
  width, height = sign.size
  image = np.empty((height, width, 3), np.uint8)
  image[:] = BACKGROUNDS[sign.background]
  wide, high = CELL
  left, top = sign.column * wide, sign.row * high
  right = left + len(sign.word) * wide
  board = image[top : top + high, left - wide // 2 : right + wide // 2 - 1]
  board[:] = COLOURS.get(sign.board, _WHITE)
  for i, letter in enumerate(sign.word):
    y, x = top + _FIRST_ROW, left + i * wide
    strokes = glyph(letter)
    rows, columns = strokes.shape
    image[y : y + rows, x : x + columns][strokes] = INK
  return image


def glyph(letter: str) -> Bool[np.ndarray, "5 3"]:
  """The pixels of a letter that are ink."""
  rows = _GLYPHS[letter].split()
  return np.array([[bit == "1" for bit in row] for row in rows])
