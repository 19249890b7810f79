"""Experiments of UniFluid's drawing: heads of few steps, cells of few passes.

They vary configs/shapes.py with sixteen image tokens, where the demo has four:
with few tokens heads and passes hardly differ. Heads also on emoji, which have
sixteen. Runs that differ in sampling alone are one run, scored in several ways.
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
_GUIDANCE = 2.5

# Of emoji, by their classifier; see `worlds/emoji_suite.py`.
_EMOJI_COLUMNS = {
  "seen, top 1": "emoji_drawn/top1",
  "held out, top 1": "emoji_drawn_held_out/top1",
  "held out, top 5": "emoji_drawn_held_out/top5",
  "Fréchet ratio": "emoji_fid/ratio",
}

# ---------------------------------------------------------------------- heads

_STEPS = {
  "ddpm": (50, 25, 10, 4, 2, 1),
  "flow": (50, 25, 10, 4, 2, 1),
  "shortcut": (8, 4, 2, 1),  # powers of two
  "energy": (1,),
}


def _head(kind: str, steps: int, last: int = 0) -> Arm:
  """One of a kind's run; `last`: steps fall to that (DiSA)."""
  flags = (_TOKENS, *_trained(kind), *_drawn(steps, last))
  flags += (f"--config.sampling.cfg={_GUIDANCE}",)
  fall = f" falling to {last}" if last else ""
  return Arm(
    f"heads_{kind}",
    f"{kind}, steps {steps}{fall}",
    flags=flags,
    metrics=_METRICS,
    where={"steps": steps, "last_steps": last},
  )


def _trained(kind: str) -> tuple[str, ...]:
  kind_flag = f"--config.model.head.kind={kind}"
  if kind == "energy":  # as EAR trains it
    return kind_flag, "--config.optim.rates.head=0.25"
  return (kind_flag,)


def _drawn(steps: int, last: int) -> tuple[str, str]:
  return (
    f"--config.sampling.steps={steps}",
    f"--config.sampling.last_steps={last}",
  )


def _emoji_head(kind: str, steps: int) -> Arm:
  """The same on emoji, guided as their configuration says."""
  return Arm(
    f"emoji_heads_{kind}",
    f"{kind}, steps {steps}",
    flags=(*_trained(kind), *_drawn(steps, 0)),
    metrics=("emoji_drawn", "emoji_fid"),
    where={"steps": steps, "last_steps": 0},
  )


# The flow head's run, gone on with by its head alone.
_DISTILLED = Arm(
  "heads_distilled",
  "flow, distilled, steps 1",
  "shapes",
  config="configs/distill.py",
  flags=(
    _TOKENS,
    "--config.model.vae_path=runs/shapes/vae",
    f"--config.loss.teacher_cfg={_GUIDANCE}",
    "--config.loss.draws=2",  # of four times as many tokens
  ),
  metrics=_METRICS,
  follows="heads_flow",
  starts={"teacher": "heads_flow#head"},
  where={"steps": 1, "last_steps": 0},
)

_HEADS = Study(
  "Kinds of heads and their steps",
  _CONFIG,
  _COLUMNS,
  (
    _head("ddpm", 50, 5),
    *(_head(kind, steps) for kind in _STEPS for steps in _STEPS[kind]),
    _DISTILLED,
  ),
  "DiSA, FAR and EAR give FID on ImageNet, of other networks",
)

_EMOJI_HEADS = Study(
  "Kinds of heads and their steps, on emoji",
  "configs/emoji.py",
  _EMOJI_COLUMNS,
  tuple(_emoji_head(kind, steps) for kind in _STEPS for steps in _STEPS[kind]),
  "DiSA, FAR and EAR give FID on ImageNet, of other networks",
)

# --------------------------------------------------------------------- passes

# Which runs: the share of rows in random order to the end.
_SHARES = {
  1.0: "random order",
  0.5: "half of it in random order",
  0.0: "the farthest order, four passes",
}
_PASSES = {
  "random": (16, 8, 4, 2, 1),
  "spread": (8, 4, 2),
  "raster": (16, 4),
  "farthest": (16, 8, 5, 4),
}


def _groups(share: float, order: str, passes: int) -> Arm:
  ends = "farthest" if share == 0 else "raster"
  return Arm(
    f"passes_{share:g}",
    f"Trained in {_SHARES[share]}; {order} cells, passes {passes}",
    flags=(
      _TOKENS,
      # The head that learns fastest, so that orders are what is compared.
      "--config.model.head.kind=flow",
      "--config.sampling.steps=10",
      f"--config.sampling.cfg={_GUIDANCE}",
      f"--config.loss.random_share={share}",
      f"--config.loss.order={ends}",
      f"--config.loss.passes={0 if share else 4}",
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
    for order in (_PASSES if share else ("farthest",))
    for passes in _PASSES[order]
  ),
  "LPD and ARPG give FID on ImageNet, of other networks",
)

DRAWING_STUDIES: Mapping[str, Study] = {
  "heads": _HEADS,
  "emoji_heads": _EMOJI_HEADS,
  "passes": _GROUPS,
}
