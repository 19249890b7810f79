"""What a source holds, for people and for configurations; a check of it all."""

import dataclasses
import functools
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from unifluid_jax.core import workers
from unifluid_jax.core.config import MAX_PIXELS, DataConfig, SourceConfig
from unifluid_jax.data.images import decode_image, dimensions
from unifluid_jax.data.records import BadRecord, Record
from unifluid_jax.data.sources import discover
from unifluid_jax.data.sources import source as sources

LOOKED = 1000  # records that are read, evenly spaced; all, if there are fewer
_QUICK = 256  # of these, for a configuration
_EXAMPLES = 3
_SHOWN = 90  # characters of an example's text
_NAMED = 1000  # bad records that a check names; all are counted
_PIECE = 4096  # records that a worker checks at a time
_AHEAD = 64  # records that threads of a check have in hand
# Scripts without spaces (Thai to Khmer, kana, Han): each character is a word.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")


class Survey(NamedTuple):
  """What was found; everything but `records` and `bad` of those read."""

  records: int
  bad: tuple[str, ...]  # skipped at opening, or unreadable when read
  looked: int
  captions: int  # prompts included
  questions: int
  edits: int
  dialogues: int
  sizes: tuple[tuple[int, int], ...]  # (width, height) of images
  words: tuple[int, ...]  # of each text
  frames: int  # images of a record that has questions or captions, at most
  examples: tuple[str, ...]

  @property
  def side(self) -> int:
    """The median of the shorter sides; 0 without images."""
    return int(statistics.median(map(min, self.sizes))) if self.sizes else 0


def look(source: sources.Source, limit: int = LOOKED) -> Survey:
  """Reads some records of a source, and of images the headers."""
  count = min(len(source), limit)
  chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
  read, bad, sizes = [], list(source.bad), []
  for i in chosen.tolist():
    try:
      record = source[i]
      if record.image:
        sizes.append(dimensions(record.image))
      read.append(record)
    except BadRecord as error:
      bad.append(f"record {i}: {error}")
  texts = [text for record in read for text in _texts(record)]
  return Survey(
    records=len(source),
    bad=tuple(bad),
    looked=count,
    captions=sum(len(r.captions) + len(r.prompts) for r in read),
    questions=sum(len(r.questions) for r in read),
    edits=sum(r.edit is not None for r in read),
    dialogues=sum(bool(r.dialogue) for r in read),
    sizes=tuple(sizes),
    words=tuple(len(_WORD.findall(text)) for text in texts),
    frames=max((1 + len(r.more) for r in read if r.image), default=0),
    examples=tuple(_example(r) for r in _spread(read)),
  )


