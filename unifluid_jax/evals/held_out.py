"""The training objective on data that training does not see."""

from unifluid_jax.evals.bench import Bench, LossTeller, Outcome


def validation_loss(subject: LossTeller, bench: Bench) -> Outcome:
  """Loss and metrics of each trained task, on every evaluation split.

  They are the system's own, e.g. "validation_loss/t2i/image_accuracy": the
  share of image tokens that are the most likely ones. No chance level is
  known of them.

  Raises:
    ValueError: a split without examples of a trained task.
  """
  values, settings = {}, {}
  for split in bench.splits:
    name = bench.name("validation_loss", split)
    for task, size in bench.config.batch.items():
      if not size:
        continue
      found, count = subject.losses(task, bench.records(split))
      values |= {f"{name}/{task}/{k}": value for k, value in found.items()}
      settings[f"{split} {task}"] = count
  return Outcome(values, {}, settings | bench.skipped(*bench.splits))
