"""Data files as strangers write them: one line of error, or bad records.

Each file is opened and read to its end. What may happen: the file is refused
by a ValueError (or FileNotFoundError) of one line that names it; or it opens,
`bad` names what is wrong, and every record is read or is a BadRecord.
"""

import dataclasses
import io
import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import debug
from unifluid_jax import systems
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import corpus, json_files
from unifluid_jax.data.records import BadRecord
from unifluid_jax.data.sources import json_readers
from unifluid_jax.data.sources import source as sources


def png(seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def open_(root, format, path, **fields):
  config = SourceConfig(format=format, path=path, **fields)
  return sources.open_source(config, str(root), "caption en", "data.train.x")


def refused(root, format, path, **fields):
  """The one line that opening a file gives."""
  with pytest.raises((ValueError, FileNotFoundError)) as info:
    open_(root, format, path, **fields)
  text = str(info.value)
  assert "\n" not in text and len(text) < 500 and path in text
  return text


def read(source):
  """Records that can be read, and what the others say."""
  good, bad = [], []
  for i in range(len(source)):
    try:
      good.append(source[i])
    except BadRecord as error:
      assert "\n" not in str(error)
      bad.append(str(error))
  return good, bad


# ---------------------------------------------------------------------- JSONL

GOOD = {"image": "a.png", "suffix": "a cat"}


def line(**changes):
  return json.dumps(GOOD | changes)


LINES = [
  (line(suffix="\ud800 cat"), "suffix holds a lone surrogate"),
  (line(prefix="\udfff"), "prefix holds a lone surrogate"),
  (line(image="a\0.png"), "NUL"),
  (line(image="/etc/passwd"), "absolute"),
  (line(image="../../a.png"), "outside of data.root"),
  (line(image=3), "image is int, not a text"),
  (line(image=[]), "image is list, not a text"),
  (line(image=False), "image is bool, not a text"),
  (line(suffix=7), "suffix is int, not a text"),
  (line(suffix=0), "suffix is int, not a text"),
  (line(suffix=None), "no suffix"),
  (line(suffix={"a": 1}), "suffix is dict"),
  (line(prefix=1.5), "prefix is float"),
  ('{"image": "a.png", "suffix": ' + "9" * 5000 + "}", "not JSON|is int"),
  ("[" * 100_000, "nested too deeply"),
  ('{"a":' * 100_000, "nested too deeply"),
  ("null", "not a JSON object"),
  ("\x00\x01", "not JSON"),
]


@pytest.mark.parametrize("text, message", LINES, ids=range(len(LINES)))
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path, text, message):
  (tmp_path / "a.png").write_bytes(png())
  (tmp_path / "t.jsonl").write_text(f"{line()}\n{text}\n{line()}\n")
  source = open_(tmp_path, "jsonl", "t.jsonl")
  (named,) = source.bad
  assert named.startswith(f"{tmp_path}/t.jsonl:2: ") and "\n" not in named
  assert re.search(message, named)
  good, bad = read(source)
  assert [r.captions for r in good] == [("a cat",)] * 2 and not bad
  assert good[1].id.endswith("t.jsonl:3")


def test_lines_without_a_number_to_keep_them_by_are_bad(tmp_path):
  (tmp_path / "a.png").write_bytes(png())
  scores = ["NaN", "Infinity", "-Infinity", '"7"', "true", "null", "8", "6"]
  text = "".join(f'{line()[:-1]}, "score": {s}}}\n' for s in scores)
  (tmp_path / "t.jsonl").write_text(text)
  source = open_(tmp_path, "jsonl", "t.jsonl", score="score", min_score=7.0)
  assert len(source) == 1 and source[0].id.endswith(":7")
  assert [b.split(":")[1] for b in source.bad] == list("123456")


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_very_long_lines_are_bounded(tmp_path, monkeypatch, cut):
  monkeypatch.setattr(json_readers, "LONGEST", 100)
  (tmp_path / "a.png").write_bytes(png())
  long = line(suffix="a" * (400 + cut))
  (tmp_path / "t.jsonl").write_text(f"{line()}\n{long}\n{line()}\n{long}")
  stream = open(tmp_path / "t.jsonl", "rb")
  with stream:
    assert max(len(x) for _, x in json_readers.lines(stream)) == 101
  source = open_(tmp_path, "jsonl", "t.jsonl")
  assert [b.partition("jsonl:")[2] for b in source.bad] == [
    "2: longer than 100 bytes", "4: longer than 100 bytes"
  ]  # fmt: skip
  assert [r.id[-1] for r in read(source)[0]] == ["1", "3"]


