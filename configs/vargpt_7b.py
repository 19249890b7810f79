"""VARGPT 7B: LLaVA-1.5 7B that draws with VAR-d30, 256 x 256 images.

  python -m unifluid_jax.main --config=configs/vargpt_7b.py:stage1 \
      --workdir=gs://BUCKET/vargpt_stage1 --coordinator=auto
  python -m unifluid_jax.main --config=configs/vargpt_7b.py:stage2 \
      --config.init.all=gs://BUCKET/vargpt_stage1 ...
  python -m unifluid_jax.main --config=configs/vargpt_7b.py:stage3 ...

VARGPT (arXiv 2501.12327) §4, table 2. Stage 1: both generation projectors, on
1.28M images with the names of their classes. Stage 2: the language model and
the projector of what is seen, on 1.18M instructions (LLaVA-1.5, LLaVA-OneVision
and 5K images to draw). Stage 3: the scale decoder and both generation
projectors, on 1.4M instructions to draw, 12 epochs. AdamW without decay, cosine
rates, a tenth of the steps to warm up. It starts from LLaVA-1.5 7B and VAR-d30
(python -m unifluid_jax.weights); data are conversations in JSON, yours to give
as config.data.train. Hardware: 64 v5p chips or more; not run by us. Paper's
results: MMBench 67.6, SEED 67.9, MMMU 36.4; FID 12.6 and CLIP score 27.4 of
50,000 captions.

`,released` after the stage is what the released code does where it differs
from the paper: stage 1 also trains the rows of the scale decoder's table of
classes, stage 2 leaves the projector as it is, stage 3 has 3 epochs; slots are
causal in the language model, no prompt is ever dropped and guidance leads away
from noise. Released weights need it; `weights --from=vargpt:DIR --to=PLACE`
makes what config.init.all and config.model.vq_path name.

Differs: rows begin with BOS in training too, answers alone are learned, and
guidance leads away from a null prompt that a tenth of the images train.
"""

from configs import tokenizer
from configs import var as var_config
from configs.base import base, source

_STAGES = ("stage1", "stage2", "stage3")
_GEN = ("in_projector", "out_projector")
# Stage → what it trains, examples, epochs, batch, learning rate.
_RECIPES = {
  "stage1": (_GEN, 1_281_167, 1, 1024, 1e-3),
  "stage2": (("decoder", "projector"), 1_178_000, 1, 256, 5e-5),
  "stage3": (("visual_decoder", *_GEN), 1_400_000, 12, 1024, 5e-5),
}
# Ids in the released vocabulary, of 32,064 rows. "USER:" and "ASSISTANT:" are
# 3148 1001 29901 and 319 1799 9047 13566 29901 in Llama's.
_SPECIAL = dict(
  bos=1, eos=2, unk=0, newline=13, boi=32_002, eoi=32_003, colon=29_901,
  us=3148, er=1001, a=319, ss=1799, ist=9047, ant=13_566,
)  # fmt: skip


def get_config(arg: str = "stage3"):
  """`arg`: "stage1", "stage2" or "stage3", then ",released"."""
  stage, _, variant = (arg or "stage3").partition(",")
  if stage not in _STAGES or variant not in ("", "released"):
    raise ValueError(
      f"unknown config argument {arg!r}: stage1, stage2 or stage3, and "
      "',released' after it"
    )
  c = base()
  vargpt(c)
  c.name = f"vargpt_7b_{stage}"
  _vicuna(c)
  c.data.train = dict(
    conversations=source(
      "conversations.json", format="sharegpt", tasks=("dialogue",)
    )
  )
  coco = "coco/annotations/captions_val2014.json:coco/val2014"
  c.data.eval = dict(coco=source(coco, format="coco"))
  c.eval.split = "coco"
  trained, examples, epochs, batch, rate = _RECIPES[stage]
  freeze_all_but(c, trained)
  c.batch = dict(t2i=0, i2t=0, text=0, dialogue=batch)
  # An image to draw and its prompt, or one that is seen and talked about.
  c.text.dialogue = 2048 if stage == "stage2" else 1024
  if variant:
    epochs = _released(c, stage, epochs)
  c.steps = epochs * examples // batch
  c.optim.update(
    lr=rate,
    warmup=c.steps // 10,
    schedule="cosine",
    b2=0.999,  # open, as AdamW's default
    weight_decay=0.0,
    clip=1.0,
  )
  if stage == "stage1":
    llava = "weights/llava_1_5_7b"
    c.init = dict(
      all=llava,
      visual_decoder="weights/var_d30#decoder",
      in_projector="new",
      out_projector="new",
    )
    c.init["visual_decoder/classes"] = "new"
  else:
    before = {"stage2": "stage1", "stage3": "stage2"}[stage]
    c.init.all = f"runs/vargpt_7b_{before}"
  return c


