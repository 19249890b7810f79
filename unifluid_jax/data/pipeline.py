"""Training batches as a function of (config, step): the input pipeline.

Example i of a task's stream depends on the seed and i alone, so the state of
the pipeline is the step count, for any number of workers and processes.
Built on grain's MapDataset.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags, logging

from unifluid_jax.core import interrupt
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import Batch
from unifluid_jax.data import fields
from unifluid_jax.data.dialogue import Dialogue
from unifluid_jax.data.records import BadRecord
from unifluid_jax.data.sized_prompt import SizedPrompt
from unifluid_jax.data.sources.source import Source, open_source
from unifluid_jax.data.tasks import (
  EVERY_SOURCE,
  I2T,
  TASKS,
  NoExample,
  Options,
  Task,
)

_TRIES = 256  # records of a source tried in a row before it counts as broken
_MIN_SEEN = 100  # examples before the share of bad ones means anything
_NAMED = 5  # bad records an error names
_LOGGED = 20  # bad records the log names
_STEPS = 1 << 40  # "for ever", and within grain's index range

Inputs = Mapping[str, Mapping[str, fields.Field]]  # task → name → field


class DataError(ValueError):
  """Too many records cannot be used; the message names some of them."""


class _Sample(NamedTuple):
  """One example, or None, and the bad records met on the way to it."""

  example: Any
  source: str
  faults: tuple[str, ...]


class Loader(Iterator[Batch]):
  """An endless iterator over batches of numpy arrays.

  Attributes:
    step: of the batch that `next` returns; the only state to save.
  """

  def __init__(
    self,
    dataset: grain.IterDataset,
    tasks: Sequence[str],
    audit: "_Audit",
    step: int,
  ):
    """Starts reading; `make_loader` is the way to get one."""
    self._batches = iter(dataset)
    self._tasks = tuple(tasks)
    self._audit = audit
    self.step = step

  def __next__(self) -> Batch:
    parts = next(self._batches)
    for _, samples in parts:
      self._audit.check(samples)
    self.step += 1
    examples = [example for example, _ in parts]
    return dict(zip(self._tasks, examples, strict=True))

  def close(self) -> None:
    """Stops threads and worker processes."""
    self._batches.close()


def make_loader(
  config: Config,
  inputs: Inputs,
  tokenizer: Any,
  *,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Loader:
  """Opens the training sources and reads ahead.

  Process p of n gets rows [p B/n, (p+1) B/n) of the global batch of B, which
  is the same for every n.

  Args:
    config: `data`, `batch` and `seed` are read.
    inputs: of the system, see `System.inputs`.
    tokenizer: makes the text rows; None where no field is text.
    start_step: step of the first batch.
    process_index: of this process, or of all that hold the same rows.
    process_count: processes, or groups of them, that share the global batch.

  Returns:
    An endless iterator of the process's rows.

  Raises:
    FileNotFoundError: a source is missing.
    ValueError: batch sizes or sources that do not fit the configuration.
    DataError: here or from `next`: too many bad records.
  """
  used = {t: inputs[t] for t in TASKS if config.batch.get(t)}
  if tokenizer is None and needs_text(used):
    raise ValueError("text needs a tokenizer: load config.text.tokenizer")
  for field in (f for task in used.values() for f in task.values()):
    if isinstance(field, SizedPrompt):
      field.check(tokenizer)
  _check_augmented(config, used)
  sources = _open_all(config, used)
  options = Options(
    tokenizer,
    config.data.caption_prefix,
    config.data.flip,
    config.data.max_pixels,
    config.text.chat,
    config.data.augment,
  )
  streams = []
  for task in used:
    total = config.batch[task]
    if total % process_count:
      raise ValueError(
        f"batch.{task}={total} is not divisible by {process_count} processes"
      )
    stream = _stream(config, task, inputs[task], sources, options)
    rows = _ProcessRows(stream, total, process_index, process_count)
    streams.append(rows.batch(total // process_count, batch_fn=_collate))
  zipped = grain.experimental.ZipMapDataset([s[:_STEPS] for s in streams])
  dataset = _read_ahead(zipped[start_step:], config)
  return Loader(
    dataset, tuple(used), _Audit(config.data.max_bad_share), start_step
  )


def needs_text(inputs: Inputs) -> bool:
  """Whether any field of the tasks is text."""
  every = [f for task in inputs.values() for f in task.values()]
  return any(isinstance(f, (fields.Text, SizedPrompt, Dialogue)) for f in every)


def _from_files(inputs: Mapping[str, fields.Field]) -> list[fields.Encoded]:
  """The fields of a task that are read from files."""
  every = inputs.values()
  return [f for f in every if isinstance(f, fields.Encoded) and f.file]


def _open_all(config: Config, inputs: Inputs) -> dict[str, Source]:
  """The sources of positive weight, checked against the configuration."""
  data = config.data
  sources = {}
  for name, entry in data.train.items():
    if entry.weight < 0:
      raise ValueError(f"data.train.{name}.weight={entry.weight} is negative")
    if not entry.weight:
      continue
    key = f"data.train.{name}"
    served = (t for t in inputs if t in EVERY_SOURCE or t in entry.tasks)
    files = [f for task in served for f in _from_files(inputs[task])]
    source = open_source(
      entry,
      data.root,
      data.caption_prefix,
      key,
      moments=bool(files),
    )
    bad, total = len(source.bad), len(source.bad) + len(source)
    if not total:
      raise DataError(f"{key}.path={entry.path!r} holds no record")
    if not len(source) or (
      total >= _MIN_SEEN and bad > data.max_bad_share * total
    ):
      raise DataError(_complaint(bad, total, source.bad, data.max_bad_share))
    for field in files if source.moments is not None else ():
      if source.moments.shape not in field.in_files:
        needed = " or ".join(map(str, field.in_files))
        raise ValueError(
          f"{key}.moments are {source.moments.shape}, the model needs "
          f"{needed}: cache them with its codec at this size"
        )
    sources[name] = source
  return sources


def _stream(
  config: Config,
  task: str,
  inputs: Mapping[str, fields.Field],
  sources: dict[str, Source],
  options: Options,
) -> grain.MapDataset:
  """The endless mixture of a task's sources; element i is a _Sample."""
  names = [
    name
    for name in sorted(sources)
    if task in EVERY_SOURCE or task in config.data.train[name].tasks
  ]
  if not names:
    raise ValueError(
      f"no data.train source serves task {task!r}: list it in a source's "
      "tasks, or set its batch to 0"
    )
  if _from_files(inputs):
    _check_moments(config, task, {n: sources[n] for n in names})
  parts, orders = [], []
  for k, name in enumerate(names):
    orders.append(sources[name].indices(task))
    if not len(orders[-1]):
      raise ValueError(
        f"data.train.{name} holds no example for task {task!r}: remove it "
        f"from data.train.{name}.tasks"
      )
    indices = grain.MapDataset.range(len(orders[-1]))
    shuffled = indices.shuffle(seed=_seed(config.seed, task, name)).repeat()
    parts.append(shuffled.map_with_index(_Place(k, len(orders[-1]))))
  weights = [config.data.train[name].weight for name in names]
  opened = [sources[n] for n in names]
  load = _Load(names, opened, orders, TASKS[task], inputs, options)
  mixture = grain.MapDataset.mix(parts, weights)
  return mixture.random_map(load, seed=_seed(config.seed, task, ""))


