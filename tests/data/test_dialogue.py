"""Rows of texts and images in their order."""

import dataclasses
import pickle

import numpy as np
import pytest

from tests.data.test_fields import encode, noise
from unifluid_jax.core.types import BOS, EOS, PAD
from unifluid_jax.data import fields, pipeline, tasks, text, transforms
from unifluid_jax.data.dialogue import Dialogue, Features
from unifluid_jax.data.fields import Example, Picture, Pixels
from unifluid_jax.data.records import BadRecord, Record, Turn

T, N, S = 24, 4, 8
BOI, EOI = 50, 51
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  words = ["a red circle", "two stars", "how many", "red", "two"]
  path = tmp_path_factory.mktemp("t") / "t.model"
  text.train(words * 9, path, 50)
  return text.Tokenizer.load(path, {"boi": BOI, "eoi": EOI})


@pytest.fixture
def made(tokenizer):
  """Turns as (text or seed of an image, target) → the arrays of their row."""

  def call(*turns, length=T, prompt=False):
    options = tasks.Options(tokenizer, "caption en")
    record = Record("r", b"", dialogue=tuple(map(turn, turns)))
    example = tasks.dialogue(record, RNG(0), options)
    field = Dialogue(length, N, S, "crop", prompt)
    rows = field.rows(example, None)
    shapes = field.shapes()
    assert list(rows) == list(shapes)
    for name, array in rows.items():
      assert (array.shape, array.dtype) == shapes[name], name
    return rows

  return call


def turn(given):
  content, target = given if isinstance(given, tuple) else (given, True)
  if isinstance(content, str):
    return Turn(content, target=target)
  return Turn(image=encode(noise(S, S, content)), target=target)


def spelt(rows, tokenizer):
  """Every slot in words: texts' pieces joined, c0... for codes, _ for pads."""
  names = {BOS: "bos", EOS: "eos", BOI: "boi", EOI: "eoi", PAD: "_"}
  names[tokenizer.special["newline"]] = "nl"
  cells = rows["cell"]
  return [
    f"c{c}" if c >= 0 else names.get(i) or tokenizer.decode([i]).strip()
    for i, c in zip(rows["ids"].tolist(), cells.tolist(), strict=True)
  ]


def test_texts_and_images_stand_in_their_order(made, tokenizer):
  rows = made(0, "red", 1, "two", "red")
  want = ["bos", "boi", "c0", "c1", "c2", "c3", "eoi", "red", "boi", "c4", "c5",
          "c6", "c7", "eoi", "two", "nl", "red", "eos"]  # fmt: skip
  assert spelt(rows, tokenizer) == want + ["_"] * (T - len(want))
  assert (rows["ids"][rows["cell"] >= 0] == PAD).all()
  assert rows["target"].tolist() == [False] + [True] * 17 + [False] * 6
  # Three images would fit, there are two.
  images = [transforms.to_float(noise(S, S, k)) for k in (0, 1)]
  np.testing.assert_array_equal(rows["codes.pixels"][:2], images)
  assert rows["codes.pixels"].shape == (3, S, S, 3)
  assert not rows["codes.pixels"][2].any()


@pytest.mark.parametrize("turns, counted", [
  # What ends a text that is learned counts: BOI, EOS, the newline.
  ([(0, False), "red", (1, False), "two"], "red boi two eos"),
  ([("red", False), 0], "boi c0 c1 c2 c3 eoi eos"),
  ([0, ("red", False)], "boi c0 c1 c2 c3 eoi"),
  ([("red", False), "two", ("red", False)], "nl two nl"),
  ([("red", False), ("two", False), 0], "boi c0 c1 c2 c3 eoi eos"),
])  # fmt: skip
def test_what_is_given_does_not_count(made, tokenizer, turns, counted):
  rows = made(*turns)
  found = np.array(spelt(rows, tokenizer))[rows["target"]]
  assert " ".join(found) == counted


def test_prompts_end_where_the_next_turn_begins(made, tokenizer):
  rows = made(0, "red", 1, prompt=True)
  want = ["bos", "boi", "c0", "c1", "c2", "c3", "eoi", "red", "boi", "c4", "c5",
          "c6", "c7", "eoi"]  # fmt: skip
  assert spelt(rows, tokenizer) == ["_"] * (T - len(want)) + want


