"""Metrics of what the model says: captions and answers."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from unifluid_jax.data.records import Record
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.metrics import captions as caption_metrics
from unifluid_jax.evals.metrics import ptb
from unifluid_jax.evals.metrics import vqa as vqa_metrics

_SHOWN = 4  # captions of each part of the ranking, questions of each kind


def captions(subject: Subject, bench: Bench) -> Outcome:
  """CIDEr-D and exact match of captions, on every evaluation split.

  Raises:
    ValueError: a split without captions.
  """
  values, floors, shown, count = {}, {}, [], 0
  for split in bench.splits:
    records = [r for r in bench.records(split) if r.captions and r.image]
    if not records:
      raise ValueError(f"config.data.eval.{split} has no captions")
    count += len(records)
    images = [bench.decode(r.image) for r in records]
    question = bench.config.data.caption_prefix
    predicted = subject.answers(images, [question] * len(images))
    references = {r.id: list(r.captions) for r in records}
    pairs = [(r.id, p) for r, p in zip(records, predicted, strict=True)]
    score, each = caption_metrics.cider_d(references, pairs)
    name = bench.name("captions", split)
    values[f"{name}/exact"] = caption_metrics.exact_match(references, pairs)
    values[f"{name}/cider_d"] = score
    common, _ = collections.Counter(
      c for r in records for c in r.captions
    ).most_common(1)[0]
    same = [(r.id, common) for r in records]
    floors[f"{name}/exact"] = caption_metrics.exact_match(references, same)
    floors[f"{name}/cider_d"] = caption_metrics.cider_d(references, same)[0]
    ranked = _ranked(split, question, records, images, predicted, each)
    # Of a scene there is one right caption, of a photograph there are many.
    world = bool(bench.config.data.world)
    shown += ranked if world else [s._replace(correct=None) for s in ranked]
  settings = {
    "images": count,
    **bench.answered(),
    "tokenizer": ptb.chosen().name,
    **bench.skipped(*bench.splits),
  }
  return Outcome(values, floors, settings, shown)


def _ranked(
  split: str,
  question: str,
  records: Sequence[Record],
  images: Sequence[Any],
  predicted: Sequence[str],
  scores: Mapping[str, float],
) -> list[Shown]:
  """Captions of the lowest, middle and highest CIDEr-D, lowest first."""
  order = sorted(range(len(records)), key=lambda i: scores[records[i].id])
  parts = {"": order}
  if len(order) > 3 * _SHOWN:
    middle = (len(order) - _SHOWN) // 2
    parts = {
      "lowest": order[:_SHOWN],
      "middle": order[middle : middle + _SHOWN],
      "highest": order[-_SHOWN:],
    }
  return [
    Shown(
      "caption",
      images[i],
      question,
      predicted[i],
      correct=predicted[i] in records[i].captions,
      references=tuple(records[i].captions),
      score=scores[records[i].id],
      task=f"{split}, {part} of {len(order)}" if part else split,
    )
    for part, indices in parts.items()
    for i in indices
  ]


def vqa(subject: Subject, bench: Bench) -> Outcome:
  """Exact-match accuracy by kind; one question an image, kinds in turn."""
  split = bench.splits[0]
  asked = []
  for i, r in enumerate(bench.records(split)):
    if r.questions and r.image:
      j = i % len(r.questions)
      asked.append((r, *r.questions[j], r.kinds[j] if r.kinds else "all"))
  if not asked:
    raise ValueError(f"config.data.eval.{split} has no questions")
  images = [bench.decode(r.image) for r, *_ in asked]
  questions = [q for _, q, _, _ in asked]
  truth = [a for _, _, a, _ in asked]
  kinds = [k for _, _, _, k in asked]
  predicted = subject.answers(images, questions)
  # Tokenizers that fold case answer in lower case.
  score = vqa_metrics.exact_accuracy(predicted, truth, kinds, lower=True)
  blind = vqa_metrics.exact_accuracy(
    _blind(bench, questions), truth, kinds, lower=True
  )
  values = {"vqa/all": score.overall}
  values |= {f"vqa/{k}": v for k, v in score.by_kind.items()}
  floors = {"vqa/all": blind.overall}
  floors |= {f"vqa/{k}": v for k, v in blind.by_kind.items()}
  shown = [
    Shown("answer", images[i], questions[i], predicted[i], truth[i],
          bool(score.scores[i]), task=kind)
    for kind in score.by_kind
    for i in [i for i, k in enumerate(kinds) if k == kind][:_SHOWN]
  ]  # fmt: skip
  settings = {"questions": len(asked), **bench.answered(),
              **bench.skipped(split)}  # fmt: skip
  return Outcome(values, floors, settings, shown)


def _blind(bench: Bench, questions: Sequence[str]) -> list[str]:
  """The most frequent training answer to each question, image unseen.

  Empty where training has no questions.
  Case and the mark at the end do not tell questions apart.
  """
  counts = collections.defaultdict(collections.Counter)
  for record in bench.train_records(4096):
    for question, answer in record.questions:
      counts[_folded(question)][answer] += 1
      counts[None][answer] += 1
  if not counts[None]:
    return [""] * len(questions)
  return [
    (counts.get(_folded(q)) or counts[None]).most_common(1)[0][0]
    for q in questions
  ]


def _folded(question: str) -> str:
  return question.casefold().rstrip(" .?")
