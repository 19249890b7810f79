"""Fine-tunes a trained run to edit images as told.

  python -m unifluid_jax.main --config=configs/edit.py:shapes \
      --workdir=runs/edit

Without argument: the 2B run on HQ-Edit and UltraEdit, 4M pairs (paper §5.3,
which names the data and gives no recipe; all of it here is open). Put the
Parquet files of UCSC-VLAA/HQ-Edit (CC-BY-NC-4.0) and BleachNick/UltraEdit in
data/hq_edit and data/ultra_edit. Hardware as unified_2b.py; not yet run by us.
`:shapes` goes on from runs/shapes (make demo), on edits of its scenes, some
of the old tasks kept; a minute on one GPU, 17 on a CPU core. Expected: .96 of
the edits done, .96 of the other objects kept, GenEval-shapes and captions as
before (docs/results.md).
"""

from configs import shapes, unified_2b
from configs.base import source


def get_config(arg: str = ""):
  """`arg`: "" or "shapes"."""
  if arg not in ("", "shapes"):
    raise ValueError(f"unknown config argument {arg!r}: shapes")
  c = _embedded() if arg else _paper()
  c.name = f"edit_{arg}" if arg else "edit"
  c.loss.update(random_until=0, raster_from=0)  # as its start ended
  c.model.edit_latents = True  # what stays the same need not be redrawn
  # InstructPix2Pix: a twentieth each without text, without image, without both.
  c.loss.update(prompt_dropout=0.1, image_dropout=0.1)
  return c


def _paper():
  c = unified_2b.get_config()
  c.steps = 16_000  # four times through
  c.batch = dict(t2i=0, i2t=0, edit=1024, text=0)
  # Weights by size: 0.2M directed edits and 4M.
  c.data.train = dict(
    hq_edit=source("hq_edit", format="hq_edit", tasks=("edit",), weight=0.05),
    ultra_edit=source("ultra_edit", format="ultra_edit", tasks=("edit",),
                      weight=0.95),
  )  # fmt: skip
  c.init = dict.fromkeys(c.init, "") | {"all": "runs/unified_2b"}
  c.optim.update(lr=2e-5, warmup=500)
  c.eval.metrics = ("captions",)  # what of understanding is left
  return c


def _embedded():
  c = shapes.get_config()
  c.steps = 2400  # at half of it a third of the edits fail
  c.batch = dict(t2i=8, i2t=8, edit=24, text=0)
  c.init.all = shapes.ROOT
  c.optim.update(lr=3e-3, adam_lr=1e-3)
  c.checkpoint.every = 1200
  c.eval.metrics = ("edits", "geneval", "captions", "vqa")
  return c