def test_long_rows_lose_whole_turns(made, tokenizer):
  turns = 0, "red", 1, "two", 2, "red"  # 1 + 7 + 7 + 7, and EOS

  def at(length, prompt=False):
    rows = made(*turns, length=length, prompt=prompt)
    return " ".join(w for w in spelt(rows, tokenizer) if w != "_"), rows

  first = "boi c0 c1 c2 c3 eoi red"
  second = "boi c4 c5 c6 c7 eoi two"
  third = "boi c8 c9 c10 c11 eoi red"
  assert at(23)[0] == f"bos {first} {second} {third} eos"
  assert at(22)[0] == f"bos {first} {second} {third}"  # it fits without EOS
  assert at(21)[0] == f"bos {first} {second} boi c8 c9 c10 c11 eoi"
  assert at(20)[0] == f"bos {first} {second}"
  assert at(14)[0] == f"bos {first} boi c4 c5 c6 c7 eoi"
  assert at(22, True)[0] == f"bos {first} {second} {third}"
  assert at(9, True)[0] == "bos two boi c0 c1 c2 c3 eoi red"
  said, rows = at(21, True)
  # The first image is gone, and the pixels with it.
  again = "boi c0 c1 c2 c3 eoi two boi c4 c5 c6 c7 eoi red"
  assert said == f"bos red {again}"
  seen = [transforms.to_float(noise(S, S, k)) for k in (1, 2)]
  np.testing.assert_array_equal(rows["codes.pixels"][:2], seen)


def test_a_text_after_turns_that_are_left_out_begins_its_row(made, tokenizer):
  rows = made(0, "two", "red", length=8, prompt=True)
  assert spelt(rows, tokenizer)[-4:] == ["bos", "two", "nl", "red"]
  rows = made("two two two two", "red two red two", length=8, prompt=True)
  assert spelt(rows, tokenizer)[-5:] == ["bos", "red", "two", "red", "two"]


def test_one_text_that_is_too_long_is_cut(made, tokenizer):
  for prompt in (False, True):
    rows = made("two red " * 9, length=8, prompt=prompt)
    assert spelt(rows, tokenizer) == ["bos"] + ["two", "red"] * 3 + ["two"]


def test_images_that_are_given_stand_as_their_features(tokenizer):
  """Between newlines; those that are learned, or the model's, as codes."""
  seen = Features(3, 2, 4, "crop")
  field = Dialogue(40, N, S, "crop", seen=seen, most=1)
  options = tasks.Options(tokenizer, "caption en")

  def rows(*turns, **changes):
    row = dataclasses.replace(field, **changes).rows(
      options.ordered(turns), None
    )
    shapes = dataclasses.replace(field, **changes).shapes()
    assert list(row) == list(shapes)
    assert all((x.shape, x.dtype) == shapes[k] for k, x in row.items())
    return row

  def kinds(row):
    shown = np.full(len(row["ids"]), " ")
    for mark, here in (
      ("w", row["ids"] >= 0), ("n", row["ids"] == tokenizer.special["newline"]),
      ("b", row["ids"] == BOI), ("e", row["ids"] == EOI),
      ("c", row["cell"] >= 0), ("f", row["feature"] >= 0),
    ):  # fmt: skip
      shown[here] = mark
    return "".join(shown).replace(" ", "")

  def image(i, target, role=""):
    return Turn("", noise(S, S, i), target, role)

  given = image(1, False), Turn("red", target=False), image(2, True)
  row = rows(*given)
  assert kinds(row) == "wfffnw" + "bcccce" + "w"
  assert row["feature"][row["feature"] >= 0].tolist() == [0, 1, 2]
  assert row["cell"][row["cell"] >= 0].tolist() == [0, 1, 2, 3]
  view = Pixels("x", 4, "crop").rows(
    Example({}, {"x": Picture((given[0].image,))}), None
  )[""]  # fmt: skip
  np.testing.assert_array_equal(row["views"][0], view)
  assert (row["views"][1] == 0).all() and row["codes.pixels"].shape[0] == 1
  want = transforms.to_float(given[2].image)
  np.testing.assert_array_equal(row["codes.pixels"][0], want)
  # What ends a text before an image: the newline, which counts if it does.
  row = rows(Turn("red"), image(1, False), Turn("two"))
  assert kinds(row) == "wwnfffnww"
  assert row["target"][:9].tolist() == [0, 1, 1, 0, 0, 0, 1, 1, 1]
  # More of a kind than there is room for: whole turns are lost.
  row = rows(*(image(i, False) for i in range(3)))
  assert kinds(row) == "w" + "fff" * 2
  row = rows(image(1, True), Turn("red"), image(2, True))
  assert kinds(row) == "wbccccew"
  row = rows(image(1, True), Turn("red"), image(2, True), prompt=True)
  assert kinds(row) == "wwbcccce"
  # Of conversations the model's images are codes, learned or not.
  row = rows(image(1, False, "user"), image(2, False, "assistant"))
  assert kinds(row) == "wfffbccccew"


