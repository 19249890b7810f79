"""Your own images with texts, at a size that a laptop trains.

  python -m unifluid_jax.prepare --config=configs/folder.py \
      --config.data.root=DIR
  (then main with configs/vae.py:folder, encode, main with this file: README)

DIR holds captions.jsonl, COCO or LLaVA JSON, an imagefolder with metadata, CSV
or TSV, .tar or .parquet shards, a data set saved by `datasets`, .txt beside
images, or subfolders named as classes: data/sources/discover.py finds out, and
prepare says what. To name it: --config.data.train.images.format=coco
--config.data.train.images.path=annotations.json:images; evaluation follows.

What follows from the data, of N records (256 of them looked at), whenever it is
not set on the command line:

  image size      the median of the shorter sides, down to a multiple of 16,
                  from 32 to 64 pixels; --config.model.image_size=128 sets both
                  the drawn and the seen one
  steps           50 N / 8, from 1200 to 20,000
  token order     random until 1/6 of them, raster from 5/12
  tokens of texts 3 per word of the longest and 2, up to a multiple of 8, from
                  32 to 128; of prompts that are no questions 16
  tasks           captions: 8 + 8 a step; questions alone: 16; edits alone: 8
  evaluation      the validation split, else test, else the training data

Only the lower ends are measured: on a CPU core, in 18 minutes, eighteen
photographs are captioned exactly and drawn again from their captions
(docs/results.md). A DIR that is not there yet counts as they do.
"""

from configs import shapes
from configs.base import ablate, source
from unifluid_jax.core import derived
from unifluid_jax.data import survey
from unifluid_jax.data.sources import discover

_BATCH = 8
_COLUMNS = ("format", "path", "split", "image", "text", "question")


def get_config(arg: str = ""):
  """`arg`: t2i_only, i2t_only, raster, lambda=X."""
  c = shapes.get_config()
  c.name = "folder"
  c.data.root = "runs/folder/data"
  c.data.world = {}
  c.data.train = dict(images=source(".", format="auto"))
  c.data.eval = dict(images=source(".", format="auto"))
  _evaluation(c)
  c.text = dict(
    tokenizer="runs/folder/tokenizer.model",
    train_vocab=512,
    prompt=32,
    prefix=16,
    suffix=32,
  )
  c.text.prompt = c.text.suffix = _derived(c, _slot)
  # Also where questions stand beside captions: they would be cut.
  c.text.prefix = _derived(
    c, lambda found: _slot(found) if found and found.questions else 16
  )
  c.steps = _derived(c, _steps)
  c.batch = dict(t2i=8, i2t=8, edit=0, text=0)
  c.batch.t2i = _derived(c, lambda found: _rows("t2i", found))
  c.batch.i2t = _derived(c, lambda found: _rows("i2t", found))
  c.batch.edit = _derived(c, lambda found: _rows("edit", found))
  m = c.model
  m.decoder.vocab = 512
  m.head.kind = "ddpm"  # what was measured, with these steps and guidance
  c.sampling.update(steps=50, cfg=2.5)
  follow_size(c)
  m.vit.image_size = m.get_oneway_ref("image_size")
  m.vae_path = "runs/folder/vae"
  steps = c.get_ref("steps")
  c.loss.random_until = steps // 6
  c.loss.raster_from = steps * 5 // 12
  c.eval.update(split="images", examples=64, batch=16)
  c.eval.metrics = _derived(c, _metrics, tuple)
  c.checkpoint.every = derived.reference(int, lambda n: max(1, n // 2), steps)
  ablate(c, arg)
  return c


def follow_size(c) -> None:
  """Makes `c.model.image_size` that of the data."""
  c.model.image_size = _derived(c, _size)


# ---------------------------------------------------------------- The formulas


def _size(found: survey.Survey | None) -> int:
  return min(64, max(32, found.side // 16 * 16)) if found else 64


def _steps(found: survey.Survey | None) -> int:
  records = found.records if found else 0
  return min(20_000, max(1200, 50 * records // _BATCH))


def _slot(found: survey.Survey | None) -> int:
  longest = max(found.words, default=0) if found else 0
  return min(128, max(32, -(-(3 * longest + 2) // 8) * 8))


def _rows(task: str, found: survey.Survey | None) -> int:
  """Examples of a task in a batch."""
  if _asks(found):
    return 2 * _BATCH * (task == "i2t")
  if found and found.edits and not found.captions:
    return _BATCH * (task == "edit")
  return _BATCH * (task != "edit")


def _asks(found: survey.Survey | None) -> bool:
  """Whether there are questions alone."""
  return bool(found and found.questions and not found.captions)


def _metrics(found: survey.Survey | None) -> tuple[str, ...]:
  if _asks(found):
    return ("vqa",)
  if found and found.edits and not found.captions:
    return ("validation_loss",)
  return ("samples", "captions")


# ------------------------------------------------------- What they are made of


def _derived(c, formula, kind=int):
  """A value of the training data, wherever flags say that they lie."""
  images = c.data.train.images
  refs = [c.data.get_ref("root"), *(images.get_ref(k) for k in _COLUMNS)]

  def value(root, *columns):
    named = dict(zip(_COLUMNS, columns, strict=True))
    return formula(survey.quick(root, **named))

  return derived.reference(kind, value, *refs)


def _evaluation(c) -> None:
  """Evaluates on the same data, on another split where there is one."""
  train, told = c.data.train.images, c.data.eval.images
  train.tasks = ("t2i", "i2t", "edit")
  for key in ("format", "path", "image", "text", "question"):
    told[key] = train.get_oneway_ref(key)
  refs = [c.data.get_ref("root"), *(train.get_ref(k) for k in _COLUMNS)]

  def split(root, form, path, given, *columns):
    named = dict(zip(_COLUMNS[3:], columns, strict=True))
    auto = form == "auto" and given == "train"
    return discover.evaluation_split(root, path, **named) if auto else given

  told.split = derived.reference(str, split, *refs)
