"""Examples of a task as training draws them and evaluation reads them."""

import collections

import numpy as np
import pytest

from configs import transfer
from tests import task_sets
from unifluid_jax import systems
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import pipeline, tasks, text, transforms
from unifluid_jax.data.fields import (
  Cached,
  Example,
  Picture,
  Pixels,
  arrays,
)
from unifluid_jax.data.records import BadRecord, Marks
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.transfers.source import in_turn


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return task_sets.make(tmp_path_factory.mktemp("sets"))


def opened(root, name, split, **fields):
  config = SourceConfig("transfer", name, split=split, **fields)
  return sources.open_source(config, str(root), "caption en")


def drawn(source, i, turns):
  """The question and answer of each turn."""
  rng = np.random.default_rng(0)
  return [source.draw(i, turn, rng).questions for turn in range(turns)]


def test_answers_come_by_turns_each_once_before_any_comes_again():
  texts = [f"t{i}" for i in range(5)]
  said = [in_turn(texts, "a", turn) for turn in range(40)]
  orders = {tuple(said[start : start + 5]) for start in range(0, 40, 5)}
  assert all(sorted(order) == texts for order in orders)
  assert len(orders) > 4  # a fresh order each time
  assert said != [in_turn(texts, "b", turn) for turn in range(40)]
  assert in_turn(["one"], "a", 7) == "one"


def test_training_draws_one_answer_a_turn_lower_cased(root):
  source = opened(root, "textcaps", "train")
  assert isinstance(source, sources.Source) and len(source) == 2
  rows = drawn(source, 1, 4)
  assert {len(row) for row in rows} == {1}
  assert {row[0][0] for row in rows} == {"caption en"}
  assert [sorted(r[0][1] for r in rows[i : i + 2]) for i in (0, 2)] == [
    ["dogs of blue", "two blue dogs"]
  ] * 2


def test_docvqa_draws_answers_at_random_and_keeps_their_case(root):
  source = opened(root, "docvqa", "train")
  said = [r[0][1] for r in drawn(source, 0, 200)]
  counts = collections.Counter(said)
  assert set(counts) == {"red", "RED"} and min(counts.values()) > 70
  again = sum(a == b for a, b in zip(said[::2], said[1::2], strict=True))
  assert 30 < again < 70  # by turns it would be 0 of 100


def test_science_qa_shuffles_choices_anew_and_names_the_right_letter(root):
  source = opened(root, "science_qa", "train+val")
  seen = set()
  for ((prompt, answer),) in drawn(source, 0, 30):
    right = answer.removeprefix("The answer is ")[0]
    assert f"({right}) x" in prompt  # "x" is choice 0, the right one
    seen.add(right)
  assert seen == set("ABC")
  fixed = source[0].questions
  assert fixed[0][1] == "The answer is A." and "(A) x, (B) y" in fixed[0][0]


def test_evaluation_sees_every_answer_in_the_files_order(root):
  source = opened(root, "okvqa", "val")
  record = source[1]
  assert record.questions == (("answer en Colour?", "blue"),) * 10
  assert record.image == task_sets.image(1) and record.more == ()
  np.testing.assert_array_equal(source.indices("i2t"), [0, 1])
  assert not len(source.indices("t2i"))


def test_images_and_what_is_drawn_on_them_come_along(root):
  pair = opened(root, "nlvr2", "dev")[0]
  assert (pair.image, pair.more) == (
    task_sets.image(0), (task_sets.image(1),)
  )  # fmt: skip
  assert opened(root, "textvqa", "val")[0].marks.turns == 1
  assert opened(root, "widgetcap", "dev")[0].marks.box == (
    0.25, 0.25, 0.75, 0.75
  )  # fmt: skip
  assert opened(root, "ai2d", "test")[0].marks.letters == (
    ("A", (1.0, 1.0, 6.0, 8.0)),
  )


def test_unanswered_examples_are_counted_and_not_trained_on(tmp_path):
  rows = [{"question_id": i, "image_id": "0", "question": "What?",
           "answers": a}
          for i, a in enumerate([["x"], ["", " "], []])]  # fmt: skip
  task_sets.write(
    tmp_path / "textvqa",
    {"TextVQA_0.5.1_train.json": {"data": rows},
     "train_images/0.jpg": task_sets.image(0)},
  )  # fmt: skip
  source = opened(tmp_path, "textvqa", "train")
  assert (len(source), source.unanswered) == (3, 2)
  np.testing.assert_array_equal(source.indices("i2t"), [0])
  assert source[2].questions == (("answer en What?", ""),)
  assert opened(tmp_path, "textvqa", "train", limit=1).unanswered == 0


def test_blank_answers_are_not_trained_on(tmp_path):
  row = {"question_id": 1, "image_id": "0", "question": "What?",
         "answers": ["x", " ", ""]}  # fmt: skip
  task_sets.write(
    tmp_path / "textvqa",
    {"TextVQA_0.5.1_train.json": {"data": [row]},
     "train_images/0.jpg": task_sets.image(0)},
  )  # fmt: skip
  rows = drawn(opened(tmp_path, "textvqa", "train"), 0, 6)
  assert {row[0][1] for row in rows} == {"x"}


def test_a_run_opens_its_first_row_and_a_row_its_kind(root):
  assert len(opened(root, "tallyqa", "train")) == 4
  complex_ones = opened(root, "tallyqa_complex", "test")
  assert [complex_ones[i].kinds[0] for i in range(2)] == ["complex"] * 2
  with pytest.raises(ValueError, match="no transfer task 'gqq': .*gqa, nlvr2"):
    opened(root, "gqq", "train")
  with pytest.raises(FileNotFoundError, match="download"):
    opened(root / "none", "gqa", "train_balanced")


