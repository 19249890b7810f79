"""Files that somebody made to do harm, or that arrived in pieces.

Each function takes an empty directory, writes there and returns the path that
a user would name in --from.
"""

import json
import os
import struct
import warnings
import zipfile

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
