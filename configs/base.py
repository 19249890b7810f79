"""The whole configuration tree with the paper's values; others are diffs of it.

Paper: UniFluid (arXiv 2503.13436) §4. Values the paper does not state follow
MAR, Fluid and PaliGemma and are marked "open".
"""

import ml_collections
from ml_collections.config_dict import placeholder


def base() -> ml_collections.ConfigDict:
  """UniFluid with Gemma-2 2B at 256 x 256, as the paper trains it."""
  c = ml_collections.ConfigDict()
  c.name = "base"
  c.system = "unifluid"
  c.seed = 0
  c.steps = 1_000_000
  # Open: whether the paper's 2048 counts both tasks or each.
  c.batch = dict(t2i=1024, i2t=1024, edit=0, text=0)
  c.accumulate = 1

  c.data = dict(
    root="data",
    train={},
    eval={},
    flip=False,
    workers=8,
    threads=16,
    max_bad_share=0.001,
    caption_prefix="caption en",
    world={},
    images=1,
    max_pixels=48_000_000,  # of an image file; up to 17 bytes each
    augment=dict(shift=0.0, scale=0.0, colour=0.0, mirror=False),
  )
  c.text = dict(
    tokenizer="",
    train_vocab=0,
    prompt=64,
    prefix=64,
    suffix=64,
    dialogue=0,
    special={},
    chat=dict(system="", user="", assistant=""),
  )

  c.model = _model()
  c.loss = dict(
    text_weight=0.005,  # lambda
    draws=4,
    prompt_dropout=0.1,  # open
    vocab_chunk=64,
    label_smoothing=0.0,
    word_dropout=0.0,
    text_mean="tokens",
    image_dropout=0.0,
    teacher_steps=10,  # of head.kind="distilled"
    teacher_cfg=1.0,
    random_until=300_000,  # the order of tokens
    raster_from=600_000,
    random_share=0.0,  # of it, that stays to the end
    order="raster",  # of the other rows
    passes=0,  # of order="farthest"
  )
  # Converted weights (python -m unifluid_jax.weights) or a run's workdir for
  # each part, or "new" for what is in none of them; all empty: from scratch.
  c.init = dict(
    all="", decoder="", vit="", projector="", image="", head="",
    teacher="",  # of head.kind="distilled": a flow head, "RUN#head"
  )  # fmt: skip
  c.new_rows = "random"  # of a longer vocabulary than theirs; or "mean"
  c.optim = dict(
    name="adamw",
    lr=1e-4,
    warmup=65_000,
    schedule="constant",
    adam_lr=1e-4,
    b1=0.9,  # open, as Fluid
    b2=0.95,
    eps=1e-8,
    weight_decay=0.02,
    decay="adamw",
    clip=1.0,
    ema=0.0,
    mu_dtype="float32",
    rates=dict(decoder=1.0, vit=1.0, projector=1.0, image=1.0, head=1.0),
    # Path prefix → name, lr, b1, b2, weight_decay, clip, start: an optimizer
    # of its own; what it does not name is as above.
    parts={},
  )
  c.policy = dict(prompts=0, draws=8, weight=1.0, worse=1.0, sampling={})
  c.mesh = dict(slices=1, data=1, fsdp=-1, tensor=1)
  c.checkpoint = dict(every=1000, keep=3, keep_every=50_000)
  c.log = dict(
    every=50,
    tensorboard=True,
    wandb="",  # the name of a project; empty: off
    profile_start=10,
    profile_steps=0,
  )
  c.sampling = dict(
    steps=100,
    last_steps=0,  # as many for all tokens
    passes=0,  # one a token
    cfg=3.0,  # open
    cfg_schedule="constant",
    temperature=1.0,
    clip=0.0,
    solver="euler",  # or "heun", of head.kind="flow"
    order="raster",
    text="greedy",
    text_temperature=1.0,
    top_k=0,
    top_p=1.0,
    beams=2,
    seed=0,
    image_cfg=1.0,
  )
  c.eval = dict(
    metrics=("samples", "captions", "vqa"),
    split="",
    examples=1024,
    prompts_per_task=64,
    batch=32,
    poll_seconds=60.0,
    use_ema=False,
    seed=0,
  )
  return c


