"""The embedded default: the whole system in miniature on a procedural world.

  make demo     (or its five commands, one by one)

Trains joint generation and understanding on 16,000 drawn scenes of coloured
shapes, 32 x 32 pixels. Hardware: 2 CPU cores, 8 to 10 minutes. Expected:
GenEval-shapes .81, captions 1.00, VQA .90; all measured numbers:
docs/results.md; why the values below are what they are: docs/log.md.
"""

from configs.base import ablate, base, source

ROOT = "runs/shapes"

# What `make demo` is to reach on two CPU cores, by metric of its evaluation.
TARGETS = {
  "detector/truth": (">=", 0.99),
  "tokenizer/agreement": (">=", 0.98),
  "geneval/overall": (">=", 0.65),
  "geneval/single_object": (">=", 0.85),
  "geneval/colors": (">=", 0.85),
  "geneval_held_out/colors": (">=", 0.60),
  "fid/ratio": ("<=", 3.0),
  "captions/exact": (">=", 0.90),
  "captions_held_out/exact": (">=", 0.85),
  "vqa/all": (">=", 0.80),
  "paraphrases/all": (">=", 0.95),
}


def get_config(arg: str = ""):
  """`arg`: the ablations of base.ablate, e.g. "t2i_only" or "lambda=1"."""
  c = base()
  c.name = "shapes"
  c.steps = 2400
  c.batch = dict(t2i=32, i2t=24, edit=0, text=0)

  c.data.root = f"{ROOT}/data"
  c.data.world = dict(train=16_000, validation=1024, held_out=512, seed=0)
  tasks = ("t2i", "i2t", "edit", "text")  # those with a batch size take part
  c.data.train = dict(
    shapes=source("shapes", tasks=tasks, moments="shapes_moments")
  )
  c.data.eval = dict(
    validation=source("shapes", split="validation"),
    held_out=source("shapes", split="held_out"),
  )
  c.data.workers = 0
  c.data.threads = 1
  c.text = dict(
    tokenizer=f"{ROOT}/data/tokenizer.model",
    train_vocab=320,  # every word of its language is one piece
    prompt=14,
    prefix=15,
    suffix=9,
  )

  m = c.model
  m.decoder.update(
    vocab=320, width=128, depth=4, mlp=256, heads=4, kv_heads=4, head_dim=32
  )
  # For sequences of some twenty tokens; 10,000 is for thousands.
  m.decoder.update(rope_base=100.0, rope_base_global=100.0)
  # One image token and one feature a cell of the world.
  m.vit.update(width=96, depth=2, mlp=384, heads=4, patch=16, image_size=32)
  m.patch = 4
  m.latent_std = 0.4
  # As good as the paper's, "ddpm", at 50 steps, in 10 (docs/results.md).
  m.head.update(kind="flow", width=192, depth=3)
  tiny_vae(m.vae)
  m.vae_path = f"{ROOT}/vae"
  m.image_size = 32
  m.dtype = "float32"
  m.remat = "none"
  m.scan = False  # a CPU runs four unrolled layers a third faster

  # Images need a small one; Muon and Adam learn text as fast with any.
  c.loss.text_weight = 0.03
  # The shape is then read off the image, not guessed from the colour's name.
  c.loss.word_dropout = 0.4
  c.loss.draws = 8
  c.loss.vocab_chunk = 16
  # A shorter run goes through all of it as well.
  steps = c.get_oneway_ref("steps")
  c.loss.update(
    random_until=steps * 250 // 2400, raster_from=steps * 700 // 2400
  )
  c.optim.update(
    name="muon",
    lr=7e-3,
    adam_lr=3e-3,
    warmup=60,
    schedule="cosine",
    # Without it the pairs of colour and shape that exist are learned by heart.
    weight_decay=0.15,
    ema=0.995,
  )
  c.checkpoint = dict(every=1200, keep=3, keep_every=0)
  c.log.every = 50
  c.sampling.update(steps=10, cfg=2.0, clip=3.0)
  c.eval.update(
    metrics=("tokenizer", "geneval", "fid", "captions", "vqa", "paraphrases"),
    split="validation",
    examples=512,
    prompts_per_task=64,
    batch=96,
    poll_seconds=10.0,
    use_ema=True,
  )
  ablate(c, arg)
  return c


def tiny_vae(vae):
  """The small autoencoder: f4, an 8 x 8 x 4 latent of a 32 x 32 image.

  All its layers run at the latent's resolution: on a CPU, convolutions over
  pixels would cost more than the model that is trained on the latents.
  """
  vae.update(
    base=64,
    multipliers=(1,),
    blocks=1,
    latent=4,
    attention=False,
    stem=4,
    latent_mean=None,
    latent_scale=None,
  )
  # Measured on the training images by unifluid_jax.encode.
  vae.preset = ""
