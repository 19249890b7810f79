"""Files that somebody made to do harm, or that arrived in pieces.

Each function takes an empty directory, writes there and returns the path that
a user would name in --from.
"""

import json
import os
import shutil
import struct
import warnings
import zipfile

import numpy as np
import orbax.checkpoint as ocp

from tests.weights import helpers
from tests.weights.test_torch_file import (
  Storage,
  dump,
  dump_tensors,
  write_zip,
)
from unifluid_jax.weights.torch_file import MAGIC

BIG = 2**63
DEEP = b"[" * 200_000


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def safetensors(header, data=16, length=None):
  """A file with this header, a table or bytes, and so many zeros."""

  def make(at):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path = at / "x.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + text + bytes(data))
    return path

  return make


def raw(name, data):
  def make(at):
    (at / name).write_bytes(data)
    return at / name

  return make


def pipe(at):
  os.mkfifo(at / "x.safetensors")
  return at / "x.safetensors"


def device(at):
  (at / "x.safetensors").symlink_to("/dev/zero")
  return at / "x.safetensors"


def loop(at):
  (at / "x.safetensors").symlink_to(at / "y")
  (at / "y").symlink_to(at / "x.safetensors")
  return at / "x.safetensors"


def directory(at):
  (at / "d" / "x.safetensors").mkdir(parents=True)
  return at / "d"


SAFETENSORS = {
  "empty": raw("x.safetensors", b""),
  "seven_bytes": raw("x.safetensors", b"1234567"),
  "header_of_2^63": safetensors(b"{}", length=BIG),
  "header_of_2^64": safetensors(b"{}", length=2**64 - 1),
  "header_beyond_the_file": safetensors(b"{}", length=1000),
  "deep_header": safetensors(DEEP),
  "deep_table": safetensors(b'{"a":' * 100_000),
  "twice": safetensors(
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
  ),
  "nan": safetensors({"a": entry(shape=[float("nan")])}),
  "negative_shape": safetensors({"a": entry(shape=[-2])}),
  "two_negatives": safetensors({"a": entry(shape=[-2, -1])}),
  "2^63": safetensors({"a": entry(shape=[BIG])}),
  "overflow_to_0": safetensors({"a": entry([2**32, 2**32], [0, 0])}),
  "overflow_in_64_bits": safetensors({"a": entry([BIG, 2, 0], [0, 0])}),
  "float_shape": safetensors({"a": entry(shape=[2.0])}),
  "bool_shape": safetensors({"a": entry([True, 2])}),
  "backwards": safetensors({"a": entry([0], [8, 0])}),
  "beyond_the_end": safetensors({"a": entry([2], [12, 20])}),
  "far_beyond_the_end": safetensors({"a": entry([2], [BIG, BIG + 8])}),
  "overlap": safetensors({"a": entry(), "b": entry([2], [4, 12])}),
  "same_bytes": safetensors({"a": entry(), "b": entry()}),
  "within": safetensors({"a": entry([4], [0, 16]), "b": entry([1], [4, 8])}),
  "unknown_dtype": safetensors({"a": entry(dtype="F4")}),
  "dtype_is_a_list": safetensors({"a": entry(dtype=["F32"])}),
  "no_dtype": safetensors({"a": entry(dtype=None)}),
  "three_offsets": safetensors({"a": entry(offsets=[0, 4, 8])}),
  "a_thousand_axes": safetensors({"a": entry([1] * 999 + [2])}),
  "large_axes": safetensors({"a": entry([2**62] * 50_000)}),
  "list": safetensors(b"[1, 2]"),
  "no_text": safetensors(b"\xff\xfe\x00{}"),
  "no_entry": safetensors({"a": None}),
  "name_of_lines": safetensors({"a\nerror: b\x1b[2J" * 999: None}),
  "pipe": pipe,
  "device": device,
  "loop": loop,
  "directory": directory,
  "long_path": lambda at: at / ("x" * 5000),
  "nul_in_path": lambda at: at / "x\0.safetensors",
}


def index(where, text=None):
  """One whole shard and an index."""

  def make(at):
    safetensors({"a": entry()})(at)
    content = json.dumps({"weight_map": where}).encode()
    path = at / "m.safetensors.index.json"
    path.write_bytes(content if text is None else text)
    return path

  return make


