"""Dialogues in JSONL files and in the data sets that `prepare` writes."""

import json

import numpy as np
import pytest

from tests.data.test_bad_data import open_, png, read
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import identity, tasks
from unifluid_jax.data.records import BadRecord, Turn

TURNS = [{"image": "a.png"}, {"text": " red "},
         {"image": "b/b.png", "target": False}]  # fmt: skip


@pytest.fixture
def write(tmp_path):
  (tmp_path / "b").mkdir()
  (tmp_path / "a.png").write_bytes(png(0))
  (tmp_path / "b" / "b.png").write_bytes(png(1))

  def call(*lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "t.jsonl").write_text(text)
    return open_(tmp_path, "jsonl", "t.jsonl")

  return call


def test_a_line_may_hold_a_dialogue(write):
  captioned = {"image": "a.png", "suffix": "a cat"}
  source = write(captioned, {"dialogue": TURNS}, {"suffix": "text alone"})
  assert len(source) == 3 and not source.bad
  assert source[1].dialogue == (
    Turn(image=png(0)), Turn("red"), Turn(image=png(1), target=False)
  )  # fmt: skip
  assert source[0].dialogue == source[2].dialogue == ()
  serves = {t: source.indices(t).tolist() for t in tasks.TASKS}
  assert serves == {
    "t2i": [0], "i2t": [0], "edit": [], "text": [0, 2], "image": [0],
    "dialogue": [1],
  }  # fmt: skip


BAD = [
  ({"dialogue": TURNS, "image": "a.png"}, "dialogue beside image"),
  ({"dialogue": TURNS, "suffix": "x"}, "dialogue beside suffix"),
  ({"dialogue": []}, "dialogue is no list of"),
  ({"dialogue": "red"}, "dialogue is no list of"),
  ({"dialogue": [*TURNS, "red"]}, r"dialogue\[3\] needs either a text or"),
  ({"dialogue": [{}]}, r"dialogue\[0\] needs either a text or an image"),
  ({"dialogue": [{"text": "a", "image": "a.png"}]}, r"dialogue\[0\] needs"),
  ({"dialogue": [{"text": 7}]}, r"dialogue\[0\].text is int, not a text"),
  ({"dialogue": [{"text": " "}]}, r"dialogue\[0\].text is empty"),
  ({"dialogue": [{"image": ""}]}, r"dialogue\[0\].image is empty"),
  ({"dialogue": [{"image": "/a.png"}]}, "is absolute"),
  ({"dialogue": [{"image": "../../a.png"}]}, "outside of data.root"),
  ({"dialogue": [{"text": "a", "target": "no"}]}, "target is 'no': use true"),
]


@pytest.mark.parametrize("line, message", BAD, ids=range(len(BAD)))
def test_a_bad_dialogue_is_named_and_the_others_are_read(write, line, message):
  source = write({"dialogue": TURNS}, line, {"dialogue": TURNS})
  (named,) = source.bad
  assert "t.jsonl:2: " in named and "\n" not in named
  with pytest.raises(AssertionError, match=message):
    raise AssertionError(named)
  good, bad = read(source)
  assert len(good) == 2 and not bad


def test_an_image_that_is_lost_makes_a_bad_record(write, tmp_path):
  source = write({"dialogue": TURNS})
  (tmp_path / "b" / "b.png").unlink()
  with pytest.raises(BadRecord, match="b.png"):
    source[0]


def test_scores_choose_dialogues_too(write, tmp_path):
  write({"dialogue": TURNS, "s": 7}, {"dialogue": TURNS, "s": 5},
        {"dialogue": TURNS})  # fmt: skip
  source = open_(tmp_path, "jsonl", "t.jsonl", score="s", min_score=6.0)
  assert len(source) == 1 and source[0].id.endswith(":1")
  assert [b.split(":")[1] for b in source.bad] == ["3"]


def test_the_digest_covers_the_images_of_dialogues(write, tmp_path):
  captioned = {"image": "a.png", "suffix": "dialogue"}
  config = SourceConfig(format="jsonl", path="t.jsonl")

  def digest():
    return identity.of_source(config, str(tmp_path))

  write({"dialogue": TURNS}, captioned, {"dialogue": 3})
  before = digest()
  assert before["files"] == 4  # the list, two images of turns, one beside it
  (tmp_path / "b" / "b.png").write_bytes(png(2))
  assert digest()["digest"] != before["digest"]


@pytest.mark.parametrize("task", ["dialogue", "image"])
def test_other_sources_have_no_dialogues(tmp_path, task):
  images = [{"id": 1, "file_name": "a.png"}]
  notes = [{"image_id": 1, "caption": "a cat"}]
  (tmp_path / "c.json").write_text(
    json.dumps({"images": images, "annotations": notes})
  )
  source = open_(tmp_path, "coco", "c.json")
  np.testing.assert_array_equal(
    source.indices(task), [0] if task == "image" else []
  )
