"""gs:// paths against the emulator; `e2e/test_commands.py` trains there."""

import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.weights import helpers
from unifluid_jax.core import checkpoint, files
from unifluid_jax.core.config import CheckpointConfig
from unifluid_jax.data.sources import cached
from unifluid_jax.data.worlds import shapes, shapes_builder
from unifluid_jax.weights import convert, gemma, readers
from unifluid_jax.weights.rows import WeightsError

REPO = Path(__file__).parent.parent
STATE = {"params": {"w": np.arange(4, dtype=np.float32)}}


def test_folders_are_listed_anew_at_every_look(gcs):
  """As an evaluation job must, that waits for another process to write."""
  folder = files.path(f"{gcs}/listed")
  files.write(folder / "a", "1")
  assert [p.name for p in folder.iterdir()] == ["a"]
  code = f"from unifluid_jax.core import files; files.write('{folder}/b', '2')"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)
  assert {p.name for p in folder.iterdir()} == {"a", "b"}
  assert {p.name for p in folder.glob("*")} == {"a", "b"}


def test_a_local_folder_is_copied_whatever_ends_it(gcs):
  target = f"{gcs}/profile"
  with pytest.raises(KeyError), files.local_folder(target) as folder:
    (Path(folder) / "deep").mkdir()
    (Path(folder) / "deep" / "trace").write_bytes(b"\0" * 1000)
    raise KeyError
  assert (files.path(target) / "deep" / "trace").read_bytes() == b"\0" * 1000
  assert not Path(folder).exists()


def test_only_what_is_complete_is_a_checkpoint(gcs):
  run = f"{gcs}/checkpoints_of"
  saved = checkpoint.Checkpoints(run, CheckpointConfig(1, 3, 0))
  saved.save(1, STATE, {"a": 1})
  saved.save(2, STATE, {"a": 2})
  saved.close()
  assert checkpoint.steps(run) == [1, 2]
  got = checkpoint.restore_part(run, 2, "params", STATE["params"])
  np.testing.assert_array_equal(got["w"], STATE["params"]["w"])
  assert checkpoint.read_meta(run, 2)["a"] == 2
  # As a kill while it is being saved leaves it.
  (files.path(run) / "checkpoints" / "2" / "commit_success.txt").unlink()
  assert checkpoint.steps(run) == [1]


def test_weights_are_converted_to_a_bucket(gcs):
  theirs, ours = helpers.FIXTURES / "gemma2", f"{gcs}/gemma"
  convert.to_checkpoint(f"gemma:{theirs}", ours, print)
  assert checkpoint.latest_step(ours) == 0
  source = readers.open_source(str(theirs))
  want = helpers.in_memory(source, gemma.recipe(source))
  got = helpers.restore(ours, {path: x.shape for path, x in want.items()})
  np.testing.assert_array_equal(
    got["decoder"]["layers"]["mlp"]["up"], want["decoder/layers/mlp/up"]
  )
  # What says that all is there came last.
  objects = fsspec.filesystem("gcs").find(ours, detail=True)
  last = max(objects, key=lambda name: int(objects[name]["generation"]))
  assert last.endswith("gemma/checkpoints/0/commit_success.txt")
  with pytest.raises(WeightsError, match="exists: choose another --to"):
    convert.to_checkpoint("gemma:/nowhere", ours, print)


@pytest.mark.parametrize(
  "call",
  [
    lambda at: cached.CachedReader(at),
    lambda at: cached.write_cached(at, []),
    lambda at: shapes_builder.build(at, shapes.World(), {"train": 1}, 0),
  ],
)
def test_what_needs_a_local_disk_says_how_to_go_on(gcs, call):
  with pytest.raises(ValueError, match=r"local disk: copy it.*data\.root"):
    call(f"{gcs}/data")
