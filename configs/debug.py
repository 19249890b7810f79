"""Every stage at its smallest: seconds on a CPU, numbers without meaning.

  make smoke

200 scenes of the shapes world, a few thousand parameters, 20 steps.
`:vae` is the tokenizer of this configuration.
"""

from configs import shapes, vae
from configs.base import ablate, image_tokenizer

ROOT = "runs/debug"


def get_config(arg: str = ""):
  """`arg`: "vae", or t2i_only, i2t_only, raster, lambda=X."""
  c = shapes.get_config()
  c.name = "debug"
  c.steps = 20
  c.batch = dict(t2i=8, i2t=8, edit=0, text=0)
  c.data.root = f"{ROOT}/data"
  c.data.world = dict(train=200, validation=32, held_out=16, seed=0)
  c.text.tokenizer = f"{ROOT}/data/tokenizer.model"
  m = c.model
  m.decoder.update(width=32, depth=2, mlp=64, heads=2, kv_heads=1, head_dim=16)
  m.vit.update(width=32, depth=1, mlp=64, heads=2)
  m.head.update(kind="ddpm", width=32, depth=1)
  m.vae.update(base=32)
  m.vae_path = f"{ROOT}/vae"
  c.loss.update(random_until=8, raster_from=16)
  c.optim.warmup = 5
  c.checkpoint = dict(every=10, keep=4, keep_every=0)
  c.log.every = 5
  c.sampling.update(steps=4, cfg=2.5)
  c.eval.update(examples=16, prompts_per_task=2, batch=16)
  if arg == "vae":
    image_tokenizer(c)
    vae.tiny(c)
    c.name = "debug_vae"
    c.steps = 20
    c.checkpoint.every = 10
  else:
    ablate(c, arg)
  return c
