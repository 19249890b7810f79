r"""Draws several images of each prompt and keeps those that are right.

  python -m unifluid_jax.best_of --workdir=runs/shapes --to=runs/best/drawn

Prompts and judge are those of the world that the run was trained on
(unifluid_jax/evals/rewards.py). Writes an imagefolder: metadata.jsonl with
file_name, text and reward, and the images, which training reads with
data.train.NAME.format=imagefolder. Drawn as the run draws, unless --sampling
says otherwise. `python -m unifluid_jax.reward` does this
and trains on it, several times over.
"""

import functools
import os
import pathlib

from absl import flags

from unifluid_jax import evaluation, rejection, systems
from unifluid_jax.core import checkpoint, cli, files
from unifluid_jax.data.worlds import shapes_builder
from unifluid_jax.evals import rewards
from unifluid_jax.evals.bench import Bench

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run that draws.")
_TO = flags.DEFINE_string("to", None, "Folder to write, on a local disk.")
_PROMPTS = flags.DEFINE_integer("prompts", 1200, "How many.", 1)
_DRAWS = flags.DEFINE_integer("draws", 4, "Images of each prompt.", 1)
_KEEP = flags.DEFINE_integer("keep", 1, "Of each prompt, at most.", 1)
_LEAST = flags.DEFINE_float("least", 1.0, "Reward that an image needs.", 0, 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of prompts and images.", 0)
_SAMPLING = flags.DEFINE_multi_string(
  "sampling",
  [],
  "How images are drawn, where not as the run does: OPTION=VALUE; repeated.",
)


def main(_: list[str]) -> None:
  """Draws, judges, writes, unless that is done."""
  say, workdir = cli.speaker(), _WORKDIR.value
  to = files.local(_TO.value, "drawn images", "--to")
  step = checkpoint.latest_step(workdir)
  options = {
    "prompts": _PROMPTS.value, "draws": _DRAWS.value, "keep": _KEEP.value,
    "least": _LEAST.value, "seed": _SEED.value, "sampling": _SAMPLING.value,
  }  # fmt: skip
  made_of = rejection.recipe(
    os.path.abspath(workdir), step, checkpoint.fingerprint(workdir, step),
    **options,
  )  # fmt: skip

  def fill(folder: pathlib.Path) -> None:
    config = systems.resolve(checkpoint.read_config(workdir, step))
    reward = rewards.of(Bench(config, workdir))
    sampling = rejection.sampling_of(config, _SAMPLING.value)
    model = evaluation.load_model(config, workdir, step)
    drawn = rejection.drawings(
      functools.partial(model.images, sampling=sampling), reward,
      _PROMPTS.value, _DRAWS.value, _SEED.value,
    )  # fmt: skip
    lines = rejection.write(
      folder, drawn, _KEEP.value, _LEAST.value, reward.kind
    )
    for line in lines:
      say(line)

  target = shapes_builder.write_once(to, made_of, fill)
  say(f"right drawings of {workdir}: {target}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir", "to"])
  cli.run(main)
