"""What libtpu writes of the programs that it compiles, without a TPU."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from unifluid_jax.aot import topology


@contextlib.contextmanager
def folder() -> Iterator[Path]:
  """Where it writes; libtpu reads this once, when it starts."""
  with tempfile.TemporaryDirectory() as path:
    os.environ["LIBTPU_INIT_ARGS"] = (
      f"--xla_jf_dump_to={path} --xla_jf_dump_llo_text=true"
    )
    yield Path(path)


def tpus(names: Iterable[str]) -> Iterator[topology.Topology]:
  """Topologies by their names.

  Raises:
    ValueError: one is of no TPU.
  """
  for place in map(topology.get, names):
    if place.chip is None:
      raise ValueError(f"--topology={place.name} is no TPU; try v5e:2x2")
    yield place


def clear(dumps: Path) -> None:
  """Forgets earlier programs."""
  for old in dumps.iterdir():
    old.unlink()


def schedules(dumps: Path, name: str = "") -> Iterator[tuple[str, int]]:
  """Texts of what was scheduled whose files are named so; instructions."""
  for path in dumps.glob("*schedule-analysis_final_bundles.txt"):
    if name in path.name:
      text = path.read_text()
      count = re.search(r"total scheduled bundles:\s+(\d+)", text)
      yield text, int(count[1])