def index_pipe(at):
  os.mkfifo(at / "m.safetensors.index.json")
  return at


def shard_pipe(at):
  os.mkfifo(at / "s.safetensors")
  return index({"a": "s.safetensors"})(at)


def huge(name):
  """JSON that is long: it must not be read to its end."""

  def make(at):
    (at / name).write_bytes(b'{"a": 1')
    os.truncate(at / name, 2**33)
    return at / name

  return make


INDEX = {
  "gone": index({"a": "gone.safetensors"}),
  "above": index({"a": "../x.safetensors"}),
  "absolute": index({"a": "/etc/hostname"}),
  "number": index({"a": 3}),
  "table": index({"a": {"b": "x.safetensors"}}),
  "nothing": index({"a": None}),
  "empty_name": index({"a": ""}),
  "list": index([["a", "x.safetensors"]]),
  "deep": index({}, DEEP),
  "empty": index({}, b""),
  "twice": index(
    {}, b'{"weight_map":{"a":"x.safetensors","a":"x.safetensors"}}'
  ),
  "other_tensor": index({"b": "x.safetensors"}),
  "pipe": index_pipe,
  "shard_is_a_pipe": shard_pipe,
  "8_gib": huge("m.safetensors.index.json"),
}


def npy(shape="(2,)", descr="'<f4'", data=8, version=1, length=None):
  """A .npy file with this header and so many zeros."""
  text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"
  size = len(text) if length is None else length
  form = "<H" if version == 1 else "<I"
  head = b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, size)
  return head + text.encode() + bytes(data)


def archive(*members, name="x.npz", packed=zipfile.ZIP_STORED, flag=0):
  def make(at):
    with (
      warnings.catch_warnings(action="ignore"),  # of members named twice
      zipfile.ZipFile(at / name, "w", packed) as z,
    ):
      for member, data in members:
        z.writestr(member, data)
    if flag:
      data = bytearray((at / name).read_bytes())
      central = data.index(b"PK\x01\x02")
      data[6] |= flag
      data[central + 8] |= flag
      (at / name).write_bytes(data)
    return at / name

  return make


def of_array(**options):
  return archive(("a.npy", npy(**options)))


def patched(make, signature, offset, value):
  """With bytes replaced, so far behind a signature."""

  def changed(at):
    path = make(at)
    data = bytearray(path.read_bytes())
    start = data.rindex(signature) + offset
    data[start : start + len(value)] = value
    path.write_bytes(data)
    return path

  return changed


def parts(numbers, kind="file"):
  def make(at):
    for n in numbers:
      (at / f"x.npz.part{n}").write_bytes(b"PK")
    if kind == "pipe":
      os.mkfifo(at / "x.npz.part0")
    return at / "x.npz"

  return make


NPZ = {
  "empty": raw("x.npz", b""),
  "only_its_start": raw("x.npz", b"PK\x03\x04"),
  "no_zip": raw("x.npz", b"GIF89a" * 100),
  "encrypted": archive(("a.npy", npy()), flag=1),
  "bzip2": archive(("a.npy", npy()), packed=zipfile.ZIP_BZIP2),
  "unknown_packing": patched(of_array(), b"PK\x01\x02", 10, b"\x63\x00"),
  "larger_than_it_is": patched(
    of_array(), b"PK\x01\x02", 20, b"\xff\xff\xff\x7f" * 2
  ),
  "starts_elsewhere": patched(of_array(), b"PK\x01\x02", 42, b"\xff" * 3),
  "directory_of_4_gib": patched(
    of_array(), b"PK\x05\x06", 12, b"\xff\xff\xff\x7f"
  ),
  "twice": archive(("a.npy", npy()), ("a.npy", npy())),
  "twice_but_for_the_ending": archive(("a", npy()), ("a.npy", npy())),
  "objects": of_array(descr="'|O'"),
  "fields": of_array(descr="[('x', '<f4')]"),
  "complex": of_array(descr="'<c8'", shape="(1,)"),
  "quadruple": of_array(descr="'<f16'", data=32),
  "no_dtype": of_array(descr="'?!'"),
  "code": of_array(descr="__import__('os').abort()"),
  "deep_header": of_array(shape="(" * 4000 + ")" * 4000),
  "long_header": of_array(shape="(" + "1," * 6000 + ")"),
  "header_of_4_gib": of_array(version=2, length=2**32 - 1),
  "version_9": of_array(version=9),
  "no_array": archive(("a.npy", npy()), ("b.npy", b"hello")),
  "negative": of_array(shape="(-2,)"),
  "two_negatives": of_array(shape="(-2,-1)"),
  "2^63": of_array(shape=f"({BIG},)"),
  "overflow_to_0": of_array(shape=f"({2**32},{2**32})", data=0),
  "larger": of_array(shape="(3,)"),
  "much_larger": of_array(shape=f"({2**35},)"),
  "smaller": of_array(shape="(1,)"),
  "bool": of_array(shape="(True, 2)"),
  "text": of_array(shape="'ab'"),
  "bomb": archive(
    ("a.npy", npy(f"({25 * 2**20},)", data=100 * 2**20)),
    packed=zipfile.ZIP_DEFLATED,
  ),
  "header_bomb": archive(
    ("a.npy", npy(version=2, length=60 * 2**20)[:12] + bytes(60 * 2**20)),
    packed=zipfile.ZIP_DEFLATED,
  ),
  "parts_far_apart": parts([0, 999_999]),
  "part_of_many_digits": parts(["9" * 100]),
  "part_is_a_pipe": parts([1], "pipe"),
}


