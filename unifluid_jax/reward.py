r"""Trains a run on what it draws right, several times over.

  python -m unifluid_jax.reward --config=configs/reward.py:shapes \
      --workdir=runs/shapes_reward --rounds=4

Each round draws with the run before it (the first with that of
config.init.all), keeps what is right (unifluid_jax.best_of), encodes it, and
trains on it beside the run's own data (unifluid_jax.main): rejection
fine-tuning. The last round is evaluated. Each command is shown as you would
type it; round k lies in WORKDIR/round_k, its drawings in WORKDIR/drawn_k.
Ctrl-C saves and leaves; the same command goes on.
"""

import os

from absl import flags
from ml_collections import config_flags

from unifluid_jax import rejection, stages, systems
from unifluid_jax.core import cli, files
from unifluid_jax.core.freeze import ConfigError

_CONFIG = cli.define_config(
  "configs/reward.py:shapes", "Of every round.", whole=True
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/reward", "Of all rounds.")
_ROUNDS = flags.DEFINE_integer("rounds", 4, "Drawings and trainings.", 1)
_PROMPTS = flags.DEFINE_integer("prompts", 1200, "Of each round.", 1)
_DRAWS = flags.DEFINE_integer("draws", 4, "Images of each prompt.", 1)
_LEAST = flags.DEFINE_float("least", 1.0, "Reward that an image needs.", 0, 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of all drawings.", 0)
_SAMPLING = flags.DEFINE_multi_string(
  "sampling",
  [],
  "How images are drawn, where not as the run does: OPTION=VALUE; repeated.",
)


def main(_: list[str]) -> None:
  """Runs all rounds, then says what came of them."""
  flag = flags.FLAGS["config"]
  value, config = config_flags.get_config_filename(flag), _CONFIG.value
  if rejection.SOURCE not in config.data.train or not config.init.all:
    raise ConfigError(
      f"a round draws with the run of config.init.all and trains on the "
      f"source config.data.train.{rejection.SOURCE}: set both, see "
      "configs/reward.py"
    )
  steps = systems.resolve(config).steps
  workdir = os.path.abspath(
    files.local(_WORKDIR.value, "drawn images", "--workdir")
  )
  todo = rejection.rounds(
    value, config.init.all, workdir, steps,
    count=_ROUNDS.value, prompts=_PROMPTS.value, draws=_DRAWS.value,
    least=_LEAST.value, seed=_SEED.value, sampling=_SAMPLING.value,
  )  # fmt: skip
  status = stages.run(todo, stages.execute, _say)
  if status:
    raise SystemExit(status)
  for line in stages.summary(
    value, rejection.workdir_of(_WORKDIR.value, _ROUNDS.value)
  ):
    _say(line)


def _say(line: str) -> None:
  """As cli.speaker, but accelerators are left to the commands."""
  print(line, flush=True)


if __name__ == "__main__":
  cli.run(main, caches=False)  # each command switches its own cache on