def test_names_of_many_bad_lines_do_not_pile_up(tmp_path, monkeypatch):
  monkeypatch.setattr(json_readers, "_KEPT", 2)
  (tmp_path / "t.jsonl").write_text("{\n" * 5)
  bad = open_(tmp_path, "jsonl", "t.jsonl").bad
  assert len(bad) == 5 and bad[1].startswith(str(tmp_path))
  assert set(bad[2:]) == {"a further one"}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_lines_in_another_encoding_are_bad(tmp_path, encoding):
  data = '{"suffix": "grün"}\n{"suffix": "grün"}'.encode(encoding)
  (tmp_path / "t.jsonl").write_bytes(data)
  source = open_(tmp_path, "jsonl", "t.jsonl")
  assert len(source) == 0 and all("not " in b for b in source.bad)


def test_a_file_that_changed_gives_bad_records(tmp_path):
  (tmp_path / "a.png").write_bytes(png())
  (tmp_path / "t.jsonl").write_text(f"{line()}\n{line()}\n")
  source = open_(tmp_path, "jsonl", "t.jsonl")
  (tmp_path / "t.jsonl").write_text(line()[:9])
  assert len(read(source)[1]) == 2
  (tmp_path / "t.jsonl").unlink()
  assert len(read(source)[1]) == 2


@pytest.mark.parametrize("format", ["jsonl", "coco", "parquet"])
def test_what_is_no_regular_file_is_refused(tmp_path, format):
  os.mkfifo(tmp_path / "fifo")  # opening one waits for ever
  assert "no regular file" in refused(tmp_path, format, "fifo")
  with pytest.raises(FileNotFoundError, match="no data at"):
    open_(tmp_path, format, "gone\0")


def test_a_folder_where_a_file_belongs_is_refused(tmp_path):
  (tmp_path / "d").mkdir()
  for format in ("jsonl", "coco"):
    assert "no regular file" in refused(tmp_path, format, "d")
  assert "no .parquet file in" in refused(tmp_path, "parquet", "d")


# ----------------------------------------------------------------------- COCO


def coco(root, images=(), notes=()):
  (root / "a.png").write_bytes(png())
  content = {
    "images": [{"id": 1, "file_name": "a.png"}, *images],
    "annotations": [{"image_id": 1, "caption": "a cat"}, *notes],
  }
  (root / "c.json").write_text(json.dumps(content))
  return open_(root, "coco", "c.json")


ENTRIES = [
  ({"id": 2, "file_name": None}, "file_name is NoneType"),
  ({"id": 2, "file_name": 5}, "file_name is int"),
  ({"id": 2, "file_name": ""}, "no file_name"),
  ({"id": 2}, "file_name is NoneType"),
  ({"id": 2, "file_name": "\ud800"}, "lone surrogate"),
  ({"id": 2, "file_name": "/etc/passwd"}, "absolute"),
  ({"id": 2, "file_name": "../../a"}, "outside of data.root"),
  ({"id": 2, "file_name": "a\0"}, "NUL"),
  ({"id": 1, "file_name": "a.png"}, "repeats the id 1"),
  ({"id": float("nan"), "file_name": "a.png"}, "id nan is neither"),
  ({"id": [1], "file_name": "a.png"}, "neither an integer nor a text"),
  ({"id": None, "file_name": "a.png"}, "id None is neither"),
  ({"id": True, "file_name": "a.png"}, "id True is neither"),
  (3, "not a JSON object"),
]


