"""A run trained on what it draws right: rejection fine-tuning, round by round.

  python -m unifluid_jax.reward --config=configs/reward.py:shapes \
      --workdir=runs/shapes_reward

Goes on from `make demo`'s run; `:liquid`, `:unitoken` and `:vargpt` from those
of the other systems' demos. A round draws 1,200 prompts four times, keeps an
image that the detector finds right of each, and trains 200 steps, half of
whose prompts are these. Hardware: 2 CPU cores, 26 minutes beside other work.
Measured: GenEval-shapes .85 to .90, two colours .50 to .70, guided less
strongly than before (cfg 1.5); images become more alike (docs/results.md).
"""

from configs import liquid_shapes, shapes, unitoken_shapes, vargpt_shapes
from configs.base import source

# The file of a run, its workdir, and what its image tokenizer makes.
_RUNS = {
  "shapes": (shapes, shapes.ROOT, "moments"),
  "liquid": (liquid_shapes, f"{shapes.ROOT}/liquid", "codes"),
  "unitoken": (unitoken_shapes, f"{shapes.ROOT}/unitoken", "codes"),
  "vargpt": (vargpt_shapes, f"{shapes.ROOT}/vargpt", "scales"),
}
# Data seen before keep captions, questions and the look of scenes as they are.
_SHARE = 0.5


def get_config(arg: str = "shapes"):
  """`arg`: shapes, which is UniFluid's run, or liquid, unitoken, vargpt."""
  if arg not in _RUNS:
    raise ValueError(f"config argument {arg!r}: one of {', '.join(_RUNS)}")
  file, run, made = _RUNS[arg]
  c = file.get_config()
  c.name = f"reward_{arg}"
  c.init = dict(dict.fromkeys(c.init, ""), all=run)
  c.steps = 200
  c.checkpoint.every = c.steps
  # Its own copy, whose statistics stay those it was trained with.
  key = "vae_path" if arg == "shapes" else "vq_path"
  c.model[key] = f"{run}/codec"
  for each in c.data.train.values():
    each.weight = 1 - _SHARE
  # `unifluid_jax.reward` says where each round's lie.
  c.data.train.rewarded = source(
    "rewarded", format="imagefolder", tasks=("t2i",), weight=_SHARE,
    moments=f"rewarded_{made}",
  )  # fmt: skip
  c.optim.update(lr=0.2 * c.optim.lr, adam_lr=0.2 * c.optim.adam_lr, warmup=20)
  if arg == "shapes":
    # The order that the run ended with.
    c.loss.update(random_until=0, raster_from=0)
  return c
