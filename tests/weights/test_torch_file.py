"""Files written by torch.save, and files that nobody should open."""

import collections
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from unifluid_jax.weights.rows import WeightsError
from unifluid_jax.weights.torch_file import MAGIC, TorchFile

FIXTURES = Path(__file__).with_name("fixtures")
WANT = dict(np.load(FIXTURES / "variety.npz"))


class Call:
  """Pickles as a call."""

  def __init__(self, function, *args):
    self.function, self.args = function, args

  def __reduce__(self):
    return self.function, self.args


def write_zip(path, pickled, storages=(), root="archive", order=b"little"):
  with zipfile.ZipFile(path, "w") as z:
    z.writestr(f"{root}/data.pkl", pickled)
    z.writestr(f"{root}/byteorder", order)
    for key, data in dict(storages).items():
      z.writestr(f"{root}/data/{key}", data)
  return str(path)


class Storage:
  def __init__(self, key, count, name="FloatStorage"):
    self.pid = ("storage", Global("torch", name), key, "cpu", count)


class Global:
  """Pickles as a name, whether or not it exists."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Pickler(pickle._Pickler):
  def persistent_id(self, obj):
    return obj.pid if isinstance(obj, Storage) else None

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Global):
      self.write(f"c{obj.module}\n{obj.name}\n".encode())
    else:
      super().save(obj, save_persistent_id)


def dump(obj):
  f = io.BytesIO()
  Pickler(f, 2).dump(obj)
  return f.getvalue()


def dump_tensors(tensors):
  """Name → (storage, offset, shape, stride), as PyTorch pickles tensors."""
  f = io.BytesIO()
  p = Pickler(f, 2)
  p.write(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT)
  for name, view in tensors.items():
    p.save(name)
    p.save(Global("torch._utils", "_rebuild_tensor_v2"))
    p.save((*view, False, {}))
    p.write(pickle.REDUCE + pickle.SETITEM)
  p.write(pickle.STOP)
  return f.getvalue()


@pytest.mark.parametrize("name", ["variety.pth", "variety_legacy.pth"])
def test_both_formats_give_what_torch_saved(name):
  file = TorchFile(str(FIXTURES / name))
  assert set(file.names()) == set(WANT) and file.inside == ""
  for key, want in WANT.items():
    got = file.read(key)
    assert file.shape(key) == got.shape == want.shape, key
    assert file.dtype(key) == got.dtype
    assert got.flags.c_contiguous
    if key == "bfloat16":
      assert got.dtype == ml_dtypes.bfloat16
    else:
      assert got.dtype == want.dtype, key
    np.testing.assert_array_equal(got.astype(want.dtype), want)


def test_a_training_checkpoint_is_searched_for_its_weights():
  file = TorchFile(str(FIXTURES / "tiny_vae.ckpt"))
  assert file.inside == "state_dict"
  assert "encoder.mid.attn_1.q.weight" in file.names()


@pytest.mark.parametrize(
  "thing, name",
  [
    (Call(os.system, "touch owned"), "posix.system"),
    (Call(eval, "1"), "builtins.eval|__builtin__.eval"),
    (collections.Counter("a"), "collections.Counter"),
    ({"x": Global("torch.storage", "_load_from_bytes")}, "_load_from_bytes"),
    ({"x": Global("torch", "load")}, "torch.load"),
    ({"x": Global("no_such_module", "Thing")}, "no_such_module.Thing"),
  ],
)
def test_names_outside_the_tables_are_refused(
  tmp_path, monkeypatch, thing, name
):
  monkeypatch.chdir(tmp_path)
  path = write_zip(tmp_path / "bad.pt", dump(thing))
  with pytest.raises(WeightsError, match=f"refused: its pickle wants .*{name}"):
    TorchFile(path)
  legacy = tmp_path / "bad.pth"
  legacy.write_bytes(
    dump(MAGIC) + dump(1001) + dump({"little_endian": True}) + dump(thing)
  )
  with pytest.raises(WeightsError, match="refused"):
    TorchFile(str(legacy))
  assert not Path("owned").exists()


def test_every_stage_of_the_older_format_is_restricted(tmp_path):
  path = tmp_path / "bad.pth"
  for before in (b"", dump(MAGIC), dump(MAGIC) + dump(1001)):
    path.write_bytes(before + dump(Call(os.system, "true")))
    with pytest.raises(WeightsError, match="posix.system"):
      TorchFile(str(path))


def test_company_of_the_weights_is_inert(tmp_path):
  """Lightning's class as a key, numpy scalars, argparse: read past."""
  good = dump_tensors({"w": (Storage("0", 2), 0, (2,), (1,))})
  inner = good[2:-1]  # without protocol and stop
  head = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT
  extra = b""
  for module, name in [
    (
      "pytorch_lightning.callbacks.model_checkpoint",
      "ModelCheckpoint",
    ),
    ("argparse", "Namespace"),
    ("numpy.core.multiarray", "scalar"),
  ]:
    call = f"c{module}\n{name}\n".encode() + b"(" + b"K\x01" + b"t" + b"R"
    state = pickle.EMPTY_DICT + pickle.BUILD
    extra += b"X" + len(name).to_bytes(4, "little") + name.encode()
    extra += call + state + pickle.SETITEM
  model = b"X\x05\x00\x00\x00model" + inner + pickle.SETITEM
  path = write_zip(
    tmp_path / "a.ckpt",
    head + extra + model + pickle.STOP,
    {"0": np.array([1, 2], "<f4").tobytes()},
  )
  file = TorchFile(path)
  assert file.inside == "model" and file.names() == ["w"]
  np.testing.assert_array_equal(file.read("w"), [1, 2])