def checkpoint(pickled, storages=(), **options):
  return lambda at: write_zip(at / "x.pt", pickled, storages, **options)


def legacy(*pickles, end=b""):
  return raw("x.pt", b"".join(pickles) + end)


def view(count=4, shape=(4,), stride=(1,), offset=0, key="0"):
  return dump_tensors({"w": (Storage(key, count), offset, shape, stride)})


def nested_keys():
  """A tuple of itself, 60 deep, as a key: its hash takes 2^60 steps."""
  pairs = b"K\x01" + b"\x94" + b"h\x00" * 0
  for i in range(60):
    pairs += b"h" + bytes([i]) + b"\x86\x94" if i else b"K\x01\x86\x94"
  return b"\x80\x04}" + pairs + b"K\x01s."


def nested_lists():
  """The same as a value, which an error must not print."""
  items = b"\x80\x04]\x94"
  for i in range(60):
    items += b"]\x94(" + (b"h" + bytes([i])) * 9 + b"e"
  return items + b"."


def copies():
  """One long tuple, copied again and again."""
  long = b"\x80\x02(" + b"K\x01" * 10_000 + b"tq\x00"
  call = b"ctorch\nSize\nq\x010" + (b"h\x01h\x00\x85R" + b"0") * 1000
  return long + call + b"N."


def dicts():
  pairs = b"\x80\x02(" + b"K\x01K\x02\x86" * 10_000 + b"tq\x00"
  head = b"ccollections\nOrderedDict\nq\x010"
  return pairs + head + b"h\x01h\x00\x85R" * 12 + b"."


def two_pickles(at):
  path = write_zip(at / "x.pt", view(), {"0": bytes(16)})
  with zipfile.ZipFile(path, "a") as z:
    z.writestr("other/data.pkl", view())
  return path


def storage_member_twice(at):
  path = write_zip(at / "x.pt", view(), {"0": bytes(16)})
  with (
    warnings.catch_warnings(action="ignore"),
    zipfile.ZipFile(path, "a") as z,
  ):
    z.writestr("archive/data/0", bytes(16))
  return path


def packed_storage(at):
  with zipfile.ZipFile(at / "x.pt", "w", zipfile.ZIP_DEFLATED) as z:
    z.writestr("a/data.pkl", view(4_000_000, (4_000_000,)))
    z.writestr("a/data/0", bytes(16_000_000))
  return at / "x.pt"


def encrypted_storage(at):
  """Its flag is set in the directory alone."""
  path = write_zip(at / "x.pt", view(), {"0": bytes(16)})
  data = bytearray((at / "x.pt").read_bytes())
  data[data.rindex(b"PK\x01\x02") + 8] |= 1
  (at / "x.pt").write_bytes(data)
  return path


