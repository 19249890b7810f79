r"""Images from prompts, answers about images, edits; from a trained model.

  python -m unifluid_jax.generate --workdir=runs/shapes \
      --prompt="a red circle left of a blue square" --out=out.png
  python -m unifluid_jax.generate --workdir=runs/shapes --image=out.png \
      --question="what colour is the circle"
  python -m unifluid_jax.generate --workdir=runs/shapes --image=out.png
  python -m unifluid_jax.generate --workdir=runs/edit --image=out.png \
      --edit="change the red circle to green" --out=edited.png
  python -m unifluid_jax.generate --workdir=runs/emoji --given=fox.png \
      --redraw=0,32,64,64 --prompt="fox, noto style"

--workdir is a run, or a folder that unifluid_jax.export wrote; without it, a
model that ships with the package draws, if one does.
Without question or edit, an image is captioned. One image goes to --out, by
default to out.png or, where that exists, to out-1.png and so on. Several
(--samples, --prompts=FILE with one prompt a line) need a directory as --out.
With --given, the cells that the box --redraw touches are drawn again and all
others stay, of runs that draw cell by cell (unifluid, liquid, unitoken) in an
order that allows it.
"""

from absl import flags, logging

from unifluid_jax import api, boxed, requests
from unifluid_jax.core import cli, files
from unifluid_jax.data import tasks
from unifluid_jax.data.images import encode_image

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Of the trained run, or an exported model."
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default the newest.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text; may be repeated.")
_PROMPTS = flags.DEFINE_string("prompts", None, "File, one prompt a line.")
_IMAGE = flags.DEFINE_string("image", None, "Image file to look at or edit.")
_QUESTION = flags.DEFINE_string("question", None, "About the image.")
_EDIT = flags.DEFINE_string("edit", None, "Instruction that changes the image.")
_GIVEN = flags.DEFINE_string(
  "given", None, "Image file of which a part is drawn again."
)
_REDRAW = flags.DEFINE_list(
  "redraw", None, "That part: left,top,right,bottom in pixels of the drawing."
)
_OUT = flags.DEFINE_string(
  "out", None, "Image file, or directory for several; default out.png."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the first image.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "Images per prompt.")
_CFG = flags.DEFINE_float(
  "cfg", None, "Guidance scale; 1 turns it off (0 where it grows over scales)."
)
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Of the sampling noise.")
_SIZE = flags.DEFINE_list(
  "size", None, "Height,width in pixels, of runs on images of several sizes."
)
_STEPS = flags.DEFINE_integer("steps", None, "Of the diffusion head.")
_LAST_STEPS = flags.DEFINE_integer(
  "last_steps", None, "Of the token drawn last, falling to it from --steps."
)
_SOLVER = flags.DEFINE_enum(
  "solver", None, ["euler", "heun"], "Of flow heads; Heun's evaluates twice."
)
_PASSES = flags.DEFINE_integer(
  "passes", None, "Of the decoder, several tokens in each; 0: one a token."
)
_ORDER = flags.DEFINE_enum(
  "order", None, ["raster", "random", "spread", "farthest"],
  "Of tokens; spread: those of a pass far apart, near known ones.",
)  # fmt: skip
_CODEC = flags.DEFINE_string(
  "vae_path", None, "Image tokenizer, if it was moved."
)


def main(_: list[str]) -> None:
  """Checks what the flags ask for, loads the run and does it."""
  workdir = boxed.default() if _WORKDIR.value is None else _WORKDIR.value
  request = requests.check(
    requests.Flags(
      prompts=_PROMPT.value,
      prompts_file=_PROMPTS.value,
      image=_IMAGE.value,
      question=_QUESTION.value,
      edit=_EDIT.value,
      given=_GIVEN.value,
      redraw=_REDRAW.value,
      out=_OUT.value,
      seed=_SEED.value,
      samples=_SAMPLES.value,
      step=_STEP.value,
      sampling={
        "cfg": _CFG.value,
        "temperature": _TEMPERATURE.value,
        "steps": _STEPS.value,
        "last_steps": _LAST_STEPS.value,
        "passes": _PASSES.value,
        "solver": _SOLVER.value,
        "order": _ORDER.value,
        "size": requests.size(_SIZE.value),
      },
    ),
    lambda: api.spec_of(workdir, _STEP.value),
  )
  say = cli.speaker()
  if _WORKDIR.value is None:
    say(f"model: {files.path(workdir).name}, which ships with the package")
  model = api.load(workdir, step=_STEP.value, codec_path=_CODEC.value)
  for words in (*request.prompts, request.question, request.edit):
    if unknown := model.unknown_words(words or ""):
      logging.warning(
        "the model has never seen %s: %r", ", ".join(map(repr, unknown)), words
      )
  read = dict.fromkeys(request.prompts, tasks.T2I)
  read |= {request.question: tasks.I2T, request.edit: tasks.EDIT}
  for words, task in read.items():
    if words and model.is_cut(words, task):
      logging.warning("the model does not read the end of %r", words)
  image = request.image
  if image is not None and not request.edit:
    question = request.question or model.config.data.caption_prefix
    say(model.answer(image, question))
  if request.edit:
    images = [model.edit(image, request.edit, _SEED.value, **request.sampling)]
  else:
    images = model.generate(
      request.prompts, _SEED.value, given=request.given, redraw=request.redraw,
      **request.sampling,
    )  # fmt: skip
  for picture, name in zip(images, request.names, strict=True):
    kind = requests.FORMATS[files.path(name).suffix.lower()]
    files.write(name, encode_image(picture, kind))
    say(f"wrote {name}")
  if request.listing:
    # A line each, whatever a prompt holds: they are matched by their places.
    drawn = [request.edit] if request.edit else request.prompts
    lines = (" ".join(words.splitlines()) for words in drawn)
    files.write(request.listing, "\n".join(lines) + "\n")


if __name__ == "__main__":
  cli.run(main)
