"""Trains a model.

  python -m unifluid_jax.main --config=configs/shapes.py --workdir=runs/shapes

The same command resumes an interrupted run. Any value of the configuration
can be set on the command line: --config.optim.lr=3e-4. Ablations are
arguments of the config file: --config=configs/unified_2b.py:lambda=0.1.
"""

from absl import flags

from unifluid_jax import identity, policy, systems, train
from unifluid_jax.core import cli, config_files, parallel
from unifluid_jax.data import pipeline, text
from unifluid_jax.data.sources import discover
from unifluid_jax.evals import rewards
from unifluid_jax.evals.bench import Bench

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints and metrics go, and are resumed from."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, or auto on a TPU pod."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes in all.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process.")


def main(_: list[str]) -> None:
  """Resolves the configuration, builds the parts and trains."""
  parallel.start_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  tree, workdir = _CONFIG.value.to_dict(), _WORKDIR.value
  config = systems.resolve(tree)
  say = cli.speaker()
  say(f"unifluid_jax.main: {config.name} in {workdir}")
  rows = config_files.differences(tree)
  say("\n".join(["-- differs from configs/base.py --", *rows]))
  for line in discover.lines(config.data):
    say(line)
  config = identity.at_hand(config, workdir)
  system = systems.build(config)
  tokenizer = None
  if pipeline.needs_text(system.inputs):
    tokenizer = text.Tokenizer.load(config.text.tokenizer, config.text.special)
  job = train.make_job(config, system)
  share, shares = parallel.batch_share(job.mesh)
  if config.policy.prompts:
    job = policy.with_drawings(
      job, rewards.of(Bench(config, workdir)), tokenizer
    )
  meta = identity.describe(config, system, tree, workdir, say)

  def loader(start_step: int):
    return pipeline.make_loader(
      config,
      system.inputs,
      tokenizer,
      start_step=start_step,
      process_index=share,
      process_count=shares,
    )

  train.run(
    job,
    workdir,
    loader,
    meta,
    say,
    identity.keeper(config, system, meta, workdir),
  )


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  cli.run(main)
