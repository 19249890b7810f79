"""A transfer task as a source: its examples as records, its rules for turns.

Sources: PaliGemma's transfers (big_vision configs/proj/paligemma/transfers).
"""

import zlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data.records import Marks, Record
from unifluid_jax.data.sources.source import Source
from unifluid_jax.data.tasks import I2T
from unifluid_jax.data.transfers import tasks
from unifluid_jax.data.transfers.files import Example


class TaskSource(Source):
  """Splits of one task.

  Attributes:
    row: the task.
    examples: all of them, also those that cannot be trained on or scored.
    unanswered: how many those are.
  """

  def __init__(
    self, config: SourceConfig, root: str, key: str = "data.train.<name>"
  ):
    """Reads the files; images are read later.

    Args:
      config: `path` is the name of a row or of a fine-tuning run, `split` one
        of its splits, or several joined by "+".
      root: of all data sets; the row's folder lies below.
      key: the source's place in the configuration, for the log.

    Raises:
      FileNotFoundError: files are missing.
      ValueError: no such task or split, or files of another layout.
    """
    self.row = tasks.named(config.path)
    found = tasks.read(self.row, root, config.split)
    self.examples = found[: config.limit or None]
    answered = np.array([tasks.answered(self.row, e) for e in self.examples])
    self.unanswered = int((~answered).sum())
    if self.unanswered:
      logging.warning(
        "%s: %d of %d examples have no answer: neither trained on nor scored",
        key,
        self.unanswered,
        len(answered),
      )
    super().__init__(_Reader(self.row, self.examples, answered), 0)

  def draw(self, i: int, turn: int, rng: np.random.Generator) -> Record:
    """Example i with the one answer that its `turn`-th use trains on.

    Raises:
      BadRecord: an image file that cannot be read.
    """
    row, example = self.row, self.examples[i]
    order: Sequence[int] = ()
    if row.target == "letter":
      order = rng.permutation(len(example.choices)).tolist()
    texts = [t for t in tasks.targets(row, example, order) if t.strip()]
    if row.target == "random":
      text = texts[int(rng.integers(len(texts)))]
    else:
      text = in_turn(texts, example.id, turn)
    return _record(example, ((tasks.prompt(row, example, order), text),))


class _Reader:
  """Examples by index, as evaluation asks them: choices in their order."""

  bad: tuple[str, ...] = ()

  def __init__(
    self, row: tasks.Row, examples: Sequence[Example], answered: np.ndarray
  ):
    self._row, self._examples, self._answered = row, examples, answered

  def __len__(self) -> int:
    return len(self._examples)

  def mask(self, task: str) -> np.ndarray:
    return self._answered & (task == I2T)

  def __getitem__(self, i: int) -> Record:
    example, answers = self._examples[i], ("",)
    if self._answered[i]:
      answers = tasks.targets(self._row, example)
    prompt = tasks.prompt(self._row, example)
    return _record(example, tuple((prompt, answer) for answer in answers))


def in_turn(texts: Sequence[str], key: str, turn: int) -> str:
  """The text of a turn: each once in a fresh order before any comes again.

  Args:
    texts: at least one.
    key: orders differ from key to key.
    turn: from 0.
  """
  cycle, place = divmod(turn, len(texts))
  rng = np.random.default_rng([zlib.crc32(key.encode()), cycle])
  return texts[int(rng.permutation(len(texts))[place])]


def _record(example: Example, questions: tuple[tuple[str, str], ...]) -> Record:
  image, *more = example.load()
  return Record(
    example.id,
    image,
    questions=questions,
    kinds=(example.kind,) * len(questions),
    more=tuple(more),
    marks=Marks(example.turns, example.letters, example.box, example.font),
  )
