"""A run trained on how right its drawings are.

  python -m unifluid_jax.main --config=configs/reward.py:shapes,policy \
      --workdir=runs/shapes_policy
  python -m unifluid_jax.reward --config=configs/reward.py:shapes \
      --workdir=runs/shapes_reward

The first by policy gradients: a step draws 96 images of 12 prompts and learns
which are more right than the others. 480 steps, 5 to 7 minutes on one core.
Measured, three seeds: GenEval-shapes .82 to .96, two colours .60 to .91, the
Fréchet distance no worse (docs/results.md). Tuned for `shapes`, UniFluid's
run; tried with no other.

The second is rejection fine-tuning, round by round.
Goes on from `make demo`'s run; `:liquid`, `:unitoken` and `:vargpt` from those
of the other systems' demos. A round draws 1,200 prompts four times, keeps an
image that the detector finds right of each, and trains 200 steps, half of
whose prompts are these. Hardware: 2 CPU cores, 26 minutes beside other work.
Measured, with the demo's head as it was (`ddpm`): GenEval-shapes .85 to .90,
two colours .50 to .70, guided less strongly than before (cfg 1.5); images
become more alike (docs/results.md).
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
  """`arg`: shapes, which is UniFluid's run, or liquid, unitoken, vargpt.

  shapes,policy and so on: policy gradients instead of rounds.
  """
  name, _, how = arg.partition(",")
  if name not in _RUNS or how not in ("", "policy"):
    raise ValueError(
      f"config argument {arg!r}: one of {', '.join(_RUNS)}; after it ,policy"
    )
  file, run, made = _RUNS[name]
  c = file.get_config()
  c.name = f"reward_{arg.replace(',', '_')}"
  c.init = dict(dict.fromkeys(c.init, ""), all=run)
  c.steps = 200
  c.checkpoint.every = c.steps
  # Its own copy, whose statistics stay those it was trained with.
  key = "vae_path" if name == "shapes" else "vq_path"
  c.model[key] = f"{run}/codec"
  c.optim.update(lr=0.2 * c.optim.lr, adam_lr=0.2 * c.optim.adam_lr, warmup=20)
  if name == "shapes":
    # The order that the run ended with.
    c.loss.update(random_until=0, raster_from=0)
  if how:
    _policy(c)
    if name == "shapes":
      # What needed guidance is learned; less of it keeps images varied.
      c.sampling.cfg = 1.5
      # Beside drawings, which weigh 8, texts hold the decoder where it was.
      c.loss.text_weight *= 5
  else:
    _rounds(c, made)
  return c


def _rounds(c, made: str) -> None:
  for each in c.data.train.values():
    each.weight = 1 - _SHARE
  # `unifluid_jax.reward` says where each round's lie.
  c.data.train.rewarded = source(
    "rewarded", format="imagefolder", tasks=("t2i",), weight=_SHARE,
    moments=f"rewarded_{made}",
  )  # fmt: skip


def _policy(c) -> None:
  c.steps = c.checkpoint.every = 480
  c.log.every = 10
  # With 16 and half the steps, images drifted from true ones (docs/log.md).
  c.policy.update(prompts=12, draws=8, weight=8.0)
  # Unguided drawings are the policy's own; learning of guided ones makes
  # images alike (docs/log.md).
  c.policy.sampling = dict(cfg=1.0)
  c.optim.ema = 0.98
  c.eval.metrics = (*c.eval.metrics, "geneval_classified")
