"""A trained flow head, distilled: one evaluation a token, and no guidance.

  python -m unifluid_jax.main --config=configs/distill.py:shapes \
      --workdir=runs/shapes_distilled
  python -m unifluid_jax.evaluate --config=configs/distill.py:shapes \
      --workdir=runs/shapes_distilled --once

Goes on from `make demo`'s run, whose guided steps the head learns to take at
once; all else stays as it was. A token then takes one evaluation of the head
instead of two a step, and the decoder reads no null condition. Hardware:
1 CPU core, 10 minutes. Measured: GenEval .766 in one step, .799 in the run's
ten (docs/results.md, "Heads by steps").
"""

from configs import shapes


def get_config(arg: str = "shapes"):
  """`arg`: shapes, the run of the embedded default."""
  if arg != "shapes":
    raise ValueError(f"config argument {arg!r}: shapes")
  run, c = shapes.ROOT, shapes.get_config()
  c.name = "distill"
  c.steps = 2400
  c.checkpoint.every = c.steps
  c.batch = dict(t2i=32, i2t=0, edit=0, text=0)
  c.init.update(all=run, teacher=f"{run}#head")
  # Its own copy, whose statistics stay those it was trained with.
  c.model.vae_path = f"{run}/codec"
  # The head alone learns; the order is the one that the run ended with.
  c.optim.rates.update(decoder=0.0, vit=0.0, projector=0.0, image=0.0)
  c.loss.update(random_until=0, raster_from=0)
  # Seven steps draw as well as the run's ten.
  c.loss.update(teacher_steps=7, teacher_cfg=c.sampling.cfg)
  c.model.head.kind = "distilled"
  c.sampling.update(steps=1, cfg=1.0)
  # What is read and said is the run's own.
  c.eval.metrics = ("geneval", "fid")
  return c
