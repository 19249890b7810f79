"""Evaluates a run's checkpoints, beside or after training.

  python -m unifluid_jax.evaluate --config=configs/shapes.py \
      --workdir=runs/shapes

Waits for new checkpoints until the last one is scored; --once scores what is
there and leaves, --step=N one step. Results: metrics_eval.jsonl and
report.html in the workdir. The exit status is 1 if any metric failed.
"""

import sys

from absl import flags
from ml_collections import config_flags

from unifluid_jax import cli, eval_loop
from unifluid_jax.config import resolve

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment: the file the run was trained with."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.")
_ONCE = flags.DEFINE_bool("once", False, "Score what is there, then leave.")
_STEP = flags.DEFINE_integer("step", None, "Score this checkpoint alone.")


def main(_: list[str]) -> None:
  """Scores checkpoints, then says where to look."""
  config = resolve(_CONFIG.value)
  say, workdir = cli.speaker(), _WORKDIR.value
  say(f"unifluid_jax.evaluate: {config.name} in {workdir}")
  evaluator = eval_loop.Evaluator(config, workdir, say)
  errors = eval_loop.watch(evaluator, _ONCE.value, _STEP.value)
  say(
    f"report: {workdir}/{eval_loop.REPORT}\n"
    "next:\n"
    f"  python -m unifluid_jax.generate --workdir={workdir} "
    '--prompt="two green squares" --out=out.png\n'
    f"  python -m unifluid_jax.generate --workdir={workdir} --image=out.png"
  )
  if errors:
    sys.exit(f"error: {len(errors)} metrics failed: {errors[0]!r}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  cli.run(main)
