"""Folders of images: texts beside them, classes as subfolders."""

import pickle

import pytest

from tests.data.test_bad_data import open_, png, read, refused
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import identity


@pytest.fixture
def captioned(tmp_path):
  """Three images in two folders, one without a text."""
  (tmp_path / "in").mkdir()
  (tmp_path / ".hidden").mkdir()
  for name in ("b.png", "in/a.JPG", "in/c.webp", ".hidden/d.png", ".e.png"):
    (tmp_path / name).write_bytes(png(len(name)))
  (tmp_path / "b.txt").write_text("\ufeffa boat\n\n  two boats \n", "utf-8")
  (tmp_path / "in" / "a.txt").write_text("ein grüner Apfel", "utf-8")
  (tmp_path / "README.txt").write_text("about this folder")
  return tmp_path


def test_texts_beside_images(captioned):
  source = open_(captioned, "captions_txt", ".")
  records, bad = read(source)
  assert not bad and not source.bad
  assert [(r.id, r.captions) for r in records] == [
    ("b.png", ("a boat", "two boats")),
    ("in/a.JPG", ("ein grüner Apfel",)),
    ("in/c.webp", ()),
  ]
  assert records[1].image == png(8)
  serves = {t: source.indices(t).tolist() for t in ("t2i", "i2t", "text")}
  assert serves == dict.fromkeys(serves, [0, 1])
  assert source.indices("image").tolist() == [0, 1, 2]
  assert not len(source.indices("edit"))
  assert source.image_path(1) == str(captioned / "in" / "a.JPG")
  assert pickle.loads(pickle.dumps(source))[1] == records[1]


@pytest.mark.parametrize(
  "text, words",
  [(b"\xff\xfe", "b.txt is not in UTF-8"), (b" \n", "b.txt is blank")],
)
def test_damaged_texts_are_named(captioned, text, words):
  (captioned / "b.txt").write_bytes(text)
  good, bad = read(open_(captioned, "captions_txt", "."))
  assert len(good) == 2 and len(bad) == 1 and words in bad[0]


def test_a_text_that_is_too_long(captioned, monkeypatch):
  monkeypatch.setattr("unifluid_jax.data.sources.folders._LONGEST", 10)
  good, bad = read(open_(captioned, "captions_txt", "."))
  assert len(good) == 1 and len(bad) == 2
  assert "b.txt has" in bad[0] and "at most 10" in bad[0]


def test_the_digest_sees_images_and_texts(captioned):
  config = SourceConfig("captions_txt", ".")
  before = identity.of_source(config, str(captioned))
  assert before["files"] == 5
  for name in ("in/a.txt", "in/c.webp"):
    data = (captioned / name).read_bytes()
    (captioned / name).write_bytes(data + b"x")
    assert identity.of_source(config, str(captioned)) != before
    (captioned / name).write_bytes(data)
  assert identity.of_source(config, str(captioned)) == before


def test_classes_are_the_names_of_subfolders(tmp_path):
  for i, name in enumerate(("cat/a.png", "hot dog/x/b.jpg", "cat/b.png")):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(png(i))
  (tmp_path / "c.png").write_bytes(png(3))
  source = open_(tmp_path, "class_folders", ".")
  (named,) = source.bad
  assert named == "'c.png': in no class's folder: move it into one"
  records, bad = read(source)
  assert not bad
  assert [(r.id, r.captions, r.image) for r in records] == [
    ("cat/a.png", ("cat",), png(0)),
    ("cat/b.png", ("cat",), png(2)),
    ("hot dog/x/b.jpg", ("hot dog",), png(1)),
  ]
  assert len(source.indices("t2i")) == 3 and not len(source.indices("edit"))


def test_links_to_folders_lead_nowhere_below_the_first_level(tmp_path):
  (tmp_path / "set" / "cat").mkdir(parents=True)
  (tmp_path / "set" / "cat" / "a.png").write_bytes(png())
  (tmp_path / "set" / "cat" / "loop").symlink_to(tmp_path / "set")
  (tmp_path / "dogs").mkdir()
  (tmp_path / "dogs" / "b.png").write_bytes(png())
  (tmp_path / "set" / "dog").symlink_to(tmp_path / "dogs")
  records, _ = read(open_(tmp_path, "class_folders", "set"))
  assert [r.captions for r in records] == [("cat",), ("dog",)]


def test_folders_without_images_are_refused(tmp_path):
  (tmp_path / "d").mkdir()
  assert "holds no images: looked for .png" in refused(
    tmp_path, "captions_txt", "d"
  )
  (tmp_path / "d" / "f.txt").write_text("x")
  assert "is no folder" in refused(tmp_path, "class_folders", "d/f.txt")
