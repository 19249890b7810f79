"""How each transfer task scores its answers, with ids that must all agree.

Sources: big_vision evaluators/proj/paligemma/transfers (vqa, vqav2, chartqa,
rsvqa, science_qa, tallyqa); VQA v2's official evaluation; Biten et al. 2019
(ANLS); Methani et al. 2020 (relaxed accuracy).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from unifluid_jax.evals.metrics import captions
from unifluid_jax.evals.metrics.pairing import (
  Id,
  References,
  Texts,
  by_text,
  few,
  paired,
)
from unifluid_jax.evals.metrics.vqa_text import NUMERALS, flat, normalise

Kinds = Mapping[Id, str]

_ANNOTATORS = 10  # of a VQA v2 question
_AGREE = 3  # annotators who make an answer right
_ANLS_LIMIT = 0.5
_RELAXED_ERROR = 0.05
_FAILED = ""  # the letter of an answer that states none


class Scored(NamedTuple):
  """What a metric found; papers print `value` times 100."""

  value: float  # what the task reports: in [0, 1], CIDEr-D in [0, 10]
  parts: dict[str, float]  # mean by kind, then what else the task logs
  scores: dict[Id, float]  # of each question or image


def exact(
  references: References, predictions: Texts, kinds: Kinds | None = None
) -> Scored:
  """Share of predictions equal to their one answer; case counts.

  GQA, AI2D, A-OKVQA's multiple choice, NLVR2 ("True" is not "true").

  Args:
    references: question id to its one answer, as a list of one.
    predictions: question id to the predicted answer.
    kinds: question id to its kind, for means by kind; None: none.

  Raises:
    ValueError: ids missing, unknown or given twice, in `kinds` too; a
      question with several answers.
  """

  def rule(prediction: str, answers: Sequence[str]) -> float:
    return float(prediction == answers[0])

  return _scored(references, predictions, kinds, rule, single=True)


def vqa_simple(
  references: References,
  predictions: Texts,
  kinds: Kinds | None = None,
  lower: bool = False,
) -> Scored:
  """PaliGemma's VQA accuracy: min(1, m / 3), m annotators who agree.

  OKVQA, A-OKVQA's direct answers, VizWiz. Nothing is normalised and no
  annotator left out: not comparable with `vqa_v2`.

  Args:
    references: question id to its annotators' answers.
    predictions: question id to the predicted answer.
    kinds: question id to its kind; None: none.
    lower: compare in lower case.

  Returns:
    The mean; parts["any"] is the share that some annotator gave.

  Raises:
    ValueError: as `exact`, but for several answers.
  """

  def rule(prediction: str, answers: Sequence[str]) -> float:
    if lower:
      prediction, answers = prediction.lower(), [a.lower() for a in answers]
    return min(1.0, answers.count(prediction) / _AGREE)

  found = _scored(references, predictions, kinds, rule)
  matched = sum(score > 0 for score in found.scores.values())
  found.parts["any"] = matched / len(found.scores)
  return found


def vqa_v2(
  references: References, predictions: Texts, kinds: Kinds | None = None
) -> Scored:
  """VQA v2's official accuracy: TextVQA and VQA v2.

  The mean of min(1, m / 3) over the ten ways to leave one annotator out.
  Texts are normalised only where the annotators do not all agree.

  Args:
    references: question id to its ten answers.
    predictions: question id to the predicted answer.
    kinds: question id to its kind (yes/no, number, other); None: none.

  Raises:
    ValueError: as `exact`; a question without exactly ten answers.
  """

  def rule(prediction: str, answers: Sequence[str]) -> float:
    texts = [flat(a) for a in (prediction, *answers)]
    if len(set(texts[1:])) > 1:
      texts = [normalise(t) for t in texts]
    hits = texts[1:].count(texts[0])
    # Leaving out one of the `hits` annotators who agree leaves one fewer.
    fewer, same = (min(1.0, max(0, n) / _AGREE) for n in (hits - 1, hits))
    return (hits * fewer + (_ANNOTATORS - hits) * same) / _ANNOTATORS

  references = dict(by_text(references, "references").values())
  wrong = [i for i, a in references.items() if len(a) != _ANNOTATORS]
  if wrong:
    raise ValueError(
      f"questions {few(wrong)} do not have {_ANNOTATORS} answers: score them "
      "with vqa_simple"
    )
  return _scored(references, predictions, kinds, rule)


def anls(
  references: References, predictions: Texts, kinds: Kinds | None = None
) -> Scored:
  """Average normalised Levenshtein similarity: DocVQA, InfoVQA, ST-VQA.

  One minus the edit distance over the longer length, 0 from a distance of
  one half on; the best answer counts, case does not. An empty answer is
  matched by an empty prediction alone.

  Args:
    references: question id to its accepted answers.
    predictions: question id to the predicted answer.
    kinds: question id to its kind; None: none.

  Raises:
    ValueError: as `exact`, but for several answers.
  """

  def rule(prediction: str, answers: Sequence[str]) -> float:
    return max(_similarity(a.lower(), prediction.lower()) for a in answers)

  return _scored(references, predictions, kinds, rule)


def relaxed(
  references: References, predictions: Texts, kinds: Kinds | None = None
) -> Scored:
  """ChartQA: numbers may be off by 5 % of the answer, all else is exact.

  Case does not count, "10%" is 0.1, "1,000" is no number, and an answer of
  zero must be met to the letter.

  Args:
    references: question id to its one answer, as a list of one.
    predictions: question id to the predicted answer.
    kinds: question id to its kind (human, augmented); None: none.

  Raises:
    ValueError: as `exact`.
  """

  def rule(prediction: str, answers: Sequence[str]) -> float:
    ours, theirs = prediction.lower(), answers[0].lower()
    number, target = _number(ours), _number(theirs)
    if number is None or not target:
      return float(ours == theirs)
    return float(abs(number - target) / abs(target) <= _RELAXED_ERROR)

  return _scored(references, predictions, kinds, rule, single=True)


def counts(
  references: References, predictions: Texts, kinds: Kinds | None = None
) -> Scored:
  """TallyQA and CountBenchQA: equal once a number word became its digits.

  "None" and "zero" to "twenty" are known; the whole answer must be the word.

  Differs: a count above 15 is scored, where the reference code stops.

  Args:
    references: question id to its one answer, as a list of one.
    predictions: question id to the predicted answer.
    kinds: question id to its kind (simple, complex); None: none.

  Raises:
    ValueError: as `exact`.
  """

  def rule(prediction: str, answers: Sequence[str]) -> float:
    ours, theirs = (
      NUMERALS.get(text.lower(), text) for text in (prediction, answers[0])
    )
    return float(ours == theirs)

  return _scored(references, predictions, kinds, rule, single=True)


def letters(
  references: References, predictions: Texts, kinds: Kinds | None = None
) -> Scored:
  """ScienceQA: the letter of a text that begins "The answer is B.".

  Args:
    references: question id to "The answer is X.", as a list of one.
    predictions: question id to the predicted text; case does not count.
    kinds: question id to its kind; None: none.

  Returns:
    The share of right letters; parts["parsefail"] is the share of
    predictions that state none. They count as wrong, unless the answer states
    none either: so the reference code compares.

  Raises:
    ValueError: as `exact`.
  """
  pairs = paired(references, predictions)

  def rule(prediction: str, answers: Sequence[str]) -> float:
    return float(_letter(prediction) == _letter(answers[0]))

  given = {i: a for i, (a, _) in pairs.items()}
  said = {i: p for i, (_, p) in pairs.items()}
  found = _scored(given, said, kinds, rule, single=True)
  failed = sum(not _letter(p) for p in said.values())
  found.parts["parsefail"] = failed / len(pairs)
  return found


def by_type(
  references: References, predictions: Texts, kinds: Kinds | None = None
) -> Scored:
  """RSVQA: the mean over question types of each type's accuracy.

  Every type weighs the same, however many questions it has. Case does not
  count.

  Args:
    references: question id to its one answer, as a list of one.
    predictions: question id to the predicted answer.
    kinds: question id to its type (comp, presence, rural_urban, ...).

  Returns:
    That mean; parts["overall"] is the plain mean over questions.

  Raises:
    ValueError: as `exact`; no `kinds`.
  """
  if kinds is None:
    raise ValueError("a score by type needs kinds: pass each question's type")

  def rule(prediction: str, answers: Sequence[str]) -> float:
    return float(prediction.lower() == answers[0].lower())

  overall, parts, scores = _scored(
    references, predictions, kinds, rule, single=True
  )
  value = math.fsum(parts.values()) / len(parts)
  return Scored(value, parts | {"overall": overall}, scores)


def cider_d(
  references: References, predictions: Texts, kinds: Kinds | None = None
) -> Scored:
  """CIDEr-D in the form of the other metrics; see `captions.cider_d`.

  Args:
    references: image id to its captions.
    predictions: image id to the predicted caption.
    kinds: image id to its kind; None: none.

  Raises:
    ValueError: as `exact`, but for several captions.
  """
  pairs = paired(references, predictions)
  value, scores = captions.cider_d(
    {i: list(given) for i, (given, _) in pairs.items()},
    {i: text for i, (_, text) in pairs.items()},
  )
  return Scored(value, _by_kind(scores, kinds), scores)


METRICS: Mapping[str, Callable[..., Scored]] = {
  "cider_d": cider_d,
  "exact": exact,
  "vqa_simple": vqa_simple,
  "vqa_v2": vqa_v2,
  "anls": anls,
  "relaxed": relaxed,
  "counts": counts,
  "letters": letters,
  "by_type": by_type,
}


def _scored(
  references: References,
  predictions: Texts,
  kinds: Kinds | None,
  rule: Callable[[str, Sequence[str]], float],
  single: bool = False,
) -> Scored:
  """A rule over all questions; `single`: each must have one answer."""
  pairs = paired(references, predictions)
  if single and (many := [i for i, (a, _) in pairs.items() if len(a) > 1]):
    raise ValueError(
      f"questions {few(many)} have several answers: this metric takes one; "
      "use vqa_simple, vqa_v2 or anls"
    )
  scores = {i: rule(text, given) for i, (given, text) in pairs.items()}
  mean = math.fsum(scores.values()) / len(scores)
  return Scored(mean, _by_kind(scores, kinds), scores)


def _by_kind(
  scores: Mapping[Id, float], kinds: Kinds | None
) -> dict[str, float]:
  """Mean score of each kind, kinds sorted."""
  if kinds is None:
    return {}
  named = by_text(kinds, "kinds")
  known = {str(i) for i in scores}
  if wrong := [i for i in named if i not in known]:
    raise ValueError(f"kinds of unknown ids {few(wrong)}: drop them")
  if wrong := [i for i in known if i not in named]:
    raise ValueError(f"no kind for ids {few(sorted(wrong))}: name it")
  groups = {kind: [] for kind in sorted({k for _, k in named.values()})}
  for i, score in scores.items():
    groups[named[str(i)][1]].append(score)
  return {k: math.fsum(group) / len(group) for k, group in groups.items()}


def _letter(text: str) -> str:
  """The letter a ScienceQA answer states, lower-cased."""
  match = re.match(r"the answer is ([a-z])\.", text.lower())
  return match[1] if match else _FAILED


def _number(text: str) -> float | None:
  """A plain float, or a percentage as a share."""
  try:
    if text.endswith("%"):
      return float(text.rstrip("%")) / 100
    return float(text)
  except ValueError:
    return None


def _similarity(answer: str, prediction: str) -> float:
  """ANLS of one answer."""
  if not answer:
    return float(not prediction)
  distance = _edits(answer, prediction) / max(len(answer), len(prediction))
  return 1 - distance if distance < _ANLS_LIMIT else 0.0


def _edits(a: str, b: str) -> int:
  """Insertions, deletions and replacements between two texts."""
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    previous, row = row, [i]
    for j, y in enumerate(b):
      swap = previous[j] + (x != y)
      row.append(min(swap, previous[j + 1] + 1, row[-1] + 1))
  return row[-1]
