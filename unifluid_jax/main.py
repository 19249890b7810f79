"""Trains a model.

  python -m unifluid_jax.main --config=configs/shapes.py --workdir=runs/shapes

The same command resumes an interrupted run. Any value of the configuration
can be set on the command line: --config.optim.lr=3e-4. Ablations are
arguments of the config file: --config=configs/unified_2b.py:lambda=0.1.
"""

import hashlib
import json
from typing import Any

import jax
from absl import flags
from etils import epath

from unifluid_jax import api, cli, config_files, parallel, systems, train
from unifluid_jax.config import Config, resolve
from unifluid_jax.data import pipeline, text

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
  config = resolve(tree)
  say = cli.speaker()
  say(f"unifluid_jax.main: {config.name} in {workdir}")
  rows = config_files.differences(tree)
  say("\n".join(["-- differs from configs/base.py --", *rows]))
  tokenizer = None
  if config.system != "vae":
    tokenizer = text.Tokenizer.load(config.text.tokenizer)
  job = train.make_job(config, systems.build(config))

  def loader(start_step: int):
    return pipeline.make_loader(
      config,
      tokenizer,
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  train.run(job, workdir, loader, describe(config, tree, workdir), say)


def describe(
  config: Config, tree: dict[str, Any], workdir: str
) -> dict[str, Any]:
  """What is saved beside every state: configuration and tokenizer digest.

  The tokenizer file is copied into the workdir, so that a run can be used
  where its data are not.
  """
  meta = {"config": json.loads(json.dumps(tree)), "jax": jax.__version__}
  if config.system == "vae":
    return meta
  data = epath.Path(config.text.tokenizer).read_bytes()
  if jax.process_index() == 0:
    copy = epath.Path(workdir) / api.TOKENIZER
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(data)
  return meta | {"tokenizer_sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  cli.run(main)
