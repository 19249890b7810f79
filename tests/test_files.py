import numpy as np
import pytest

from unifluid_jax.core import files


def test_a_file_is_replaced_whole(tmp_path):
  target = tmp_path / "new" / "a.json"
  files.write(target, "one")
  files.write(target, b"two")
  assert target.read_bytes() == b"two"
  assert list(target.parent.iterdir()) == [target]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
  target = tmp_path / "a"
  files.write(target, "old")
  with pytest.raises(RuntimeError), files.replaced(target) as partial:
    with open(partial, "w") as f:
      f.write("half")
    raise RuntimeError
  assert target.read_text() == "old"
  assert list(tmp_path.iterdir()) == [target]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
  target = tmp_path / "above" / "new"
  with pytest.raises(RuntimeError), files.new_folder(target) as made:
    (made / "half").write_text("x")
    raise RuntimeError
  assert list(target.parent.iterdir()) == []
  with files.new_folder(target) as made:
    (made / "whole").write_text("x")
    assert not target.exists()
  assert [f.name for f in target.parent.iterdir()] == ["new"]
  with pytest.raises(OSError), files.new_folder(target) as made:
    (made / "other").write_text("x")
  assert [f.name for f in target.iterdir()] == ["whole"]


def test_named_arrays_replace_a_file(tmp_path):
  for value in (1.0, 2.0):
    files.write_npz(tmp_path / "a.npz", x=np.full(3, value), name="n")
  with np.load(tmp_path / "a.npz") as found:
    assert found["x"].tolist() == [2.0] * 3 and str(found["name"]) == "n"
  assert [f.name for f in tmp_path.iterdir()] == ["a.npz"]


def test_remote_paths_are_known_by_their_scheme(tmp_path):
  assert files.is_remote("gs://bucket/run") and not files.is_remote(tmp_path)


def test_remote_paths_are_absolute_as_they_are(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(files.absolute("gs://bucket/run")) == "gs://bucket/run"
  assert str(files.absolute("run")) == str(tmp_path / "run")


def test_what_reaches_object_stores_is_named_if_it_is_missing(monkeypatch):
  monkeypatch.setattr(files.importlib.util, "find_spec", lambda _: None)
  files._reaches_gcs.cache_clear()
  with pytest.raises(ValueError, match="gs://b/run.*pip install gcsfs"):
    files.path("gs://b/run")
  files._reaches_gcs.cache_clear()
  files.path("b/run")
