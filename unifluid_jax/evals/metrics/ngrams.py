"""BLEU-4 and ROUGE-L of captions, as pycocoevalcap computes them.

Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE-L); pycocoevalcap
bleu/bleu_scorer.py and rouge/rouge.py, whose conventions this follows.

Tokens: `ptb`. Differs: a BLEU without any match at some order is 0, where the
reference adds 1e-15 to each count.
"""

import collections
import math
from collections.abc import Sequence

from unifluid_jax.evals.metrics import ptb
from unifluid_jax.evals.metrics.pairing import Id, References, Texts, paired

_ORDERS = 4
_BETA = 1.2  # weight of recall against precision in ROUGE-L

Tokens = Sequence[str]


def bleu4(
  references: References,
  predictions: Texts,
  tokenize: ptb.Tokenize = ptb.tokenize,
) -> float:
  """Corpus BLEU-4: clipped precisions, brevity against the closest length.

  Args:
    references: image id to its reference captions.
    predictions: image id to the predicted caption.
    tokenize: texts to their tokens.

  Returns:
    A score in [0, 1]; of the whole corpus, not a mean over images.

  Raises:
    ValueError: ids missing, unknown or given twice, as `pairing.paired`.
  """
  right, guessed = [0] * _ORDERS, [0] * _ORDERS
  ours = theirs = 0
  pairs = paired(references, predictions)
  for refs, candidate in ptb.tokenized(pairs, tokenize).values():
    ours += len(candidate)
    # Of two lengths equally near, the shorter.
    theirs += min((abs(len(r) - len(candidate)), len(r)) for r in refs)[1]
    for n in range(_ORDERS):
      counts = _ngrams(candidate, n + 1)
      most = collections.Counter()
      for ref in refs:
        most |= _ngrams(ref, n + 1)
      right[n] += (counts & most).total()
      guessed[n] += counts.total()
  if not all(right):
    return 0.0
  logs = [math.log(r / g) for r, g in zip(right, guessed, strict=True)]
  return math.exp(math.fsum(logs) / _ORDERS + min(0.0, 1 - theirs / ours))


def rouge_l(
  references: References,
  predictions: Texts,
  tokenize: ptb.Tokenize = ptb.tokenize,
) -> tuple[float, dict[Id, float]]:
  """ROUGE-L: the F-score of longest common subsequences, recall weighing more.

  Precision and recall each take their best reference, so that they may come
  from different ones.

  Args:
    references: image id to its reference captions.
    predictions: image id to the predicted caption.
    tokenize: texts to their tokens.

  Returns:
    The mean over images, in [0, 1], and each image's score.

  Raises:
    ValueError: ids missing, unknown or given twice, as `pairing.paired`.
  """
  pairs = paired(references, predictions)
  scores = {
    i: _rouge_l(candidate, refs)
    for i, (refs, candidate) in ptb.tokenized(pairs, tokenize).items()
  }
  return math.fsum(scores.values()) / len(scores), scores


def _rouge_l(candidate: Tokens, refs: Sequence[Tokens]) -> float:
  common = [(_common(candidate, r), len(r)) for r in refs]
  if not candidate or not any(c for c, _ in common):
    return 0.0
  precision = max(c for c, _ in common) / len(candidate)
  recall = max(c / n for c, n in common if n)
  squared = _BETA**2
  return (1 + squared) * precision * recall / (recall + squared * precision)


def _ngrams(tokens: Tokens, n: int) -> collections.Counter:
  return collections.Counter(
    tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)
  )


def _common(a: Tokens, b: Tokens) -> int:
  """Length of the longest common subsequence."""
  row = [0] * (len(b) + 1)
  for x in a:
    previous, row = row, [0]
    for j, y in enumerate(b):
      best = max(row[-1], previous[j + 1])
      row.append(previous[j] + 1 if x == y else best)
  return row[-1]