def _check_augmented(config: Config, inputs: Inputs) -> None:
  """Refuses to augment images that are read as a codec encoded them."""
  if _from_files(inputs.get(I2T, {})) and config.data.augment.changes:
    raise ValueError(
      f"data.augment changes pixels, and {I2T} reads encoded images: set its "
      f"numbers to 0, or serve {I2T} by a data.train source without moments"
    )


def _check_moments(
  config: Config, task: str, sources: dict[str, Source]
) -> None:
  """Refuses a task whose sources give partly pixels, partly moments."""
  cached = [name for name, s in sources.items() if s.moments is not None]
  if cached and len(cached) < len(sources):
    rest = sorted(set(sources) - set(cached))
    raise ValueError(
      f"data.train sources {cached} have cached moments and {rest} have not: "
      f"cache all of task {task!r} or none"
    )
  if cached and config.data.flip:
    raise ValueError(
      "cached moments cannot be flipped: set data.flip=False or drop "
      f"data.train.{cached[0]}.moments"
    )


def _seed(*parts: Any) -> int:
  """32 bits that differ for different parts."""
  return zlib.crc32("/".join(map(str, parts)).encode())


class _Place(NamedTuple):
  """Position in a source's shuffled order → (source, position, epoch)."""

  source: int
  length: int

  def __call__(self, i: int, position: int) -> tuple[int, int, int]:
    return self.source, position, i // self.length