LITTLE = dump({"little_endian": True})
HEAD = (dump(MAGIC), dump(1001), LITTLE)
MEMO = b"\x80\x02}r\xff\xff\xff\x7f."
TORCH = {
  "empty": raw("x.pt", b""),
  "text": raw("x.pt", b"hello\n"),
  "memo_bomb": checkpoint(MEMO),
  "memo_of_text": checkpoint(b"\x80\x02}p99999999999999\n."),
  "bytearray_of_2^40": checkpoint(
    b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"."
  ),
  "text_of_2^62": checkpoint(b"\x8d" + (2**62).to_bytes(8, "little") + b"x."),
  "frame_of_2^62": checkpoint(
    b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N."
  ),
  "int_of_5000_digits": checkpoint(b"I" + b"9" * 5000 + b"\n."),
  "unknown_opcode": checkpoint(b"\x80\x02\xfe."),
  "extension": checkpoint(b"\x80\x02\x82\x01."),
  "inst": checkpoint(b"(ios\nsystem\n."),
  "no_end": checkpoint(b"\x80\x02}"),
  "empty_stack": checkpoint(b"\x80\x02a."),
  "long_pickle": checkpoint(b"N0" * (3 * 2**20) + b"N."),
  "hash_bomb": checkpoint(nested_keys()),
  "list_bomb": checkpoint(nested_lists()),
  "copies": checkpoint(copies()),
  "dicts": checkpoint(dicts()),
  "deep_list": checkpoint(b"]" * 20_000 + b"a" * 19_999 + b"."),
  "deep_tuple": checkpoint(b"N" + b"\x85" * 30_000 + b"."),
  "name_of_lines": checkpoint(b"cos\nsys\x1b[2Jtem\r\n."),
  "keys_of_lines": checkpoint(dump({"a\nb" * 1000: 1})),
  "storage_is_text": checkpoint(b"\x80\x02K\x05Q."),
  "storage_of_2^62": checkpoint(view(2**62)),
  "storage_of_minus_1": checkpoint(view(-1)),
  "storage_of_10^400": checkpoint(view(10**400)),
  "storage_missing": checkpoint(view()),
  "storage_short": checkpoint(view(), {"0": bytes(4)}),
  "storage_packed": packed_storage,
  "storage_encrypted": encrypted_storage,
  "storage_twice": checkpoint(
    dump_tensors(
      {
        "v": (Storage("0", 4), 0, (4,), (1,)),
        "w": (Storage("0", 8), 0, (8,), (1,)),
      }
    ),
    {"0": bytes(16)},
  ),
  "shape_of_2^62": checkpoint(view(4, (2**62, 0), (1, 1)), {"0": bytes(16)}),
  "stride_of_2^62": checkpoint(view(4, (2,), (2**62,)), {"0": bytes(16)}),
  "long_shape": checkpoint(view(4, (1,) * 999, (1,) * 999), {"0": bytes(16)}),
  "large_shape": checkpoint(view(4, (10**4000,), (1,)), {"0": bytes(16)}),
  "two_pickles": two_pickles,
  "member_twice": storage_member_twice,
  "old_bare": legacy(dump(MAGIC)),
  "old_text_for_a_table": legacy(dump(MAGIC), dump(1001), dump("little")),
  "old_lost_keys": legacy(*HEAD, view(), dump([])),
  "old_unknown_keys": legacy(*HEAD, view(), dump(["1"])),
  "old_nested_keys": legacy(*HEAD, view(), dump([["0"]])),
  "old_other_count": legacy(
    *HEAD, view(), dump(["0"]), end=struct.pack("<q", 2**62)
  ),
  "old_short": legacy(*HEAD, view(), dump(["0"]), end=struct.pack("<q", 4)),
  "old_memo_bomb": legacy(*HEAD, MEMO),
  "old_endless": legacy(*HEAD, b"N0" * (3 * 2**20)),
}


def orbax(change, ours=False):
  """A whole checkpoint, of Orbax's kind or of ours, and what was done to it."""

  def make(at):
    path = at / "x"
    shutil.copytree(whole(ours, at.parent), path)
    change(path)
    return path

  return make