@pytest.mark.parametrize("entry, message", ENTRIES, ids=range(len(ENTRIES)))
def test_a_bad_image_of_coco_is_named(tmp_path, entry, message):
  source = coco(tmp_path, images=[entry])
  (named,) = source.bad
  assert named.startswith(f"{tmp_path}/c.json: images[1]: ")
  assert message in named
  assert [r.captions for r in read(source)[0]] == [("a cat",)]


NOTES = [
  ({"image_id": 1, "caption": 4}, "caption is int"),
  ({"image_id": 1, "caption": "\ud800"}, "lone surrogate"),
  ({"image_id": 1}, "caption is NoneType"),
  ({"image_id": "1", "caption": "x"}, "no image has the id '1'"),
  ({"image_id": float("nan"), "caption": "x"}, "image_id nan is neither"),
  ({"image_id": {}, "caption": "x"}, "image_id {} is neither"),
  ([], "not a JSON object"),
]


@pytest.mark.parametrize("entry, message", NOTES, ids=range(len(NOTES)))
def test_a_bad_caption_of_coco_is_named(tmp_path, entry, message):
  source = coco(tmp_path, notes=[entry])
  (named,) = source.bad
  assert named.startswith(f"{tmp_path}/c.json: annotations[1]: ")
  assert message in named
  assert [r.captions for r in read(source)[0]] == [("a cat",)]


FILES = [
  (b"", "not JSON"),
  (b"[]", "no COCO captions file"),
  (b'{"images": {}, "annotations": []}', "no COCO captions file"),
  (b'{"images": [], "annotations": 3}', "no COCO captions file"),
  (b'{"images": [{"id": 1', "not JSON"),
  (b'{"images":' * 100_000, "nested too deeply"),
  ('{"images": "grün"}'.encode("latin-1") + b" " * 4000, "not in UTF-8"),
  (png(), "not "),
]


@pytest.mark.parametrize("data, message", FILES, ids=range(len(FILES)))
def test_what_is_no_coco_file_is_refused(tmp_path, data, message):
  (tmp_path / "c.json").write_bytes(data)
  assert message in refused(tmp_path, "coco", "c.json")


def test_coco_in_utf_16_is_read(tmp_path):
  coco(tmp_path)
  text = (tmp_path / "c.json").read_text()
  (tmp_path / "c.json").write_bytes(text.encode("utf-16"))
  assert read(open_(tmp_path, "coco", "c.json"))[0][0].captions == ("a cat",)


def test_a_file_too_large_to_be_read_whole_is_refused(tmp_path):
  with (tmp_path / "c.json").open("wb") as f:
    f.truncate(json_files.MAX_BYTES + 1)  # takes no room on the disk
  assert "convert it to JSONL" in refused(tmp_path, "coco", "c.json")


# -------------------------------------------------------------------- Parquet

CELL = {"bytes": png(), "path": None}


@pytest.mark.parametrize(
  "column, values, message",
  [
    ("text", [3, 4], "text is int"),
    ("text", [[["a"]], [["b"]]], "text is list"),
    ("text", [b"a", b"b"], "text is bytes"),
    ("text", [{"a": 1}, None], "text is dict"),
    ("image", [None, CELL], "no encoded image"),
    ("image", [{"bytes": None}, {"bytes": b""}], "no encoded image"),
    ("image", [{"path": "a.png"}] * 2, "no encoded image"),
    ("image", ["a.png", "b.png"], "no encoded image"),
    ("image", [[1, 2], [3]], "no encoded image"),
  ],
)
def test_bad_cells_are_bad_records(tmp_path, column, values, message):
  table = {"image": [CELL] * 2, "text": ["a cat"] * 2} | {column: values}
  pq.write_table(pa.table(table), tmp_path / "t.parquet")
  good, bad = read(open_(tmp_path, "parquet", "t.parquet"))
  assert bad and len(good) + len(bad) == 2
  assert message in bad[0] and bad[0].startswith("t.parquet:0")


