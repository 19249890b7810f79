r"""VAR: class-conditional images, scale by scale (arXiv 2404.02905).

  python -m unifluid_jax.main --config=configs/var.py:d16 --workdir=runs/var

`:d16`, `:d20`, `:d24`, `:d30`: 256 x 256 ImageNet; `:d36`: 512 x 512. Not yet
run by us; published FIDs 3.55, 2.95, 2.33, 1.97 and 2.63. The tokenizer and
whole models are imported by `python -m unifluid_jax.weights` (kinds var_vq,
var). A caption (data.train.imagenet) is the number of its image's class.

Differs: the paper's rate falls linearly over the last 95 % of the steps, and
the weight decay of d30 and d36 rises to .08; the rate here falls as a cosine.

FID is measured as VAR does with --config.sampling.cfg=1.5
--config.sampling.image_top_k=900 --config.sampling.image_top_p=0.96 on 50,000
images, 50 of a class; `smooth` and a cfg of 4 are for pictures.

`:shapes` is a miniature: the first shape that a prompt names is the class.

  python -m unifluid_jax.prepare --config=configs/shapes.py
  python -m unifluid_jax.main --config=configs/tokenizer.py:multiscale_shapes \
      --workdir=runs/shapes/multiscale_vq
  python -m unifluid_jax.encode --config=configs/var.py:shapes
  python -m unifluid_jax.main --config=configs/var.py:shapes \
      --workdir=runs/shapes/var

Its commands ran, its numbers are not measured. Of GenEval-shapes only single
objects say something: a class has neither colour nor place.
"""

from configs import shapes, tokenizer
from configs.base import base, source, unset

# Depth → epochs, batch, rate per 256 images.
_RECIPES = {
  "d16": (200, 768, 1e-4),
  "d20": (250, 768, 1e-4),
  "d24": (350, 768, 8e-5),
  "d30": (350, 1024, 8e-5),
  "d36": (350, 768, 8e-5),
}
_IMAGES = 1_281_167  # of ImageNet


def get_config(arg: str = ""):
  """`arg`: d16 (or nothing), d20, d24, d30, d36 or shapes."""
  arg = arg or "d16"
  if arg != "shapes" and arg not in _RECIPES:
    names = ", ".join((*_RECIPES, "shapes"))
    raise ValueError(f"unknown config argument {arg!r}: {names}")
  c = shapes.get_config() if arg == "shapes" else base()
  var(c, "" if arg == "shapes" else arg)
  c.name = f"var_{arg}"
  if arg == "shapes":
    _shapes(c)
  else:
    _imagenet(c, arg)
  return c


def var(c, preset: str) -> None:
  """Makes `c` the training of a class-conditional scale decoder."""
  c.system = "var"
  c.model = dict(
    decoder=scale_decoder(preset),
    vq=tokenizer.multiscale_vq(
      {"": "", "d36": "var_f16_512"}.get(preset, "var_f16")
    ),
    vq_path="",
    image_size=c.model.image_size,
    classes=(),
    label="name",
    dtype=c.model.dtype,
    remat=c.model.remat,
    scan=c.model.scan,
  )
  c.loss = dict(
    class_dropout=0.1,
    label_smoothing=0.0,
    scale_weights="equal",
    vocab_chunk=170,
    progressive=0.0,
    progressive_first=5,
    progressive_ramp=1,
  )
  c.batch = dict(t2i=0)
  c.init = dict(all="", decoder="")
  c.optim.rates = dict(decoder=1.0)
  c.sampling = dict(
    cfg=4.0, temperature=1.0, image_top_k=900, image_top_p=0.95, smooth=False
  )


def scale_decoder(preset: str = "") -> dict:
  """A scale decoder; without preset its sizes have to be set."""
  return dict(
    preset=preset,
    **unset(int, "width depth heads mlp codes code_channels classes"),
    **unset(tuple, "scales"),
    **unset(bool, "shared_adaln l2_norm"),
    **unset(float, "drop_path gate_init"),
  )


def _imagenet(c, arg: str) -> None:
  epochs, batch, rate = _RECIPES[arg]
  c.model.image_size = 512 if arg == "d36" else 256
  c.batch.t2i = batch
  c.steps = epochs * _IMAGES // batch
  c.data.train = dict(
    imagenet=source("imagenet.jsonl", format="jsonl", tasks=("t2i",))
  )
  c.data.eval = dict(
    imagenet=source("imagenet_val.jsonl", format="jsonl", tasks=("t2i",))
  )
  c.eval.update(metrics=("samples",), split="imagenet")
  c.optim.update(
    lr=rate * batch / 256,
    warmup=c.steps // 50,
    schedule="cosine",
    b1=0.9,
    b2=0.95,
    weight_decay=0.05,
    clip=2.0,
  )


def _shapes(c) -> None:
  c.steps = 700
  c.batch.t2i = 32
  c.data.train.shapes.update(tasks=("t2i",), moments="shapes_scales")
  m = c.model
  m.classes, m.label = ("circle", "square", "triangle", "cross"), "mention"
  m.vq_path = f"{shapes.ROOT}/multiscale_vq"
  tokenizer.tiny_multiscale_vq(m.vq)
  m.decoder.update(
    width=128, depth=4, heads=4, mlp=512, codes=512, code_channels=16,
    classes=4, scales=(1, 2, 3, 4), drop_path=0.0, gate_init=1e-2,
  )  # fmt: skip
  c.loss.vocab_chunk = 30
  c.optim.update(name="adamw", lr=2e-3, b2=0.95, weight_decay=0.05, clip=2.0)
  c.sampling.update(cfg=1.0, image_top_k=0, image_top_p=1.0)
  c.eval.metrics = ("tokenizer", "geneval", "fid")
