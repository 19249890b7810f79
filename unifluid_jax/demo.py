r"""The demo: some commands, one after another, and what came of them.

  python -m unifluid_jax.demo
  python -m unifluid_jax.demo --config=debug --vae_config=debug:vae \
      --workdir=runs/debug

  python -m unifluid_jax.demo --config=liquid_shapes \
      --vae_config=tokenizer:shapes --workdir=runs/shapes/liquid

Draws a data set, trains the image tokenizer, encodes the images, trains the
system of --config on them and evaluates it; before it, the runs that the file
names as its STAGES. Each command is shown as you would
type it. Ctrl-C saves and leaves; the same command goes on, or says that all is
done. The exit status is 1 if a stage failed.
"""

from absl import flags
from ml_collections import config_flags

from unifluid_jax import stages, systems
from unifluid_jax.core import cli, config_files

_CONFIG = cli.define_config(
  "configs/shapes.py", "Configuration of the run.", whole=True
)
_VAE_CONFIG = flags.DEFINE_string(
  "vae_config",
  "configs/vae.py:shapes",
  "Configuration of its image tokenizer.",
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/shapes", "Of the run.")


def main(_: list[str]) -> None:
  """Runs the stages, then says what came of them."""
  flag, workdir = flags.FLAGS["config"], _WORKDIR.value
  config = config_flags.get_config_filename(flag)
  codec = config_files.load(_VAE_CONFIG.value)
  resolved = systems.resolve(_CONFIG.value)
  todo = stages.of_run(
    config,
    resolved.steps,
    workdir,
    _VAE_CONFIG.value,
    codec.steps,
    systems.codec_path(resolved),
    [
      (name, where, config_files.load(name).steps)
      for name, where in config_files.stages(config)
    ],
    config_files.step_seconds(config),
  )
  status = stages.run(todo, stages.execute, _say)
  if status:
    raise SystemExit(status)
  for line in stages.summary(config, workdir):
    _say(line)


def _say(line: str) -> None:
  """As cli.speaker, but accelerators are left to the commands."""
  print(line, flush=True)


if __name__ == "__main__":
  cli.run(main, caches=False)  # each command switches its own cache on
