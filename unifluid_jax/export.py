r"""Writes a trained run as a folder that can be shared and loaded anywhere.

  python -m unifluid_jax.export runs/shapes --to=exported/shapes
  python -m unifluid_jax.export runs/shapes --to=exported/shapes16 \
      --dtype=bfloat16 --license=apache-2.0 --push=me/shapes

The folder holds safetensors of all parts (averaged weights, unless --raw), the
image tokenizer, the text tokenizer, config.json, digests, a model card made of
the run's results, and the licence files found beside its data. Load it with
unifluid_jax.load("exported/shapes"), or name it as --workdir of
unifluid_jax.generate. --hf adds the parts that transformers and diffusers can
load by themselves.
"""

from absl import flags

from unifluid_jax import exported, exporting, hub
from unifluid_jax.core import cli

_TO = flags.DEFINE_string("to", None, "Directory to write; must not exist.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", list(exported.DTYPES), "Of the networks' weights."
)
_RAW = flags.DEFINE_bool("raw", False, "Weights without averaging (no EMA).")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default the newest.")
_LICENSE = flags.DEFINE_string(
  "license", None, "Of the weights, for the card, as the Hub writes it."
)
_HF = flags.DEFINE_bool(
  "hf", False, "Also parts for transformers and diffusers, below hf/."
)
_PUSH = flags.DEFINE_string(
  "push", None, "Repository on the Hugging Face Hub to upload to: OWNER/NAME."
)
_PRIVATE = flags.DEFINE_bool("private", False, "The repository, if it is new.")


def main(argv: list[str]) -> None:
  """Checks where it is to go, writes, uploads."""
  if len(argv) < 2:
    raise ValueError("name the run: python -m unifluid_jax.export RUN --to=DIR")
  say = cli.speaker()
  if _PUSH.value:
    hub.check(_PUSH.value)
  exporting.export(
    argv[1],
    _TO.value,
    dtype=_DTYPE.value,
    raw=_RAW.value,
    step=_STEP.value,
    license=_LICENSE.value,
    hf=_HF.value,
    say=say,
  )
  if _PUSH.value:
    say(f"uploaded: {hub.push(_TO.value, _PUSH.value, _PRIVATE.value)}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["to"])
  cli.run(main, positional=1)
