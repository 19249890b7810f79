"""Your own images with captions, at a size that a laptop trains.

  python -m unifluid_jax.prepare --config=configs/folder.py \
      --config.data.root=DIR
  (then main with configs/vae.py:folder, encode, main with this file: README)

DIR holds captions.jsonl, one {"image": path, "prefix": "", "suffix":
caption} a line; a prefix that is a question makes the suffix its answer. COCO:
--config.data.train.images.format=coco
--config.data.train.images.path=annotations.json:images.

64 x 64 images. Hardware: a CPU core, 18 minutes; eighteen photographs are then
captioned exactly and drawn again from their captions: docs/results.md.
"""

from configs import shapes
from configs.base import ablate, source


def get_config(arg: str = ""):
  """`arg`: t2i_only, i2t_only, raster, lambda=X."""
  c = shapes.get_config()
  c.name = "folder"
  c.steps = 1200
  c.batch = dict(t2i=8, i2t=8, edit=0, text=0)
  c.data.root = "runs/folder/data"
  c.data.world = {}
  c.data.train = dict(images=source("captions.jsonl", format="jsonl"))
  c.data.eval = dict(images=source("captions.jsonl", format="jsonl"))
  c.text = dict(
    tokenizer="runs/folder/tokenizer.model",
    train_vocab=512,
    prompt=32,
    prefix=16,
    suffix=32,
  )
  m = c.model
  m.decoder.vocab = 512
  m.vit.update(image_size=64)
  m.image_size = 64
  m.vae_path = "runs/folder/vae"
  c.loss.update(random_until=200, raster_from=500)
  c.eval.update(split="images", examples=64, batch=16)
  c.eval.metrics = ("samples", "captions")
  c.checkpoint.every = 600
  ablate(c, arg)
  return c
