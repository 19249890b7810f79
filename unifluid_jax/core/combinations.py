"""Settings of all systems that exclude one another."""

from collections.abc import Collection
from typing import Any

from unifluid_jax.core.freeze import need


def check(
  c: Any,
  tasks: Collection[str],
  known: Collection[str],
  everywhere: Collection[str],
) -> None:
  """Refuses combinations that cannot work, with the fix.

  Args:
    c: a `config.Config` whose numbers are in their ranges.
    tasks: that its system can do.
    known: all tasks.
    everywhere: those that every source serves.

  Raises:
    ConfigError: names the keys.
  """
  _check_data(c, tasks, known, everywhere)
  _check_training(c)


def _check_data(
  c: Any,
  tasks: Collection[str],
  known: Collection[str],
  everywhere: Collection[str],
) -> None:
  unknown = sorted(set(c.batch) - set(known))
  need(
    not unknown, f"batch.{''.join(unknown[:1])}: tasks are {', '.join(known)}"
  )
  cannot = sorted(t for t, size in c.batch.items() if size and t not in tasks)
  need(
    not cannot,
    f"batch.{''.join(cannot[:1])}: system {c.system!r} trains on "
    f"{', '.join(tasks)}",
  )
  for name, source in (*c.data.train.items(), *c.data.eval.items()):
    unknown = sorted(set(source.tasks) - set(known))
    need(
      not unknown,
      f"data source {name!r}: tasks={source.tasks}: tasks are "
      f"{', '.join(known)}",
    )
    need(
      bool(source.score) or not source.min_score,
      f"data source {name!r}: min_score={source.min_score} needs score, the "
      "name of the number that is to be as large",
    )
    need(
      not source.score or source.format in ("parquet", "jsonl"),
      f"data source {name!r}: score={source.score!r} needs format='parquet' "
      f"or 'jsonl', {source.format!r} knows no scores",
    )
  need(sum(c.batch.values()) > 0, "every batch.* is 0: nothing to train on")
  for task, size in c.batch.items():
    need(
      size % c.accumulate == 0,
      f"batch.{task}={size} is not divisible by accumulate={c.accumulate}",
    )
    has = any(task in s.tasks for s in c.data.train.values())
    need(
      not size or has or task in everywhere,
      f"batch.{task}={size}, but no data.train source lists task {task!r}",
    )
  need(
    not c.data.eval or c.eval.split in c.data.eval,
    f"eval.split={c.eval.split!r} is no key of data.eval: "
    f"{', '.join(c.data.eval)}",
  )


def _check_training(c: Any) -> None:
  parts = {f"optim.parts.{k}.name": v.name for k, v in c.optim.parts.items()}
  for key, name in {"optim.name": c.optim.name, **parts}.items():
    need(
      c.optim.decay == "adamw" or name in ("adamw", None),
      f"optim.decay={c.optim.decay!r} needs {key}='adamw'",
    )
  sizes = (c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
  need(sizes.count(-1) <= 1, f"mesh {sizes}: only one axis may be -1")