@pytest.mark.parametrize(
  "offset, shape, stride",
  [
    (3, (2,), (1,)),  # one beyond the end
    (0, (2, 2), (3, 1)),
    (-1, (2,), (1,)),
    (0, (-2,), (1,)),
    (0, (2,), (-1,)),
    (0, (2,), (1, 1)),
    (0, (10**9,), (0,)),  # small on disk, huge in memory
    (0, ("2",), (1,)),
  ],
)
def test_views_beyond_their_storage_are_refused(
  tmp_path, offset, shape, stride
):
  pickled = dump_tensors({"w": (Storage("0", 4), offset, shape, stride)})
  path = write_zip(tmp_path / "a.pt", pickled, {"0": bytes(16)})
  with pytest.raises(WeightsError, match="no PyTorch checkpoint, or a trunc"):
    TorchFile(path)


def test_missing_and_short_storages_name_the_tensor(tmp_path):
  pickled = dump_tensors({"layer.w": (Storage("0", 4), 0, (4,), (1,))})
  lost = TorchFile(write_zip(tmp_path / "lost.pt", pickled))
  with pytest.raises(WeightsError, match="layer.w cannot be read .KeyError"):
    lost.read("layer.w")
  short = TorchFile(write_zip(tmp_path / "s.pt", pickled, {"0": bytes(12)}))
  with pytest.raises(WeightsError, match="layer.w.*expected 16 bytes, found 1"):
    short.read("layer.w")


def test_a_changed_byte_is_found(tmp_path):
  path = str(shutil.copy(FIXTURES / "variety.pth", tmp_path / "a.pth"))
  data = bytearray(Path(path).read_bytes())
  at = bytes(data).index(WANT["double"].tobytes())
  data[at + 6] ^= 1
  Path(path).write_bytes(data)
  with pytest.raises(WeightsError, match="tensor double.*CRC"):
    TorchFile(path).read("double")


@pytest.mark.parametrize("name", ["variety.pth", "variety_legacy.pth"])
def test_truncated_files(tmp_path, name):
  data = (FIXTURES / name).read_bytes()
  path = tmp_path / name
  for end in (0, 1, 10, 100, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:end])
    with pytest.raises(WeightsError, match=f"{name} is no PyTorch checkpoint"):
      TorchFile(str(path))


def test_other_files(tmp_path):
  with pytest.raises(WeightsError, match="found none there"):
    TorchFile(str(tmp_path / "absent.pt"))
  with pytest.raises(WeightsError, match="found none there"):
    TorchFile(str(tmp_path))
  big = write_zip(tmp_path / "big.pt", dump({}), order=b"big")
  with pytest.raises(WeightsError, match="big-endian"):
    TorchFile(big)
  for content in ({"epoch": 3}, [1], 7):
    plain = write_zip(tmp_path / "plain.pt", dump(content))
    with pytest.raises(WeightsError, match="expected tensors by name"):
      TorchFile(plain)
  with zipfile.ZipFile(tmp_path / "other.zip", "w") as z:
    z.writestr("readme", "no")
  with pytest.raises(WeightsError, match="no data.pkl"):
    TorchFile(str(tmp_path / "other.zip"))


def test_functions_in_the_tables_cannot_be_changed(tmp_path):
  """BUILD on what GLOBAL gave would set attributes of it."""
  attack = (
    pickle.PROTO + b"\x02ctorch._utils\n_rebuild_tensor_v2\n"
    b"N" + pickle.EMPTY_DICT + b"X\x0c\x00\x00\x00__defaults__" + b")"
    b"s\x86b."
  )
  path = write_zip(tmp_path / "a.pt", attack)
  with pytest.raises(WeightsError, match="a function has no state"):
    TorchFile(path)
