"""A report as text."""

from typing import Any

from unifluid_jax.core import telemetry


def table(report: dict[str, Any]) -> str:
  """The report's parts under one another, for people."""
  parts = [_head(report), _memory(report), _collectives(report)]
  parts += [_time(report), _verdict(report)]
  return "\n\n".join(p for p in parts if p)


def _size(count: int | float) -> str:
  for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
    if count >= scale:
      return f"{count / scale:,.2f} {unit}"
  return f"{count / 2**10:,.2f} KiB"


def _ms(seconds: int | float) -> str:
  return f"{seconds * 1e3:,.1f} ms"


def _head(r: dict[str, Any]) -> str:
  rows = [("devices", f"{r['devices']} of {r['chips']} chips")]
  if r["mesh"]:
    rows.append(("mesh", " x ".join(f"{k} {v}" for k, v in r["mesh"].items())))
    batch = ", ".join(f"{k} {v}" for k, v in r["batch"].items())
    rows.append(("batch", f"{batch}; accumulate {r['accumulate']}"))
  else:
    rows.append(("rows a call", r["rows"]))
  rows.append(("remat", r["remat"]))
  for name, count in r["parameters"].items():
    size = r["parameter_bytes"].get(name, r["bytes_held"]["parameters"])
    rows.append((f"parameters, {name}", f"{count:,}  {_size(size)} a device"))
  title = f"{r['program']} of {r['config']} on {r['topology']}"
  return telemetry.table(title, rows)


def _memory(r: dict[str, Any]) -> str:
  rows = [(f"{k}, held", _size(v)) for k, v in r["bytes_held"].items()]
  rows += [
    (name, _size(r["memory"][name]))
    for name in ("temporaries", "program", "used", "limit")
    if r["memory"].get(name) is not None
  ]
  return telemetry.table("memory a device", rows)


def _collectives(r: dict[str, Any]) -> str:
  rows = []
  for c in r.get("collectives", ()):
    share = c["asynchronous_bytes"] / max(c["bytes"], 1)
    time = f"  {_ms(c['seconds']):>10}" if "seconds" in c else ""
    rows.append(
      (
        f"{c['kind']} over {c['axes']}",
        f"{c['count']:>6} x  {_size(c['bytes']):>11}  "
        f"{100 * share:3.0f} % async{time}",
      )
    )
  return telemetry.table("collectives a step", rows) if rows else ""


def _time(r: dict[str, Any]) -> str:
  if "seconds" not in r:
    return ""

  def band(tree, form):
    return " ... ".join(
      form(tree[k]) for k in ("exposed", "scheduled", "hidden")
    )

  rows = [(f"by kind: {k}", _ms(v)) for k, v in r["compute_by_kind"].items()]
  rows += [(f"by part: {k}", _ms(v)) for k, v in r["compute_by_part"].items()]
  rows += [
    ("compute", _ms(r["compute_seconds"])),
    ("communication", _ms(r["communication_seconds"])),
    ("time: exposed ... scheduled ... hidden", band(r["seconds"], _ms)),
    ("rows/s", band(r["rows_per_second"], "{:,.2f}".format)),
  ]
  if "mfu" in r:
    rows += [
      ("model FLOPs", f"{r['model_flops']:.4g}"),
      ("tokens/s", band(r["tokens_per_second"], "{:,.0f}".format)),
      ("MFU", band(r["mfu"], "{:.1%}".format)),
    ]
  if r["kernels_without_estimate"]:
    assumed = f"{r['kernels_without_estimate']}, {_ms(r['kernel_seconds'])}"
    rows.append(("kernels, assumed", assumed))
  if r["mesh"]:
    rows.append(("model", r["communication_model"]))
  return telemetry.table("the compiler's estimate, not a measurement", rows)


def _verdict(r: dict[str, Any]) -> str:
  lines = [r["error"]] if r.get("error") else []
  if r["fits"] is None:
    return "\n".join([*lines, "fits: unknown, this device has no limit here"])
  return "\n".join([*lines, f"fits: {'yes' if r['fits'] else 'no'}",
                    *r["advice"]])  # fmt: skip
