"""Accuracy of short answers: exact match, and agreement with annotators.

Source: big_vision evaluators/proj/paligemma/transfers/vqa.py (the "simple"
rule of OKVQA, VizWiz, GQA and others; no leave-one-out, no normalisation but
optional lower-casing).
"""

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
  _check(predictions, answers, kinds)
  return _summary(
    [
      float(_cased(p, lower) == _cased(a, lower))
      for p, a in zip(predictions, answers, strict=True)
    ],
    kinds,
  )


def multi_answer_accuracy(
  predictions: Sequence[str],
  answers: Sequence[Sequence[str]],
  kinds: Sequence[str] | None = None,
  lower: bool = False,
) -> Accuracy:
  """Mean of min(1, m / 3), m the number of annotators who gave the prediction.

  Differs: from the official VQAv2 accuracy, which averages over leave-one-out
  subsets and normalises punctuation; the two are not comparable.

  Args:
    predictions: predicted answers.
    answers: per question the answers of all its annotators.
    kinds: kind of each question; None: no breakdown.
    lower: compare in lower case.

  Returns:
    Accuracy overall, by kind and per question.

  Raises:
    ValueError: no questions, sequences of different lengths, or a question
      with one string where a list of answers belongs.
  """
  _check(predictions, answers, kinds)
  scores = []
  for row, (prediction, given) in enumerate(
    zip(predictions, answers, strict=True)
  ):
    if isinstance(given, str) or not given:
      raise ValueError(
        f"question {row} has answers {given!r}: pass a non-empty list, or "
        "use exact_accuracy for single answers"
      )
    ours = _cased(prediction, lower)
    matches = sum(_cased(answer, lower) == ours for answer in given)
    scores.append(min(1.0, matches / 3))
  return _summary(scores, kinds)


def _cased(text: str, lower: bool) -> str:
  return text.lower() if lower else text


def _check(predictions: Sequence, answers: Sequence, kinds: Sequence | None):
  if not predictions:
    raise ValueError("no predictions: pass at least one question")
  lengths = {"predictions": len(predictions), "answers": len(answers)}
  if kinds is not None:
    lengths["kinds"] = len(kinds)
  if len(set(lengths.values())) > 1:
    raise ValueError(f"sequences must be equally long, not {lengths}")


def _summary(scores: list[float], kinds: Sequence[str] | None) -> Accuracy:
  groups = {kind: [] for kind in sorted(set(kinds or ()))}
  for kind, score in zip(kinds or (), scores, strict=False):
    groups[kind].append(score)
  return Accuracy(
    sum(scores) / len(scores),
    {kind: sum(group) / len(group) for kind, group in groups.items()},
    tuple(scores),
  )
