"""UniToken in miniature: the embedded default's world, seen twice.

  make demo-unitoken

The data set and the tokenizer of texts are those of configs/shapes.py, the
image tokenizer that of configs/tokenizer.py:shapes: 64 codes out of 512 for
32 x 32 pixels. The vision encoder sees 2 x 2 features of the whole image and
of each view of its grid. Hardware: 2 CPU cores. Measured:
captions .97, GenEval-shapes .62 and VQA .64, which miss their targets;
`:longer`: 1.00, .81 and .88 (docs/results.md).
"""

from configs import shapes
from configs.base import source
from configs.tokenizer import tiny_vq
from configs.unitoken_7b import unitoken

ROOT = shapes.ROOT

# What `make demo-unitoken` is to reach on two CPU cores.
TARGETS = {
  "detector/truth": (">=", 0.99),
  "tokenizer/agreement": (">=", 0.98),
  "geneval/overall": (">=", 0.65),
  "captions/exact": (">=", 0.90),
  "vqa/all": (">=", 0.80),
}


def get_config(arg: str = ""):
  """`arg`, comma-separated: "base" (no grid), "discrete", "t2i_only", ...

  reading: trains questions about signs too, whose small words only the grid
    shows unshrunk, and scores what is read.
  longer: twice the steps, and more of each to read.
  """
  c = shapes.get_config()
  unitoken(c)
  c.name = "unitoken_shapes"
  # Rows are four times as long as UniFluid's: fewer of them.
  c.steps = 1800
  c.batch = dict(t2i=24, i2t=16, text=0)
  c.checkpoint.every = c.steps
  c.data.train = dict(
    shapes=source(
      "shapes", tasks=("t2i", "i2t", "text"), moments="shapes_codes"
    )
  )
  # One more than UniFluid's prompt, and of a question as many: the turn's end.
  c.text.prompt = 15
  c.text.special = dict(soi=320, eoi=321, sep=322, turn=323, line=324)

  m = c.model
  # As the embedded default's, but causal throughout.
  m.decoder.update(preset="gemma2_2b", dropout=0.0)
  # Rows of a hundred tokens and more.
  m.decoder.update(rope_base=1000.0, rope_base_global=1000.0)
  m.vit.image_size = 32
  m.size_offset = 324  # one size, 32 pixels: row 325
  m.code_offset = 326
  m.decoder.vocab = 326 + 512
  m.text_rows = 320
  m.vq_path = f"{ROOT}/vq"
  tiny_vq(m.vq)
  m.image_size = 32
  # Its square images are seen whole, then as the middle of two views.
  m.pinpoints = ((32, 64), (64, 32))
  m.lead = ""
  m.dtype = "float32"
  m.remat = "none"
  m.scan = False  # a CPU runs four unrolled layers a third faster

  c.loss.update(
    prompt_dropout=0.1,
    vocab_chunk=128,  # all positions at once
    text_weight=4.0,
  )
  # From scratch: nothing is frozen.
  c.optim.rates = dict(decoder=1.0, vit=1.0, projector=1.0)
  # Wrong codes add up over 64 draws: at cfg 3 and temperature 1 far fewer
  # images are right (docs/log.md).
  c.sampling.update(cfg=1.5, temperature=0.5, image_top_k=0, top_k=0)
  _vary(c, arg)
  return c


def _vary(c, arg: str) -> None:
  items = [item for item in arg.split(",") if item]
  if "reading" in items:
    _reading(c)  # first, wherever it stands: "base" takes its grids away
  for item in items:
    if item == "base":
      c.model.pinpoints = ()
    elif item == "discrete":
      c.model.continuous = False
      c.optim.rates = dict(decoder=1.0)
    elif item == "t2i_only":
      c.batch.i2t = 0
    elif item == "i2t_only":
      c.batch.t2i = 0
    elif item == "longer":
      _longer(c)
    elif item != "reading":
      raise ValueError(
        f"unknown config argument {item!r}; known: reading, base, discrete, "
        "t2i_only, i2t_only, longer"
      )
    c.name = f"{c.name}_{item}"


def _longer(c) -> None:
  """As configs/liquid_shapes.py's; so that yes/no questions are learned."""
  c.steps = 4000
  c.batch.i2t = 32
  c.loss.update(word_dropout=0.0, text_weight=8.0)
  c.checkpoint.update(every=1000, keep=4)


def _reading(c) -> None:
  """UniToken §3.1: wide, tall and large scenes, seen at any resolution.

  Codes are of the middle square of a scene, as the released code crops them.
  """
  c.data.world.signs = 12_000
  # After "shapes": the first source is what metrics know of training.
  c.data.train.shapes_signs = source(
    "shapes_signs", tasks=("i2t",), moments="signs_codes"
  )
  # One feature covers two letters.
  c.model.vit.patch = 8
  # The paper's five grids.
  c.model.pinpoints = ((32, 64), (64, 32), (64, 64), (32, 96), (96, 32))
  c.eval.metrics = (*c.eval.metrics, "reading")