def test_rows_need_room_for_an_image():
  with pytest.raises(ValueError, match=r"text.dialogue=7 .* use >= 8"):
    Dialogue(7, N, S, "crop")
  for length in (8, 12, 13, 18, 19):
    assert Dialogue(length, N, S, "crop").images == (length - 1) // (N + 2)


def test_rows_have_whole_images_or_none(tokenizer):
  """Features are more than codes: a row may have room for these alone."""
  seen = Features(T, 1, 6, "crop")
  field = Dialogue(T, N, S, "crop", seen=seen)
  turns = (turn((0, False)), turn("red"))
  for each in (field, field.as_prompt()):
    example = Example({}, {}, tokenizer, turns=turns[: 2 - each.prompt])
    with pytest.raises(BadRecord, match=f"={T} has no room .* 25 tokens"):
      each.rows(example, None)


def test_records_without_a_dialogue_are_no_examples(tokenizer):
  options = tasks.Options(tokenizer, "caption en")
  with pytest.raises(tasks.NoExample):
    tasks.dialogue(Record("r", b"", captions=("red",)), RNG(0), options)
  for turns in ([(0, False), ("red", False)], [" "], [(0, False), "\n"]):
    record = Record("r", b"", dialogue=tuple(map(turn, turns)))
    with pytest.raises(BadRecord, match="without a turn to learn"):
      tasks.dialogue(record, RNG(0), options)
  blank = Record("r", b"", dialogue=(Turn(" "), Turn("red")))
  assert tasks.dialogue(blank, RNG(0), options).turns == (Turn("red"),)


def test_images_may_be_files_or_pixels(made, tokenizer):
  field = Dialogue(T, N, S, "crop", True)
  wide = noise(S, S + 3, 5)
  turns = (Turn(image=wide), Turn(image=encode(wide)))
  example = fields.Example({}, {}, tokenizer, turns=turns)
  first, second, _ = field.rows(example, None)["codes.pixels"]
  want = transforms.to_float(transforms.centre_crop_resize(wide, S))
  np.testing.assert_array_equal(first, want)
  np.testing.assert_array_equal(second, want)
  broken = example._replace(turns=(Turn(image=b"junk"),))
  with pytest.raises(BadRecord):
    field.rows(broken, None)


def test_the_field_is_pickled_needs_a_tokenizer_and_becomes_a_prompt():
  field = Dialogue(T, N, S, "crop")
  assert pickle.loads(pickle.dumps(field)) == field
  inputs = {"row": field}
  assert pipeline.needs_text({"dialogue": inputs})
  assert fields.prompts(inputs, {})["row"] == Dialogue(T, N, S, "crop", True)
  assert fields.uncached(inputs, {})["row"] == field  # a whole row, to score
  assert isinstance(field, fields.Field)
  names = set(fields.shapes(inputs))
  assert names == {"row.ids", "row.cell", "row.target", "row.codes.pixels"}


def test_rows_that_teach_nothing_are_bad_records(made):
  """Their question alone fits: they would count, and teach nothing."""
  question, answer = ("two stars " * 30, False), ("red", True)
  with pytest.raises(BadRecord, match="nothing to learn is left of a dialogue"):
    made(question, answer)
  with pytest.raises(BadRecord, match="of 3 texts and images"):
    made((0, False), (1, False), answer, length=N + 6)
  made(question, answer, prompt=True)  # of which an answer can follow
