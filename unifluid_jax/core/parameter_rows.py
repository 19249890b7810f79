"""How each parameter of a network is split over devices and optimised.

A network's file has one table of rows for its parameters, with paths below
the network; a system says where its networks stand: {path prefix: rows}.
Every parameter must match exactly one row, so that nothing large is replicated
or decays because a rule was forgotten.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# Values of config.optim.decay under which a parameter decays. "adamw" spares
# vectors, biases and scales; "paligemma" decays what big_vision calls kernels.
MATRIX = ("adamw",)
KERNEL = ("adamw", "paligemma")


class Row(NamedTuple):
  """What holds for all parameters that a pattern matches."""

  pattern: str  # of the whole path below the network's prefix
  axes: tuple[str | None, ...]  # mesh axis of each dimension
  # Input and output axes of the matrices that Muon orthogonalises, the rest
  # are batch axes; None leaves the parameter to Adam.
  muon: tuple[tuple[int, ...], tuple[int, ...]] | None = None
  decay: tuple[str, ...] = ()  # none: never


Parts = Mapping[str, Sequence[Row]]


def row_of(parts: Parts, path: str) -> Row:
  """The one row that matches a parameter.

  Args:
    parts: path prefix → rows; the longest prefix counts.
    path: "/"-joined path.

  Raises:
    ValueError: no or several rows match, or the path lies in no part.
  """
  prefix = longest_prefix(parts, path)
  if prefix is None:
    raise ValueError(
      f"parameter {path} matches 0 rows: the system's `parts` are "
      f"{', '.join(parts)}"
    )
  below = path.removeprefix(f"{prefix}/")
  rows = [row for row in parts[prefix] if re.fullmatch(row.pattern, below)]
  if len(rows) != 1:
    raise ValueError(
      f"parameter {path} matches {len(rows)} rows of {prefix!r} in the "
      "system's `parts`; exactly one must match"
    )
  return rows[0]


def longest_prefix(prefixes: Iterable[str], path: str) -> str | None:
  """The longest of the path prefixes that `path` lies below, or is."""
  found = [p for p in prefixes if f"{path}/".startswith(f"{p}/")]
  return max(found, key=len, default=None)
