import pytest

from unifluid_jax import files


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


def test_remote_paths_are_known_by_their_scheme(tmp_path):
  assert files.is_remote("gs://bucket/run") and not files.is_remote(tmp_path)
