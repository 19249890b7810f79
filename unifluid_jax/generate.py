"""Images from prompts, answers about images, edits; from a trained run.

  python -m unifluid_jax.generate --workdir=runs/shapes \
      --prompt="a red circle left of a blue square" --out=out.png
  python -m unifluid_jax.generate --workdir=runs/shapes --image=out.png \
      --question="what colour is the circle"
  python -m unifluid_jax.generate --workdir=runs/shapes --image=out.png
  python -m unifluid_jax.generate --workdir=runs/edit --image=out.png \
      --edit="change the red circle to green" --out=edited.png

Without question or edit, an image is captioned. --prompts=FILE takes one
prompt a line; --out is then a directory.
"""

from absl import flags, logging
from etils import epath

from unifluid_jax import api, cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the trained run.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default the newest.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text; may be repeated.")
_PROMPTS = flags.DEFINE_string("prompts", None, "File, one prompt a line.")
_IMAGE = flags.DEFINE_string("image", None, "Image file to look at or edit.")
_QUESTION = flags.DEFINE_string("question", None, "About the image.")
_EDIT = flags.DEFINE_string("edit", None, "Instruction that changes the image.")
_OUT = flags.DEFINE_string("out", None, "PNG file, or directory for several.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the first image.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "Images a prompt.")
_CFG = flags.DEFINE_float("cfg", None, "Guidance scale; 1 turns it off.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Of the sampling noise.")
_STEPS = flags.DEFINE_integer("steps", None, "Of the diffusion head.")
_ORDER = flags.DEFINE_enum("order", None, ["raster", "random"], "Of tokens.")
_VAE = flags.DEFINE_string("vae_path", None, "Autoencoder, if it was moved.")


def main(_: list[str]) -> None:
  """Loads the run and does what the flags ask for."""
  prompts = list(_PROMPT.value)
  if _PROMPTS.value:
    lines = epath.Path(_PROMPTS.value).read_text().splitlines()
    prompts += [line for line in lines if line.strip()]
  if not prompts and not _IMAGE.value:
    raise ValueError("nothing to do: give --prompt, --prompts or --image")
  if (prompts or _EDIT.value) and not _OUT.value:
    raise ValueError("say where images go: --out=FILE.png or --out=DIR")
  if (_EDIT.value or _QUESTION.value) and not _IMAGE.value:
    raise ValueError("--edit and --question need --image")
  model = api.load(_WORKDIR.value, step=_STEP.value, vae_path=_VAE.value)
  say, options = cli.speaker(), _options()
  for words in (*prompts, _QUESTION.value or "", _EDIT.value or ""):
    if unknown := model.unknown_words(words):
      logging.warning(
        "the model has never seen %s: %r", ", ".join(map(repr, unknown)), words
      )
  if _IMAGE.value and _EDIT.value:
    model.edit(_IMAGE.value, _EDIT.value, _SEED.value, **options).save(
      _OUT.value
    )
    say(f"wrote {_OUT.value}")
  elif _IMAGE.value:
    question = _QUESTION.value or model.config.data.caption_prefix
    say(model.answer(_IMAGE.value, question))
  if prompts:
    prompts = [p for p in prompts for _ in range(_SAMPLES.value)]
    images = model.generate(prompts, seed=_SEED.value, **options)
    for name in _save(images, prompts):
      say(f"wrote {name}")


def _options() -> dict:
  given = {
    "cfg": _CFG.value,
    "temperature": _TEMPERATURE.value,
    "steps": _STEPS.value,
    "order": _ORDER.value,
  }
  return {k: v for k, v in given.items() if v is not None}


def _save(images: list, prompts: list[str]) -> list[str]:
  """One image to the file, several to numbered files of a directory."""
  out = epath.Path(_OUT.value)
  if len(images) == 1 and out.suffix:
    out.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(out)
    return [str(out)]
  out.mkdir(parents=True, exist_ok=True)
  names = [out / f"{i:05d}.png" for i in range(len(images))]
  for image, name in zip(images, names, strict=True):
    image.save(name)
  (out / "prompts.txt").write_text("\n".join(prompts) + "\n")
  return [str(n) for n in names]


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir"])
  cli.run(main)
