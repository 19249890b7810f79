"""UniFluid on a real language model: SmolLM2-135M in the embedded world.

  python -m unifluid_jax.weights --from=gguf:SmolLM2-135M-Instruct.Q4_1.gguf \
      --to=weights/smollm2
  make demo     (its data set and its autoencoder, in runs/shapes)
  python -m unifluid_jax.main --config=configs/unifluid_smol.py \
      --workdir=runs/smol

The scenes of configs/shapes.py are read and drawn by a decoder that has read
the web: texts are SmolLM2's pieces, its weights start the decoder, everything
about images starts fresh. Hardware: one GPU; needs the packages of the extras
`gguf` and `hf`. Learning rates are first guesses: not yet trained by us.
"""

from configs import shapes
from configs.base import ablate

WEIGHTS = "weights/smollm2"
# <|im_start|>, <|im_end|>, <|endoftext|>: no text is encoded as one of them.
SPECIAL = dict(bos=1, eos=2, unk=0)


def smollm2(c) -> None:
  """Gives a configuration of the embedded world SmolLM2 as its decoder."""
  c.text = dict(
    tokenizer=f"{WEIGHTS}/tokenizer.json",
    train_vocab=0,
    # Its pieces are shorter than the world's words.
    prompt=32,
    prefix=32,
    suffix=24,
    special=dict(SPECIAL),
  )
  # What configs/shapes.py sets beside the preset gives way to it.
  for key in c.model.decoder:
    if key != "preset":
      c.model.decoder.update({key: None})
  c.model.decoder.preset = "smollm2_135m"
  c.model.dtype = "bfloat16"
  c.model.scan = True
  c.init.decoder = WEIGHTS
  c.optim.update(
    name="adamw",
    lr=1e-3,
    warmup=100,
    weight_decay=0.02,
    rates=dict(c.optim.rates, decoder=0.1),
  )


def get_config(arg: str = ""):
  """`arg`: the ablations of base.ablate, e.g. "t2i_only"."""
  c = shapes.get_config()
  c.name = "unifluid_smol"
  smollm2(c)
  c.init.update(dict.fromkeys(("vit", "projector", "image", "head"), "new"))
  ablate(c, arg)
  return c
