r"""Drawing with fewer passes and fewer head steps: what it costs and saves.

  python -m benchmarks.passes --config=configs/emoji.py --workdir=runs/emoji \
      --passes=0,8,4,2,1 --steps=20,10,5 --seeds=3 [--order=spread]

Draws the prompts of the metric `emoji_drawn` with every order, passes, steps
and guidance (--cfg=2,4), scores them by the same classifier, and times them: a
line each, with milliseconds an image, the ratio to the first line, and each
score's mean over seeds with the half-width of its 95 % interval. --last_steps=5
lets the steps of each image fall to that (DiSA). A run whose metric is
`geneval`, as configs/shapes.py, is scored by that.

Heads that draw in few steps are trained side by side by
`python -m unifluid_jax.experiments heads`, and each is timed by

  python -m benchmarks.passes --config=configs/shapes.py \
      --workdir=RUN --steps=50,25,10,4,2,1 --seeds=3

(--solver=heun: two evaluations a step but the last). Pairs that a head cannot
draw with are named and left out: an energy head has one step, a shortcut head
powers of two.
"""

import dataclasses
import itertools
import time

import numpy as np
from absl import flags
from scipy import stats

from unifluid_jax import api, systems
from unifluid_jax.core import cli
from unifluid_jax.data import tasks
from unifluid_jax.evals.bench import Bench
from unifluid_jax.evals.worlds import emoji_suite, world_suite

_CONFIG = cli.define_config("configs/emoji.py", "Whose evaluation data count.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/emoji", "Of the trained run.")
_PASSES = flags.DEFINE_list("passes", ["0"], "0: one a token.")
_ORDERS = flags.DEFINE_multi_enum(
  "order", [], ["raster", "random", "spread", "farthest"],
  "Of cells, repeated; default the run's.",
)  # fmt: skip
_STEPS = flags.DEFINE_list("steps", ["20"], "Of the head.")
_CFG = flags.DEFINE_list("cfg", [], "Of guidance; default the run's.")
_LAST_STEPS = flags.DEFINE_integer("last_steps", 0, "See config.sampling.")
_SOLVER = flags.DEFINE_enum(
  "solver", "euler", ["euler", "heun"], "Of flow heads."
)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Drawings of every prompt.", 1)
_BATCH = 32
_METRICS = {
  "emoji_drawn": (emoji_suite.drawn, ("emoji_drawn/top1",
                  "emoji_drawn_held_out/top1", "emoji_drawn_held_out/top5")),
  "geneval": (world_suite.geneval, ("geneval/overall",
              "geneval_held_out/colors")),
}  # fmt: skip


class Seeded:
  """A model that draws from other seeds than it is asked for."""

  def __init__(self, model: api.Model, sampling, first: int):
    self._model, self._sampling, self._first = model, sampling, first

  def images(self, prompts, seeds):
    """See `bench.Subject`."""
    seeds = [self._first + seed for seed in seeds]
    return self._model.images(prompts, seeds, self._sampling)


def main(_: list[str]) -> None:
  """Prints a line for every pair."""
  config = systems.resolve(_CONFIG.value)
  metric, names = next(
    _METRICS[name] for name in config.eval.metrics if name in _METRICS
  )
  model = api.load(_WORKDIR.value)
  bench, base = Bench(config, _WORKDIR.value), None
  orders = _ORDERS.value or [model.config.sampling.order]
  scales = [float(c) for c in _CFG.value] or [model.config.sampling.cfg]
  for order, passes, steps, cfg in itertools.product(
    orders, map(int, _PASSES.value), map(int, _STEPS.value), scales
  ):
    sampling = dataclasses.replace(
      model.config.sampling, order=order, passes=passes, steps=steps, cfg=cfg,
      last_steps=_LAST_STEPS.value, solver=_SOLVER.value,
    )  # fmt: skip
    row = f"{order:6}  passes {passes:3}  steps {steps:3}  cfg {cfg:g}"
    try:
      systems.spec(model.config.system).check_sampling(
        model.config, sampling, tasks.T2I
      )
    except ValueError as error:
      print(f"{row}  {error}", flush=True)
      continue
    found = [
      metric(Seeded(model, sampling, 10_000 * seed), bench).values
      for seed in range(_SEEDS.value)
    ]
    each = _milliseconds(model, sampling)
    base = base or each
    scores = "  ".join(f"{n} {_interval([f[n] for f in found])}" for n in names)
    print(
      f"{row}  {each:7.2f} ms an image  x{base / each:.2f}  {scores}",
      flush=True,
    )


def _milliseconds(model: api.Model, sampling) -> float:
  """Of an image, in a batch as large as `api.load` draws at once."""
  times = []
  for _ in range(6):  # the first compiles
    begun = time.perf_counter()
    model.images(["a picture"] * _BATCH, range(_BATCH), sampling)
    times.append(time.perf_counter() - begun)
  return 1000 * min(times[1:]) / _BATCH


def _interval(values: list[float]) -> str:
  mean = f"{np.mean(values):.3f}"
  if len(values) < 2:
    return mean
  half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  return f"{mean} ± {half:.3f}"


if __name__ == "__main__":
  cli.run(main)
