"""Files that a path stands for: one, a folder's, or those of a pattern.

A pattern stands in the last part of a path: "train-*.parquet", or as
WebDataset writes it, "train-{000000..000012}.tar".
"""

import fnmatch
import os
import re

from etils import epath

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 1_000_000  # names of a range


def matching(path: str) -> list[str]:
  """The files of a pattern, sorted; none if it is no pattern.

  Raises:
    ValueError: a range that ends before it begins, or without end.
  """
  base, name = os.path.split(path)
  if found := _RANGE.search(name):
    first, last = found[1], found[2]
    count = int(last) - int(first) + 1
    if not 0 < count <= _MOST:
      raise ValueError(f"{path}: the range {found[0]} holds {count} files")
    return [
      os.path.join(base, f"{name[: found.start()]}{i:0{len(first)}d}"
                         f"{name[found.end() :]}")
      for i in range(int(first), int(last) + 1)
    ]  # fmt: skip
  if "*" not in name or not epath.Path(base).is_dir():
    return []
  names = (entry.name for entry in epath.Path(base).iterdir())
  return sorted(
    os.path.join(base, n) for n in names if fnmatch.fnmatchcase(n, name)
  )


def listed(path: str, ending: str) -> list[str]:
  """The files that a path stands for.

  Args:
    path: a file, a pattern, or a folder: of its files with the ending (else
      those of its subfolder "data") all, by name.
    ending: of the files of a folder, such as ".parquet".

  Raises:
    FileNotFoundError: no such file in the folder.
    ValueError: see `matching`.
  """
  base = epath.Path(path)
  if not base.exists() and (found := matching(path)):
    return found
  if not base.is_dir():
    return [path]
  found = list(base.glob(f"*{ending}")) or list(base.glob(f"data/*{ending}"))
  if not found:
    raise FileNotFoundError(f"no {ending} file in {path} or {path}/data")
  return sorted(os.fspath(file) for file in found)
