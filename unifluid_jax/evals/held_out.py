"""The training objective on data that training does not see."""

import dataclasses
import json
from collections.abc import Iterable

from unifluid_jax.core import files
from unifluid_jax.core.config import Config
from unifluid_jax.evals.bench import Bench, LossTeller, Outcome


def validation_loss(subject: LossTeller, bench: Bench) -> Outcome:
  """Loss and metrics of each trained task, on every evaluation split.

  They are the system's own, e.g. "validation_loss/t2i/image_accuracy": the
  share of image tokens that are the most likely ones. No chance level is
  known of them.

  Raises:
    ValueError: a split without examples of a trained task.
  """
  values, settings, terms = {}, {}, set()
  for split in bench.splits:
    name = bench.name("validation_loss", split)
    for task, size in bench.config.batch.items():
      if not size:
        continue
      found, count = subject.losses(task, bench.records(split))
      values |= {f"{name}/{task}/{k}": value for k, value in found.items()}
      settings[f"{split} {task}"] = count
      terms |= {f"{task}/{k}" for k in found}
  settings["objective"] = _objective(bench.config, terms)
  return Outcome(values, {}, settings | bench.skipped(*bench.splits))


def _objective(config: Config, terms: Iterable[str]) -> str:
  """Eight digits of what is measured: runs that differ in it do not compare.

  Terms have the same names under other weights, and in other systems.
  """
  told = [config.system, dataclasses.asdict(config.loss), sorted(terms)]
  return files.digest(json.dumps(told, default=str).encode())[:8]
