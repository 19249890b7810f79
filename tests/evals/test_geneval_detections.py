"""The file of detections: what is read, what is refused, what is torn."""

import json

import pytest

from unifluid_jax.evals.metrics.geneval import Detection
from unifluid_jax.evals.published import geneval_detections
from unifluid_jax.evals.published.geneval_detections import Found

BENCH = {"class": "bench", "score": 0.95, "box": [0, 0, 2, 2], "colour": "pink"}
NAME = "00000/samples/00000.png"


def row(name=NAME, objects=(BENCH,)):
  return json.dumps({"image": name, "objects": list(objects)})


def write(path, *rows, end="\n"):
  lines = [json.dumps({"detector": "by hand"}), *rows]
  path.write_text("\n".join(lines) + end)
  return str(path)


def test_lines_of_any_program(tmp_path):
  """The least that is needed, with and without the last newline."""
  other = row("00001/samples/00000.png", ())
  for end in ("", "\n", "\n\n"):
    path = write(tmp_path / "d.jsonl", row(), other, end=end)
    found = geneval_detections.read(path)
    assert found.made_by == {"detector": "by hand"}
    assert list(found.images) == [NAME, "00001/samples/00000.png"]
    assert found.images[NAME] == Found(
      [Detection("bench", 0.95, (0.0, 0.0, 2.0, 2.0), "pink")]
    )


def test_what_is_added_is_read_bit_by_bit(tmp_path):
  path, by = str(tmp_path / "sub/d.jsonl"), {"detector": "x", "min_score": 0.3}
  assert geneval_detections.begin(path, by).images == {}
  box = (1 / 3, 2.0, 7.1, 1e3)
  first = Found([Detection("hot dog", 0.1 + 0.2, box, None)], "0123")
  second = Found([], "4567")
  geneval_detections.add(path, "a", first)
  geneval_detections.add(path, "b", second)
  want = geneval_detections.Detections(by, {"a": first, "b": second})
  assert geneval_detections.read(path) == want
  assert geneval_detections.begin(path, by) == want
  assert geneval_detections.read(path) == want


@pytest.mark.parametrize("cut", range(1, len(row()) + 1, 7))
def test_a_torn_last_line_is_none_and_goes(tmp_path, cut):
  path = write(tmp_path / "d.jsonl", row("a"), row("b")[:-cut], end="")
  assert list(geneval_detections.read(path).images) == ["a"]
  geneval_detections.begin(path, {"detector": "by hand"})
  geneval_detections.add(path, "c", Found([]))
  assert list(geneval_detections.read(path).images) == ["a", "c"]


def test_torn_lines_elsewhere_are_damage(tmp_path):
  path = write(tmp_path / "d.jsonl", row("a")[:-3], row("b"))
  with pytest.raises(ValueError, match=r"d\.jsonl:2 is no JSON"):
    geneval_detections.read(path)
  path = write(tmp_path / "d.jsonl", row("a"), row("b")[:-3])  # with newline
  with pytest.raises(ValueError, match=r"d\.jsonl:3 is no JSON"):
    geneval_detections.read(path)


def test_an_image_twice_is_refused(tmp_path):
  path = write(tmp_path / "d.jsonl", row(), row())
  with pytest.raises(ValueError, match=rf"d\.jsonl:3: {NAME} is there twice"):
    geneval_detections.read(path)


@pytest.mark.parametrize(
  "change",
  [{"box": [2, 0, 0, 2]}, {"box": [0, 1, 2]}, {"score": 95},
   {"colour": "teal"}, {"class": None, "score": "high"}],
)  # fmt: skip
def test_wrong_objects_are_named(tmp_path, change):
  path = write(tmp_path / "d.jsonl", row(objects=[BENCH | change]))
  with pytest.raises(ValueError, match=r"d\.jsonl:2: expected an image and"):
    geneval_detections.read(path)


@pytest.mark.parametrize("line", ["[]", '{"image": "a"}', '{"objects": []}'])
def test_wrong_lines_are_named(tmp_path, line):
  path = write(tmp_path / "d.jsonl", line)
  with pytest.raises(ValueError, match=r"d\.jsonl:2: expected an image and"):
    geneval_detections.read(path)


@pytest.mark.parametrize("text", ["", '{"images": {}}', "[]", row()])
def test_other_files_are_no_detections(tmp_path, text):
  with pytest.raises(FileNotFoundError, match="no detections at"):
    geneval_detections.read(str(tmp_path / "d.jsonl"))
  (tmp_path / "d.jsonl").write_text(text)
  with pytest.raises(ValueError, match="holds no detections"):
    geneval_detections.read(str(tmp_path / "d.jsonl"))
  (tmp_path / "d.jsonl").write_text('{"detector"')
  with pytest.raises(ValueError, match=r"d\.jsonl:1 is no JSON"):
    geneval_detections.read(str(tmp_path / "d.jsonl"))