def vargpt(c) -> None:
  """Makes `c` VARGPT: LLaVA-1.5's networks, VAR's and two projectors."""
  c.system = "vargpt"
  old = c.model
  c.model = dict(
    decoder=old.decoder,
    encoder="clip",
    vit=old.vit,
    visual_decoder=var_config.scale_decoder("d30"),
    vq=tokenizer.multiscale_vq("var_f16"),
    vq_path="weights/var_vq",
    image_size=256,
    slots="block_causal",
    null="prompt",
    user=(),
    ask=(),
    reply=(),
    endings=(),
    text_suffix=0,
    dialogue_seen=1,
    dialogue_drawn=1,
    dtype="bfloat16",
    remat="full",
    scan=True,
    attention="plain",
  )
  c.model.decoder.update(preset="llama2_7b", vocab=32_064)
  c.model.vit.preset = "l14_336"
  c.model.visual_decoder.update(classes=1)
  c.loss = dict(
    prompt_dropout=0.1,
    vocab_chunk=128,
    image_weight=1.0,
    scale_weights="equal",
    word_dropout=0.0,
  )
  c.batch = dict(t2i=64, i2t=64, text=0, dialogue=0)
  c.init = dict(all="", **dict.fromkeys(_parts(), ""))
  c.optim.rates = dict.fromkeys(_parts(), 1.0)
  c.sampling = dict(
    cfg=1.5,
    temperature=1.0,
    image_top_k=900,
    image_top_p=0.95,
    smooth=False,
    text="greedy",
    text_temperature=1.0,
    top_k=0,
    top_p=1.0,
    beams=2,
    seed=0,
  )


def _parts() -> tuple[str, ...]:
  return ("decoder", "encoder", "projector", "visual_decoder", *_GEN)


def freeze_all_but(c, trained) -> None:
  """Rates of 0 but for these parts."""
  c.optim.rates = {part: float(part in trained) for part in _parts()}


def _vicuna(c) -> None:
  """LLaVA-1.5's rows: USER: image, newline, question ASSISTANT: answer."""
  c.text.update(
    tokenizer="weights/llama_tokenizer.model",
    prompt=256, prefix=512, suffix=512,
  )  # fmt: skip
  c.text.special = _SPECIAL
  c.text.chat.update(
    system="A chat between a curious user and an artificial intelligence "
    "assistant. The assistant gives helpful, detailed, and polite answers to "
    "the user's questions.",
    user="USER:",
    assistant="ASSISTANT:",
  )
  c.model.user = ("us", "er", "colon")
  c.model.ask = ("newline",)
  c.model.reply = ("a", "ss", "ist", "ant", "colon")


def _released(c, stage: str, epochs: int) -> int:
  """The released code's variant; returns its epochs."""
  c.name = f"{c.name}_released"
  c.model.update(slots="causal", null="noise")
  c.loss.prompt_dropout = 0.0
  c.sampling.image_top_p = 0.96
  if stage == "stage1":
    c.optim.rates["visual_decoder/classes"] = 1.0
  elif stage == "stage2":
    c.optim.rates.projector = 0.0
  return 3 if stage == "stage3" else epochs
