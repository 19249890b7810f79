"""CSV, TSV, JSON lines and imagefolders, whole and damaged."""

import csv
import io
import json
import pickle

import pytest

from tests.data.test_bad_data import open_, png, read, refused
from unifluid_jax.data.sources import json_readers


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "images").mkdir()
  for i in range(3):
    (tmp_path / "images" / f"{i}.png").write_bytes(png(i))
  return tmp_path


def written(rows, delimiter=","):
  file = io.StringIO()
  csv.writer(file, delimiter=delimiter).writerows(rows)
  return file.getvalue()


ROWS = [
  ["image", "extra", "text"],
  ["0.png", "x", 'a "red", round\ncircle'],
  ["1.png", "", "zwei grüne Sterne"],
  ["2.png", "y", "a star"],
]


@pytest.mark.parametrize("name, delimiter", [("t.csv", ","), ("t.tsv", "\t")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_are_read_by_index(folder, name, delimiter, encoding):
  (folder / name).write_text(written(ROWS, delimiter), encoding=encoding)
  source = open_(folder, "table", f"{name}:images")
  assert len(source) == 3 and not source.bad
  for i in (2, 0, 1):
    assert source[i].captions == (ROWS[i + 1][2],)
    assert source[i].image == png(i)
  # The first row's text goes over two lines.
  assert [source[i].id.rpartition(":")[2] for i in range(3)] == ["2", "4", "5"]
  assert source.image_path(2) == str(folder / "images" / "2.png")
  copy = pickle.loads(pickle.dumps(source))
  assert copy[1] == source[1]
  serves = {t: len(source.indices(t)) for t in ("t2i", "i2t", "text", "image")}
  assert set(serves.values()) == {3}
  assert not len(source.indices("edit")) and not len(source.indices("dialogue"))


def test_columns_are_named(folder):
  rows = [["file", "ask", "say"], ["images/1.png", "how many?", "two"]]
  (folder / "t.csv").write_text(written(rows))
  named = dict(image="file", text="say", question="ask")
  source = open_(folder, "table", "t.csv", **named)
  assert source[0].questions == (("how many?", "two"),)
  assert source[0].captions == () and source[0].image == png(1)
  assert not len(source.indices("t2i")) and len(source.indices("i2t")) == 1
  text = refused(folder, "table", "t.csv")
  assert "lacks image, text: expected the columns image, text, found" in text
  assert text.endswith("found file, ask, say")


def test_json_lines_may_hold_several_images_and_texts(folder):
  lines = [
    {"image": ["images/0.png", "images/1.png"], "caption": ["a", "b"]},
    {"image": "images/2.png", "caption": "c", "more": {"x": 1}},
  ]
  text = "\n\n".join(json.dumps(line) for line in lines)
  (folder / "t.jsonl").write_text(text)
  source = open_(folder, "table", "t.jsonl", text="caption")
  assert source[0].captions == ("a", "b") and source[0].more == (png(1),)
  assert source[1].captions == ("c",) and source[1].image == png(2)
  assert source[1].id.endswith("t.jsonl:3")


BAD = [
  ("0.png,a,b,c\n", "4 values, the first line names 3 columns"),
  ("0.png,a\n", "2 values, the first line names 3"),
  (",x,a\n", "no image"),
  ("0.png,x, \n", "no text"),
  ("../../0.png,x,a\n", "outside of data.root"),
  ("/etc/passwd,x,a\n", "absolute"),
  ('0.png,x,"a\n', "unexpected end of data"),
  ('0.png,x,"a" b\n', "expected after"),
  (b"0.png,x,\xff\xfe\n", "not in UTF-8"),
  ("a\0.png,x,a\n", "NUL"),
]


@pytest.mark.parametrize("line, words", BAD, ids=range(len(BAD)))
def test_a_bad_row_is_named_and_the_others_are_read(folder, line, words):
  line = line if isinstance(line, bytes) else line.encode()
  good = "{}.png,x,text {}\n"
  whole = b"image,extra,text\n" + good.format(0, 0).encode() + line
  whole += good.format(1, 1).encode() + good.format(2, 2).encode()
  (folder / "images" / "t.csv").write_bytes(whole)
  source = open_(folder / "images", "table", "t.csv")
  (named,) = source.bad
  assert named.startswith(f"{folder}/images/t.csv:3: ") and "\n" not in named
  assert words in named
  good, bad = read(source)
  assert [r.captions for r in good] == [(f"text {i}",) for i in range(3)]
  assert [r.id.rpartition(":")[2] for r in good] == ["2", "4", "5"]
  assert not bad


def test_very_long_lines_are_bounded(folder, monkeypatch):
  monkeypatch.setattr(json_readers, "LONGEST", 100)
  monkeypatch.setattr("unifluid_jax.data.sources.tables._LONGEST", 100)
  long = f"0.png,x,{'a' * 400}\n"
  text = f"image,extra,text\n1.png,x,a\n{long}2.png,x,b\n"
  (folder / "images" / "t.csv").write_text(text)
  source = open_(folder / "images", "table", "t.csv")
  assert [b.partition("csv:")[2] for b in source.bad] == [
    "3: longer than 100 bytes"
  ]
  assert [r.id[-1] for r in read(source)[0]] == ["2", "4"]


def test_files_that_are_no_tables(folder):
  (folder / "t.csv").write_text("")
  assert "no names of columns: it is empty" in refused(folder, "table", "t.csv")
  (folder / "t.jsonl").write_text("[1]\n")
  assert "not a JSON object" in refused(folder, "table", "t.jsonl")
  (folder / "t.txt").write_text("image,text\n")
  assert "is no table" in refused(folder, "table", "t.txt")


def test_a_table_that_changed_since_it_was_opened(folder):
  (folder / "t.csv").write_text(written(ROWS))
  source = open_(folder, "table", "t.csv:images")
  (folder / "t.csv").write_text("image,extra,text\n0.png\n")
  good, bad = read(source)
  assert not good and len(bad) == 3 and "t.csv:2: 1 values" in bad[0]


# ---------------------------------------------------------------- imagefolder


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_imagefolder_names_images_by_file_name(folder, kind):
  rows = [{"file_name": f"{i}.png", "text": f"text {i}"} for i in range(3)]
  if kind == "csv":
    text = written([["file_name", "text"], *(r.values() for r in rows)])
  else:
    text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "images" / f"metadata.{kind}").write_text(text)
  source = open_(folder, "imagefolder", "images")
  records, bad = read(source)
  assert [(r.image, r.captions) for r in records] == [
    (png(i), (f"text {i}",)) for i in range(3)
  ]
  assert not bad and not source.bad
  (folder / "images" / "1.png").unlink()
  _, bad = read(source)
  assert len(bad) == 1 and "1.png" in bad[0]


def test_an_imagefolder_has_one_metadata_file(folder):
  assert "no metadata.csv and no metadata.jsonl" in refused(
    folder, "imagefolder", "images"
  )
  for name in ("metadata.csv", "metadata.jsonl"):
    (folder / "images" / name).write_text("file_name,text\n")
  assert "has both metadata.csv and metadata.jsonl: remove one" in refused(
    folder, "imagefolder", "images"
  )


def test_a_column_that_comes_twice_is_refused(folder):
  """One of the two would be read without a word."""
  (folder / "t.csv").write_text("image,n,n,text,text\nimages/0.png,1,2,x,y\n")
  said = refused(folder, "table", "t.csv")
  assert "t.csv has several columns 'text': rename them" in said
  (folder / "t.csv").write_text("image,n,n,text\nimages/0.png,1,2,x\n")
  (record,), bad = read(open_(folder, "table", "t.csv"))
  assert record.captions == ("x",) and not bad
