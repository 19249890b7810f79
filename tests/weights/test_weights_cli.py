"""The command as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.weights import helpers
from unifluid_jax.core import checkpoint
from unifluid_jax.weights import (
  convert,
  gemma,
  readers,
  safetensors_file,
  to_hf,
)
from unifluid_jax.weights.rows import WeightsError

REPO = Path(__file__).parent.parent.parent
AT = helpers.FIXTURES / "gemma2"


def command(*args):
  return subprocess.run(
    [sys.executable, "-m", "unifluid_jax.weights", *args],
    cwd=REPO, env=dict(os.environ, PYTHONPATH=str(REPO)),
    capture_output=True, text=True, check=False,
  )  # fmt: skip


@pytest.fixture(scope="module")
def there(tmp_path_factory):
  """A converted fixture, and what the command said."""
  to = tmp_path_factory.mktemp("there") / "new" / "ours"
  return to, command(f"--from=gemma:{AT}", f"--to={to}", "--dtype=bfloat16")


def test_converts_and_tells(there):
  to, done = there
  assert done.returncode == 0, done.stderr
  assert "Gemma 2 (unpublished size" in done.stdout
  assert "Hugging Face names" in done.stdout
  assert "-> decoder/layers/attn/q  (3, 24, 4, 8) bfloat16 x3" in done.stdout
  assert "35 tensors read, 0 dropped, none left over" in done.stdout
  assert "written" in done.stdout
  assert [p.name for p in to.parent.iterdir()] == ["ours"]


def test_result_is_a_checkpoint(there):
  to, _ = there
  meta = checkpoint.read_meta(str(to), checkpoint.latest_step(str(to)))
  meta = meta["weights"]
  assert meta["kind"] == "gemma" and meta["source"] == str(AT)
  assert meta["preset"] is None and meta["decoder"]["width"] == 24
  source = readers.open_source(str(AT))
  want = helpers.in_memory(source, gemma.recipe(source))
  like = {path: x.shape for path, x in want.items()}
  got = helpers.restore(to, like)["decoder"]
  np.testing.assert_allclose(
    got["layers"]["mlp"]["up"], want["decoder/layers/mlp/up"], rtol=2**-8
  )
  assert got["layers"]["mlp"]["up"].dtype == np.float32


def test_result_loads_sharded(there):
  to, _ = there
  mesh = jax.make_mesh((8,), ("x",))
  spec = jax.sharding.PartitionSpec(None, "x")
  sharding = jax.sharding.NamedSharding(mesh, spec)
  like = jax.ShapeDtypeStruct((40, 24), np.float32, sharding=sharding)
  table = {"embedder": {"table": like}}
  rest = readers.open_source(str(to))
  for name in rest.names():
    *parents, last = name.split("/")[2:]
    at = table
    for key in parents:
      at = at.setdefault(key, {})
    at.setdefault(last, jax.ShapeDtypeStruct(rest.shape(name), np.float32))
  got = checkpoint.restore_part(str(to), 0, "params/decoder", table)
  assert got["embedder"]["table"].sharding == sharding


def test_way_back(there, tmp_path):
  to, _ = there
  done = command(f"--from=gemma:{to}", f"--to={tmp_path / 'hf'}", "--to-hf")
  assert done.returncode == 0, done.stderr
  assert "35 tensors" in done.stdout
  back = readers.open_source(str(tmp_path / "hf"))
  theirs = readers.open_source(str(AT))
  assert sorted(back.names()) == sorted(theirs.names())
  for name in theirs.names():
    want = theirs.read(name).astype(back.dtype(name))
    assert back.read(name).tobytes() == want.tobytes()


def test_averages_of_a_run_go_back(there, tmp_path):
  """Those that loading, evaluation and export use."""
  to, _ = there
  ours = readers.open_source(str(to))
  params = {name: ours.read(name) for name in ours.names()}
  params = {k: x for k, x in params.items() if k.startswith("params/")}
  ema = {k.replace("params/", "ema/", 1): x + 1 for k, x in params.items()}
  part = to_hf.Params(helpers.Tensors(params | ema))
  assert part.averaged and len(part.names()) == len(params)
  for name, x in params.items():
    assert (part.read(name.removeprefix("params/")) == x + 1).all()
  assert not to_hf.Params(ours).averaged


def test_the_way_back_has_no_options(there, tmp_path):
  to, _ = there
  for option in ("--dtype=bfloat16", "--image_size=8"):
    done = command(
      f"--from=gemma:{to}", f"--to={tmp_path}/x", "--to-hf", option
    )
    assert done.returncode == 1 and "has no meaning with --to-hf" in done.stderr


def test_an_error_is_one_line(tmp_path):
  done = command(f"--from=siglip:{AT}", f"--to={tmp_path / 'ours'}")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert len(errors) == 1 and "holds no SigLIP" in errors[0]


def test_an_image_has_pixels(tmp_path):
  at = helpers.FIXTURES / "siglip"
  done = command(f"--from=siglip:{at}", f"--to={tmp_path}/x", "--image_size=0")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "--image_size=0: not a positive integer" in done.stderr


def fails(tmp_path, spec, **options):
  """What an error says; nothing is left behind."""
  to = tmp_path / "out" / "ours"
  with pytest.raises(WeightsError) as error:
    convert.to_checkpoint(spec, str(to), lambda line: None, **options)
  assert not to.parent.exists() or list(to.parent.iterdir()) == []
  assert "\n" not in str(error.value)
  return str(error.value)


def test_truncated_file(tmp_path):
  data = (AT / "model.safetensors").read_bytes()
  path = tmp_path / "cut.safetensors"
  path.write_bytes(data[:-100])
  error = fails(tmp_path, f"gemma:{path}")
  assert str(path) in error and "truncated" in error


def test_broken_file_leaves_nothing(tmp_path):
  """Found only while it is written: zip's checksum of one array."""
  source = readers.open_source(str(helpers.FIXTURES / "siglip"))
  names = source.names()
  arrays = {name: source.read(name) for name in names}
  path = tmp_path / "x.npz"
  np.savez(path, **arrays)
  data = bytearray(path.read_bytes())
  (last,) = (n for n in names if n.endswith("layers.1.mlp.fc2.weight"))
  data[data.index(arrays[last].tobytes()) + 5] ^= 1
  path.write_bytes(data)
  config = (helpers.FIXTURES / "siglip" / "config.json").read_text()
  (tmp_path / "config.json").write_text(config)
  error = fails(tmp_path, f"siglip:{path}")
  assert last in error and "damaged" in error


