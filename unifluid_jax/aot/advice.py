"""Which change would make a program fit; by arithmetic, so an estimate."""

from typing import Any

from unifluid_jax.aot.lower import Program
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config


def advice(
  config: Config, program: Program, found: dict[str, Any]
) -> list[str]:
  """Changes that would make a program fit, those that suffice first.

  Args:
    config: the experiment.
    program: what was compiled.
    found: the report so far: "fits", "memory", "bytes_held".

  Returns:
    Sentences; none where it fits or no limit is known.
  """
  if found["fits"] is not False:
    return []
  used, limit = found["memory"]["used"], found["memory"]["limit"]
  if used is None:
    return ["the compiler does not say by how much: halve the batch"]
  over = used - limit
  choices = _train(config, program, found) if program.mesh else _decode(found)
  lines = []
  for change, saved in sorted(choices, key=lambda c: -c[1]):
    verdict = "would fit" if saved >= over else "not enough alone"
    lines.append(f"{change}: about {saved / 2**30:.1f} GiB less, {verdict}")
  return [f"{over / 2**30:.1f} GiB too many for a device", *lines]


def _train(config, program, found) -> list[tuple[str, float]]:
  """(change, bytes saved) of a train step."""
  held, mesh = found["bytes_held"], program.mesh
  state = sum(held.get(k, 0) for k in ("parameters", "optimizer", "average"))
  # Gradients are as large as the parameters; the rest follows the batch.
  activations = max(
    found["memory"]["used"] - sum(held.values()) - held["parameters"], 0
  )
  out, fsdp = [], mesh.shape["fsdp"]
  if fsdp < mesh.size // mesh.shape.get(parallel.SLICES, 1):
    out.append(
      (
        f"mesh.fsdp={2 * fsdp}",
        (state + held["parameters"]) / 2,
      )
    )
  groups = parallel.batch_groups(mesh)
  if program.cost is not None and program.cost.saved_by_dots:
    out.append(("model.remat=full", program.cost.saved_by_dots / groups))
  parts = 2 * config.accumulate
  if all(n % (groups * parts) == 0 for n in config.batch.values()):
    out.append((f"accumulate={parts}", activations / 2))
  out.append(("half the batch, or twice the devices", activations / 2))
  if config.optim.mu_dtype == "float32":
    out.append(("optim.mu_dtype=bfloat16", held["parameters"] / 2))
  return out


def _decode(found) -> list[tuple[str, float]]:
  held = found["bytes_held"]
  rest = found["memory"]["used"] - held["parameters"] - held.get("frozen", 0)
  return [("half the rows (--rows, config.eval.batch)", max(rest, 0) / 2)]
