"""Caption scores: CIDEr-D as pycocoevalcap computes it, and exact match.

Sources: Vedantam et al. 2015 (CIDEr-D); pycocoevalcap cider/cider_scorer.py,
whose behaviour this follows. Tokens: `ptb`.
"""

import collections
import math
from collections.abc import Mapping, Sequence

from unifluid_jax.evals.metrics import ptb
from unifluid_jax.evals.metrics.pairing import Id, Texts, paired

_ORDERS = 4
_SIGMA = 6.0


def cider_d(
  references: Mapping[Id, Sequence[str]],
  predictions: Texts,
  tokenize: ptb.Tokenize = ptb.tokenize,
) -> tuple[float, dict[Id, float]]:
  """CIDEr-D of one prediction per image; papers print it times 100.

  Document frequencies come from these references, so a score belongs to its
  split: on few images idf degenerates, and one image alone always scores 0.

  Args:
    references: image id to its reference captions, at least one each.
    predictions: image id to the predicted caption, as mapping or as pairs.
      Ids match by their text: 7 and "7" are the same image.
    tokenize: texts to their tokens.

  Returns:
    The mean over images (0 to 10) and each image's own score, by the ids of
    `references`.

  Raises:
    ValueError: ids that are missing, unknown or given twice, and images
      without a reference; the message names them.
  """
  tokens = ptb.tokenized(paired(references, predictions), tokenize)
  grams = {
    i: ([_ngrams(r) for r in refs], _ngrams(prediction))
    for i, (refs, prediction) in tokens.items()
  }
  frequency = collections.Counter(
    gram for refs, _ in grams.values() for gram in set().union(*refs)
  )
  log_images = math.log(len(grams))

  def vector(counts: collections.Counter) -> "_Vector":
    return _weigh(counts, frequency, log_images)

  scores = {}
  for i, (refs, prediction) in grams.items():
    candidate = vector(prediction)
    similarity = [_similarity(candidate, vector(r)) for r in refs]
    scores[i] = 10.0 * math.fsum(similarity) / len(refs)
  return math.fsum(scores.values()) / len(scores), scores


def exact_match(
  references: Mapping[Id, Sequence[str]], predictions: Texts
) -> float:
  """Share of images whose prediction is one of their references.

  Case and runs of white space do not count.

  Args:
    references: image id to its reference captions.
    predictions: image id to the predicted caption, as for `cider_d`.

  Returns:
    A share in [0, 1].

  Raises:
    ValueError: as `cider_d`.
  """
  pairs = paired(references, predictions).values()
  hits = [_plain(p) in {_plain(r) for r in refs} for refs, p in pairs]
  return sum(hits) / len(hits)


class _Vector:
  """tf-idf weights of one caption, per n-gram order, with its length."""

  def __init__(self, weights: list[dict], length: int):
    self.weights = weights
    self.norms = [
      math.sqrt(math.fsum(w * w for w in order.values())) for order in weights
    ]
    self.length = length


def _ngrams(tokens: list[str]) -> collections.Counter:
  return collections.Counter(
    tuple(tokens[i : i + n])
    for n in range(1, _ORDERS + 1)
    for i in range(len(tokens) - n + 1)
  )


def _weigh(
  counts: collections.Counter, frequency: Mapping, log_images: float
) -> _Vector:
  weights = [{} for _ in range(_ORDERS)]
  for gram, count in counts.items():
    idf = log_images - math.log(max(1, frequency.get(gram, 0)))
    weights[len(gram) - 1][gram] = count * idf
  # The reference code counts bigrams instead: one fewer in every caption but
  # the empty one, whose similarity is 0 in any case.
  length = sum(count for gram, count in counts.items() if len(gram) == 1)
  return _Vector(weights, length)


def _similarity(candidate: _Vector, reference: _Vector) -> float:
  """Clipped cosine averaged over n-gram orders, times the length penalty."""
  total = 0.0
  for n in range(_ORDERS):
    norm = candidate.norms[n] * reference.norms[n]
    if norm == 0:
      continue
    theirs = reference.weights[n]
    total += (
      math.fsum(
        min(w, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0)
        for gram, w in candidate.weights[n].items()
      )
      / norm
    )
  gap = candidate.length - reference.length
  return total / _ORDERS * math.exp(-(gap**2) / (2 * _SIGMA**2))


def _plain(text: str) -> str:
  return " ".join(text.lower().split())
