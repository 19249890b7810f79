"""Liquid with Gemma-2 2B and Chameleon's image tokenizer, 512 x 512 images.

  python -m unifluid_jax.main --config=configs/liquid_2b.py \
      --workdir=gs://BUCKET/run --coordinator=auto

Liquid §2: 60M rows, half of them texts, batch 1024, context 2048, learning
rate 2e-5, cosine. `:gemma2_9b`, `:qwen2_5_0_5b` and so on are the other sizes
of the scaling experiments (§3.1, at a constant rate: `,constant`), which train
each on texts alone, on text-to-image alone and on both: `,text_only`,
`,t2i_only`. `:resolutions` trains on images of several shapes (§4.2).
Hardware: 64 v5p chips, or 256 v5e with mesh.tensor=4; not run by us. Its data
are JourneyDB, DCLM, SlimPajama, StarCoder and images that are not public: give
your own as config.data.train, encoded once by
`unifluid_jax.encode`.
"""

from configs import tokenizer
from configs.base import base, source

# Preset → bos, eos, control tokens, all ids of the published tokenizers.
# Texts never use those that serve as boi, eoi and unconditional: Gemma's
# unused0-2, Llama's reserved tokens, Qwen's around images. Qwen has no BOS.
_GEMMA = dict(boi=7, eoi=8, unconditional=9)
_LLAMA = dict(bos=128_000, eos=128_001, boi=128_002, eoi=128_003,
              unconditional=128_005)  # fmt: skip
_QWEN = dict(bos=151_643, eos=151_643, boi=151_652, eoi=151_653,
             unconditional=151_654)  # fmt: skip
_CODES = 8192
# Height and width; open: the paper names none. 1024 codes of 16 x 16 pixels at
# most, so that rows stay as long as those of squares.
RESOLUTIONS = ((512, 512), (448, 576), (576, 448), (384, 672), (672, 384))
# Preset → rows of its table, special tokens, its tokenizer.
SIZES = {
  "qwen2_5_0_5b": (151_936, _QWEN, "qwen2_5_tokenizer.json"),
  "llama3_1b": (128_256, _LLAMA, "llama3_tokenizer.json"),
  "gemma2_2b": (256_000, _GEMMA, "gemma2_tokenizer.model"),
  "gemma1_7b": (256_000, _GEMMA, "gemma_tokenizer.model"),
  "qwen2_5_7b": (152_064, _QWEN, "qwen2_5_tokenizer.json"),
  "gemma2_9b": (256_000, _GEMMA, "gemma2_tokenizer.model"),
  "qwen2_5_32b": (152_064, _QWEN, "qwen2_5_tokenizer.json"),
}
_STEPS = 58_600  # one epoch of 60M rows


def get_config(arg: str = ""):
  """`arg`: a size, and what `vary` knows; separated by commas."""
  first, _, rest = arg.partition(",")
  size, changes = (first, rest) if first in SIZES else ("gemma2_2b", arg)
  c = sized(size)
  c.name = "liquid_2b" if size == "gemma2_2b" else f"liquid_2b_{size}"
  vary(c, changes, tuple(SIZES))
  return c


def liquid(c) -> None:
  """Makes `c` Liquid: Gemma's vocabulary and the 8192 codes of Chameleon."""
  c.system = "liquid"
  c.model = dict(
    decoder=c.model.decoder,
    vq=tokenizer.vq("chameleon"),
    vq_path="",
    image_size=512,
    code_offset=256_000,
    dtype="bfloat16",
    remat="full",
    scan=True,
    attention="plain",
    user=(),
    ask=(),
    reply=(),
    endings=(),
    text_suffix=0,
    sizes=(),
  )
  c.model.decoder.vocab = 256_000 + 8192
  # Unused tokens of Gemma's, renamed.
  c.text.special = dict(boi=7, eoi=8, unconditional=9)
  c.loss = dict(
    prompt_dropout=0.1,
    vocab_chunk=64,
    max_z=0.0,
    weighting="tokens",
    text_weight=1.0,
    word_dropout=0.0,
  )
  # Open: the paper's 1024 rows, half of them texts; of the pairs a fifth is
  # shown reversed, as captioning (here a quarter: 64 devices divide the rows;
  # on more, split layers too: mesh.tensor).
  c.batch = dict(t2i=384, i2t=128, text=512)
  c.init = dict(all="", decoder="")
  c.optim.rates = dict(decoder=1.0)
  c.sampling = dict(
    cfg=7.0,
    temperature=0.99,
    image_top_k=4096,
    image_top_p=0.96,
    text="greedy",
    text_temperature=1.0,
    top_k=0,
    top_p=1.0,
    beams=2,
    seed=0,
    size=(),
  )


