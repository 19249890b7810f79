"""The captioning readers on small file sets in the layout of publication."""

import pytest

from tests.task_sets import relative, write
from unifluid_jax.data.records import BadRecord
from unifluid_jax.data.transfers import caption_readers as captions
from unifluid_jax.data.transfers.files import Example

COCO = {
  "images": [
    {"filepath": "val2014", "filename": "COCO_val2014_000000000009.jpg",
     "split": split, "cocoid": 9 + i,
     "sentences": [{"raw": "A cat. "}, {"raw": "Cat"}]}
    for i, split in enumerate(["val", "restval", "val"])
  ]
}  # fmt: skip


def test_coco_karpathy(tmp_path):
  image = "val2014/COCO_val2014_000000000009.jpg"
  root = write(tmp_path, {"dataset_coco.json": COCO, image: b"x"})
  found = captions.coco_karpathy(root, "val")
  assert [e.id for e in found] == ["9", "11"]
  assert found[0].answers == ("A cat.", "Cat")
  assert relative(root, found[0]) == (image,)
  assert found[0].load() == (b"x",)
  assert [e.id for e in captions.coco_karpathy(root, "restval")] == ["10"]


def test_textcaps(tmp_path):
  rows = [
    {"image_id": "ab", "image_name": "ab", "caption_str": "One"},
    {"image_id": "cd", "image_name": "cd", "caption_str": "Two"},
    {"image_id": "ab", "image_name": "ab", "caption_str": "Three"},
  ]
  bare = [{k: v for k, v in r.items() if k != "caption_str"} for r in rows]
  files = {"TextCaps_0.1_val.json": {"data": rows},
           "TextCaps_0.1_test.json": {"data": bare},
           "train_images/ab.jpg": b"", "test_images/ab.jpg": b""}  # fmt: skip
  root = write(tmp_path, files)
  found = captions.textcaps(root, "val")
  assert [(e.id, e.answers) for e in found] == [
    ("ab", ("One", "Three")), ("cd", ("Two",))
  ]  # fmt: skip
  assert relative(root, found[0]) == ("train_images/ab.jpg",)
  hidden = captions.textcaps(root, "test")
  assert [(e.id, e.answers) for e in hidden] == [("ab", ()), ("cd", ())]
  assert relative(root, hidden[0]) == ("test_images/ab.jpg",)


def test_screen2words(tmp_path):
  files = {
    "screen_summaries.csv": 'screenId,summary\n12,"a page, blue"\n7,x\n12,b\n',
    "split/dev_screens.txt": "12\n\n",
    "combined/12.jpg": b"",
  }
  root = write(tmp_path, files)
  (found,) = captions.screen2words(root, "dev")
  assert (found.id, found.answers) == ("12", ("a page, blue", "b"))
  assert relative(root, found) == ("combined/12.jpg",)


def test_widgetcap(tmp_path):
  leaf = {"bounds": [256, 512, 1024, 2560]}
  tree = {"activity": {"root": {"children": [{}, {"children": [leaf]}]}}}
  files = {
    "widget_captions.csv": "screenId,nodeId,captions\n5,0.1.0,go back|return\n"
    "6,0.9,no\n",
    "test.txt": "5\n",
    "combined/5.json": tree,
    "combined/5.jpg": b"",
  }
  root = write(tmp_path, files)
  (found,) = captions.widgetcap(root, "test")
  assert (found.id, found.answers) == ("5_0.1.0", ("go back", "return"))
  assert found.box == (0.2, 0.1, 1.0, 0.4)
  write(root, {"test.txt": "6\n", "combined/6.json": tree})
  with pytest.raises(ValueError, match="widget_captions.csv: entry 1 .*Index"):
    captions.widgetcap(root, "test")


def test_faulty_files_are_named(tmp_path):
  name = "dataset_coco.json"
  for content, message in (
    ("{", "is not JSON .*: download it again"),
    ({"pictures": []}, "has no 'images': it must be the published"),
    ({"images": 3}, "holds int, not a list"),
    ({"images": []}, "has no usable entry"),
    ({"images": [{"split": "val"}]}, "entry 0 is not as COCO captions .*JSONL"),
    ({"images": COCO["images"][:1] * 2}, "entry 1 repeats the id '9'"),
  ):
    write(tmp_path, {name: content})
    with pytest.raises(ValueError, match=f"{name}:? {message}"):
      captions.coco_karpathy(tmp_path, "val")


def test_a_missing_image_is_named(tmp_path):
  write(tmp_path, {"dataset_coco.json": COCO})
  with pytest.raises(FileNotFoundError, match="000009.jpg is missing: unpack"):
    captions.coco_karpathy(tmp_path, "val")
  with pytest.raises(BadRecord, match="unreadable"):
    Example("1", (str(tmp_path / "none.jpg"),)).load()


def test_a_table_without_its_columns_is_named(tmp_path):
  write(tmp_path, {"screen_summaries.csv": "screen,summary\n1,x\n"})
  with pytest.raises(ValueError, match="screen_summaries.csv has .*'screenId'"):
    captions.screen2words(tmp_path, "test")


def test_captions_without_their_column_are_named(tmp_path):
  rows = [{"image_id": "a"}]
  write(tmp_path, {"TextCaps_0.1_val.json": {"data": rows}})
  with pytest.raises(ValueError, match="entry 0 lacks .*'caption_str'"):
    captions.textcaps(tmp_path, "val")
