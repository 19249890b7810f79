"""Accuracy of short answers: exact match, by kind of question."""

from collections.abc import Sequence
from typing import NamedTuple


class Accuracy(NamedTuple):
  """Scores of a set of questions, all in [0, 1]."""

  overall: float  # mean over questions
  by_kind: dict[str, float]  # mean over each kind's questions, kinds sorted
  scores: tuple[float, ...]  # per question, in the order given


def exact_accuracy(
  predictions: Sequence[str],
  answers: Sequence[str],
  kinds: Sequence[str] | None = None,
  lower: bool = False,
) -> Accuracy:
  """Share of predictions equal to their one answer.

  Args:
    predictions: predicted answers.
    answers: true answers, in the same order.
    kinds: kind of each question (count, colour, ...); None: no breakdown.
    lower: compare in lower case.

  Returns:
    Accuracy overall, by kind and per question.

  Raises:
    ValueError: no questions, or sequences of different lengths.
  """
  if not predictions:
    raise ValueError("no predictions: pass at least one question")
  lengths = {"predictions": len(predictions), "answers": len(answers)}
  if kinds is not None:
    lengths["kinds"] = len(kinds)
  if len(set(lengths.values())) > 1:
    raise ValueError(f"sequences must be equally long, not {lengths}")
  pairs = zip(predictions, answers, strict=True)
  if lower:
    pairs = ((p.lower(), a.lower()) for p, a in pairs)
  scores = [float(p == a) for p, a in pairs]
  groups = {kind: [] for kind in sorted(set(kinds or ()))}
  for kind, score in zip(kinds or (), scores, strict=False):
    groups[kind].append(score)
  return Accuracy(
    sum(scores) / len(scores),
    {kind: sum(group) / len(group) for kind, group in groups.items()},
    tuple(scores),
  )
