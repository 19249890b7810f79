import json
import zipfile

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.weights import helpers
from unifluid_jax.core import checkpoint
from unifluid_jax.weights import engine, orbax_files, readers, safetensors_file
from unifluid_jax.weights.rows import Recipe, Row, WeightsError

BF16 = np.dtype(ml_dtypes.bfloat16)
ARRAYS = {
  "a/w": np.arange(24, dtype=np.float32).reshape(6, 4),
  "b": np.linspace(-3, 3, 10).astype(BF16).reshape(5, 2),
  "c": np.array(2.5, np.float16),
  "d": np.arange(3, dtype=np.int64),
}


def save(path, arrays=ARRAYS):
  layout = {k: (v.shape, v.dtype) for k, v in arrays.items()}
  # Backwards: tensors may be written in any order.
  safetensors_file.write(str(path), layout, list(arrays.items())[::-1])
  return path


def check(source, arrays=ARRAYS):
  assert sorted(source.names()) == sorted(arrays)
  for name, want in arrays.items():
    assert source.shape(name) == want.shape
    assert source.dtype(name) == want.dtype
    got = source.read(name)
    assert got.dtype == want.dtype
    assert np.asarray(got).tobytes() == np.asarray(want).tobytes()
    if want.ndim:
      blocks = list(source.blocks(name, 4))
      assert max(map(len, blocks)) <= 4
      assert np.concatenate(blocks).tobytes() == want.tobytes()


def fails(path, *messages):
  """One line that names the file, and says what it should."""
  with pytest.raises(WeightsError) as error:
    source = readers.open_source(str(path))
    for name in source.names():
      source.read(name)
  text = str(error.value)
  assert "\n" not in text and str(path) in text
  for message in messages:
    assert message in text
  return text


# --------------------------------------------------------------- safetensors


def test_safetensors(tmp_path):
  check(readers.open_source(str(save(tmp_path / "x.safetensors"))))


def test_safetensors_as_the_library_writes_it():
  """Made by safetensors 0.8 (make_fixtures.py)."""
  at = helpers.FIXTURES / "gemma1"
  source = readers.open_source(str(at))
  assert source.shape("model.embed_tokens.weight") == (40, 24)
  x = source.read("model.layers.2.mlp.down_proj.weight")
  assert x.shape == (24, 32)
  # Its fan-in says how large: 1.5 / sqrt(32).
  np.testing.assert_allclose(x.std(), 1.5 / 32**0.5, rtol=0.05)


def test_what_is_written_is_read_by_the_library(tmp_path):
  library = pytest.importorskip("safetensors.numpy")
  arrays = {k: v for k, v in ARRAYS.items() if k != "b"}
  got = library.load_file(str(save(tmp_path / "x.safetensors", arrays)))
  assert {k: v.tolist() for k, v in got.items()} == {
    k: v.tolist() for k, v in arrays.items()
  }


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_truncated_safetensors(tmp_path, size):
  path = save(tmp_path / "x.safetensors")
  path.write_bytes(path.read_bytes()[:size])
  fails(path, "truncated", "download it again")


def test_truncation_names_the_tensor(tmp_path):
  path = save(tmp_path / "x.safetensors")
  path.write_bytes(path.read_bytes()[:-1])
  size = path.stat().st_size
  fails(path, f"d ends at byte {size + 1}, the file has {size}")


def test_file_cut_while_it_is_read(tmp_path):
  path = save(tmp_path / "x.safetensors")
  source = readers.open_source(str(path))
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(WeightsError, match="truncated: d: expected 3.*found 2"):
    source.read("d")


def test_damaged_headers(tmp_path):
  path = tmp_path / "x.safetensors"
  for header in (b"{not json", b"\xff\xfe{}     ", b"[]       "):
    path.write_bytes((9).to_bytes(8, "little") + header)
    fails(path, "header is not JSON")
  entry = {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}
  write_header(path, {"q": entry}, 1)
  fails(path, "q has dtype F8_E4M3", "unquantised")
  entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}
  write_header(path, {"q": entry}, 8)
  fails(path, "q (3,) F32: expected 12 bytes, found 8")