@pytest.mark.parametrize(
  "source, message",
  [
    ("mamba:x", "expected KIND:PATH with a kind of gemma, llama, qwen2, "),
    (f"{AT}", "expected KIND:PATH"),
    ("gemma:/nowhere/x", "no such file or directory; correct --from"),
  ],
)
def test_wrong_arguments(tmp_path, source, message):
  assert message in fails(tmp_path, source)


def test_existing_target_is_kept(there):
  to, _ = there
  with pytest.raises(WeightsError, match="exists: choose another --to"):
    # Found out before anything is read.
    convert.to_checkpoint("gemma:/nowhere", str(to), print)
  assert checkpoint.latest_step(str(to)) == 0


def test_image_size_needs_images(tmp_path):
  error = fails(tmp_path, f"gemma:{AT}", image_size=9)
  assert "no meaning for gemma" in error


def test_an_unfinished_write_is_not_taken_for_a_checkpoint(tmp_path):
  """What a kill leaves behind stands beside the target, not at it."""
  target = tmp_path / "ours"
  script = f"""
import os
from tests.weights import helpers
from unifluid_jax.weights import orbax_files, engine, gemma, readers
class Killed(helpers.Tensors):
  def read(self, name):
    if "layers.1" in name:
      os._exit(9)
    return super().read(name)
source = readers.open_source({str(AT)!r})
arrays = {{n: source.read(n) for n in source.names()}}
source = Killed(arrays, source.path)
plan = engine.make_plan(source, gemma.recipe(source))
orbax_files.write({str(target)!r}, plan.leaves, {{}}, {{}})
"""
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=REPO, check=False,
    env=dict(os.environ, PYTHONPATH=str(REPO)),
  )  # fmt: skip
  assert done.returncode == 9
  assert not target.exists()
  assert [p.name.startswith(".ours.tmp-") for p in tmp_path.iterdir()] == [True]
  # And the next try succeeds.
  convert.to_checkpoint(f"gemma:{AT}", str(target), print)
  assert checkpoint.latest_step(str(target)) == 0


@pytest.mark.parametrize("kind", ["paligemma", "inception"])
def test_kinds_without_a_way_back(tmp_path, kind):
  with pytest.raises(WeightsError, match="writes gemma, siglip, .* not"):
    convert.to_hugging_face(f"{kind}:{AT}", str(tmp_path / "x"), print)


def test_clip_is_read_as_siglip(tmp_path):
  lines = []
  spec = f"siglip:{helpers.FIXTURES / 'tiny_clip'}"
  convert.to_checkpoint(spec, str(tmp_path / "ours"), lines.append)
  assert "CLIP" in lines[0]


def test_missing_shard(tmp_path):
  source = readers.open_source(str(AT))
  half = {n: source.read(n) for n in source.names()[:9]}
  layout = {n: (x.shape, x.dtype) for n, x in half.items()}
  file = tmp_path / "model-00001-of-00002.safetensors"
  safetensors_file.write(str(file), layout, half.items())
  error = fails(tmp_path, f"gemma:{tmp_path}")
  assert "missing shards" in error and str(file) in error
