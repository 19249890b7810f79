"""Tar shards, whole and damaged; written by the standard library's tarfile."""

import io
import json
import pickle
import tarfile

import pytest

from tests.data.test_bad_data import open_, png, read, refused
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import identity

WHOLE = {
  "0.jpg": png(0), "0.txt": b"a boat", "0.json": b'{"text": "no"}',
  "in/1.x.png": png(1), "in/1.y.png": png(2), "in/1.npy": b"ignored",
  "in/1.json": json.dumps({"caption": ["a", "b"]}).encode(),
  "2.webp": png(3), "2.cls": b"7",
  "3.png": png(4), "3.json": b'{"q": "how many?", "a": "two"}',
}  # fmt: skip


def write(path, members, format=tarfile.PAX_FORMAT):
  """Members in their order; a TarInfo stands for itself."""
  path.parent.mkdir(exist_ok=True)
  with tarfile.open(path, "w", format=format) as tar:
    for name, data in members.items():
      info = (
        data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
      )
      info.name = name
      if isinstance(data, bytes):
        info.size = len(data)
      tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_are_read_in_any_order(tmp_path, format):
  long = f"{'n' * 150}"  # takes headers of its own
  write(tmp_path / "s" / "b.tar", {f"{long}.png": png(9), f"{long}.txt": b"z"},
        format)  # fmt: skip
  write(tmp_path / "s" / "a.tar", WHOLE, format)
  source = open_(tmp_path, "webdataset", "s")
  assert len(source) == 5 and not source.bad
  got = {i: source[i] for i in (4, 2, 0, 1)}
  assert got[0].image == png(0) and got[0].captions == ("a boat",)
  assert got[1].image == png(1) and got[1].more == (png(2),)
  assert got[1].captions == ("a", "b") and got[1].id == "a.tar:in/1"
  assert got[2].captions == ("7",) and got[2].image == png(3)
  assert got[4].captions == ("z",) and got[4].id == f"b.tar:{long}"
  assert source[3].captions == ()  # keys that nobody named
  assert pickle.loads(pickle.dumps(source))[1] == got[1]
  serves = {t: len(source.indices(t)) for t in ("t2i", "i2t", "image", "edit")}
  assert serves == {"t2i": 5, "i2t": 5, "image": 5, "edit": 0}


def test_questions_are_keys_of_json(tmp_path):
  write(tmp_path / "a.tar", WHOLE)
  source = open_(tmp_path, "webdataset", "a.tar", text="a", question="q")
  assert source[3].questions == (("how many?", "two"),)
  assert not len(source.indices("t2i"))
  _, bad = read(source)
  assert bad == ["a.tar:0: no q and a in .json",
                 "a.tar:in/1: no q and a in .json",
                 "a.tar:2: no q and a in .json"]  # fmt: skip


def test_shards_are_named_by_patterns(tmp_path):
  for name in ("train-000", "train-001", "train-002", "val-000"):
    write(tmp_path / f"{name}.tar", {f"{name}.png": png(), f"{name}.txt": b"x"})
  ids = lambda path: [  # noqa: E731
    r.id.partition(":")[2] for r in read(open_(tmp_path, "webdataset", path))[0]
  ]
  assert ids("train-{001..002}.tar") == ["train-001", "train-002"]
  assert ids("{split}-*.tar") == ["train-000", "train-001", "train-002"]
  assert ids(".") == ["train-000", "train-001", "train-002", "val-000"]
  assert "no data at" in refused(tmp_path, "webdataset", "test-*.tar")
  assert "holds -1 files" in refused(tmp_path, "webdataset", "a-{3..1}.tar")


def test_no_member_reaches_the_file_system(tmp_path):
  """Links, devices and names that lead elsewhere are never paths."""
  link, device = tarfile.TarInfo(), tarfile.TarInfo()
  link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
  device.type = tarfile.FIFOTYPE
  members = {
    "1.png": link, "2.png": device, "../../3.png": png(3), "../../3.txt": b"x",
    "/4.png": png(4), "/4.txt": b"y", "5.txt": b"alone", "__M/._6.png": b"?",
  }  # fmt: skip
  write(tmp_path / "a.tar", members)
  source = open_(tmp_path, "webdataset", "a.tar")
  records, bad = read(source)
  assert [(r.image, r.captions) for r in records] == [
    (png(3), ("x",)), (png(4), ("y",))
  ]  # fmt: skip
  assert not bad
  assert [b.partition("a.tar: ")[2] for b in source.bad] == [
    "'1.png' is no plain file", "'2.png' is no plain file", "5: no image",
  ]  # fmt: skip
  assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def header(path, number):
  """Offset of a member's header."""
  with tarfile.open(path) as tar:
    return tar.getmembers()[number].offset


