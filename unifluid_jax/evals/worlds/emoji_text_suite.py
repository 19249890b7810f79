"""What a model says of the emoji world's pictures: captions and answers.

Every score stands for pairs of concept and style that training has seen (the
first evaluation split) and for pairs that it has not (the others). Two
baselines: chance, as the floor of each score, and the training picture that
looks most alike ("_nearest"), which has learnt everything by heart.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unifluid_jax.data.records import Record
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.metrics import captions as caption_metrics
from unifluid_jax.evals.metrics import ptb
from unifluid_jax.evals.metrics import vqa as vqa_metrics
from unifluid_jax.evals.worlds import emoji_album
from unifluid_jax.evals.worlds.emoji_album import (
  Album,
  ConceptReader,
  Entry,
  album_of,
)

_SHOWN = 6  # captions of each split, answers of each kind
_ALL = "all"


def captions(subject: Subject, bench: Bench) -> Outcome:
  """How much of a picture its caption tells.

  "exact": one of the reference captions, case aside. "concept": it names the
  right concept, see `ConceptReader`; "style" likewise. "cider_d" as for any
  captions, within the split. The floors are those of the caption of a training
  picture chosen at random: expected shares, and one draw for "cider_d".

  Raises:
    ValueError: data that are not of the emoji world, or without captions.
  """
  album = album_of(bench)
  reader = _reader(album)
  values, nearest, floors, shown, count = {}, {}, {}, [], 0
  for split in bench.splits:
    records = [r for r in bench.records(split) if r.captions]
    if not records:
      raise ValueError(
        f"config.data.eval.{split} has no captions: leave 'emoji_captions' "
        "out of config.eval.metrics"
      )
    images = [bench.decode(r.image) for r in records]
    question = bench.config.data.caption_prefix
    said = subject.answers(images, [question] * len(images))
    found = [album.by_pixels(image).caption for image in images]
    scores, right = caption_scores(reader, records, said)
    looked_up, _ = caption_scores(reader, records, found)
    chance = chance_captions(album, reader, records)
    name = bench.name("emoji_captions", split)
    other = bench.name("emoji_captions_nearest", split)
    for key, score in scores.items():
      values[f"{name}/{key}"] = score
      nearest[f"{other}/{key}"] = looked_up[key]
      floors |= {f"{name}/{key}": chance[key], f"{other}/{key}": chance[key]}
    count += len(records)
    shown += [
      Shown("caption", images[i], question, said[i], correct=right[i],
            references=tuple(records[i].captions), task=split)
      for i in range(min(_SHOWN, len(records)))
    ]  # fmt: skip
  settings = {
    "images": count,
    "floor": "a random training caption",
    "nearest": "caption of the training picture nearest in 16 x 16 pixels",
    **bench.answered(),
    "tokenizer": ptb.chosen().name,
    **bench.skipped(*bench.splits),
  }
  return Outcome(values | nearest, floors, settings, shown)


def caption_scores(
  reader: ConceptReader, records: Sequence[Record], said: Sequence[str]
) -> tuple[dict[str, float], list[bool]]:
  """Scores of a split's captions, and which are exact."""
  references = {r.id: list(r.captions) for r in records}
  pairs = [(r.id, text) for r, text in zip(records, said, strict=True)]
  exact = [
    bool(caption_metrics.exact_match({r.id: r.captions}, [(r.id, text)]))
    for r, text in zip(records, said, strict=True)
  ]
  pictures = [emoji_album.picture_of(r, "emoji_captions") for r in records]
  concepts = [
    reader.concept(text) == p.concept
    for text, p in zip(said, pictures, strict=True)
  ]
  styles = [
    reader.style(text) == p.style
    for text, p in zip(said, pictures, strict=True)
  ]
  scores = {
    "exact": float(np.mean(exact)),
    "concept": float(np.mean(concepts)),
    "style": float(np.mean(styles)),
    "cider_d": caption_metrics.cider_d(references, pairs)[0],
  }
  return scores, exact


def chance_captions(
  album: Album, reader: ConceptReader, records: Sequence[Record]
) -> dict[str, float]:
  """Scores of captions of training pictures chosen at random."""
  pool = [e.caption for e in album.trained]
  shares = {
    "concept": collections.Counter(map(reader.concept, pool)),
    "style": collections.Counter(map(reader.style, pool)),
    "exact": collections.Counter(_plain(text) for text in pool),
  }
  expected = collections.defaultdict(float)
  for record in records:
    picture = emoji_album.picture_of(record, "emoji_captions")
    expected["concept"] += shares["concept"][picture.concept]
    expected["style"] += shares["style"][picture.style]
    expected["exact"] += sum(
      shares["exact"][text] for text in set(map(_plain, record.captions))
    )
  rng = np.random.default_rng(0)
  drawn = [pool[i] for i in rng.integers(len(pool), size=len(records))]
  found = {k: n / len(pool) / len(records) for k, n in expected.items()}
  return found | {
    "cider_d": caption_scores(reader, records, drawn)[0]["cider_d"]
  }


def _plain(text: str) -> str:
  return " ".join(text.lower().split())


def _reader(album: Album) -> ConceptReader:
  pictures = [e.picture for e in album.entries]
  return ConceptReader(
    [p.concept for p in pictures], [p.style for p in pictures]
  )