class _Load:
  """(source, position, epoch) → _Sample, the next good record's if bad."""

  def __init__(
    self,
    names: Sequence[str],
    sources: Sequence[Source],
    orders: Sequence[np.ndarray],
    task: Task,
    inputs: Mapping[str, fields.Field],
    options: Options,
  ):
    self._names, self._sources, self._orders = names, sources, orders
    self._task, self._inputs, self._options = task, inputs, options

  def __call__(
    self, where: tuple[int, int, int], rng: np.random.Generator
  ) -> _Sample:
    k, start, turn = where
    name, order = self._names[k], self._orders[k]
    faults = []
    for i in range(min(len(order), _TRIES)):
      index = int(order[(start + i) % len(order)])
      try:
        record = self._sources[k].draw(index, turn, rng)
        example = self._task(record, rng, self._options)
        rows = fields.arrays(self._inputs, example, rng)
        return _Sample(rows, name, tuple(faults))
      except NoExample:
        continue
      except BadRecord as error:
        faults.append(f"{name}[{index}]: {error}")
    return _Sample(None, name, tuple(faults))


class _ProcessRows(grain.MapDataset):
  """A process's rows of every global batch, as one stream."""

  def __init__(
    self, parent: grain.MapDataset, total: int, process: int, count: int
  ):
    super().__init__(parent)
    self._total, self._rows = total, total // count
    self._first = process * self._rows

  def __len__(self) -> int:
    # Whole steps; a batch of 1 would make an endless parent overflow.
    return min(len(self._parent) // self._total, _STEPS) * self._rows

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    step, row = divmod(index, self._rows)
    return self._parent[step * self._total + self._first + row]


def _collate(samples: Sequence[_Sample]) -> tuple[Any, list[_Sample]]:
  """Stacked examples, and the samples without theirs for the audit."""
  examples = [s.example for s in samples]
  notes = [s._replace(example=s.example is not None) for s in samples]
  if any(e is None for e in examples):
    return None, notes
  names = sorted(examples[0])  # as worker processes give them back
  return {k: np.stack([e[k] for e in examples]) for k in names}, notes


def _read_ahead(dataset: grain.MapDataset, config: Config) -> grain.IterDataset:
  """Prefetches whole batches in threads, within worker processes if any."""
  workers = config.data.workers
  threads = max(1, config.data.threads // max(1, workers))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  batches = dataset.to_iter_dataset(options)
  if not workers:
    return batches
  if not flags.FLAGS.is_parsed():
    # Grain hands absl's flags to its workers; notebooks never parse them.
    flags.FLAGS.mark_as_parsed()
  return batches.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=workers), interrupt.ignore
  )


class _Audit:
  """Counts bad records and stops the run when there are too many."""

  def __init__(self, max_share: float):
    self._max_share = max_share
    self._seen = self._bad = 0
    self._names: dict[str, None] = {}

  def check(self, samples: Sequence[_Sample]) -> None:
    """Takes in one batch's samples.

    Raises:
      DataError: a source yields nothing, or the share is exceeded. A single
        bad record never exceeds a share above zero.
    """
    for sample in samples:
      self._seen += 1 + len(sample.faults)
      self._bad += len(sample.faults)
      for fault in sample.faults:
        self._note(fault)
      if not sample.example:
        raise DataError(
          f"data.train.{sample.source} yields no example in a row of "
          f"{_TRIES} records (or in all it has); bad among them: "
          f"{_first(sample.faults)}. Fix the data, or remove the source or "
          "the task from its tasks"
        )
    alone = self._bad == 1 and self._max_share > 0
    limit = self._max_share * self._seen
    if self._seen >= _MIN_SEEN and self._bad > limit and not alone:
      raise DataError(
        _complaint(self._bad, self._seen, list(self._names), self._max_share)
      )

  def _note(self, fault: str) -> None:
    """Logs a bad record the first time; forgets names beyond the first."""
    if fault in self._names or len(self._names) >= _LOGGED:
      return
    self._names[fault] = None
    logging.warning("replaced bad record %s", fault)
    if len(self._names) == _LOGGED:
      logging.warning("further bad records are counted, not named")


def _complaint(
  bad: int, seen: int, names: Sequence[str], max_share: float
) -> str:
  """Message of a DataError."""
  return (
    f"{bad} of {seen} records are bad, data.max_bad_share={max_share} allows "
    f"fewer: {_first(names)}. Fix them or raise data.max_bad_share"
  )


def _first(names: Sequence[str]) -> str:
  """The first few names."""
  more = "; ..." if len(names) > _NAMED else ""
  return ("; ".join(names[:_NAMED]) or "none") + more
