"""Work on a Ray cluster of this machine is the work that is done here.

Not among the tests of every change: the cluster takes half a minute to start.
"""

import shutil
from pathlib import Path

import pytest

from tests.data.test_survey import folder, load  # noqa: F401, a fixture
from tests.test_workers import files_of
from unifluid_jax.core import shards, workers
from unifluid_jax.data import survey
from unifluid_jax.data.worlds import shapes, shapes_builder

pytest.importorskip("ray", reason='pip install -e ".[ray]"')

SIZES = {"train": 2100, "validation": 20}


@pytest.fixture(scope="module")
def each():
  with workers.on_ray(workers.LOCAL) as each:
    yield each


def test_pieces_are_in_their_order_and_need_no_import_of_the_work(each):
  assert each(lambda n: [n * n, "x"], range(20)) == [
    [n * n, "x"] for n in range(20)
  ]
  assert each(lambda n: n, []) == []


def test_a_data_set_is_the_same_files(each, tmp_path):
  def build(name, spread):
    return shapes_builder.build(
      tmp_path / name, shapes.World(), SIZES, 3, spread
    )

  def on_workers(*args):
    shards.make(*args, each=each)

  one, many = build("one", None), build("many", on_workers)
  assert files_of(one) == files_of(many) != {}
  assert not Path(f"{many}{shards.SUFFIX}").exists()


def test_what_is_made_already_stays(each, tmp_path):
  path = tmp_path / "file"

  def write(number, part):
    Path(part).write_text(f"{number} ")

  def fails(number, part):
    if number == 2:
      raise ValueError(f"shard {number}: no room")
    write(number, part)

  def join(parts):
    path.write_text("".join(Path(p).read_text() for p in parts))

  with pytest.raises(ValueError, match="shard 2: no room"):
    shards.make(str(path), {}, 4, fails, join, path.exists, each)
  assert not path.exists()
  made = Path(f"{path}{shards.SUFFIX}") / "00000-of-00004"
  made.write_text("kept ")  # whether or not a worker had come to it
  shards.make(str(path), {}, 4, write, join, path.exists, each)
  assert path.read_text() == "kept 1 2 3 "


def test_bad_records_are_those_found_here(each, folder, monkeypatch):  # noqa: F811
  for i in range(5, 25):
    shutil.copy(folder / "0.png", folder / f"{i}.png")
    (folder / f"{i}.txt").write_text("a word")
  (folder / "7.png").write_bytes(b"no image")
  monkeypatch.setattr(survey, "_PIECE", 6)
  config, here, there = load(folder), [], []
  with pytest.raises(ValueError, match="2 of 25") as one:
    survey.verify(config.data, here.append)
  with pytest.raises(ValueError, match="2 of 25") as other:
    survey.verify(config.data, there.append, each)
  assert here == there and str(one.value) == str(other.value)
  assert len(here) == 3 and "image of 8 bytes" in "".join(here)