# ---------------------------------------------------------------------- answers


class Asked(NamedTuple):
  """A question about the picture of a record."""

  record: Record
  question: str
  answer: str
  kind: str


def vqa(subject: Subject, bench: Bench) -> Outcome:
  """Exact answers, case aside, over all questions and by kind.

  The floors are the most frequent training answer to the same question, or
  else to questions of its kind, image unseen. "_nearest" gives the answer that
  belongs to the training picture that looks most alike.

  Raises:
    ValueError: data that are not of the emoji world, or without questions.
  """
  album = album_of(bench)
  blind = Blind(album)
  values, nearest, floors, shown, count = {}, {}, {}, [], 0
  for split in bench.splits:
    asked = questions(bench.records(split), bench.config.eval.examples)
    if not asked:
      raise ValueError(
        f"config.data.eval.{split} has no questions: leave 'emoji_vqa' out of "
        "config.eval.metrics"
      )
    images = [bench.decode(a.record.image) for a in asked]
    said = subject.answers(images, [a.question for a in asked])
    guessed = [blind.answer(a) for a in asked]
    found = [
      blind.answer(a, album.by_pixels(image))
      for a, image in zip(asked, images, strict=True)
    ]
    name, other = bench.name("emoji_vqa", split), "emoji_vqa_nearest"
    other = bench.name(other, split)
    scores, right = _accuracy(asked, said)
    looked_up, chance = _accuracy(asked, found)[0], _accuracy(asked, guessed)[0]
    for key, score in scores.items():
      values[f"{name}/{key}"] = score
      nearest[f"{other}/{key}"] = looked_up[key]
      floors |= {f"{name}/{key}": chance[key], f"{other}/{key}": chance[key]}
    count += len(asked)
    if split == bench.splits[0]:
      shown = _shown(asked, images, said, right)
  settings = {
    "questions": count,
    "floor": "the most frequent training answer",
    "nearest": "answer for the training picture nearest in 16 x 16 pixels",
    **bench.answered(),
    **bench.skipped(*bench.splits),
  }
  return Outcome(values | nearest, floors, settings, shown)


def questions(records: Sequence[Record], most: int) -> list[Asked]:
  """Questions of a split: one per picture, then a second one, and so on.

  Record i begins with its question i, so that all kinds occur early.

  Args:
    records: of the split.
    most: questions; fewer where there are not as many.
  """
  rounds = max((len(r.questions) for r in records), default=0)
  found = []
  for turn in range(rounds):
    for i, record in enumerate(records):
      emoji_album.picture_of(record, "emoji_vqa")
      if turn < len(record.questions):
        j = (i + turn) % len(record.questions)
        kind = record.kinds[j] if record.kinds else _ALL
        found.append(Asked(record, *record.questions[j], kind))
  return found[:most]


class Blind:
  """Answers without looking, or by looking at another picture."""

  def __init__(self, album: Album):
    """Counts the training answers."""
    self._counts = collections.defaultdict(collections.Counter)
    for entry in album.trained:
      for (question, answer), kind in _with_kinds(entry):
        for key in (("question", _folded(question)), ("kind", kind), None):
          self._counts[key][answer] += 1

  def answer(self, asked: Asked, entry: Entry | None = None) -> str:
    """The likeliest answer.

    Args:
      asked: the question; its own picture is not looked at.
      entry: the picture that is: its answer to the same question, or to one
        of the same kind, goes first.
    """
    if entry is not None:
      pairs = [
        (_folded(q) == _folded(asked.question), kind == asked.kind, answer)
        for (q, answer), kind in _with_kinds(entry)
      ]
      for place in (0, 1):
        if found := [pair[2] for pair in pairs if pair[place]]:
          return found[0]
    for key in (("question", _folded(asked.question)), ("kind", asked.kind)):
      if counts := self._counts.get(key):
        return counts.most_common(1)[0][0]
    return self._counts[None].most_common(1)[0][0] if self._counts else ""


def _with_kinds(entry: Entry) -> Any:
  """((question, answer), kind) of a picture."""
  kinds = entry.kinds or (_ALL,) * len(entry.questions)
  return zip(entry.questions, kinds, strict=True)


def _folded(question: str) -> str:
  return question.casefold().rstrip(" .?")


def _accuracy(
  asked: Sequence[Asked], said: Sequence[str]
) -> tuple[Mapping[str, float], Sequence[float]]:
  """Shares over all questions and of each kind; each question's score."""
  score = vqa_metrics.exact_accuracy(
    said, [a.answer for a in asked], [a.kind for a in asked], lower=True
  )
  return {_ALL: score.overall} | score.by_kind, score.scores


def _shown(
  asked: Sequence[Asked],
  images: Any,
  said: Sequence[str],
  right: Sequence[float],
) -> list[Shown]:
  """The first questions of each kind."""
  kinds = [a.kind for a in asked]
  return [
    Shown("answer", images[i], asked[i].question, said[i], asked[i].answer,
          bool(right[i]), task=kind)
    for kind in sorted(set(kinds))
    for i in [i for i, k in enumerate(kinds) if k == kind][:_SHOWN]
  ]  # fmt: skip
