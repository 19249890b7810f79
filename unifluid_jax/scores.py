"""Numbers that a trained system gives to data: likelihoods and losses.

What `api.Model` draws and says is judged by metrics; this is what the system
itself thinks of texts and of held-out examples.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unifluid_jax.codecs.inputs import encode_pixels
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import Scorer
from unifluid_jax.data import fields, tasks
from unifluid_jax.data.fields import Example
from unifluid_jax.data.records import BadRecord, Record

_SEED = 0  # of all draws, so that checkpoints are compared on the same


class Scores:
  """What a system says of data; weights are the mapper's (mappers.Mapper)."""

  def __init__(
    self,
    config: Config,
    system: Any,
    tokenizer: Any,
    mapper: Callable[[Callable[..., Any]], Callable[..., np.ndarray]],
  ):
    """Compiles nothing yet."""
    self._config, self._system = config, system
    self._tokenizer = tokenizer
    self._scoring = functools.cache(lambda names: mapper(self._score(names)))

    def losing(*how):
      names: list[str] = []
      return mapper(self._lose(names, *how)), names

    self._losing = functools.cache(losing)

  def log_likelihoods(
    self, questions: Sequence[str | None], texts: Sequence[str]
  ) -> np.ndarray:
    """How likely texts are, in nats, f32[n]; no image is seen.

    Args:
      questions: what each text answers; None: it stands for itself.
      texts: of at most config.text.suffix tokens, the one at the end included.

    Raises:
      ValueError: a run without training on text alone, a system that has no
        likelihoods, or a text that is too long.
    """
    c, task = self._config, tasks.TEXT
    if not c.batch.get(task):
      raise ValueError(
        f"this run was not trained on {task!r} (config.batch.{task}=0)"
      )
    if not isinstance(self._system, Scorer):
      raise ValueError(f"system {c.system!r} says no likelihoods of texts")
    for each in texts:
      self._check_length(each)
    rows = _stacked([
      self._arrays(task, self._example({"prefix": q, "suffix": t}))
      for q, t in zip(questions, texts, strict=True)
    ])  # fmt: skip
    return self._scoring(tuple(rows))(*rows.values())

  def losses(
    self, task: str, records: Sequence[Record]
  ) -> tuple[dict[str, float], int]:
    """The training objective on records, without learning from them.

    Every draw (dropout, noise, order, choice of text) is the same for all
    checkpoints; what depends on the step is as in the run's last one.

    Args:
      task: one the run was trained on.
      records: those without an example of the task are left out.

    Returns:
      "loss" and the system's metrics over all examples together; how many
      there were.

    Raises:
      ValueError: there were none.
    """
    c = self._config
    options = tasks.Options(
      self._tokenizer,
      c.data.caption_prefix,
      max_pixels=c.data.max_pixels,
      chat=c.text.chat,
    )
    found = []
    for i, record in enumerate(records):
      rng = np.random.default_rng([_SEED, i])
      try:
        example = tasks.TASKS[task](record, rng, options)
        found.append(self._arrays(task, example, rng))
      except (tasks.NoExample, BadRecord):
        continue
    if not found:
      raise ValueError(f"no record of the split is an example of {task!r}")
    rows = _stacked(found)
    counts = self._system.counts({task: rows})
    counts = {k: np.asarray(n).item() for k, n in counts.items()}
    call, names = self._losing(task, tuple(rows), tuple(counts.items()))
    each = call(np.arange(len(found), dtype=np.uint32), *rows.values())
    sums = each.astype(np.float64).sum(axis=0)
    return dict(zip(names, sums.tolist(), strict=True)), len(found)

  def _example(self, texts: Mapping[str, str | None]) -> Example:
    return Example(texts, {}, self._tokenizer, self._config.data.max_pixels)

  def _arrays(
    self, task: str, example: Example, rng: Any = None
  ) -> dict[str, np.ndarray]:
    """One row of every field of the task, targets included."""
    inputs = fields.uncached(self._system.inputs[task], example.images)
    return fields.arrays(inputs, example, rng)

  def _check_length(self, target: str) -> None:
    """Refuses a text that its slot would truncate."""
    for field in self._system.inputs[tasks.TEXT].values():
      if not (field.target and isinstance(field, fields.Text)):
        continue
      room = field.length - len(field.before) - len(field.after)
      count = len(self._tokenizer.encode(target))
      if count > room:
        raise ValueError(
          f"text.{field.slot}={field.length} has no room for the {count} "
          f"tokens of {target!r}: raise it"
        )

  # ------------------------------------------------ functions that are mapped

  def _score(self, names: tuple[str, ...]):
    def function(params, frozen, *arrays):
      prompts = {tasks.TEXT: dict(zip(names, arrays, strict=True))}
      return self._system.score(params, frozen, prompts)

    return function

  def _lose(
    self,
    said: list[str],
    task: str,
    names: tuple[str, ...],
    counts: tuple[tuple[str, int], ...],
  ):
    """Of each row its part of the loss and of the metrics, f32[B, M].

    Parts divided by the counts of all rows add up to the whole's
    (`System.loss`), so that any number of rows can be padded and split.

    Args:
      said: receives the M names when the function is traced.
      task: of the rows.
      names: of the rows' arrays.
      counts: of all rows together.
    """

    def function(params, frozen, index, *arrays):
      batch = {task: dict(zip(names, arrays, strict=True))}
      batch = encode_pixels(self._system, frozen, batch)

      def part(i, row):
        row = jax.tree.map(lambda x: x[None], row)
        key = jax.random.fold_in(jax.random.key(_SEED), i)
        loss, metrics, _ = self._system.loss(
          params, frozen, row, dict(counts), key, self._config.steps
        )
        metrics = {"loss": loss, **metrics}
        said[:] = list(metrics)
        return jnp.stack([jnp.float32(x) for x in metrics.values()])

      return jax.vmap(part)(index, batch)

    return function


def _stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Rows as a batch."""
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
