"""Compiles lowered programs and collects what the compiler says of them."""

import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

from unifluid_jax.aot.topology import GIB, Topology

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


class Compiled(NamedTuple):
  """A program after compilation, or the reason there is none."""

  text: str | None  # HLO; None when it does not fit
  memory: dict[str, int | None]  # bytes a device: used, arguments, ...
  seconds: float
  versions: dict[str, str]
  error: str | None = None


def compile_program(
  lowered: Any, place: Topology, options: Mapping[str, str] | None = None
) -> Compiled:
  """Compiles, and reads memory and the scheduled program.

  `memory["used"]` of a TPU is the size of its assigned heap, from the
  compiler's dump: `memory_analysis` adds up buffers that share an address.

  Args:
    lowered: jax.stages.Lowered.
    place: what for.
    options: compiler options, e.g. xla_tpu_...=true.

  Raises:
    ValueError: the compiler refuses an option.
  """
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    options = dict(options or {}) | {"xla_dump_to": folder}
    try:
      done = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      usage = _newest(Path(folder), "*memory-usage-report.txt")
      used = out_of_memory(str(error), usage)
      return _failed(error, used, time.monotonic() - start, place)
    seconds = time.monotonic() - start
    dumped = Path(folder)
    text = _newest(dumped, "*after_codegen.txt") or done.as_text()
    usage = _newest(dumped, "*memory-usage-report.txt")
  found = done.memory_analysis()
  memory = {
    "arguments": found.argument_size_in_bytes,
    "outputs": found.output_size_in_bytes,
    "aliased": found.alias_size_in_bytes,
    "program": found.generated_code_size_in_bytes,
  }
  kept = memory["arguments"] + memory["outputs"] - memory["aliased"]
  heap = heap_bytes(usage) if usage and place.chip else None
  if heap is None:
    heap = kept + found.temp_size_in_bytes
  memory |= {
    "temporaries": max(heap - kept, 0),
    "used": heap + memory["program"],
  }
  return Compiled(text, memory, seconds, versions(place))


def heap_bytes(usage: str) -> int | None:
  """Bytes of HBM in a memory usage report; arguments are part of it."""
  found = re.search(r"Memory Space: default[^\n]*\nTotal bytes: (\d+)", usage)
  return int(found[1]) if found else None


def out_of_memory(message: str, usage: str | None = None) -> int | None:
  """Bytes a refused program would use.

  Args:
    message: XLA's; it may count the temporaries alone.
    usage: the memory usage report, where one was dumped.

  Returns:
    The larger figure; None when there is none.
  """
  found = re.search(
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"
    r"|required for [\w ]+ \(([\d.]+)([KMGT]?)\) exceeds",
    message,
  )
  sizes = [heap_bytes(usage) or 0] if usage else []
  if found:
    number, unit = (g for g in found.groups() if g is not None)
    sizes.append(int(float(number) * _UNITS[unit]))
  return max(sizes, default=0) or None


def versions(place: Topology) -> dict[str, str]:
  """Of what shaped the program; estimates move with them."""
  out = {"jax": jax.__version__}
  if place.chip:
    client = place.devices[0].client
    out["compiler"] = " ".join(client.platform_version.split())
  return out


def _newest(folder: Path, pattern: str) -> str | None:
  """The last dump of a name: auxiliary programs are compiled first."""
  files = sorted(folder.glob(pattern), key=lambda f: f.stat().st_size)
  return files[-1].read_text() if files else None


def _failed(error, used, seconds, place) -> Compiled:
  message = str(error)
  if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
    if "compile option" in message:
      raise ValueError(f"--option: {message.splitlines()[0]}") from error
    raise error
  logging.info("%s", message)
  short = message.splitlines()[0]
  return Compiled(None, {"used": used}, seconds, versions(place), short)
