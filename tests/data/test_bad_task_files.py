"""Transfer tasks' files as strangers write them: one line of error."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.task_sets import png, write
from unifluid_jax.data.transfers import caption_readers as captions
from unifluid_jax.data.transfers import photo_readers as photographs
from unifluid_jax.data.transfers import text_readers as texts

DOC = {"questionId": 1, "question": "q", "image": "a", "answers": ["x"]}


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"question": "\ud800"}, "lone surrogate"),
    ({"answers": ["\ud800"]}, "lone surrogate"),
    ({"image": "/etc/passwd"}, "outside of the folder"),
    ({"image": "../../../a"}, "outside of the folder"),
    ({"image": "a\0"}, "outside of the folder"),
    ({"image": None}, "Type"),
    ({"answers": None}, "Type"),
  ],
)
def test_bad_entries_of_tasks_are_named(tmp_path, changes, message):
  rows = [DOC, DOC | {"questionId": 2} | changes]
  write(tmp_path, {"val_v1.0.json": {"data": rows}, "val/a": b""})
  with pytest.raises(ValueError) as info:
    texts.docvqa(tmp_path, "val")
  text = str(info.value)
  assert f"{tmp_path}/val_v1.0.json: entry 1 is not as DocVQA" in text
  assert message in text and "\n" not in text


@pytest.mark.parametrize(
  "data, message",
  [
    (b"", "not JSON"),
    (b"\xff\xfe\x00", "not "),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"data": NaN}', "holds float, not a list"),
  ],
)
def test_bad_files_of_tasks_are_named(tmp_path, data, message):
  write(tmp_path, {"val_v1.0.json": data})
  with pytest.raises(ValueError, match=f"val_v1.0.json .*{message}"):
    texts.docvqa(tmp_path, "val")


@pytest.mark.parametrize(
  "table, message",
  [
    (b"screenId,summary\n1,\xff\n", "not in UTF-8"),
    (b"screenId,summary\n1\n", "entry 0 has other fields"),
    (b"screenId,summary\n1,a,b\n", "entry 0 has other fields"),
    (
      b'screenId,summary\n1,"' + b"a" * 200_000 + b'"\n',
      "after line 1: field larger",
    ),
  ],
  ids=range(4),
)
def test_bad_tables_of_tasks_are_named(tmp_path, table, message):
  files = {"screen_summaries.csv": table, "split/dev_screens.txt": "1\n"}
  write(tmp_path, files)
  with pytest.raises(ValueError, match=f"screen_summaries.csv.*{message}"):
    captions.screen2words(tmp_path, "dev")


def test_numbers_beyond_any_are_named(tmp_path):
  row = {"question_id": 1, "image_id": float("inf"), "question": "q",
         "choices": ["a"], "correct_choice_idx": 0,
         "direct_answers": ["a"]}  # fmt: skip
  write(tmp_path, {"aokvqa_v1p0_val.json": [row | {"question_id": "1"}]})
  with pytest.raises(ValueError, match=r"entry 0 .*OverflowError"):
    photographs.aokvqa(tmp_path, "val")


def test_orders_of_many_spans_are_no_bomb(tmp_path):
  row = {"questionId": 1, "question": "q", "image_local_name": "a",
         "answers": [", ".join("abcdefghijklm")]}  # fmt: skip
  name = "infographicsVQA_val_v1.0.json"
  write(tmp_path, {name: {"data": [row]}, "images/a": b""})
  with pytest.raises(ValueError, match="entry 0 .*more than 8 spans"):
    texts.infovqa(tmp_path, "val")
  row["answers"] = ["a, b, c"]
  write(tmp_path, {name: {"data": [row]}})
  assert len(texts.infovqa(tmp_path, "val")[0].answers) == 6


def test_more_choices_than_letters_are_named(tmp_path):
  entry = {"split": "val", "image": "a", "choices": [str(i) for i in range(27)],
           "answer": 26, "question": "q", "hint": ""}  # fmt: skip
  write(tmp_path, {"problems.json": {"1": entry}, "val/1/a": b""})
  with pytest.raises(ValueError, match="entry 0 .*27 choices"):
    texts.science_qa(tmp_path, "val")


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), 1e9])
def test_boxes_lie_near_their_image(tmp_path, bound):
  tree = {"activity": {"root": {"bounds": [0, 0, 9, bound * 2560]}}}
  files = {
    "widget_captions.csv": "screenId,nodeId,captions\n1,0,a\n",
    "dev.txt": "1\n", "combined/1.json": tree, "combined/1.jpg": b"",
  }  # fmt: skip
  write(tmp_path, files)
  with pytest.raises(ValueError, match="entry 0 .*no box"):
    captions.widgetcap(tmp_path, "dev")


def test_countbench_leaves_broken_images_to_the_count_of_bad_ones(tmp_path):
  cells = [{"bytes": b"junk", "path": None}, {"bytes": png(), "path": None}]
  table = pa.table({"image": cells, "number": [1, 2]})
  pq.write_table(table, tmp_path / "a.parquet")
  questions = [{"question": "q"}] * 2
  write(tmp_path, {"countbench_paired_questions.json": questions})
  assert len(photographs.countbench(tmp_path, "test")) == 2
  write(tmp_path, {"countbench_paired_questions.json": 3})
  with pytest.raises(ValueError, match="questions.json holds no list"):
    photographs.countbench(tmp_path, "test")
