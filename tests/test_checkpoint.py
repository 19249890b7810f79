"""Checkpoints on disk: whole, damaged, gone, set aside."""

import json
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint._src.path import gcs_utils

from tests.test_train import Toy, go, make, same
from unifluid_jax import loading
from unifluid_jax.core import checkpoint, checkpoint_files, digests


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run with steps 2 and 4, its job and its last state."""
  path = tmp_path_factory.mktemp("finished")
  job = make(path, steps=4, checkpoint__every=2)
  return path, job, go(job, path)


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint_files, "_VANISHING_SECONDS", 0)
  shutil.copytree(finished[0], tmp_path / "run")
  return tmp_path / "run"


def restore_params(workdir, step=4):
  like = jax.eval_shape(Toy().init, jax.random.key(0))
  return checkpoint.restore_part(str(workdir), step, "params", like)


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def remove(path):
  path.unlink()


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(bytes(data))


DAMAGE = {
  cut: r"has [\d,]+ bytes instead of [\d,]+",
  remove: "is missing",
  flip: "has changed since it was saved",
}


def files_of(step):
  names = [f for f in sorted(step.rglob("*")) if f.is_file()]
  return [f for f in names if f.name != digests.NAME]


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_damaged_file_is_named_with_its_step(finished, copy, damage):
  whole = finished[0] / "checkpoints" / "4"
  files = files_of(whole)
  assert len(files) > 10
  for file in files:
    name = str(file.relative_to(whole))
    shutil.rmtree(copy / "checkpoints" / "4")
    shutil.copytree(whole, copy / "checkpoints" / "4")
    damage(copy / "checkpoints" / "4" / name)
    step, problems = checkpoint.newest_whole(str(copy))
    assert step == 2, name
    assert f"{copy}/checkpoints/4 is damaged: {name} " in problems[4]
    words = f"4 is damaged: {name} {DAMAGE[damage]}; delete this step"
    read = {"state": restore_params, "meta": checkpoint.read_meta}
    read = read.get(name.split("/")[0])
    if read is not None:
      with pytest.raises(checkpoint.CheckpointDamagedError, match=words) as e:
        read(str(copy), 4)
      assert "\n" not in str(e.value)


def test_without_digests_it_is_read_and_what_shows_is_told(copy):
  step = copy / "checkpoints" / "4"
  (step / digests.NAME).unlink()
  restore_params(copy)
  for file in files_of(step / "state"):
    cut(file)
  with pytest.raises(checkpoint.CheckpointDamagedError) as e:
    restore_params(copy)
  assert str(e.value).startswith(f"{step} is damaged: ")
  assert "\n" not in str(e.value)
  (step / "meta" / "metadata").write_text('{"config": ')
  with pytest.raises(checkpoint.CheckpointDamagedError, match="4 is damaged"):
    checkpoint.read_meta(str(copy), 4)


@pytest.mark.parametrize("sealed", [True, False])
def test_training_goes_on_from_the_newest_whole_step(finished, copy, sealed):
  """Nothing is lost: the damaged step is kept aside."""
  step = copy / "checkpoints" / "4"
  if not sealed:
    (step / digests.NAME).unlink()
  for file in files_of(step / "state"):
    cut(file)
  before = {f.name: f.read_bytes() for f in files_of(step)}
  said = []
  same(go(finished[1], copy, said), finished[2])
  text = "\n".join(said)
  kept = copy / checkpoint.DAMAGED / "4"
  assert "1: resumed from step 2 of this workdir" in text
  assert f"{step} is damaged" in text
  assert f"step 4 is skipped, and kept in {kept}" in text
  assert {f.name: f.read_bytes() for f in files_of(kept)} == before
  assert checkpoint.steps(str(copy)) == [2, 4]
  restore_params(copy)
  assert checkpoint.set_aside(str(copy), 4).name == "4.1"


def test_no_whole_step_is_an_error_that_names_all(finished, copy):
  for step in (2, 4):
    flip(copy / "checkpoints" / str(step) / "state" / "manifest.ocdbt")
  before = sorted(copy.rglob("*"))
  words = r"no checkpoint is whole.*/4 is damaged.*/2 is damaged"
  with pytest.raises(checkpoint.CheckpointError, match=words):
    go(finished[1], copy)
  assert sorted(copy.rglob("*")) == before


def test_a_checkpoint_deleted_while_it_is_read_is_gone(copy, monkeypatch):
  real = digests.problem

  def slow(folder, under=""):
    shutil.rmtree(copy / "checkpoints" / "4")
    return real(folder, under) or "state/x is missing"

  monkeypatch.setattr(digests, "problem", slow)
  with pytest.raises(checkpoint.CheckpointGone, match="no checkpoint at"):
    restore_params(copy)
  monkeypatch.setattr(digests, "problem", real)
  with pytest.raises(checkpoint.CheckpointGone):
    checkpoint.read_meta(str(copy), 4)
  with pytest.raises(checkpoint.CheckpointGone):
    restore_params(copy)


def test_on_object_stores_a_marker_completes_a_step(copy, monkeypatch):
  (copy / "checkpoints" / "4" / "commit_success.txt").unlink()
  assert checkpoint.steps(str(copy)) == [2, 4]
  monkeypatch.setattr(gcs_utils, "is_gcs_path", lambda path: True)
  assert checkpoint.steps(str(copy)) == [2]


def test_an_unfinished_step_is_none(copy):
  torn = copy / "checkpoints" / "6.orbax-checkpoint-tmp-1"
  shutil.copytree(copy / "checkpoints" / "4", torn)
  (copy / "checkpoints" / "5").write_text("a file")
  assert checkpoint.steps(str(copy)) == [2, 4]
  assert checkpoint.steps(str(copy / "nowhere")) == []


def test_what_a_kill_left_of_a_save_is_removed(finished, copy):
  """Each has the size of a state, and no save of another step replaces it."""
  torn = copy / "checkpoints" / "6.orbax-checkpoint-tmp"
  shutil.copytree(copy / "checkpoints" / "4", torn)
  (torn / "commit_success.txt").unlink()
  saved = checkpoint.Checkpoints(str(copy), finished[1].config.checkpoint)
  saved.save(8, {"x": np.zeros(2)}, {})
  saved.close()
  assert not torn.exists() and checkpoint.steps(str(copy))[-2:] == [4, 8]


def test_every_saved_step_has_digests_of_all_its_files(finished):
  for step in (finished[0] / "checkpoints").iterdir():
    table = json.loads((step / digests.NAME).read_text())["crc32"]
    assert set(table) == {str(f.relative_to(step)) for f in files_of(step)}
    assert digests.problem(step) is None


def test_sizes_alone_are_compared_on_object_stores(tmp_path, monkeypatch):
  (tmp_path / "a").write_bytes(b"12345678")
  (tmp_path / "b").write_bytes(b"1")
  monkeypatch.setattr(digests.files, "is_remote", lambda path: True)
  digests.write(tmp_path)
  flip(tmp_path / "a")
  assert digests.problem(tmp_path) is None
  cut(tmp_path / "a")
  assert "a has 7 bytes instead of 8" in digests.problem(tmp_path)


def test_a_failed_save_leaves_no_step_and_ends(finished, tmp_path, monkeypatch):
  """The digests' thread does not wait for a step that never comes."""
  saved = checkpoint.Checkpoints(str(tmp_path), finished[1].config.checkpoint)
  monkeypatch.setattr(saved._manager, "save", lambda *a, **k: False)
  saved.save(8, {"x": np.zeros(2)}, {})
  saved.close()
  assert checkpoint.steps(str(tmp_path)) == []


def test_a_state_is_told_from_that_of_another_run(finished, copy, tmp_path):
  known = checkpoint.fingerprint(str(copy), 4)
  assert known == checkpoint.fingerprint(str(finished[0]), 4)
  assert known != checkpoint.fingerprint(str(copy), 2)
  go(make(tmp_path / "other", steps=4, seed=1), tmp_path / "other")
  assert known != checkpoint.fingerprint(str(tmp_path / "other"), 4)
  (copy / "checkpoints" / "4" / digests.NAME).unlink()
  assert checkpoint.fingerprint(str(copy), 4) == ""


def test_weights_alone_are_told_from_a_run(tmp_path):
  """As codecs' copies and converted weights are kept."""
  there = str(tmp_path)
  checkpoint.write_once(there, {"params": {"a": np.zeros(2)}}, {"weights": {}})
  for read in (loading.read, loading.spec_of):
    with pytest.raises(checkpoint.CheckpointError, match="weights alone, no r"):
      read(there)