def whole(ours, at):
  """Saved once for all."""
  path = at / f"whole_{ours}"
  if not path.exists():
    tree = {"params": {"a": np.arange(6.0), "b": np.ones((2, 3), "f4")}}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=not ours)
    with ocp.Checkpointer(handler) as writer:
      writer.save(path, args=ocp.args.PyTreeSave(tree))
  return path


def overwrite(name, data):
  return lambda path: (path / name).write_bytes(data)


def array_metadata(**changes):
  def change(path):
    file = path / "params.a" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))

  return change


def pipe_in(name):
  def change(path):
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)

  return change


ORBAX = {
  "torn": orbax(overwrite("_METADATA", b"{")),
  "empty": orbax(overwrite("_METADATA", b"")),
  "deep": orbax(overwrite("_METADATA", DEEP)),
  "list": orbax(overwrite("_METADATA", b"[1]")),
  "no_tree": orbax(overwrite("_METADATA", b'{"tree_metadata": {"a": 1}}')),
  "binary": orbax(overwrite("_METADATA", b"\xff\x00" * 50)),
  "8_gib": orbax(lambda path: os.truncate(path / "_METADATA", 2**33)),
  "no_manifest": orbax(lambda path: (path / "manifest.ocdbt").unlink()),
  "torn_manifest": orbax(lambda path: os.truncate(path / "manifest.ocdbt", 9)),
  "no_data": orbax(lambda path: shutil.rmtree(path / "d")),
  "pipe": orbax(pipe_in("manifest.ocdbt")),
  "array_gone": orbax(lambda path: shutil.rmtree(path / "params.a"), True),
  "metadata_gone": orbax(lambda p: (p / "params.a/.zarray").unlink(), True),
  "metadata_torn": orbax(overwrite("params.a/.zarray", b"{"), True),
  "metadata_pipe": orbax(pipe_in("params.a/.zarray"), True),
  "numbers_cut": orbax(overwrite("params.a/0", b"12"), True),
  "numbers_pipe": orbax(pipe_in("params.a/0"), True),
  "2^62_numbers": orbax(array_metadata(shape=[2**62]), True),
  "negative": orbax(array_metadata(shape=[-6]), True),
  "unknown_dtype": orbax(array_metadata(dtype="<q9"), True),
  "empty_directory": lambda at: at,
}


def gemma(name="model.safetensors", data=None, settings=None):
  """The fixture of Gemma 2 with another config.json or other tensors."""

  def make(at):
    shutil.copytree(helpers.FIXTURES / "gemma2", at, dirs_exist_ok=True)
    if settings is not None:
      (at / "config.json").write_bytes(settings)
    if data is not None:
      (at / name).write_bytes(data)
    return at

  return make


def tensor_named(name):
  def make(at):
    path = gemma()(at) / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header[name] = header.pop("model.layers.2.mlp.up_proj.weight")
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return at

  return make


def settings_8_gib(at):
  huge("config.json")(gemma()(at))
  return at


# Read as a Gemma, with what lies beside the tensors.
GEMMA = {
  "deep": gemma(settings=DEEP),
  "twice": gemma(settings=b'{"head_dim": 8, "head_dim": 4}'),
  "list": gemma(settings=b"[]"),
  "binary": gemma(settings=b"\xff\x00"),
  "empty": gemma(settings=b""),
  "nan": gemma(settings=b'{"head_dim": NaN}'),
  "infinite": gemma(settings=b'{"head_dim": 8, "rms_norm_eps": Infinity}'),
  "10^400_layers": gemma(
    settings=b'{"num_hidden_layers": 1' + b"0" * 400 + b"}"
  ),
  "of_5000_digits": gemma(settings=b'{"head_dim": ' + b"9" * 5000 + b"}"),
  "8_gib": settings_8_gib,
  "layer_10^11": tensor_named("model.layers.99999999999.mlp.up_proj.weight"),
  "layer_of_5000_digits": tensor_named(
    f"model.layers.{'9' * 5000}.mlp.up_proj.weight"
  ),
  "a_tensor_below_a_tensor": tensor_named("model.norm.weight.weight"),
  "a_name_of_slashes": tensor_named("model/../../norm"),
}

TABLES = {
  "safetensors": SAFETENSORS,
  "index": INDEX,
  "npz": NPZ,
  "torch": TORCH,
  "orbax": ORBAX,
  "gemma": GEMMA,
}
