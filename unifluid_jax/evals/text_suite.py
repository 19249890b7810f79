"""Metrics of what the model says: captions and answers."""

import collections
from collections.abc import Sequence

from unifluid_jax.data import transforms
from unifluid_jax.evals import captions as caption_metrics
from unifluid_jax.evals import ptb
from unifluid_jax.evals import vqa as vqa_metrics
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject


def captions(subject: Subject, bench: Bench) -> Outcome:
  """CIDEr-D and exact match of captions, on every evaluation split."""
  values, floors, shown = {}, {}, []
  for split in bench.splits:
    records = [r for r in bench.records(split) if r.captions]
    images = [transforms.decode_image(r.image) for r in records]
    question = bench.config.data.caption_prefix
    predicted = subject.answers(images, [question] * len(images))
    references = {r.id: list(r.captions) for r in records}
    pairs = [(r.id, p) for r, p in zip(records, predicted, strict=True)]
    score, _ = caption_metrics.cider_d(references, pairs)
    name = bench.name("captions", split)
    values[f"{name}/exact"] = caption_metrics.exact_match(references, pairs)
    values[f"{name}/cider_d"] = score
    common, _ = collections.Counter(
      c for r in records for c in r.captions
    ).most_common(1)[0]
    same = [(r.id, common) for r in records]
    floors[f"{name}/exact"] = caption_metrics.exact_match(references, same)
    floors[f"{name}/cider_d"] = caption_metrics.cider_d(references, same)[0]
    shown += [
      Shown("caption", image, question, p, r.captions[0], p in r.captions)
      for image, p, r in zip(images[:8], predicted, records, strict=False)
    ]
  settings = {"tokenizer": ptb.chosen().name,
              "decode": bench.config.sampling.text}  # fmt: skip
  return Outcome(values, floors, settings, shown)


def vqa(subject: Subject, bench: Bench) -> Outcome:
  """Exact-match accuracy by kind; one question an image, kinds in turn."""
  split = bench.splits[0]
  asked = []
  for i, r in enumerate(bench.records(split)):
    if r.questions:
      j = i % len(r.questions)
      asked.append((r, *r.questions[j], r.kinds[j] if r.kinds else "all"))
  if not asked:
    raise ValueError(f"config.data.eval.{split} has no questions")
  images = [transforms.decode_image(r.image) for r, *_ in asked]
  questions = [q for _, q, _, _ in asked]
  truth = [a for _, _, a, _ in asked]
  kinds = [k for _, _, _, k in asked]
  predicted = subject.answers(images, questions)
  score = vqa_metrics.exact_accuracy(predicted, truth, kinds)
  blind = vqa_metrics.exact_accuracy(_blind(bench, questions), truth, kinds)
  values = {"vqa/all": score.overall}
  values |= {f"vqa/{k}": v for k, v in score.by_kind.items()}
  floors = {"vqa/all": blind.overall}
  floors |= {f"vqa/{k}": v for k, v in blind.by_kind.items()}
  shown = [
    Shown("answer", *row)
    for row in zip(
      images[:16], questions, predicted, truth,
      [p == t for p, t in zip(predicted, truth, strict=True)],
      strict=False,
    )
  ]  # fmt: skip
  return Outcome(values, floors, {"questions": len(asked)}, shown)


def _blind(bench: Bench, questions: Sequence[str]) -> list[str]:
  """The most frequent training answer to each question, image unseen."""
  counts = collections.defaultdict(collections.Counter)
  for record in bench.train_records(4096):
    for question, answer in record.questions:
      counts[question][answer] += 1
      counts[None][answer] += 1
  return [
    (counts.get(q) or counts[None]).most_common(1)[0][0] for q in questions
  ]
