"""Fine-tuning on one transfer task, as the paper's Cap Avg and QA Avg need.

  python -m unifluid_jax.main --config=configs/transfer.py:okvqa \
      --workdir=runs/transfers/okvqa --config.init.all=runs/unified_2b
  python -m unifluid_jax.evaluate --config=configs/transfer.py:okvqa \
      --workdir=runs/transfers/okvqa --once
  python -m unifluid_jax.evaluate --suite=transfers --root=runs/transfers

Tasks and settings: unifluid_jax/data/transfers/tasks.py (PaliGemma, appendix
J, at 224 pixels; PaliGemma 2's learning rates stand beside them as `lr2`). 20
runs give the 24 numbers of UniFluid §5.1. Raw files lie in
config.data.root/TASK.
From converted PaliGemma weights: --config.init.image=new
--config.init.head=new.
To leave out a number, e.g. of a set one does not have:
--config.data.eval.countbenchqa.weight=0.0.

Differs: PaliGemma gives question and answer `length` tokens together; here
each has a slot of its own. Hardware: as the base configuration. Not yet run.
"""

from ml_collections.config_dict import FieldReference

from configs import debug, shapes, unified_2b, unified_2b_gemma1, unified_700m
from configs.base import source
from unifluid_jax.data.transfers import tasks

BASES = {
  "unified_2b": unified_2b,
  "unified_2b_gemma1": unified_2b_gemma1,
  "unified_700m": unified_700m,
  "shapes": shapes,
  "debug": debug,
}
_CAPTION_PREFIX = 8  # tokens that "caption en" fits in, with any tokenizer
_LETTER_SUFFIX = 16  # and "The answer is B."


def get_config(arg: str = ""):
  """`arg`: TASK or TASK,BASE, e.g. "gqa,unified_700m".

  TASK is a number's name or its run's; BASE the configuration of the run to
  start from, default unified_2b.
  """
  name, _, base = arg.partition(",")
  base = base or "unified_2b"
  if base not in BASES:
    raise ValueError(
      f"configs/transfer.py: no base {base!r}: use one of {', '.join(BASES)}"
    )
  rows = tasks.rows(tasks.named(name).run)
  row = rows[0]
  c = BASES[base].get_config()
  c.name = f"transfer_{row.run}"
  c.batch = dict(t2i=0, i2t=row.batch, edit=0, text=0)
  # Both follow a batch or a number of steps that is set on the command line.
  examples = FieldReference(row.epochs * (row.train_size - row.held))
  c.steps = examples // c.batch.get_ref("i2t")
  c.init = dict.fromkeys(c.init, "") | {"all": f"runs/{base}"}
  c.mesh = dict(slices=1, data=1, fsdp=-1, tensor=1)
  _data(c, rows)
  _recipe(c, row)
  return c


def _data(c, rows):
  row = rows[0]
  c.data.world = {}
  c.data.root = "data"
  c.data.images = row.images
  # A worker process would hold a copy of all questions.
  c.data.workers, c.data.threads = 0, 16
  weights = row.weights or (1,) * len(row.train)
  names = [row.run] if len(row.train) == 1 else row.train
  c.data.train = {
    name.replace("+", "_"): source(
      row.run,
      format="transfer",
      split=split,
      tasks=("i2t",),
      weight=float(weight),
    )
    for name, split, weight in zip(names, row.train, weights, strict=True)
  }
  c.data.eval = {
    r.name: source(r.name, format="transfer", split=r.split, tasks=("i2t",))
    for r in rows
  }
  captions = "{" not in row.prefix
  c.text.prefix = _CAPTION_PREFIX if captions else row.length
  c.text.suffix = _LETTER_SUFFIX if row.target == "letter" else row.length


def _recipe(c, row):
  c.model.decoder.dropout = row.dropout
  c.model.attention = "plain"  # whichever the devices are
  c.loss.text_weight = 1.0
  c.loss.label_smoothing = row.smoothing
  c.loss.text_mean = "answers"
  c.optim.update(
    name="adamw",
    lr=row.lr,
    warmup=c.get_ref("steps") // 20,
    schedule="cosine",
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=row.weight_decay,
    decay="paligemma",
    clip=1.0,
    ema=0.0,
  )
  # What draws images is not trained: no moments, no decay.
  c.optim.rates.update(image=0.0, head=0.0, vit=0.0 if row.freeze_vit else 1.0)
  c.checkpoint = dict(every=1000, keep=1, keep_every=0)
  c.sampling.text = "beam" if row.beam > 1 else "greedy"
  c.sampling.beams = row.beam
  c.eval.update(metrics=("transfer",), split=row.name, use_ema=False)