# Vicuna's template (LLaVA-1.5, VARGPT): c.text.chat.update(VICUNA).
VICUNA = dict(
  system="A chat between a curious user and an artificial intelligence "
  "assistant. The assistant gives helpful, detailed, and polite answers to "
  "the user's questions.",
  user="USER:",
  assistant="ASSISTANT:",
)


def image_tokenizer(c: ml_collections.ConfigDict) -> None:
  """Makes `c` the training of its autoencoder: system "vae"."""
  c.system = "vae"
  c.model = dict(
    vae=c.model.vae, image_size=c.model.image_size, dtype=c.model.dtype
  )
  c.loss = dict(
    l1=1.0,
    l2=0.0,
    kl=2.1e-8,  # the published 1e-6 under sum reduction, per element
    perceptual=0.0,
    perceptual_weights="",
    adversarial=0.0,
    adversarial_start=50_001,
    discriminator_width=64,
    discriminator_layers=3,
  )
  c.init = dict(all="", vae="", discriminator="")
  c.batch = dict(image=0)
  c.sampling = {}


def _model() -> dict:
  """A preset for every network; what is set beside it replaces its value."""
  return dict(
    decoder=dict(
      preset="gemma2_2b",
      **unset(int, "vocab width depth mlp heads kv_heads head_dim window"),
      **unset(float, "query_scale attn_softcap final_softcap dropout"),
      **unset(float, "rope_base rope_base_global rope_scale_global"),
      **unset(float, "norm_epsilon"),
      **unset(int, "rope_original_length"),
      **unset(tuple, "pattern"),
      **unset(str, "activation norm qk_norm_kind"),
      **unset(bool, "pre_norms post_norms qk_norm qkv_bias"),
      **unset(bool, "scale_embedding tied"),
    ),
    vit=dict(
      preset="so400m_14",
      **unset(int, "width depth mlp heads patch image_size"),
    ),
    head=dict(  # open: "a lightweight MLP"
      preset="mar_b",
      # Or "flow" and "shortcut", which draw a token in few steps, and
      # "energy", in one (sampling.steps=1). EAR trains an energy head at a
      # quarter of the rate: optim.rates.head=0.25. "distilled", in one as
      # well, learns of a trained flow head: configs/distill.py.
      kind="ddpm",
      # Draws by fused kernels, on GPUs and TPUs: ops/fused_head.py. Not timed.
      fused=False,
      **unset(int, "width depth"),
    ),
    vae=dict(
      preset="sd_f8",
      **unset(int, "base blocks latent groups stem"),
      **unset(tuple, "multipliers"),
      **unset(bool, "attention encoder_attention decoder_attention"),
      **unset(float, "latent_mean latent_scale"),
    ),
    vae_path="",
    image_size=256,
    patch=2,
    dtype="bfloat16",
    remat="full",
    scan=True,
    edit_latents=False,
    latent_std=1.0,
    # Or a fused kernel: "mosaic", "splash" (TPU), "triton" (GPU).
    attention="plain",
  )


def unset(kind: type, names: str) -> dict:
  """Keys of one type that have no value yet and can be set by a flag."""
  return {name: placeholder(kind) for name in names.split()}


def source(path: str, **changes) -> dict:
  """A data source with every key, so that each can be set by a flag."""
  whole = dict(
    format="array_record",
    path=path,
    split="train",
    tasks=("t2i", "i2t"),
    weight=1.0,
    limit=0,
    moments="",
    image="image",
    text="text",
    question="",
    score="",
    min_score=0.0,
  )
  return whole | changes


def ablate(c: ml_collections.ConfigDict, arg: str) -> None:
  """Applies the paper's ablations, comma-separated, to a configuration.

  t2i_only, i2t_only: one task, same number of examples of it (table 1, 3).
  raster: no random order at all (table 4).
  lambda=X: weight of the text loss (table 3).
  """
  for item in filter(None, arg.split(",")):
    name, _, value = item.partition("=")
    if name == "t2i_only":
      c.batch.i2t = c.batch.text = 0
    elif name == "i2t_only":
      c.batch.t2i = c.batch.edit = 0
    elif name == "raster":
      c.loss.update(random_until=0, raster_from=0)
      c.sampling.order = "raster"  # the only one that such a run knows
    elif name == "lambda" and value:
      c.loss.text_weight = float(value)
    else:
      raise ValueError(
        f"unknown config argument {item!r}; known: t2i_only, i2t_only, "
        "raster, lambda=X"
      )
    c.name = f"{c.name}_{item}"