@pytest.mark.parametrize(
  "entry",
  [
    3,
    {"shape": [1], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1]},
    {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
    {"dtype": "F32", "shape": [1], "data_offsets": [4]},
    {"dtype": 32, "shape": [1], "data_offsets": [0, 4]},
  ],
)
def test_damaged_entries_of_headers(tmp_path, entry):
  path = tmp_path / "x.safetensors"
  write_header(path, {"q": entry}, 8)
  fails(path, "damaged: q: expected dtype, shape and data_offsets, found")


def test_what_only_bears_the_name_of_safetensors(tmp_path):
  path = tmp_path / "x.safetensors"
  path.write_bytes(b"<!DOCTYPE html><html>log in</html>")
  fails(path, "is no safetensors file", "found b'<!DOCTYP'", "download it")
  path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:7")
  fails(path, "Git LFS pointer of 55 bytes", "git lfs pull")
  path.write_bytes(b"PK\x03\x04 and no more")
  fails(path, "truncated: no zip directory at its end")


def test_safetensors_that_cannot_be_opened(tmp_path):
  path = tmp_path / "model.safetensors"
  path.mkdir()
  text = fails(tmp_path, "cannot be read: Is a directory", "correct --from")
  assert str(path) in text
  path.rmdir()
  path.symlink_to(tmp_path / "gone")
  text = fails(tmp_path, "cannot be read: No such file or directory")
  assert str(path) in text


def write_header(path, header, data):
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))


def shards(at):
  names, where = list(ARRAYS), {}
  for i, part in enumerate((names[:2], names[2:])):
    file = f"model-0000{i + 1}-of-00002.safetensors"
    save(at / file, {name: ARRAYS[name] for name in part})
    where |= dict.fromkeys(part, file)
  index = at / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
  return index


def test_shards(tmp_path):
  index = shards(tmp_path)
  check(readers.open_source(str(index)))
  check(readers.open_source(str(tmp_path)))


def test_missing_shards(tmp_path):
  index = shards(tmp_path)
  second = tmp_path / "model-00002-of-00002.safetensors"
  second.unlink()
  fails(index, "missing 1 of 2 shards", second.name)
  index.unlink()
  fails(tmp_path, "missing shards", "one of 2")


def test_one_shard_is_not_the_whole(tmp_path):
  index = shards(tmp_path)
  first = tmp_path / "model-00001-of-00002.safetensors"
  fails(first, "one of 2 and an index is beside it; name the directory")
  index.unlink()
  fails(first, "one of 2 and there is no index beside it; download")


def test_a_tensor_in_two_shards(tmp_path):
  index = shards(tmp_path)
  save(tmp_path / "model-00002-of-00002.safetensors")
  fails(
    index, "a/w is in model-00001-of-00002.safetensors and in "
    "model-00002-of-00002.safetensors, expected it once",
  )  # fmt: skip


def test_shards_without_index_or_tensor(tmp_path):
  index = shards(tmp_path)
  where = json.loads(index.read_text())
  where["weight_map"]["gone"] = "model-00001-of-00002.safetensors"
  index.write_text(json.dumps(where))
  fails(index, "expected gone in model-00001-of-00002.safetensors")
  for text in ("{}", "[]", '{"weight_map": ["a"]}', "<html>"):
    index.write_text(text)
    fails(index, "expected JSON with a weight_map")
  index.unlink()
  fails(tmp_path, "2 safetensors files and no index")


# ----------------------------------------------------------------------- npz


def save_npz(path, compress=False, **more):
  stored = {
    name: x.view("V2") if x.dtype == BF16 else x for name, x in ARRAYS.items()
  }
  (np.savez_compressed if compress else np.savez)(path, **stored, **more)
  return path


