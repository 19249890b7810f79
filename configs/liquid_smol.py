"""Liquid on a real language model: SmolLM2-135M in the embedded world.

  python -m unifluid_jax.weights --from=gguf:SmolLM2-135M-Instruct.Q4_1.gguf \
      --to=weights/smollm2
  make demo-liquid     (its data set and its image tokenizer, in runs/shapes)
  python -m unifluid_jax.main --config=configs/liquid_smol.py \
      --workdir=runs/liquid_smol

SmolLM2's vocabulary grows by three control tokens and the image codes, whose
rows start near the mean of the words'. Hardware: one GPU; needs the packages
of the extras `gguf` and `hf`. Learning rates are first guesses: not yet
trained by us.
"""

from configs import liquid_2b, liquid_shapes
from configs.unifluid_smol import SPECIAL, smollm2

_ROWS = 49_152  # of SmolLM2's table


def get_config(arg: str = ""):
  """`arg`: what liquid_2b.vary knows, e.g. "t2i_only" or "apart"."""
  c = liquid_shapes.get_config()
  c.name = "liquid_smol"
  codes = c.model.decoder.vocab - c.model.code_offset
  smollm2(c)
  c.text.special = dict(
    SPECIAL, boi=_ROWS, eoi=_ROWS + 1, unconditional=_ROWS + 2
  )
  c.model.code_offset = _ROWS + 3
  c.model.decoder.vocab = c.model.code_offset + codes
  c.new_rows = "mean"
  liquid_2b.vary(c, arg)
  return c
