"""Liquid in miniature: the embedded default's world, in discrete tokens.

  make demo-liquid

The data set and the tokenizer of texts are those of configs/shapes.py, the
image tokenizer that of configs/tokenizer.py:shapes: 64 codes out of 512 for
32 x 32 pixels. Hardware: 2 CPU cores, 19 minutes. Measured:
GenEval-shapes .67, captions .95, VQA .66, which misses its target; `:longer`
and then `:questions`, 80 minutes on one core: .80, 1.00, .84 (docs/results.md).
"""

from configs import liquid_2b, shapes, tokenizer
from configs.base import source

ROOT = shapes.ROOT

# What `make demo-liquid` is to reach on two CPU cores.
TARGETS = {
  "detector/truth": (">=", 0.99),
  "tokenizer/agreement": (">=", 0.98),
  "geneval/overall": (">=", 0.65),
  "captions/exact": (">=", 0.90),
  "vqa/all": (">=", 0.80),
}


def get_config(arg: str = ""):
  """`arg`: what liquid_2b.vary knows, e.g. "t2i_only" or "apart".

  in_context: trains dialogues too, whose rule two examples tell, and scores
    what is inferred; with --config.batch.dialogue=0 the run without them.
  dialogues: trains conversations that ask for images, describe and change
    them, and scores whether it draws when asked.
  longer: twice the steps, and more of each to read.
  questions: goes on from `longer` in runs/shapes/liquid_longer, mostly with
    captions and questions.
  """
  c = shapes.get_config()
  liquid_2b.liquid(c)
  c.name = "liquid_shapes"
  c.steps = 2800
  c.batch = dict(t2i=24, i2t=16, text=0)
  c.data.train = dict(
    shapes=source(
      "shapes", tasks=("t2i", "i2t", "text"), moments="shapes_codes"
    )
  )
  # One piece more than UniFluid's prompt: boi.
  c.text.prompt = 15
  c.text.special = dict(boi=320, eoi=321, unconditional=322)

  m = c.model
  m.code_offset = 323
  m.reply = ("newline",)
  # Nothing here needs caps, which are a tenth of a step on a CPU.
  m.decoder.update(vocab=323 + 512, attn_softcap=0.0, final_softcap=0.0)
  m.vq_path = f"{ROOT}/vq"
  m.image_size = 32
  m.dtype = "float32"
  m.remat = "none"
  m.scan = False  # a CPU runs four unrolled layers a third faster
  tokenizer.tiny_vq(m.vq)

  c.loss.vocab_chunk = 128  # all positions at once
  # An answer has 5 tokens and an image 66: one mean over all would hardly
  # train answers.
  c.loss.update(weighting="apart", text_weight=0.5)
  # As in configs/shapes.py: answers are then read off the image.
  c.loss.word_dropout = 0.4
  # Wrong codes add up over 64 draws: at temperature 1 far fewer images are
  # right (docs/log.md).
  c.sampling.update(cfg=2.0, temperature=0.5, image_top_k=0, image_top_p=1.0)
  # BOS, three images of 64 codes with BOI and EOI, three words, EOS.
  c.text.dialogue = 1 + 3 * 66 + 3 + 1
  items = arg.split(",")
  for name, apply in _VARIATIONS.items():
    if name in items:
      apply(c)
  rest = ",".join(i for i in items if i not in _VARIATIONS)
  liquid_2b.vary(c, rest, tuple(_VARIATIONS))
  return c


def in_context(c):
  """Liquid §4.4, Figure 9; the scenes and their tokenizer stay as they are."""
  c.name = f"{c.name}_in_context"
  c.data.world.in_context = 6000
  # After "shapes": the first source is what metrics know of training.
  c.data.train.shapes_in_context = source(
    "shapes_in_context", tasks=("dialogue",)
  )
  c.batch.dialogue = 16
  c.eval.metrics = (*c.eval.metrics, "in_context")


def dialogues(c):
  """Conversations, as VARGPT (arXiv 2501.12327 §4) trains on; no template."""
  c.name = f"{c.name}_dialogues"
  c.data.world.dialogues = 6000
  c.data.train.shapes_dialogues = source(
    "shapes_dialogues/train.json", format="sharegpt", tasks=("dialogue",)
  )
  c.batch.dialogue = 16
  c.text.suffix = 13  # newline, "here you see", a scene in eight words, boi
  c.eval.metrics = (*c.eval.metrics, "draws_when_asked")


def longer(c):
  """Answers "is there a red circle" too, which takes a causal decoder long.

  Slower rotations and whole answers learn it sooner, drawing later
  (docs/log.md).
  """
  c.name = f"{c.name}_longer"
  c.steps = 5600
  c.batch.i2t = 32
  c.loss.update(word_dropout=0.0, text_weight=1.0)
  c.model.decoder.update(rope_base=1000.0, rope_base_global=1000.0)
  c.checkpoint.update(every=1400, keep=4)


def questions(c):
  """Names the colour of one thing among others; drawing stays as it was."""
  longer(c)
  c.name = c.name.replace("longer", "questions")
  c.steps = 1000
  c.batch.update(t2i=12, i2t=64)
  c.optim.update(lr=2.5e-3, adam_lr=1e-3)
  c.checkpoint.update(every=500)
  c.init.all = f"{ROOT}/liquid_longer"


_VARIATIONS = {
  "in_context": in_context,
  "dialogues": dialogues,
  "longer": longer,
  "questions": questions,
}
