"""Experiments of UniFluid's drawing: heads of few steps, cells of few passes.

Both vary configs/shapes.py with sixteen image tokens, where the demo has four:
with few tokens heads and passes hardly differ. Runs that differ in sampling
alone are one run, scored in several ways.
"""

from collections.abc import Mapping

from unifluid_jax.evals.published.paper_tables import Arm, Study

_CONFIG = "configs/shapes.py"
_TOKENS = "--config.model.patch=2"
_COLUMNS = {
  "GenEval": "geneval/overall",
  "colours": "geneval/colors",
  "two objects' colours": "geneval/color_attr",
  "Fréchet ratio": "fid/ratio",
}
_METRICS = ("geneval", "fid")

# ---------------------------------------------------------------------- heads

_STEPS = {
  "ddpm": (50, 25, 10, 4, 2, 1),
  "flow": (50, 25, 10, 4, 2, 1),
  "shortcut": (8, 4, 2, 1),  # powers of two
  "energy": (1,),
}


def _head(kind: str, steps: int, last: int = 0) -> Arm:
  """One of a kind's run; `last`: steps fall to that (DiSA)."""
  flags = [_TOKENS, f"--config.model.head.kind={kind}"]
  if kind == "energy":  # as EAR trains it
    flags.append("--config.optim.rates.head=0.25")
  flags.append(f"--config.sampling.steps={steps}")
  flags.append(f"--config.sampling.last_steps={last}")
  flags.append("--config.sampling.cfg=2.5")
  fall = f" falling to {last}" if last else ""
  return Arm(
    f"heads_{kind}",
    f"{kind}, steps {steps}{fall}",
    flags=tuple(flags),
    metrics=_METRICS,
    where={"steps": steps, "last_steps": last},
  )


_HEADS = Study(
  "Kinds of heads and their steps",
  _CONFIG,
  _COLUMNS,
  (
    _head("ddpm", 50, 5),
    *(_head(kind, steps) for kind in _STEPS for steps in _STEPS[kind]),
  ),
  "DiSA, FAR and EAR give FID on ImageNet, of other networks",
)

# --------------------------------------------------------------------- passes

# Which runs: the share of rows in random order to the end.
_SHARES = {1.0: "random order", 0.5: "half of it in random order"}
_PASSES = {"random": (16, 8, 4, 2, 1), "spread": (8, 4, 2), "raster": (16, 4)}


def _groups(share: float, order: str, passes: int) -> Arm:
  return Arm(
    f"passes_{share:g}",
    f"Trained in {_SHARES[share]}; {order} cells, passes {passes}",
    flags=(
      _TOKENS,
      # The head that learns fastest, so that orders are what is compared.
      "--config.model.head.kind=flow",
      "--config.sampling.steps=10",
      "--config.sampling.cfg=2.5",
      f"--config.loss.random_share={share}",
      f"--config.sampling.order={order}",
      f"--config.sampling.passes={passes}",
    ),
    metrics=_METRICS,
    where={"order": order, "passes": passes},
  )


_GROUPS = Study(
  "Order of cells and number of passes",
  _CONFIG,
  _COLUMNS,
  tuple(
    _groups(share, order, passes)
    for share in _SHARES
    for order in _PASSES
    for passes in _PASSES[order]
  ),
  "LPD and ARPG give FID on ImageNet, of other networks",
)

DRAWING_STUDIES: Mapping[str, Study] = {"heads": _HEADS, "passes": _GROUPS}
