"""Attacks by pickles and by PyTorch's zips; see attacks.py."""

import struct
import warnings
import zipfile

from tests.weights.attacks import raw
from tests.weights.test_torch_file import (
  Storage,
  dump,
  dump_tensors,
  write_zip,
)
from unifluid_jax.weights.torch_file import MAGIC


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
