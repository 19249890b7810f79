"""Weight files that attack: one line, bounded memory, no waiting."""

import contextlib
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.weights import attacks, attacks_torch, attacks_trees, helpers
from unifluid_jax.weights import engine, gemma, llava, readers, torch_pickle
from unifluid_jax.weights.rows import WeightsError

MOST = 512 * 2**20  # bytes of memory that one file may add to the peak
SECONDS = 120  # far above what any takes; a pipe would wait for ever


TABLES = {
  "safetensors": attacks.SAFETENSORS,
  "index": attacks.INDEX,
  "npz": attacks.NPZ,
  "torch": attacks_torch.TORCH,
  "orbax": attacks_trees.ORBAX,
  "gemma": attacks_trees.GEMMA,
  "llava": attacks_trees.LLAVA,
}
RECIPES = {"gemma": gemma.recipe, "llava": llava.recipe}
# Where another error would come later, and too late.
REASONS = {
  ("torch", "dicts"): "too many copies",
  ("torch", "copies"): "a shape that is none",
  ("torch", "hash_bomb"): "no plain value",
  ("torch", "member_twice"): "is there twice",
  ("torch", "old_endless"): "a pickle of more than",
  ("torch", "long_pickle"): "tensors are read with",
  ("npz", "bomb"): "weights do not shrink so far",
  ("npz", "encrypted"): "is encrypted: decrypt it first",
  ("index", "8_gib"): "too many for JSON",
  ("gemma", "8_gib"): "too many for JSON",
  ("gemma", "layer_10^11"): "layers are missing",
  ("llava", "layer_10^11"): "layers are missing",
  ("llava", "layer_10^11_of_clip"): "layers are missing",
}


@contextlib.contextmanager
def in_time():
  class Late(BaseException):  # no reader takes it for damage
    pass

  def late(*_):
    raise Late(f"more than {SECONDS} s")

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def peak():
  """Bytes; tracemalloc would crash when Orbax's threads are about."""
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_all(path, kind=""):
  """What a conversion does with a file."""
  source = readers.open_source(str(path))
  if kind in RECIPES:
    engine.make_plan(source, RECIPES[kind](source))
  for name in source.names():
    x = source.read(name)
    assert x.shape == source.shape(name) and x.dtype == source.dtype(name)


@pytest.mark.parametrize(
  "kind, name", [(k, n) for k, table in TABLES.items() for n in table]
)
def test_attacks_are_refused_in_one_line(tmp_path, monkeypatch, kind, name):
  # Type checks make every opcode slow here; 2 MiB of them take seconds.
  monkeypatch.setattr(torch_pickle, "MAX_PICKLE", 2**16)
  at = tmp_path / "x"
  at.mkdir()
  path = TABLES[kind][name](at)
  before = peak()
  with in_time(), pytest.raises(WeightsError) as error:
    read_all(path, kind)
  text = str(error.value)
  assert text.isprintable() and len(text) < 2100
  assert str(at)[:60] in text
  assert peak() - before < MOST
  assert REASONS.get((kind, name), "") in text


# ------------------------------------------------------------------- damage


def seeds(at):
  """Whole files of every format."""
  arrays = {"a": np.arange(24, dtype="f4").reshape(6, 4), "b": np.ones(3)}
  np.savez(at / "x.npz", **arrays)
  np.savez_compressed(at / "y.npz", **arrays)
  fixtures = helpers.FIXTURES
  return {
    "safetensors": fixtures / "gemma2" / "model.safetensors",
    "npz": at / "x.npz",
    "compressed": at / "y.npz",
    "torch": fixtures / "variety.pth",
    "old_torch": fixtures / "variety_legacy.pth",
  }


def damage(data, rng):
  """Some bytes changed, or the end lost; mostly where the format's own are."""
  data = bytearray(data)
  if rng.random() < 0.2:
    return data[: rng.integers(len(data))]
  for _ in range(rng.integers(1, 4)):
    region = [(0, 64), (0, min(2000, len(data))), (-400, 0), (0, len(data))]
    low, high = region[rng.integers(4)]
    at = int(rng.integers(low, high)) % len(data)
    data[at] = rng.integers(256) if rng.random() < 0.7 else 255
  return data


@pytest.mark.parametrize(
  "kind", ["safetensors", "npz", "compressed", "torch", "old_torch"]
)
def test_random_damage(tmp_path, kind):
  """Read, or refused in one line: nothing else."""
  whole = seeds(tmp_path)[kind]
  data, rng = whole.read_bytes(), np.random.default_rng(0)
  refused = 0
  for i in range(150):
    path = tmp_path / f"{i}{whole.suffix}"
    path.write_bytes(damage(data, rng))
    try:
      with in_time():
        read_all(path)
    except WeightsError as error:
      assert str(error).isprintable() and str(path) in str(error)
      refused += 1
    path.unlink()
  assert refused > 20  # the damage is felt


@pytest.mark.parametrize("ours", [False, True], ids=["ocdbt", "zarr"])
def test_random_damage_of_checkpoints(tmp_path, ours):
  whole = attacks_trees.whole(ours, tmp_path)
  rng, refused = np.random.default_rng(0), 0
  for i in range(12):
    path = tmp_path / str(i)
    shutil.copytree(whole, path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    file = Path(files[rng.integers(len(files))])
    file.write_bytes(damage(file.read_bytes() or b"x", rng))
    try:
      with in_time():
        read_all(path)
    except WeightsError as error:
      assert str(error).isprintable() and str(path) in str(error)
      refused += 1
  assert refused
