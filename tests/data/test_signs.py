"""Signs with small words: their drawing, their words, what a grid shows."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from configs import unitoken_shapes
from tests.systems.conftest import tiny
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import corpus, fields, tasks, text
from unifluid_jax.data.fields import Crops, Example, Picture
from unifluid_jax.data.images import decode_image
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.worlds import (
  shapes,
  shapes_builder,
  signs,
  signs_builder,
  written,
)

CONFIG = unitoken_shapes.get_config("reading")
PICTURE = """
  ..............
  .##..###..##..
  .#.#..#..#....
  .##...#...#...
  .#.#..#....#..
  .##..###.##...
  ..............
"""  # "bis", from half a cell before it, without the last row of the cells


def sample(count, split="train", seed=0):
  return [
    signs.sample_sign(np.random.default_rng([seed, i]), split)
    for i in range(count)
  ]


def ink(image):
  return (image == signs.INK).all(-1)


def test_a_sign_pixel_by_pixel():
  sign = signs.Sign("bis", (64, 32), 3, 2, "yellow", "light", 0)
  image = signs.plain(sign)
  assert image.shape == (32, 64, 3) and image.dtype == np.uint8
  board = np.zeros((32, 64), bool)
  board[16:24, 10:25] = True  # rows 2 of 8 pixels, columns 3 to 6 of 4
  rows = [line.strip() for line in PICTURE.split()]
  strokes = np.zeros((32, 64), bool)
  strokes[16:23, 11:25] = [[dot == "#" for dot in row] for row in rows]
  np.testing.assert_array_equal(ink(image), strokes)
  assert (image[board & ~strokes] == shapes.COLOURS["yellow"]).all()
  assert (image[~board] == shapes.BACKGROUNDS["light"]).all()


def test_the_grain_makes_every_pixel_lighter_or_darker():
  for sign in sample(8):
    image, plain = (f(sign).astype(int) for f in (signs.draw, signs.plain))
    lighter = image.sum(-1) > plain.sum(-1)
    np.testing.assert_array_equal(
      image,
      np.clip(plain + np.where(lighter, 30, -30)[..., None], 0, 255),
    )
    assert 0.4 < lighter.mean() < 0.6
    other = signs.draw(sign._replace(grain=sign.grain + 1))
    assert 0.4 < (other != image).any(-1).mean() < 0.6


def test_letters_differ_and_stand_out():
  glyphs = {signs.glyph(letter).tobytes() for letter in signs.LETTERS}
  assert len(glyphs) == len(signs.LETTERS) == 16
  assert {signs.glyph(letter).shape for letter in signs.LETTERS} == {(5, 3)}
  colours = [shapes.COLOURS.get(b, (236,) * 3) for b in signs.BOARDS]
  assert min(np.mean(c) for c in colours) > np.mean(signs.INK) + 3 * signs.GRAIN


def test_whole_words_are_drawn_everywhere_in_scenes_of_every_size():
  drawn = sample(400)
  for sign in drawn:
    count = sum(signs.glyph(letter).sum() for letter in sign.word)
    image = signs.plain(sign)
    assert image.shape == (*sign.size[::-1], 3)
    assert ink(image).sum() == count, sign
    # The board has a margin on all sides of the word.
    rows, columns = np.nonzero(ink(image))
    assert columns.min() >= 2 and columns.max() < sign.size[0] - 2
    assert rows.min() >= 1 and rows.max() < sign.size[1] - 2
  assert {s.size for s in drawn} == set(signs.SIZES)
  assert {s.board for s in drawn} == set(signs.BOARDS)
  assert {s.background for s in drawn} == set(shapes.BACKGROUNDS)
  wide = [s for s in drawn if s.size == (96, 32)]
  assert {s.row for s in wide} == set(range(4))
  assert (min(s.column for s in wide), max(s.column for s in wide)) == (1, 20)


def test_held_out_words_are_in_no_other_split():
  train, held = set(signs.words("train")), set(signs.words("held_out"))
  every = {"".join(w) for w in itertools.product(signs.LETTERS, repeat=3)}
  assert train | held == every and not train & held
  assert signs.words("validation") == signs.words("train")
  assert len(held) == 517  # about an eighth; the same for all time and seeds
  assert {"aaa", "top"} <= train and {"tea", "wow"} <= every
  digest = hashlib.sha256("".join(sorted(held)).encode()).hexdigest()
  assert digest[:12] == "77497580b32a"
  for seed in range(2):
    for split, allowed in (("train", train), ("held_out", held)):
      assert {s.word for s in sample(100, split, seed)} <= allowed
  for i in range(100):
    asked = signs_builder.record(7, i)["questions"][0]
    assert asked["answer"].replace(" ", "") in train


def test_records_depend_on_seed_and_index_alone():
  def content(seed, index):
    made = signs_builder.record(seed, index)
    return made["questions"], made["image"].getvalue()

  assert content(3, 5) == content(3, 5)
  assert content(3, 5) != content(3, 6) and content(3, 5) != content(4, 5)


# --------------------------------------------------------------- in the views


def views_of(sign, image):
  """Base view, and the crops put together again; u8. Their features."""
  m = CONFIG.model
  side = m.vit.image_size // m.vit.patch
  field = Crops("seen", m.vit.image_size, side, tuple(m.pinpoints))
  example = Example({}, {"seen": Picture((image,))})
  made = field.rows(example, None)
  views = np.round((made["views"] + 1) * 127.5).astype(np.uint8)
  columns, rows = (n // m.vit.image_size for n in sign.size)
  grid = views[1 : 1 + rows * columns]
  grid = grid.reshape(rows, columns, 32, 32, 3).swapaxes(1, 2)
  return views[0], grid.reshape(rows * 32, columns * 32, 3), made["valid"].sum()


@pytest.mark.parametrize("size", signs.SIZES)
def test_the_grid_shows_letters_unshrunk_and_the_base_view_does_not(size):
  signs_of_size = [s for s in sample(60) if s.size == size][:6]
  for sign in signs_of_size:
    _, grid, length = views_of(sign, signs.draw(sign))
    np.testing.assert_array_equal(grid, signs.draw(sign))
    # 4 x 4 features of each view; a new line ends each row of the grid.
    width, height = (n // 8 for n in size)
    assert length == 16 + height * (width + 1)
    # Without the grain, too, no letter is as it was drawn.
    base, grid, _ = views_of(sign, signs.plain(sign))
    windows = np.lib.stride_tricks.sliding_window_view(ink(base), (5, 3))
    for letter in sign.word:
      assert not (windows == signs.glyph(letter)).all((-2, -1)).any()
      windows_of_grid = np.lib.stride_tricks.sliding_window_view(
        ink(grid), (5, 3)
      )
      assert (windows_of_grid == signs.glyph(letter)).all((-2, -1)).any()
  assert signs_of_size


def test_no_letter_is_cut_by_a_patch_or_a_crop():
  for sign in sample(100):
    x, y = sign.column * 4, sign.row * 8 + 1
    for i in range(len(sign.word)):
      for start, length in ((x + 4 * i, 3), (y, 5)):
        assert start // 8 == (start + length - 1) // 8


# -------------------------------------------------------------- as a data set


def data_config(root, drawn):
  config = tiny()
  source = dataclasses.replace(config.data.train["shapes"], moments="")
  world = {"train": 4, "validation": 2, "held_out": 2, "seed": 0}
  train = {"shapes": source}
  if drawn:
    train["signs"] = SourceConfig("array_record", "shapes_signs",
                                  tasks=("i2t",))  # fmt: skip
    world["signs"] = drawn
  data = dataclasses.replace(
    config.data, root=str(root), world=world, train=train
  )
  words = dataclasses.replace(
    config.text, tokenizer=str(root / "t.model"), train_vocab=200
  )
  return dataclasses.replace(config, data=data, text=words)


def digests(root):
  return {
    str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest()
    for f in sorted(root.rglob("*"))
    if f.is_file()
  }


def test_prepare_writes_signs_beside_scenes_and_tokenizer_that_stay(tmp_path):
  plain, config = data_config(tmp_path, 0), data_config(tmp_path, 9)
  written.write_world(plain)
  corpus.make_tokenizer(plain, 200)
  before = digests(tmp_path)
  said = written.write_world(config)
  assert "kept the data set" in said and "wrote 9 signs in" in said
  assert corpus.make_tokenizer(config, 200).startswith("kept the tokenizer")
  after = digests(tmp_path)
  assert {k: after[k] for k in before} == before
  assert {k.split("/")[0] for k in set(after) - set(before)} == {"shapes_signs"}
  assert "kept 9 signs" in written.write_world(config)
  with pytest.raises(ValueError, match="another sizes"):
    written.write_world(data_config(tmp_path, 10))
  # As any system reads them: a question, and an image of any size.
  source = sources.open_source(config.data.train["signs"], str(tmp_path), "")
  served = [t for t in tasks.TASKS if len(source.indices(t)) and t != "edit"]
  assert "i2t" in served and len(source.indices("i2t")) == 9
  seen = fields.Pixels("seen", 32, "squash")
  options = tasks.Options(None, "caption en")
  for i in range(9):
    made = signs_builder.record(0, i)
    example = tasks.image_to_text(source[i], np.random.default_rng(0), options)
    (asked,) = made["questions"]
    assert example.texts == {
      "prefix": asked["question"], "suffix": asked["answer"]
    }  # fmt: skip
    assert source[i].kinds == (asked["kind"],)
    image = decode_image(source[i].image, 10**6)
    assert "{}x{}".format(*image.shape[1::-1]) == asked["kind"]
    assert seen.rows(example, None)[""].shape == (32, 32, 3)


def test_texts_fit_the_pieces_and_slots_of_the_scenes_tokenizer(tmp_path):
  records = [shapes_builder.record(shapes.World(), "train", 0, i)
             for i in range(100)]  # fmt: skip
  said = [t for r in records for t in (*r["prompts"], *r["captions"])]
  said += [q[k] for r in records for q in r["questions"]
           for k in ("question", "answer")]  # fmt: skip
  tokenizer = text.train(said, tmp_path / "t.model", 320)
  # Each slot has room for the end of a turn, too.
  assert len(tokenizer.encode(signs.QUESTION)) < CONFIG.text.prefix
  for letter in signs.LETTERS:
    ids = tokenizer.encode(letter)
    assert signs.LENGTH * len(ids) < CONFIG.text.suffix, letter
    assert tokenizer.special["unk"] not in ids
    answer = signs.spelled(letter * signs.LENGTH)
    assert tokenizer.decode(tokenizer.encode(answer)) == answer