@pytest.mark.parametrize("compress", [False, True])
def test_npz_with_bfloat16_as_void(tmp_path, compress):
  check(readers.open_source(str(save_npz(tmp_path / "x.npz", compress))))


def test_npz_in_fortran_order(tmp_path):
  x = np.asfortranarray(ARRAYS["a/w"])
  np.savez(tmp_path / "x.npz", x=x)
  check(readers.open_source(str(tmp_path / "x.npz")), {"x": ARRAYS["a/w"]})


@pytest.mark.parametrize("named", ["whole", "part", "directory"])
def test_npz_in_parts(tmp_path, named):
  data = save_npz(tmp_path / "whole.npz").read_bytes()
  (tmp_path / "whole.npz").unlink()
  at = tmp_path / "parts"
  at.mkdir()
  step = len(data) // 11  # eleven or twelve parts: 10 comes after 9
  for i, start in enumerate(range(0, len(data), step)):
    piece = data[start : start + step]
    (at / f"x.npz.part{i}").write_bytes(piece)
  path = {"whole": at / "x.npz", "part": at / "x.npz.part0", "directory": at}
  check(readers.open_source(str(path[named])))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_npz_without_a_part(tmp_path, lost):
  data = save_npz(tmp_path / "whole.npz").read_bytes()
  third = len(data) // 3 + 1
  for i in {0, 1, 2} - {lost}:
    piece = data[i * third : (i + 1) * third]
    (tmp_path / f"x.npz.part{i}").write_bytes(piece)
  found = "damaged" if lost in (0, 2) else "part 1 is missing"
  fails(tmp_path / "x.npz", found, "download")


def test_truncated_npz(tmp_path):
  path = save_npz(tmp_path / "x.npz")
  path.write_bytes(path.read_bytes()[:-40])
  fails(path, "truncated", "download it again")


def test_damaged_numbers_in_npz(tmp_path):
  path = save_npz(tmp_path / "x.npz")
  data = bytearray(path.read_bytes())
  at = data.index(ARRAYS["a/w"].tobytes())
  data[at + 5] ^= 1
  path.write_bytes(data)
  fails(path, "a/w is damaged")


def test_damaged_compressed_npz(tmp_path):
  """Its sum is met behind the last number; a torn stream within."""
  path = tmp_path / "x.npz"
  rng = np.random.default_rng(0)
  np.savez_compressed(path, a=rng.integers(0, 9, (2**16, 4)))
  whole = path.read_bytes()
  with zipfile.ZipFile(path) as archive:
    info = archive.getinfo("a.npy")
  at = whole.rindex(info.CRC.to_bytes(4, "little"))
  path.write_bytes(whole[:at] + b"0000" + whole[at + 4 :])
  fails(path, "a is damaged or truncated, expected 262144 numbers")
  extra = int.from_bytes(whole[28:30], "little")
  at = info.header_offset + 30 + len("a.npy") + extra
  path.write_bytes(whole[:at] + b"\x07" + whole[at + 1 :])  # no such block
  fails(path, "a is damaged, expected a .npy header")
  np.savez(path, a=np.arange(9.0))  # so small that its sum comes along
  data = bytearray(path.read_bytes())
  data[data.index(np.arange(9.0).tobytes()) + 9] ^= 1
  path.write_bytes(data)
  fails(path, "a is damaged", "agree with their checksum (Bad CRC-32")


def test_npz_of_other_things(tmp_path):
  path = tmp_path / "x.npz"
  np.savez(path, q=np.zeros(3, "V4"))
  fails(path, "q: expected numbers, found |V4")
  np.savez(path, q=np.array([{}], object))
  fails(path, "q: expected numbers, found object", "pickled")


# --------------------------------------------------------------------- Orbax


@pytest.mark.parametrize("where", [".", "state", "checkpoints/7/state"])
def test_orbax(tmp_path, where):
  flat = {"a": {"w": ARRAYS["a/w"]}, "b/c": {"w": ARRAYS["b"]}}
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(tmp_path / "x" / where / "", flat, force=True)
  want = {"a/w": ARRAYS["a/w"], "b/c/w": ARRAYS["b"]}
  check(readers.open_source(str(tmp_path / "x")), want)


