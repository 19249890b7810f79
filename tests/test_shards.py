"""Files made in shards, by one process or several, at once or in pieces."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from unifluid_jax.codecs import cache
from unifluid_jax.core import shards
from unifluid_jax.data.sources import cached


def write(number, path):
  Path(path).write_text(f"{number} ")


def joins(path):
  def join(parts):
    Path(path).write_text("".join(Path(p).read_text() for p in parts))

  return join


def as_process(monkeypatch, index, count):
  monkeypatch.setattr(jax, "process_index", lambda: index)
  monkeypatch.setattr(jax, "process_count", lambda: count)
  # The others are called before and after: nothing to wait for.
  monkeypatch.setattr(shards, "wait", lambda name: None)


def test_shards_are_joined_in_order_and_leave_nothing(tmp_path):
  path = tmp_path / "file"
  shards.make(str(path), {"a": (1,)}, 3, write, joins(path), path.exists)
  assert path.read_text() == "0 1 2 "
  assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_job_makes_what_is_missing(tmp_path):
  path, made = tmp_path / "file", []

  def stops(number, part):
    if number == 2:
      raise InterruptedError
    write(number, part)

  with pytest.raises(InterruptedError):
    shards.make(str(path), {}, 4, stops, joins(path), path.exists)
  assert not path.exists()

  def goes_on(number, part):
    made.append(number)
    write(number, part)

  shards.make(str(path), {}, 4, goes_on, joins(path), path.exists)
  assert made == [2, 3] and path.read_text() == "0 1 2 3 "


def test_shards_of_something_else_are_removed(tmp_path):
  path = tmp_path / "file"

  def breaks(parts):
    raise OSError

  with pytest.raises(OSError):
    shards.make(str(path), {"data": "old"}, 2, write, breaks, path.exists)
  assert len(list((tmp_path / "file.shards").iterdir())) == 3

  def new(number, part):
    Path(part).write_text("new ")

  shards.make(str(path), {"data": "new"}, 2, new, joins(path), path.exists)
  assert path.read_text() == "new new "


def test_processes_divide_the_shards(tmp_path, monkeypatch):
  path, made = tmp_path / "file", {0: [], 1: [], 2: []}
  folder = Path(f"{path}{shards.SUFFIX}")
  folder.mkdir()
  (folder / "made_of.json").write_text(json.dumps({"data": 1}))
  for index in (2, 1, 0):
    as_process(monkeypatch, index, 3)

    def mine(number, part, index=index):
      made[index].append(number)
      write(number, part)

    shards.make(str(path), {"data": 1}, 7, mine, joins(path), path.exists)
    assert path.exists() == (index == 0)
  assert made == {0: [0, 3, 6], 1: [1, 4], 2: [2, 5]}
  assert path.read_text() == "0 1 2 3 4 5 6 "


def test_processes_on_separate_disks_are_refused(tmp_path, monkeypatch):
  as_process(monkeypatch, 1, 2)
  made = []
  with pytest.raises(ValueError, match="does not find .* must lie on a disk"):
    path = tmp_path / "file"
    shards.make(str(path), {}, 2, made.append, made.append, path.exists)
  assert not made and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "shape, dtype",
  [((2, 2, 4), np.float16), ((5,), np.uint16), (None, np.uint16)],
)
def test_joined_images_are_those_of_one_file_bit_by_bit(tmp_path, shape, dtype):
  """Unreadable images among them, also where a shard has no other."""
  rng = np.random.default_rng(0)
  grids = [(2, 4), (4, 2)]
  arrays = [
    rng.integers(9, size=shape or grids[i % 2]).astype(dtype) for i in range(7)
  ]
  arrays[2] = arrays[3] = None
  one, many = tmp_path / "one", tmp_path / "many"
  cached.write_cached(one, arrays, dtype)
  done = cache.write(
    str(many),
    {"a": 1},
    7,
    lambda r: iter([arrays[i] for i in r]),
    dtype,
    shard=2,
  )
  assert done == "written" and one.read_bytes() == many.read_bytes()
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "many", "many.json", "one",
  ]  # fmt: skip


def test_shards_of_other_shapes_are_refused(tmp_path):
  parts = [tmp_path / "0", tmp_path / "1"]
  for part, shape in zip(parts, [(2, 2, 4), (2, 2, 8)], strict=True):
    cached.write_cached(part, [np.zeros(shape)])
  with pytest.raises(ValueError, match="images of several shapes"):
    cached.join_cached(tmp_path / "all", parts)
  assert not (tmp_path / "all").exists()


TWICE = """
import sys, time
from pathlib import Path
from unifluid_jax.core import shards

path, log = Path(sys.argv[1]), open(sys.argv[2], "a", buffering=1)

def write(number, part):
  log.write(f"{number} ")
  time.sleep(0.3)
  Path(part).write_text(f"{number} ")

def join(parts):
  time.sleep(0.3)
  path.write_text("".join(Path(p).read_text() for p in parts))

print("ready", flush=True)
sys.stdin.readline()
shards.make(str(path), {}, 4, write, join, path.exists)
assert path.read_text() == "0 1 2 3 "
"""


def test_of_commands_at_once_one_makes_the_file_and_the_others_wait(tmp_path):
  """As of two systems on the same data; each shard is made once."""
  log = tmp_path / "log"
  arguments = [sys.executable, "-c", TWICE, str(tmp_path / "file"), str(log)]
  pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
  jobs = [subprocess.Popen(arguments, text=True, **pipes) for _ in range(3)]
  assert all(job.stdout.readline() == "ready\n" for job in jobs)
  for job in jobs:
    job.stdin.write("\n")
    job.stdin.flush()
  told = [job.communicate()[1] for job in jobs]
  assert [job.returncode for job in jobs] == [0, 0, 0], told
  assert sorted(log.read_text().split()) == ["0", "1", "2", "3"]
  words = "is being made by process"
  assert sorted(text.count(words) for text in told) == [0, 1, 1]
  assert {f.name for f in tmp_path.iterdir()} == {"file", "log"}
