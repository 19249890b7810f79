"""Foreign files and directories as `Source`s, told apart by what they hold."""

import re
import zipfile
from pathlib import Path

from unifluid_jax.weights import gguf_file
from unifluid_jax.weights.npz_file import PART, Npz, find_parts
from unifluid_jax.weights.orbax_files import OrbaxSource, find_orbax
from unifluid_jax.weights.rows import Source, WeightsError
from unifluid_jax.weights.safetensors_file import Safetensors, Sharded
from unifluid_jax.weights.torch_file import TorchFile
from unifluid_jax.weights.untrusted import check_regular, is_zip, open_zip


def open_source(path: str) -> Source:
  """The tensors of a file or directory, by what it is.

  Raises:
    WeightsError: it is missing, damaged, or none of the known formats.
  """
  try:
    return _open(path)
  except OSError as error:
    raise WeightsError(
      f"{path} cannot be read: {error.strerror or error}; correct --from"
    ) from error


def _open(path: str) -> Source:
  p = Path(path)
  check_regular(p)
  if p.is_dir():
    return _open_directory(p)
  if not p.exists():
    if p.parent.is_dir() and find_parts(p):
      return Npz(path, find_parts(p))
    raise WeightsError(f"{path}: no such file or directory; correct --from")
  if PART.fullmatch(p.name):
    return Npz(path, find_parts(p.with_name(PART.fullmatch(p.name)[1])))
  if p.name.endswith(".index.json"):
    return _sharded(path, p)
  if is_zip(p):
    return Npz(path, [p]) if _holds_arrays(p) else TorchFile(path)
  with open(p, "rb") as file:
    begin = file.read(4)
  if begin == gguf_file.MAGIC:
    return gguf_file.GgufFile(path)
  zipped = begin == b"PK\x03\x04"
  if zipped or p.suffix == ".npz":
    raise WeightsError(
      f"{path} is damaged or truncated: no zip directory at its end; copy or "
      "download it again"
    )
  if p.suffix in (".pt", ".pth", ".ckpt", ".bin"):
    return TorchFile(path)
  if p.suffix == ".safetensors":
    return _single(p)
  raise WeightsError(
    f"{path}: not a format this reads; expected .safetensors, "
    ".safetensors.index.json, .npz, .npz.partN, a PyTorch file, GGUF, or a "
    "directory of safetensors, of PyTorch shards or of Orbax"
  )


def _holds_arrays(p: Path) -> bool:
  """Whether a zip is numpy's; a torn one is told by its name."""
  try:
    with open(p, "rb") as file, open_zip(file, str(p)) as archive:
      return any(name.endswith(".npy") for name in archive.namelist())
  except zipfile.BadZipFile:
    return p.suffix == ".npz"


def _open_directory(p: Path) -> Source:
  index = sorted(p.glob("*.safetensors.index.json"))
  if len(index) > 1:
    raise WeightsError(
      f"{p} holds several indexes, {' and '.join(i.name for i in index[:3])}: "
      "name one of them"
    )
  if index:
    return _sharded(str(p), index[0])
  single = sorted(p.glob("*.safetensors"))
  if len(single) == 1:
    return _single(single[0])
  if single:
    raise WeightsError(
      f"{p} holds {len(single)} safetensors files and no index: expected "
      "model.safetensors.index.json; download it too, or name one file"
    )
  torch = sorted(p.glob("pytorch_model*.bin.index.json"))
  if torch:
    return _sharded(str(p), torch[0])
  if (p / "pytorch_model.bin").is_file():
    return TorchFile(str(p / "pytorch_model.bin"))
  orbax = find_orbax(p)
  if orbax:
    return OrbaxSource(str(p), orbax)
  wholes = {PART.fullmatch(f.name)[1] for f in p.glob("*.part*")
            if PART.fullmatch(f.name)}  # fmt: skip
  if len(wholes) == 1:
    return Npz(str(p), find_parts(p / wholes.pop()))
  found = sorted(f.name for f in p.iterdir())
  shown = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
  raise WeightsError(
    f"{p} is a directory without weights to choose: expected *.safetensors, "
    "pytorch_model*.bin or an Orbax checkpoint (_METADATA), found "
    f"{shown or 'nothing'}; name the file or the directory that holds them"
  )


def _sharded(path: str, index: Path) -> Source:
  """Shards of the kind that the index is called after."""
  torch = index.name.endswith(".bin.index.json")
  return Sharded(path, index, TorchFile if torch else Safetensors)


def _single(file: Path) -> Source:
  """A lone file; one shard of several is told apart by its name."""
  match = re.search(r"-of-0*(\d+)\.safetensors$", file.name)
  if match and int(match[1]) > 1:
    fix = "there is no index beside it; download the others and the index"
    if any(file.parent.glob("*.safetensors.index.json")):
      fix = f"an index is beside it; name the directory {file.parent}"
    raise WeightsError(
      f"{file}: missing shards: this is one of {match[1]} and {fix}"
    )
  return Safetensors(str(file))
