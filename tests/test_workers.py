"""Pieces of work as workers elsewhere get them: pickled, in any order.

Ray itself: tests/parity/test_ray.py.
"""

import json
import sys
from pathlib import Path

import cloudpickle
import pytest

from tests.data.test_survey import folder, load  # noqa: F401, a fixture
from unifluid_jax.core import shards, workers
from unifluid_jax.data import survey
from unifluid_jax.data.worlds import shapes, shapes_builder


def elsewhere(work, pieces):
  """As a worker would: a copy of the work, other pieces first, JSON back."""
  work = cloudpickle.loads(cloudpickle.dumps(work))
  done = {i: work(pieces[i]) for i in reversed(range(len(pieces)))}
  return json.loads(json.dumps([done[i] for i in range(len(pieces))]))


def on_workers(*args):
  shards.make(*args, each=elsewhere)


def files_of(path):
  return {
    file.relative_to(path): file.read_bytes()
    for file in path.rglob("*")
    if file.is_file()
  }


def test_a_data_set_is_the_same_files(tmp_path):
  sizes = {"train": 1100, "validation": 20}
  one, many = (
    shapes_builder.build(tmp_path / name, shapes.World(), sizes, 3, spread)
    for name, spread in (("one", None), ("many", on_workers))
  )
  assert files_of(one) == files_of(many) != {}
  assert not Path(f"{many}{shards.SUFFIX}").exists()


def test_workers_that_do_not_see_the_disk_are_refused(tmp_path):
  def without_disk(work, pieces):
    (tmp_path / "file.shards" / "made_of.json").unlink()
    return elsewhere(work, pieces)

  written = []
  with pytest.raises(ValueError, match="all processes and workers share"):
    shards.make(
      str(tmp_path / "file"), {}, 2, lambda *shard: written.append(shard),
      written.append, lambda: False, without_disk,
    )  # fmt: skip
  assert not written


def test_bad_records_are_those_found_here(folder, monkeypatch):  # noqa: F811
  monkeypatch.setattr(survey, "_PIECE", 2)
  data, here, there = load(folder).data, [], []
  for said, each in ((here, workers.here), (there, elsewhere)):
    with pytest.raises(ValueError, match="1 of 5 records"):
      survey.verify(data, said.append, each)
  assert here == there and here[0].startswith("  bad: record 3")


def test_what_a_worker_makes_of_errors():
  def work(piece):
    if piece == "bug":
      raise KeyError(piece)
    if piece == "bad":
      raise OSError("no room")
    return [piece, None]

  worker = workers._Worker(work, ["good", "bad", "bug"])
  done = worker({"id": 0})
  assert json.loads(done["result"]) == ["good", None] and not done["error"]
  assert worker({"id": 1})["error"] == "OSError: no room"
  with pytest.raises(KeyError):  # a bug is told with its traceback
    worker({"id": 2})


def test_what_workers_made_is_in_order():
  worker = workers._Worker(lambda piece: {"made of": piece}, "abc")
  done = [worker({"id": i}) for i in (2, 0, 1)]
  assert workers._in_order(done) == [{"made of": x} for x in "abc"]
  failed = {"id": 1, "result": "null", "error": "ValueError: b is bad"}
  with pytest.raises(ValueError, match="b is bad"):
    workers._in_order([done[0], failed, done[1]])


def test_without_ray_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(ValueError, match=r'needs Ray: pip install -e "\.\[ray'):
    with workers.on_ray("auto"):
      pass