def sized(size: str):
  """The pretraining of one of SIZES."""
  rows, special, tokenizer = SIZES[size]
  c = base()
  liquid(c)
  c.steps = _STEPS
  c.model.decoder.preset = size
  c.model.code_offset, c.model.decoder.vocab = rows, rows + _CODES
  c.model.vq_path = "weights/chameleon_vq"
  c.text.special, c.text.tokenizer = dict(special), f"data/{tokenizer}"
  # t2i 1022 + 1024 + eoi, eos; i2t 2 + 1024 + 64 + 958; text 64 + 1984: each
  # row of all tasks has 2048 tokens.
  c.text.update(prompt=1022, prefix=64, suffix=958)
  c.model.text_suffix = 1984
  c.data.caption_prefix = "The caption of this image is:"
  c.model.endings = ENDINGS
  pairs = source("pairs", moments="pairs_codes")
  c.data.train = dict(pairs=pairs, texts=source("texts", tasks=("text",)))
  coco = "coco/annotations/captions_val2014.json:coco/val2014"
  c.data.eval = dict(coco=source(coco, format="coco"))
  c.eval.split = "coco"
  c.init.decoder = f"weights/{size}"
  c.optim.update(
    lr=2e-5, schedule="cosine", weight_decay=0.0,
    warmup=int(0.03 * _STEPS),  # the released script's
    b1=0.9, b2=0.95,  # open
  )  # fmt: skip
  if not size.endswith(("0_5b", "1b", "2b")):
    stable(c)
  # As ZeRO-3: parameters and moments are split over all devices.
  c.mesh = dict(slices=1, data=-1, fsdp=32, tensor=1)
  return c


def stable(c) -> None:
  """What Liquid §2 does against spikes of the loss from 7B parameters on."""
  c.optim.clip = 0.5
  c.loss.max_z = 5e-5  # the paper names no number; UniTok's code has this one


# After a prompt, in training any, in generation the first.
ENDINGS = (
  " Draw a picture of this.",
  " Make an image that shows this.",
  " Paint what is described here.",
  " Turn this description into an image.",
  " Show this as a picture.",
  " Create an image that fits these words.",
  " Picture this scene.",
  " Render an image from this text.",
  " Illustrate this description.",
  " Generate a picture like that.",
)


def vary(c, arg: str, others: tuple[str, ...] = ()) -> None:
  """Applies variants, comma-separated, to a configuration.

  An error names `others` too, which the caller has taken care of.

  t2i_only, i2t_only, text_only: one task, same number of rows of it.
  apart: the means of images and of texts apart (loss.weighting).
  constant: the learning rate of the scaling experiments.
  resolutions: images of RESOLUTIONS, named in their prompts (§4.2).
  """
  for item in filter(None, arg.split(",")):
    task, _, only = item.rpartition("_")
    if only == "only" and task in ("t2i", "i2t", "text"):
      c.batch.update({k: 0 for k in c.batch if k != task})
      c.batch[task] = c.batch[task] or 64
    elif item == "apart":
      c.loss.weighting = "apart"
    elif item == "constant":
      c.optim.schedule = "constant"
    elif item == "resolutions":
      c.model.sizes = RESOLUTIONS
    else:
      known = ", ".join((
        "t2i_only", "i2t_only", "text_only", "apart", "constant",
        "resolutions", *others,
      ))  # fmt: skip
      raise ValueError(f"unknown config argument {item!r}; known: {known}")
    c.name = f"{c.name}_{item}"
