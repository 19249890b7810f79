"""Converts published weights into a checkpoint of ours, and back.

  python -m unifluid_jax.weights --from=gemma:FILE_OR_DIR --to=DIR
  python -m unifluid_jax.weights --from=gemma:DIR --to=DIR2 --to-hf

Offline and on the CPU; tensors stream. Kinds: gemma, llama (and SmolLM2),
qwen2, chameleon, gguf (Llamas of llama.cpp), paligemma, llava, vargpt, siglip
(and CLIP), kl_vae, vq (VQGAN, Chameleon, LlamaGen), var_vq (VAR's multi-scale
one), var (its transformers), inception. Every tensor is read or named as
dropped, every shape is checked, and nothing half-written is ever found at --to.
"""

import resource
import sys

from absl import flags

from unifluid_jax.core import cli
from unifluid_jax.weights import convert

_FROM = flags.DEFINE_string(
  "from", None, "KIND:PATH, as in gemma:model.safetensors."
)
_TO = flags.DEFINE_string("to", None, "Directory to write; must not exist.")
_BACK = flags.DEFINE_bool(
  "to-hf", False, "From a checkpoint of ours to Hugging Face safetensors."
)
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16"], "Default: as the file has it."
)
_IMAGE_SIZE = flags.DEFINE_integer(
  "image_size", None, "Pixels a side, for positions of another grid.",
  lower_bound=1,
)  # fmt: skip


def main(_: list[str]) -> None:
  """Reads, checks, tells, writes."""
  say = cli.speaker()
  if _BACK.value:
    for flag in (_DTYPE, _IMAGE_SIZE):
      if flag.value is not None:
        raise ValueError(
          f"--{flag.name} has no meaning with --to-hf, which writes numbers as "
          "they are: leave it out"
        )
    convert.to_hugging_face(_FROM.value, _TO.value, say)
  else:
    convert.to_checkpoint(
      _FROM.value, _TO.value, say, _DTYPE.value, _IMAGE_SIZE.value
    )
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  peak *= 1 if sys.platform == "darwin" else 1024  # elsewhere in KiB
  say(f"written: {_TO.value}; peak memory {peak / 2**30:.2f} GiB")


if __name__ == "__main__":
  flags.mark_flags_as_required(["from", "to"])
  cli.run(main)
