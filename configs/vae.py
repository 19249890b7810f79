"""Trains the image tokenizer, a KL autoencoder.

  python -m unifluid_jax.main --config=configs/vae.py:shapes \
      --workdir=runs/shapes/vae

Without argument: the Stable-Diffusion f8 shape on 256 x 256 images, with the
published recipe's weights (perceptual and adversarial terms are off until
config.loss.perceptual_weights names LPIPS weights, resp. until
config.loss.adversarial is set). Hardware: 8 GPUs or a v5e-16; not yet
run by us. `:shapes` is the embedded default (2 cores, under a minute;
docs/results.md), `:folder` your own images, `:emoji` and `:emoji_full` those of
configs/emoji.py.
"""

from configs import emoji, folder, shapes
from configs.base import base, image_tokenizer, source


def get_config(arg: str = ""):
  """`arg`: "", "shapes", "folder", "emoji" or "emoji_full"."""
  if arg not in ("", "shapes", "folder", "emoji", "emoji_full"):
    raise ValueError(
      f"unknown config argument {arg!r}: shapes, folder, emoji or emoji_full"
    )
  if not arg:
    c = base()
    image_tokenizer(c)
    c.batch.image = 96
    c.steps = 250_000
    c.data.train = dict(images=source("pairs"))
    c.optim.update(lr=4.3e-4, warmup=1000, b1=0.5, b2=0.9, weight_decay=0.0,
                   ema=0.0)  # fmt: skip
    c.checkpoint.every = 5000
  elif arg.startswith("emoji"):
    c = emoji.get_config("full" if arg == "emoji_full" else "small")
    image_tokenizer(c)
    tiny(c)
    c.steps = 1500
    c.checkpoint.every = 750
    if arg == "emoji_full":
      _full_emoji(c)
  else:
    c = {"shapes": shapes, "folder": folder}[arg].get_config()
    image_tokenizer(c)
    tiny(c)
    if arg == "folder":
      folder.follow_size(c)
  c.name = f"vae_{arg}" if arg else "vae"
  return c


def tiny(c):
  """A recipe for small autoencoders on small images."""
  c.batch.image = 16
  c.steps = 1000
  c.loss.update(l1=1.0, l2=2.0, kl=1e-3)
  c.optim.update(
    name="adamw",
    lr=4e-3,
    warmup=50,
    schedule="cosine",
    b1=0.9,
    b2=0.99,
    weight_decay=0.0,
    ema=0.0,
  )
  c.checkpoint = dict(every=500, keep=1, keep_every=0)


def _full_emoji(c):
  """More images, for a GPU."""
  c.batch.image = 64
  c.steps = 4000
  c.optim.lr = 2e-3
  c.checkpoint.every = 2000
