r"""Does a configuration fit, and how fast can it be? Needs no accelerator.

  python -m unifluid_jax.compile --config=configs/unified_2b.py \
      --topology=v5p:4x4x4 --out=report.json
  python -m unifluid_jax.compile --config=configs/shapes.py --topology=cpu:8
  python -m unifluid_jax.compile --config=configs/unified_2b.py \
      --topology=v5e:2x2 --what=eval

Compiles the real programs ahead of time. Topologies: v4, v5e, v5p, v6e, v7x
with the extra `tpu`, cpu:N without. Exit status 1: it does not fit.

libtpu takes about 5 GB of memory for a step. For v6e with the VAE in it 20 GB
on one core (taskset -c 0), more on several; or less, for slower code, with
--option=xla_tpu_run_space_to_batch=true and
--option=xla_tpu_run_space_to_batch_on_new_platforms=true.
"""

import json

import jax
from absl import flags

from unifluid_jax import systems
from unifluid_jax.aot import compiled, lower, report, table, topology
from unifluid_jax.core import cli, files

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "Kind and shape, as in v5p:4x4x4 or cpu:8."
)
_WHAT = flags.DEFINE_enum("what", "train", lower.WHAT, "What is compiled.")
_ROWS = flags.DEFINE_integer(
  "rows", 0, "Images a call of generate, answer, eval; 0: as they would."
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")
_MEMORY = flags.DEFINE_float(
  "memory_gib", None, "Of a device, instead of the published size."
)
_OPTIONS = flags.DEFINE_multi_string(
  "option", [], "Compiler option, NAME=VALUE; may be repeated."
)


def main(_: list[str]) -> int:
  """Lowers, compiles, reports; 1 when something does not fit."""
  # Accelerators of this machine, if any, are left alone.
  jax.config.update("jax_platforms", "cpu")
  config = systems.resolve(_CONFIG.value.to_dict())
  options = _options(_OPTIONS.value)
  place, say = topology.get(_TOPOLOGY.value), cli.speaker()
  memory = int(_MEMORY.value * topology.GIB) if _MEMORY.value else None
  reports = []
  for program in lower.programs(
    config, _WHAT.value, place.devices, _ROWS.value
  ):
    done = compiled.compile_program(program.lowered, place, options)
    reports.append(report.report(config, program, done, place, memory))
    reports[-1]["options"] = options
    say(table.table(reports[-1]) + "\n")
  if _OUT.value:
    files.write(_OUT.value, json.dumps(reports, indent=2) + "\n")
    say(f"wrote {_OUT.value}")
  return int(any(r["fits"] is False for r in reports))


def _options(pairs: list[str]) -> dict[str, str]:
  options = dict(pair.partition("=")[::2] for pair in pairs)
  empty = [name for name, value in options.items() if not value]
  if empty:
    raise ValueError(f"--option={empty[0]}: write it as NAME=VALUE")
  return options


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "topology"])
  cli.run(main, caches=False)  # what it compiles is never run