def test_damaged_orbax(tmp_path):
  (tmp_path / "_METADATA").write_text("{")
  fails(tmp_path, "damaged")


def leaves(arrays):
  rows = [Row(n, f"net/{n}", _axes(x.ndim)) for n, x in arrays.items()]
  like = {f"net/{n}": x.shape for n, x in arrays.items()}
  recipe = Recipe("toy", "toy", rows, like)
  return engine.make_plan(helpers.Tensors(arrays), recipe).leaves


def _axes(rank):
  return " ".join(f"x{i}" for i in range(rank))


def test_written_in_pieces_and_read_whole(tmp_path, monkeypatch):
  """Many chunks an array, a last one that is short, zeros, a scalar."""
  monkeypatch.setattr(orbax_files, "_CHUNK", 64)
  monkeypatch.setattr(engine, "BLOCK", 200)
  rng = np.random.default_rng(0)
  arrays = {
    "long": rng.normal(size=(37, 5)).astype(np.float32),
    "deep": rng.normal(size=(3, 7, 9)).astype(BF16),
    "zero": np.zeros((6, 4), np.float32),
    "one": np.array(2.5, np.float32),
  }
  orbax_files.write(str(tmp_path / "x"), leaves(arrays), {"y": 1}, {})
  assert checkpoint.latest_step(str(tmp_path / "x")) == 0
  assert checkpoint.read_meta(str(tmp_path / "x"), 0) == {"y": 1}
  state = tmp_path / "x/checkpoints/0/state"
  # Zeros are data: a reader must not have to guess what is missing.
  zeros = {p.name for p in (state / "params.net.zero").iterdir()}
  assert zeros == {".zarray", "0.0", "1.0"}
  like = {f"net/{name}": x.shape for name, x in arrays.items()}
  got = helpers.restore(tmp_path / "x", like)["net"]
  for name, want in arrays.items():
    np.testing.assert_array_equal(got[name], want.astype(np.float32))
  check(
    readers.open_source(str(tmp_path / "x")),
    {f"params/net/{name}": x for name, x in arrays.items()},
  )


def test_chunks():
  shape = orbax_files.chunk_shape
  assert shape((26, 2304, 9216), 2, True) == (1, 1152, 2304)
  assert shape((256_000, 2304), 2, False) == (1000, 2304)
  assert shape((26, 2304), 4, True) == (1, 2304)
  assert shape((), 4, False) == ()


def test_nothing_is_left_when_a_source_breaks(tmp_path):
  class Breaks(helpers.Tensors):
    def read(self, name):
      raise WeightsError("broken")

  recipe = Recipe("toy", "toy", [Row("x", "net/x", "a")], {"net/x": (3,)})
  source = Breaks({"x": np.zeros(3)})
  plan = engine.make_plan(source, recipe)
  with pytest.raises(WeightsError, match="broken"):
    orbax_files.write(str(tmp_path / "out"), plan.leaves, {}, {})
  assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- else


def test_what_is_nothing_known(tmp_path):
  fails(tmp_path / "gone", "no such file", "correct --from")
  fails(tmp_path, "is a directory without", "found nothing; name the file")
  (tmp_path / "x.onnx").write_bytes(b"\x08\x07\x12\x0a")
  fails(tmp_path / "x.onnx", "not a format", ".safetensors")
  (tmp_path / "d.safetensors").mkdir()
  fails(tmp_path / "d.safetensors", "is a directory")
  for name in "abcd":
    (tmp_path / "d.safetensors" / f"{name}.bin").write_bytes(b"")
  fails(tmp_path / "d.safetensors", "found a.bin, b.bin, c.bin ...; name")


def test_several_indexes_are_named(tmp_path):
  for name in ("model", "model.fp16"):
    (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
  fails(tmp_path, "several indexes", "model.fp16.safetensors.index.json")
