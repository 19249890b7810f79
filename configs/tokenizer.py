"""Trains a discrete image tokenizer: images to codes of a VQ autoencoder.

  python -m unifluid_jax.main --config=configs/tokenizer.py:shapes \
      --workdir=runs/shapes/vq

`:shapes` is the tokenizer of the embedded discrete systems (2 cores, about two
minutes; docs/results.md), `:folder` one for your own images.

`:shapes_aligned` is the same on images with captions, whose codes a contrastive
loss draws to what captions say (UniTok, arXiv 2502.20321; Liquid's table 6).
Any other becomes so by these, of which the first is UniTok's weight and the
fourth the rows of the text tokenizer; no flips where captions name sides:

  --config.loss.align=1 --config.batch.t2i=128 --config.batch.image=0
  --config.model.alignment.vocab=32000 --config.text.tokenizer=FILE
  --config.data.flip=False

`:vq16` and `:vq8` are LlamaGen's (arXiv 2406.06525; ImageNet, 40 epochs, 256 x
256 images; its code rather than its flags: Adam without weight decay, constant
weight of the adversarial loss), `:chameleon` and `:taming` VQGAN's (arXiv
2012.09841); how Chameleon's own was trained is not published. Not yet run by
us. `:var16` is VAR's multi-scale tokenizer (arXiv 2404.02905), codes of ten
grids from 1 x 1 to 16 x 16, for VAR and VARGPT; no recipe of it is published,
the one here is an image tokenizer's usual one with VAR's quantisation loss. Not
yet run by us either. `:multiscale_shapes` is the tokenizer of the embedded
next-scale systems: grids of 1 x 1 to 4 x 4, 30 codes an image. `:emoji` and
`:multiscale_emoji` are those of configs/emoji.py, `:emoji_full` and
`:multiscale_emoji_full` of its full set.

As in configs/vae.py the perceptual and adversarial terms are off until
they are set, since LPIPS needs weights that you have to name:

  --config.loss.perceptual=1 --config.loss.perceptual_weights=lpips.npz
  --config.loss.adversarial=0.5      (VQGAN: 0.8)
"""

from configs import folder, shapes
from configs.base import base, source, unset

_ARGS = (
  "shapes", "shapes_aligned", "folder", "vq16", "vq8", "chameleon", "taming",
  "multiscale_shapes", "var16", "emoji", "emoji_full", "multiscale_emoji",
  "multiscale_emoji_full",
)  # fmt: skip


def get_config(arg: str = ""):
  """`arg`: one of `_ARGS`; nothing is vq16."""
  arg = arg or "vq16"
  if arg not in _ARGS:
    raise ValueError(f"unknown config argument {arg!r}: {', '.join(_ARGS)}")
  if arg in ("shapes", "shapes_aligned", "folder"):
    c = (folder if arg == "folder" else shapes).get_config()
    vq_tokenizer(c, "")
    tiny(c)
    if arg == "shapes_aligned":
      aligned(c)
    elif arg == "folder":
      folder.follow_size(c)
  elif "emoji" in arg:
    from configs import emoji  # which imports this file

    c = emoji.get_config("full" if arg.endswith("_full") else "small")
    _emoji(c, multiscale=arg.startswith("multiscale_"))
  elif arg == "multiscale_shapes":
    c = shapes.get_config()
    multiscale_tokenizer(c, "")
    tiny_multiscale(c)
  else:
    c = base()
    c.data.train = dict(images=source("pairs"))
    c.checkpoint.every = 5000
    if arg in ("vq16", "vq8"):
      vq_tokenizer(c, f"llamagen_{arg}")
      _llamagen(c)
    elif arg == "var16":
      multiscale_tokenizer(c, "var_f16")
      _var(c)
    else:
      vq_tokenizer(c, "taming_f16" if arg == "taming" else arg)
      _vqgan(c)
  c.name = f"tokenizer_{arg}"
  return c


def vq_tokenizer(c, preset: str) -> None:
  """Makes `c` the training of a VQ autoencoder: system "vq"."""
  c.system = "vq"
  c.model = dict(
    vq=vq(preset),
    image_size=c.model.image_size,
    dtype=c.model.dtype,
    alignment=dict(
      vocab=32_768, width=512, image_depth=1, text_depth=12, heads=8
    ),
  )
  c.loss = dict(
    l1=0.0,
    l2=1.0,
    codebook=1.0,
    commitment=0.25,
    order="standard",
    entropy=0.0,
    average=0.0,
    data_init=False,
    revive_every=0,
    revive_below=0.02,
    usage_decay=0.99,
    perceptual=0.0,
    perceptual_weights="",
    adversarial=0.0,
    adversarial_start=20_000,
    adaptive=False,
    discriminator_width=64,
    discriminator_layers=3,
    align=0.0,
  )
  c.init = dict(
    all="", vq="", usage="", averages="", discriminator="", alignment=""
  )
  c.batch = dict(image=0, t2i=0)
  c.sampling = {}


def multiscale_tokenizer(c, preset: str) -> None:
  """Makes `c` the training of a multi-scale one: system "multiscale_vq"."""
  vq_tokenizer(c, "")
  c.system = "multiscale_vq"
  c.model.vq = multiscale_vq(preset)


