"""Training batches as a function of (config, step): the input pipeline.

Example i of a task's stream depends on the seed and i alone, so the state of
the pipeline is the step count, for any number of workers and processes.
Built on grain's MapDataset.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags, logging

from unifluid_jax.core import interrupt
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import TASKS, Batch
from unifluid_jax.data import transforms
from unifluid_jax.data.records import BadRecord, Record
from unifluid_jax.data.sources.source import Source, open_source
from unifluid_jax.data.text import Tokenizer
from unifluid_jax.data.transforms import NoExample, Recipe

_TRIES = 256  # records of a source tried in a row before it counts as broken
_MIN_SEEN = 100  # examples before the share of bad ones means anything
_NAMED = 5  # bad records an error names
_LOGGED = 20  # bad records the log names
_STEPS = 1 << 40  # "for ever", and within grain's index range

_BUILDERS = {
  "t2i": transforms.to_text_to_image,
  "i2t": transforms.to_image_to_text,
  "edit": transforms.to_edit,
  "text": transforms.to_text_only,
  "image": transforms.to_image_only,
}


class DataError(ValueError):
  """Too many records cannot be used; the message names some of them."""


class _Sample(NamedTuple):
  """One example, or None, and the bad records met on the way to it."""

  example: Any
  source: str
  faults: tuple[str, ...]


class Loader(Iterator[Batch]):
  """Batches of numpy arrays for ever.

  Attributes:
    step: of the batch that `next` returns; all there is to save.
  """

  def __init__(
    self,
    dataset: grain.IterDataset,
    fields: Sequence[str],
    audit: "_Audit",
    step: int,
  ):
    """Starts reading; `make_loader` is the way to get one."""
    self._batches = iter(dataset)
    self._fields = tuple(fields)
    self._audit = audit
    self.step = step

  def __next__(self) -> Batch:
    parts = next(self._batches)
    for _, samples in parts:
      self._audit.check(samples)
    self.step += 1
    examples = [example for example, _ in parts]
    return Batch(**dict(zip(self._fields, examples, strict=True)))

  def close(self) -> None:
    """Stops threads and worker processes."""
    self._batches.close()


def make_loader(
  config: Config,
  tokenizer: Tokenizer | None,
  *,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Loader:
  """Opens the training sources and reads ahead.

  Process p of n gets rows [p B/n, (p+1) B/n) of the global batch of B, which
  is the same for every n.

  Args:
    config: `data`, `text`, `batch`, `seed` and the sizes of `model` count.
      With system "vae" every image of every source is used and batches hold
      `t2i.image` only, as many as all `batch` entries together.
    tokenizer: makes the text rows; None for system "vae".
    start_step: step of the first batch.
    process_index: of this process.
    process_count: processes that share the global batch.

  Returns:
    An endless iterator of the process's rows.

  Raises:
    FileNotFoundError: a source is missing.
    ValueError: batch sizes or sources that do not fit the configuration.
    DataError: here or from `next`: too many bad records.
  """
  if tokenizer is None and config.system != "vae":
    raise ValueError("text needs a tokenizer: load config.text.tokenizer")
  sources = _open_all(config)
  recipe = _recipe(config, tokenizer)
  fields, streams = [], []
  for task, field, total in _tasks(config):
    if total % process_count:
      raise ValueError(
        f"batch.{field}={total} is not divisible by {process_count} processes"
      )
    stream = _stream(config, task, sources, recipe)
    rows = _ProcessRows(stream, total, process_index, process_count)
    fields.append(field)
    streams.append(rows.batch(total // process_count, batch_fn=_collate))
  zipped = grain.experimental.ZipMapDataset([s[:_STEPS] for s in streams])
  dataset = _read_ahead(zipped[start_step:], config)
  return Loader(dataset, fields, _Audit(config.data.max_bad_share), start_step)


def _tasks(config: Config) -> list[tuple[str, str, int]]:
  """(task, field of the batch, global rows) of each stream."""
  if config.system == "vae":
    return [("image", "t2i", sum(config.batch.values()))]
  return [(t, t, config.batch[t]) for t in TASKS if config.batch.get(t)]


def _recipe(config: Config, tokenizer: Tokenizer | None) -> Recipe:
  """The configuration's sizes and slots."""
  return Recipe(
    tokenizer=tokenizer,
    image_size=config.model.image_size,
    vit_size=config.model.vit.image_size,
    prompt=config.text.prompt,
    prefix=config.text.prefix,
    suffix=config.text.suffix,
    caption_prefix=config.data.caption_prefix,
    flip=config.data.flip,
    edit_latents=config.model.edit_latents,
    images=config.data.images,
    max_pixels=config.data.max_pixels,
  )