def test_the_pipeline_takes_the_next_answer_in_every_epoch(root, tmp_path):
  said = [c for captions in task_sets.CAPTIONS for c in captions]
  tokenizer = text.train(said + ["caption en"], tmp_path / "t.model", 48)
  c = transfer.get_config("textcaps,debug")
  c.batch.i2t = 2  # an epoch
  c.data.root, c.data.threads = str(root), 1
  c.text.update(prefix=16, suffix=32)
  config = systems.resolve(c)
  inputs = systems.build(config).inputs
  loader = pipeline.make_loader(config, inputs, tokenizer)
  seen = collections.defaultdict(list)
  for _ in range(6):
    batch = next(loader)["i2t"]
    for image, row in zip(batch["seen"], batch["suffix"], strict=True):
      seen[image[0, 0, 0] > 0].append(tokenizer.decode(row))
  loader.close()
  for red, captions in zip([True, False], task_sets.CAPTIONS, strict=True):
    pairs = [sorted(seen[red][i : i + 2]) for i in (0, 2, 4)]
    assert pairs == [sorted(captions)] * 3


# What the vision encoder is shown


def view(record, size, frames=1):
  example = Example({}, {"seen": Picture((record.image, *record.more),
                                         record.marks)})  # fmt: skip
  return Pixels("seen", size, "squash", frames).view(example)


def test_view_stacks_several_images(root):
  pair = opened(root, "nlvr2", "dev")[0]
  both = view(pair, 8, 2)
  assert both.shape == (2, 8, 8, 3)
  assert tuple(both[0, 0, 0]) == (255, 0, 0)
  assert tuple(both[1, 0, 0]) == (0, 0, 255)
  rng, options = np.random.default_rng(0), tasks.Options(None, "caption en")
  seen = {"seen": Pixels("seen", 8, "squash")}
  with pytest.raises(BadRecord, match=r"2 images, but data.images=1"):
    arrays(seen, tasks.image_to_text(pair, rng, options))
  alone = tasks.image_to_text(pair._replace(more=()), rng, options)
  with pytest.raises(BadRecord, match=r"1 images, but data.images=2"):
    arrays({"seen": Pixels("seen", 8, "squash", 2)}, alone)


def test_letters_are_drawn_in_the_font_beside_the_data(tmp_path):
  files = task_sets.SETS["ai2d"]() | {"DMSans-Regular.ttf": b"none"}
  task_sets.write(tmp_path / "ai2d", files)
  lettered = opened(tmp_path, "ai2d", "test")[0]
  with pytest.raises(ValueError, match=r"ai2d/DMSans-Regular.ttf is no True"):
    view(lettered, 8)


def test_a_stack_is_resized_image_by_image():
  rng = np.random.default_rng(0)
  stack = rng.integers(0, 256, (2, 6, 9, 3), np.uint8)
  out = transforms.squash_resize(stack, 4)
  for image, small in zip(stack, out, strict=True):
    np.testing.assert_array_equal(transforms.squash_resize(image, 4), small)


def test_a_turned_image_is_set_upright_and_the_box_follows_the_resize(root):
  record = opened(root, "widgetcap", "dev")[1]  # 12 x 8 and blue
  red = (view(record, 9) == (255, 0, 0)).all(-1)
  # Heights 1/4..3/4 → rows 2..6; widths times 8/12 → columns 1..4.
  want = np.zeros((9, 9), bool)
  want[[2, 6], 1:5] = want[2:7, [1, 4]] = True
  np.testing.assert_array_equal(red, want)
  picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
  marks = record.marks._replace(turns=1, box=None)
  turned = transforms.marked(picture, marks, 4)
  assert turned[0, 0, 0] > turned[-1, 0, 0]  # what was right is on top


def test_a_crop_is_set_upright_and_has_the_box_where_it_shows():
  """What systems see that crop images: Liquid, UniToken's codes, VARGPT."""
  grey = np.full((6, 12, 3), 9, np.uint8)  # the crop has columns 3 .. 8
  marks = Marks(box=(1 / 5, 4 / 6, 4 / 5, 3.0))
  red = (transforms.marked_crop(grey, marks, (6, 6)) == (255, 0, 0)).all(-1)
  # Rows .2 and .8 of 5; from column 4 of 12 to beyond the crop.
  want = np.zeros((6, 6), bool)
  want[[1, 4]] = want[1:5, 0] = True  # (4 - 3) / 6 of 5 rounds to column 0
  np.testing.assert_array_equal(red, want)
  # Of a square the same as where nothing is cropped.
  square = np.arange(9 * 9 * 3, dtype=np.uint8).reshape(9, 9, 3)
  marks = Marks(turns=1, box=(0.25, 0.25, 0.75, 0.75))
  np.testing.assert_array_equal(
    transforms.marked_crop(square, marks, (9, 9)),
    transforms.marked(square, marks, 9),
  )
  seen = {"seen": Picture((grey,), Marks(box=(0.2, 0.5, 0.8, 1.0)))}
  for field in (
    Pixels("seen", 6, "crop"),
    Cached("seen", (4,), np.int32, 6, "crop"),
  ):
    got = field.view(Example({}, seen))
    assert (got == (255, 0, 0)).all(-1).any()


def test_images_that_are_changed_as_they_are_read_have_no_cache(root):
  with pytest.raises(ValueError, match="x.moments='m': .* set x.moments=''"):
    config = SourceConfig("transfer", "textvqa", moments="m")
    sources.open_source(config, str(root), "", "x")