def test_texts_that_are_not_utf_8_are_bad_records(tmp_path):
  offsets = pa.py_buffer(np.array([0, 2, 4], np.int32))
  text = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"\xff\xfeok"))
  table = pa.table({"image": [CELL] * 2, "text": text})
  pq.write_table(table, tmp_path / "t.parquet")
  good, bad = read(open_(tmp_path, "parquet", "t.parquet"))
  assert [r.captions for r in good] == [("ok",)] and len(bad) == 1


@pytest.mark.parametrize("size", [0, 3, 40, -20, -1])
def test_cut_parquet_files_are_refused(tmp_path, size):
  table = pa.table({"image": [CELL] * 2, "text": ["a"] * 2})
  pq.write_table(table, tmp_path / "t.parquet")
  data = (tmp_path / "t.parquet").read_bytes()
  (tmp_path / "t.parquet").write_bytes(data[:size])
  text = refused(tmp_path, "parquet", "t.parquet")
  assert "no Parquet file, or an incomplete one" in text


def test_odd_columns_of_parquet_are_refused(tmp_path):
  table = pa.table([pa.array([CELL]), pa.array(["a"]), pa.array(["b"])],
                   names=["image", "text", "text"])  # fmt: skip
  pq.write_table(table, tmp_path / "t.parquet")
  assert "several columns 'text'" in refused(tmp_path, "parquet", "t.parquet")
  table = pa.table({"image": [CELL], "text": ["a"], "s": [{"x": 1}]})
  pq.write_table(table, tmp_path / "t.parquet")
  text = refused(tmp_path, "parquet", "t.parquet", score="s", min_score=1.0)
  assert "a score must be a number" in text


# -------------------------------------------------------------------- prepare


def sentences(root, format="jsonl", path="t.jsonl"):
  config = systems.resolve(debug.get_config())
  train = {"x": SourceConfig(format, path)}
  data = dataclasses.replace(config.data, root=str(root), train=train)
  return corpus._sentences(dataclasses.replace(config, data=data))


def test_the_corpus_is_every_text_of_readable_records(tmp_path):
  (tmp_path / "a.png").write_bytes(png())
  lines = [line(), line(prefix="how many?", suffix="two"),
           line(suffix="\ud800"), line(image="gone.png")]  # fmt: skip
  (tmp_path / "t.jsonl").write_text("\n".join(lines))
  want = ["caption en", "a cat", "how many?", "two"]
  assert sentences(tmp_path) == want


@pytest.mark.parametrize(
  "format, path, data, message",
  [
    ("jsonl", "t.jsonl", None, "no data at .*t.jsonl"),
    ("jsonl", "t.jsonl", "", r"no text .*path='t.jsonl'; bad records: 0"),
    ("jsonl", "t.jsonl", "{\n", r"bad records: 1, the first: .*t.jsonl:1: not"),
    ("jsonl", "t.jsonl", line(suffix="\ud800"), ":1: suffix holds a lone"),
    ("jsonl", "t.jsonl", line(), r"x\[0\]: unreadable: .*a.png"),
    ("coco", "c.json", "{", "c.json is not JSON"),
    ("parquet", "t.parquet", "PAR1", "no Parquet file, or an incomplete"),
    ("array_record", "d", None, "no data at"),
  ],
)  # fmt: skip
def test_prepare_says_why_there_is_no_corpus(
  tmp_path, format, path, data, message
):
  if data is not None:
    (tmp_path / path).write_text(data)
  with pytest.raises((ValueError, FileNotFoundError), match=message) as info:
    sentences(tmp_path, format, path)
  assert "\n" not in str(info.value) and "vocab" not in str(info.value)