def multiscale_vq(preset: str = "") -> dict:
  """`model.vq` of systems that predict scale after scale."""
  return dict(
    **vq(preset),
    **unset(int, "phi"),
    **unset(float, "phi_ratio"),
    **unset(tuple, "scales"),
  )


def vq(preset: str = "") -> dict:
  """`model.vq` of any system; without preset its sizes have to be set."""
  return dict(
    preset=preset,
    **unset(int, "base blocks latent groups stem codes code_channels"),
    **unset(tuple, "multipliers"),
    **unset(bool, "attention encoder_attention decoder_attention normalised"),
  )


def tiny_vq(vq) -> None:
  """The small tokenizer: f4, 64 codes of 512 for a 32 x 32 image.

  As `shapes.tiny_vae`, all its layers run at the latent's resolution.
  """
  vq.update(
    base=64,
    multipliers=(1,),
    blocks=1,
    latent=64,
    attention=False,
    stem=4,
    codes=512,
    code_channels=8,
    normalised=True,
  )
  vq.preset = ""


def tiny_multiscale_vq(vq) -> None:
  """The small multi-scale tokenizer: f8, 30 codes for a 32 x 32 image.

  A level at f4 beside the latent's own: pairs of colour and shape that it has
  not seen then survive better (docs/results.md).
  """
  vq.update(
    base=48,
    multipliers=(1, 2),
    blocks=1,
    latent=96,
    attention=False,
    groups=16,
    stem=4,
    codes=512,
    code_channels=16,
    scales=(1, 2, 3, 4),
  )
  vq.preset = ""


def tiny_multiscale(c) -> None:
  """`tiny` for them."""
  tiny(c)
  c.model.vq = multiscale_vq()
  tiny_multiscale_vq(c.model.vq)
  c.batch.image = 16
  c.steps = 2500
  c.optim.lr = 4e-3


def tiny(c) -> None:
  """A recipe for small tokenizers on small images."""
  tiny_vq(c.model.vq)
  c.batch.image = 32
  c.steps = 1200
  # Without the first two a fifth of the codes is never used: docs/results.md.
  c.loss.update(data_init=True, revive_every=20, l1=1.0, l2=2.0)
  c.loss.usage_decay = 0.95
  c.optim.update(
    name="adamw",
    lr=3e-3,
    warmup=50,
    schedule="cosine",
    b1=0.9,
    b2=0.99,
    weight_decay=0.0,
    ema=0.0,
  )
  c.checkpoint = dict(every=600, keep=1, keep_every=0)


def emoji_vq(vq) -> None:
  """f8: 64 codes of 1,024 for a 64 x 64 picture."""
  tiny_vq(vq)
  vq.update(multipliers=(1, 2), latent=96, codes=1024)


def emoji_multiscale_vq(vq) -> None:
  """f8: grids of 1 x 1 to 8 x 8, 130 codes of 1,024 for a picture."""
  tiny_multiscale_vq(vq)
  vq.update(codes=1024, scales=(1, 2, 3, 4, 6, 8))


def _emoji(c, multiscale: bool) -> None:
  """The tokenizers of emoji."""
  if multiscale:
    multiscale_tokenizer(c, "")
    tiny_multiscale(c)
    emoji_multiscale_vq(c.model.vq)
  else:
    vq_tokenizer(c, "")
    tiny(c)
    emoji_vq(c.model.vq)
  c.batch.image = 16
  c.steps = 2500
  c.checkpoint.every = 1250


def aligned(c) -> None:
  """The small tokenizer's text alignment."""
  c.model.alignment.update(
    vocab=c.text.train_vocab, width=64, image_depth=1, text_depth=1, heads=4
  )
  c.batch = dict(image=0, t2i=c.batch.image)
  # About as large as the reconstruction; UniTok's 1 would rule it, which has
  # perceptual and adversarial terms beside it there (docs/results.md).
  c.loss.align = 0.03
  # Transformers need a lower rate than these convolutions.
  c.optim.parts = dict(alignment=dict(lr=1e-3))


def _llamagen(c) -> None:
  """LlamaGen's VQ recipe; it also draws crops of 256 to 320 pixels."""
  c.batch.image = 128
  c.steps = 400_000
  c.data.flip = True
  c.optim.update(lr=1e-4, warmup=1, b1=0.9, b2=0.95, weight_decay=0.0,
                 clip=1.0, ema=0.0)  # fmt: skip


def _var(c) -> None:
  """Rate, betas, decay and clipping of the authors' single-scale tokenizers."""
  c.batch.image = 768
  c.steps = 400_000
  c.data.flip = True
  c.loss.update(l1=0.2, data_init=True, revive_every=100, adaptive=True)
  c.optim.update(lr=3e-4, warmup=2000, schedule="cosine", b1=0.5, b2=0.9,
                 weight_decay=0.005, clip=10.0, ema=0.9999)  # fmt: skip


def _vqgan(c) -> None:
  """VQGAN's recipe on ImageNet, 4.5e-6 per image of the batch."""
  c.batch.image = 96
  c.steps = 500_000
  c.data.flip = True
  c.loss.update(l1=1.0, l2=0.0, order="legacy", adaptive=True,
                adversarial_start=250_001)  # fmt: skip
  c.optim.update(lr=4.3e-4, warmup=1, b1=0.5, b2=0.9, weight_decay=0.0,
                 clip=0.0, ema=0.0)  # fmt: skip