def _open_all(config: Config) -> dict[str, Source]:
  """The sources of positive weight, checked against the configuration."""
  data, model = config.data, config.model
  sources = {}
  for name, entry in data.train.items():
    if entry.weight < 0:
      raise ValueError(f"data.train.{name}.weight={entry.weight} is negative")
    if not entry.weight:
      continue
    key = f"data.train.{name}"
    source = open_source(
      entry,
      data.root,
      data.caption_prefix,
      key,
      moments=config.system != "vae",  # which trains what makes them
    )
    bad, total = len(source.bad), len(source.bad) + len(source)
    if not total:
      raise DataError(f"{key}.path={entry.path!r} holds no record")
    if not len(source) or (
      total >= _MIN_SEEN and bad > data.max_bad_share * total
    ):
      raise DataError(_complaint(bad, total, source.bad, data.max_bad_share))
    side = model.image_size // model.vae.factor
    shape = (side, side, 2 * model.vae.latent)
    if source.moments is not None and source.moments.shape != shape:
      raise ValueError(
        f"{key}.moments are {source.moments.shape}, the model needs {shape}: "
        "cache them with this VAE at this model.image_size"
      )
    sources[name] = source
  return sources


def _stream(
  config: Config, task: str, sources: dict[str, Source], recipe: Recipe
) -> grain.MapDataset:
  """The endless mixture of a task's sources; element i is a _Sample."""
  names = [
    name
    for name in sorted(sources)
    if task == "image" or task in config.data.train[name].tasks
  ]
  if not names:
    raise ValueError(
      f"no data.train source serves task {task!r}: list it in a source's "
      "tasks, or set its batch to 0"
    )
  if task == "t2i":
    _check_moments(config, {n: sources[n] for n in names})
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
  load = _Load(
    names, [sources[n] for n in names], orders, _BUILDERS[task], recipe
  )
  mixture = grain.MapDataset.mix(parts, weights)
  return mixture.random_map(load, seed=_seed(config.seed, task, ""))


def _check_moments(config: Config, sources: dict[str, Source]) -> None:
  """All sources of a batch give pixels, or all give moments."""
  cached = [name for name, s in sources.items() if s.moments is not None]
  if cached and len(cached) < len(sources):
    rest = sorted(set(sources) - set(cached))
    raise ValueError(
      f"data.train sources {cached} have cached moments and {rest} have not: "
      "cache all of task 't2i' or none"
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
  """Position of a source's shuffled order → where a record is, and its turn."""

  source: int
  length: int

  def __call__(self, i: int, position: int) -> tuple[int, int, int]:
    return self.source, position, i // self.length


class _Load:
  """(source, position, turn) → _Sample, the next good record's if bad."""

  def __init__(
    self,
    names: Sequence[str],
    sources: Sequence[Source],
    orders: Sequence[np.ndarray],
    build: Callable[[Record, np.random.Generator, Recipe], Any],
    recipe: Recipe,
  ):
    self._names, self._sources, self._orders = names, sources, orders
    self._build, self._recipe = build, recipe

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
        example = self._build(record, rng, self._recipe)
        return _Sample(example, name, tuple(faults))
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
  return type(examples[0])(*map(_stack, zip(*examples, strict=True))), notes


def _stack(values: Sequence[Any]) -> np.ndarray | None:
  """One field of a batch; a field that examples lack stays None."""
  return None if values[0] is None else np.stack(values)


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
  """What DataError says."""
  return (
    f"{bad} of {seen} records are bad, data.max_bad_share={max_share} allows "
    f"fewer: {_first(names)}. Fix them or raise data.max_bad_share"
  )


def _first(names: Sequence[str]) -> str:
  """The first few names."""
  more = "; ..." if len(names) > _NAMED else ""
  return ("; ".join(names[:_NAMED]) or "none") + more