def shard(tmp_path):
  """Three samples of an image and a text; plain headers of 512 bytes."""
  members = {}
  for i in range(3):
    members |= {f"{i}.png": png(i), f"{i}.txt": b"text"}
  write(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
  return tmp_path / "a.tar"


def test_a_cut_shard_loses_its_end(tmp_path):
  path = shard(tmp_path)
  path.write_bytes(path.read_bytes()[: header(path, 4) + 512 + 10])
  source = open_(tmp_path, "webdataset", "a.tar")
  assert len(read(source)[0]) == 2
  assert "'2.png' is cut: download the shard again" in source.bad[0]
  assert all("a.tar: " in b for b in source.bad)


def test_a_damaged_header_is_no_end(tmp_path):
  """tarfile would stop there without a word."""
  path = shard(tmp_path)
  data = bytearray(path.read_bytes())
  data[header(path, 2) + 5] ^= 255
  path.write_bytes(data)
  source = open_(tmp_path, "webdataset", "a.tar")
  assert [r.id for r in read(source)[0]] == ["a.tar:0"]
  (named,) = source.bad
  assert f"no header at byte {header_of(data, 2)}" in named
  assert "bytes are lost: download" in named


def header_of(data, number):
  """Of the images and texts of `shard`: each of a header and a block."""
  return number * 2 * 512


def test_a_size_that_leads_back_ends_the_shard(tmp_path):
  path = shard(tmp_path)
  data = bytearray(path.read_bytes())
  with tarfile.open(path) as tar:
    info = tar.getmembers()[2]
  start = info.offset
  block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
  block[124:136] = b"\xff" + (-2048).to_bytes(11, "big", signed=True)
  block[148:156] = b" " * 8
  block[148:156] = b"%06o\0 " % sum(block)
  data[start : start + 512] = block
  path.write_bytes(data)
  source = open_(tmp_path, "webdataset", "a.tar")
  assert [r.id for r in read(source)[0]] == ["a.tar:0"]
  assert source.bad and all("a.tar: " in b for b in source.bad)


def test_sizes_are_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr("unifluid_jax.data.sources.webdataset._LONGEST", 3)
  source = open_(shard(tmp_path).parent, "webdataset", "a.tar")
  assert len(source) == 0 and len(source.bad) == 3
  assert "'0.txt' has 4 bytes, at most 3 are read" in source.bad[0]


def test_what_is_no_tar(tmp_path):
  (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
  text = refused(tmp_path, "webdataset", "a.tar")
  assert "is no tar file, or a compressed one" in text
  with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
    tar.add(__file__, "a.txt")
  assert "gunzip" in refused(tmp_path, "webdataset", "a.tar")
  (tmp_path / "d").mkdir()
  assert "no .tar file in" in refused(tmp_path, "webdataset", "d")
  write(tmp_path / "b.tar", {"a.npy": b"x"})
  assert "no member is an image" in refused(tmp_path, "webdataset", "b.tar")


def test_a_shard_that_changed(tmp_path):
  path = shard(tmp_path)
  config = SourceConfig("webdataset", "a.tar")
  before = identity.of_source(config, str(tmp_path))
  source = open_(tmp_path, "webdataset", "a.tar")
  write(path, {"7.png": png(7), "7.txt": b"new"})
  assert read(open_(tmp_path, "webdataset", "a.tar"))[0][0].id == "a.tar:7"
  assert identity.of_source(config, str(tmp_path)) != before
  path.write_bytes(b"")
  good, bad = read(source)
  assert not good and len(bad) == 3 and "a.tar:0: cut" in bad[0]


def test_hidden_members_are_no_part_of_samples(tmp_path):
  """A Mac's tar puts ._0.png before 0.png, between it and its text too."""
  members = {}
  for i in range(2):
    members |= {f"./._{i}.png": b"?", f"./{i}.png": png(i)}
    members |= {f"./._{i}.txt": b"?", f"./{i}.txt": b"text %d" % i}
  write(tmp_path / "a.tar", members)
  source = open_(tmp_path, "webdataset", "a.tar")
  records, bad = read(source)
  assert [(r.image, r.captions) for r in records] == [
    (png(i), (f"text {i}",)) for i in range(2)
  ]
  assert not bad and not source.bad


def test_what_is_drawn_is_no_map_of_the_image(tmp_path):
  """Which comes first where members are sorted by name."""
  members = {"0.depth.png": png(0), "0.jpg": png(1), "0.mask.png": png(2),
             "0.txt": b"x"}  # fmt: skip
  write(tmp_path / "a.tar", members)
  (record,), _ = read(open_(tmp_path, "webdataset", "a.tar"))
  assert (record.image, record.more) == (png(1), (png(0), png(2)))


def test_two_samples_of_one_key_are_not_mixed(tmp_path):
  """The text of one would be learned for the image of the other."""
  with tarfile.open(tmp_path / "a.tar", "w") as tar:
    for name, data in (("0.png", png(0)), ("0.txt", b"a"), ("0.png", png(1)),
                       ("0.txt", b"b"), ("1.png", png(2))):  # fmt: skip
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  source = open_(tmp_path, "webdataset", "a.tar")
  assert [r.id for r in read(source)[0]] == ["a.tar:1"]
  assert "'0.png' comes twice in a row" in source.bad[0]