def lines(found: Survey) -> list[str]:
  """What was found, for people."""
  kinds = ("captions", "questions", "edits", "dialogues")
  counts = [f"{n} {kind}" for kind in kinds if (n := getattr(found, kind))]
  part = found.looked < found.records
  of = f" in {found.looked} of them, evenly spaced" if part else ""
  bad = f", {len(found.bad)} bad" if found.bad else ""
  said = [
    f"{found.records} records{bad}: {', '.join(counts) or 'no texts'}{of}"
  ]
  if found.sizes:
    ordered = sorted(found.sizes, key=lambda s: (s[0] * s[1], s))
    low, middle, high = (
      "{} x {}".format(*ordered[i]) for i in (0, (len(ordered) - 1) // 2, -1)
    )
    said.append(f"images of {low} to {high} pixels, median {middle}")
  if found.words:
    middle = statistics.median_low(found.words)
    low, high = min(found.words), max(found.words)
    said.append(f"texts of {low} to {high} words, median {middle}")
  said += [f"bad: {_printable(name)}" for name in found.bad[:_EXAMPLES]]
  return [*said, *(f"e.g. {example}" for example in found.examples)]


@functools.lru_cache(4)
def quick(root: str, **source: str) -> Survey | None:
  """A look at a few records, for configurations: a process looks once.

  Args:
    root: config.data.root.
    **source: fields of a `SourceConfig`.

  Returns:
    What it holds; None if nothing is at its path yet.

  Raises:
    ValueError: it cannot be read.
  """
  config = SourceConfig(**source)
  try:
    opened = sources.open_source(config, root, "", "data.train.images")
  except FileNotFoundError:
    return None
  return look(opened, _QUICK)


def described(config: SourceConfig, root: str, prefix: str, key: str) -> str:
  """What `prepare` says of a source, in lines.

  Raises:
    FileNotFoundError, ValueError: see `open_source`.
  """
  source = sources.open_source(config, root, prefix, key)
  if config.format == "auto":
    head = discover.describe(discover.find(config, root, key))
  else:
    head = f"{config.format} at {config.path}, split {config.split}"
  return "\n  ".join([f"{key}: {head}", *lines(look(source))])


def described_all(data: DataConfig) -> Iterator[str]:
  """What `prepare` says of all sources that take part."""
  for key, source in _taking_part(data).items():
    yield described(source, data.root, data.caption_prefix, key)


def verify(
  data: DataConfig,
  say: Callable[[str], None],
  each: workers.Each = workers.here,
) -> None:
  """Checks every record of every source; names and counts the bad ones.

  Args:
    data: has the sources.
    say: gets lines for people.
    each: who reads the records; workers need the disks of data.root.

  Raises:
    ValueError: more of a source are bad than training tolerates.
  """
  broken = []
  for key, source in _taking_part(data).items():
    named, bad, total = _verified(data, source, key, each)
    for name in named:
      say(f"  bad: {name}")
    say(f"{key}: verified {total} records, {bad} bad")
    if bad > data.max_bad_share * total:
      broken.append(f"{bad} of {total} records of {key}")
  if broken:
    raise ValueError(
      f"bad: {'; '.join(broken)}: data.max_bad_share={data.max_bad_share} "
      "allows fewer: mend or remove them, or raise it"
    )


def _taking_part(data: DataConfig) -> dict[str, SourceConfig]:
  """Sources by key; what trains and evaluates alike stands once."""
  found: dict[str, SourceConfig] = {}
  for part, listed in (("train", data.train), ("eval", data.eval)):
    for name, source in listed.items():
      if source.weight and not any(_same(source, s) for s in found.values()):
        found[f"data.{part}.{name}"] = source
  return found


def _same(one: SourceConfig, other: SourceConfig) -> bool:
  """Whether both read the same records."""
  return other == dataclasses.replace(
    one, tasks=other.tasks, weight=other.weight, moments=other.moments
  )


def check(
  source: sources.Source,
  span: range,
  max_pixels: int = MAX_PIXELS,
  threads: int = 1,
) -> Iterator[str | None]:
  """Reads records and decodes their images.

  Args:
    source: of the records.
    span: which; consecutive ones.
    max_pixels: of an image that can be used.
    threads: that read.

  Yields:
    None for a record that can be used, else what is wrong with it; in order.
  """

  def fault(i: int) -> str | None:
    try:
      record = source[i]
      for data in _images(record):
        decode_image(data, max_pixels)
      texts = _texts(record)
      if texts and not any(text.strip() for text in texts):
        raise BadRecord(f"{record.id}: all its texts are blank")
    except BadRecord as error:
      return f"record {i}: {error}"
    return None

  with ThreadPoolExecutor(max(1, threads)) as pool:
    for start in range(0, len(span), _AHEAD):
      yield from pool.map(fault, span[start : start + _AHEAD])


class _Checker:
  """Checks pieces of a source; opens it where it works."""

  def __init__(self, data: DataConfig, config: SourceConfig, key: str):
    self._config, self._key = config, key
    self._data = (data.root, data.caption_prefix)
    self._limits = (data.max_pixels, data.threads)

  @functools.cached_property
  def source(self) -> sources.Source:
    return sources.open_source(self._config, *self._data, self._key)

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in vars(self).items() if k != "source"}

  def __call__(self, span: range) -> list[Any]:
    """The bad records of some, a thousand by name, and their number."""
    found = [text for text in check(self.source, span, *self._limits) if text]
    return [found[:_NAMED], len(found)]


def _verified(
  data: DataConfig, config: SourceConfig, key: str, each: workers.Each
) -> tuple[list[str], int, int]:
  """Checks all of a source.

  Returns:
    The bad records, by name, the first thousand; how many there are; and of
    how many records, those included that opening skipped.

  Raises:
    FileNotFoundError, ValueError: see `open_source`.
  """
  checker = _Checker(data, config, key)
  source = checker.source
  places = range(len(source))
  pieces = [places[i : i + _PIECE] for i in places[::_PIECE]]
  named, bad = list(source.bad[:_NAMED]), len(source.bad)
  for found, count in each(checker, pieces):
    named, bad = (named + found)[:_NAMED], bad + count
  return [_printable(n) for n in named], bad, len(source) + len(source.bad)


def _texts(record: Record) -> list[str]:
  """All texts of a record; a dialogue's questions are its turns."""
  if record.dialogue:
    return [turn.text for turn in record.dialogue if turn.image is None]
  edit = record.edit[:1] if record.edit is not None else ()
  asked = [text for pair in record.questions for text in pair]
  return [*record.prompts, *record.captions, *asked, *edit]


def _images(record: Record) -> list[bytes]:
  """All encoded images of a record."""
  found = [record.image] if record.image else []
  found += [*record.more, *(record.edit or ())[1:]]
  return found + [t.image for t in record.dialogue if t.image is not None]


def _spread(read: Sequence[Record]) -> list[Record]:
  """The first, the last and one between them."""
  if len(read) <= _EXAMPLES:
    return list(read)
  return [read[0], read[len(read) // 2], read[-1]]


def _example(record: Record) -> str:
  """A record in a line."""
  size = "{} x {}".format(*dimensions(record.image)) if record.image else "text"
  if record.dialogue:
    said = " / ".join(t.text or "<image>" for t in record.dialogue)
  elif record.captions or record.prompts:
    said = (record.captions or record.prompts)[0]
  elif record.questions:
    said = "{} -> {}".format(*record.questions[0])
  else:
    said = record.edit[0] if record.edit else "no text"
  said = _printable(said)
  short = said if len(said) <= _SHOWN else f"{said[: _SHOWN - 3]}..."
  return f"{_printable(record.id)}, {size}: {short}"


def _printable(text: str) -> str:
  """One line without control characters, which could reach a terminal."""
  line = " ".join(text.split())
  return "".join(c if c.isprintable() else "?" for c in line)
