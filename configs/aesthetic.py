"""Fine-tunes the 2B run on images that look good, text to image only.

  python -m unifluid_jax.main --config=configs/aesthetic.py \
      --workdir=gs://BUCKET/aesthetic

Paper §5.3: "a publicly available dataset" that it does not name; all values
here are open. Give Parquet files (one, or a folder) of encoded images with
captions and an aesthetic score, and name their columns:
--config.data.train.images.image=jpg --config.data.train.images.text=caption.
Rows below min_score are left out, rows without a score too. JSON lines with
such a key do as well: --config.data.train.images.format=jsonl. Hardware as
unified_2b.py; not yet run by us.
"""

from configs import unified_2b
from configs.base import source


def get_config(arg: str = ""):
  """`arg`: none is known."""
  if arg:
    raise ValueError(f"unknown config argument {arg!r}: there is none")
  c = unified_2b.get_config()
  c.name = "aesthetic"
  c.steps = 5000
  c.batch = dict(t2i=1024, i2t=0, edit=0, text=0)
  c.data.train = dict(
    images=source(
      "aesthetic",
      format="parquet",
      tasks=("t2i",),
      score="aesthetic",
      min_score=6.0,  # of LAION's predictor, 1 to 10
    )
  )
  c.init = dict.fromkeys(c.init, "") | {"all": "runs/unified_2b"}
  c.optim.update(lr=2e-5, warmup=500)
  c.loss.update(random_until=0, raster_from=0)  # as its start ended
  c.eval.metrics = ("captions",)  # what of understanding is left
  return c
