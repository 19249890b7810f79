"""UniToken 7B: Chameleon 7B, its VQ tokenizer, SigLIP So400m/14 at 384.

  python -m unifluid_jax.main --config=configs/unitoken_7b.py:stage1 \
      --workdir=gs://BUCKET/stage1 --coordinator=auto
  python -m unifluid_jax.main --config=configs/unitoken_7b.py:stage2 \
      --config.init.all=gs://BUCKET/stage1 ...

UniToken (arXiv 2504.04423) §3.2, table 2. Stage 1: 2.5M captions; the vision
encoder at 1e-5, the adapter at 1e-3, the decoder frozen. Stage 2: 10M images to
understand and 10M to draw, all at 1e-5. In both the encoder's patch and
position embeddings stay as they are, as in the released code; one epoch at
batch 128. It starts from Lumina-mGPT 7B at 512 pixels. Paper's results: GenEval
.58, MMB-EN 70.3, SEED 70.3, OCRBench 634. Not trained by us: the data is yours
to give as config.data.train. Hardware: 32 v5p chips or more (state 89 GB).

Differs: weight decay spares vectors (biases, norms), where the released code
decays everything.
"""

from configs.base import base, source
from configs.tokenizer import vq

# Names of tokens in Chameleon's vocabulary: <racm3:break>, <eoss>,
# <sentinel:0> and reserved ones, as Lumina-mGPT and UniToken use them.
_SPECIAL = dict(
  bos=0, eos=2, unk=3, eoi=8196, soi=8197, sep=8198, turn=8710, line=8803
)
_LEAD = "Generate an image according to the following prompt:\n"


def get_config(arg: str = "stage2"):
  """`arg`: "stage1" or "stage2"."""
  if arg not in ("", "stage1", "stage2"):
    raise ValueError(f"unknown config argument {arg!r}; known: stage1, stage2")
  first = arg == "stage1"
  c = base()
  unitoken(c)
  c.name = f"unitoken_7b_{arg or 'stage2'}"
  c.text.update(
    tokenizer="data/chameleon_tokenizer.json",
    prompt=512, prefix=512, suffix=512,
  )  # fmt: skip
  c.data.train = dict(pairs=source("pairs"))
  coco = "coco/annotations/captions_val2014.json:coco/val2014"
  c.data.eval = dict(coco=source(coco, format="coco"))
  c.eval.split = "coco"
  c.model.vq_path = "weights/chameleon_vq"
  c.optim.update(
    lr=1e-3 if first else 1e-5,
    schedule="cosine",
    b2=0.95,
    weight_decay=0.1,
    clip=4.0,
  )
  if first:
    c.steps = 2_500_000 // 128
    c.batch = dict(t2i=0, i2t=128, text=0)
    c.init.update(
      decoder="weights/lumina_mgpt_7b_512",
      vit="weights/siglip_so400m_14_384",
      projector="new",
    )
    c.optim.rates.update({"decoder": 0.0, "vit": 0.01})
  else:
    c.steps = 20_000_000 // 128
    c.batch = dict(t2i=64, i2t=64, text=0)
    c.init.all = "runs/unitoken_7b_stage1"
  c.optim.warmup = c.steps // 100  # .01 epoch
  c.mesh = dict(slices=1, data=1, fsdp=-1, tensor=1)
  return c


def unitoken(c) -> None:
  """Makes `c` UniToken: Chameleon's vocabulary, SigLIP's views."""
  c.system = "unitoken"
  old = c.model
  c.model = dict(
    decoder=old.decoder,
    vit=old.vit,
    vq=vq("chameleon"),
    vq_path="",
    image_size=512,
    code_offset=4,
    size_offset=8804,
    text_rows=65_536,  # its tokenizer has a piece for every code too
    # {2 x 2, 1 x {2, 3}, {2, 3} x 1} views (§3.1).
    pinpoints=(
      (384, 768), (768, 384), (768, 768), (384, 1152), (1152, 384)
    ),
    lead=_LEAD,
    continuous=True,
    dtype="bfloat16",
    remat="full",
    scan=True,
    attention="plain",
  )  # fmt: skip
  c.model.decoder.update(preset="chameleon_7b", dropout=0.05)
  c.model.vit.image_size = 384
  c.text.special = _SPECIAL
  c.loss = dict(
    z_loss=1e-5,
    prompt_dropout=0.0,
    vocab_chunk=128,
    supervise_sep=True,
    text_weight=1.0,
    word_dropout=0.0,
  )
  c.batch = dict(t2i=64, i2t=64, text=0)
  c.init = dict(all="", decoder="", vit="", projector="")
  rates = {"vit/patch": 0.0, "vit/position": 0.0}
  c.optim.rates = dict(decoder=1.0, vit=1.0, projector=1.0, **rates)
  c.sampling = dict(
    cfg=5.5,  # of GenEval; 5.0 of T2I-CompBench++
    temperature=1.0,
    image_top_k=2000,
    text="greedy",
    text_temperature=1.0,
    top_k=10,
    top_p=1.0,
    beams=2,
    seed=0,
  )
