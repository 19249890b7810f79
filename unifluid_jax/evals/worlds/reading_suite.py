"""Whether a model reads small words in wide, tall and large scenes.

UniToken (arXiv 2504.04423) table 5 has a column of the same kind, text reading.
"""

from collections.abc import Sequence

import numpy as np

from unifluid_jax.data.worlds import signs
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject

# Words that training shows, on other signs, and words that it never shows.
_SPLITS = ("validation", "held_out")
_SHOWN = 3  # signs of each size


def reading(subject: Subject, bench: Bench) -> Outcome:
  """Shares of words and of letters that are read, by split and by size.

  "exact": whole words; "letters": see `letter_share`. The floor guesses each
  letter alike.

  Args:
    subject: the model.
    bench: config.eval.examples signs of each split are drawn, always the same.
  """
  values, shown = {}, []
  count = bench.config.eval.examples
  for split in _SPLITS:
    drawn = [
      signs.sample_sign(np.random.default_rng([0, i]), split)
      for i in range(count)
    ]
    images = [signs.draw(sign) for sign in drawn]
    said = subject.answers(images, [signs.QUESTION] * count)
    shares = [
      letter_share(text, sign.word)
      for text, sign in zip(said, drawn, strict=True)
    ]
    right = np.equal(shares, 1)
    name = "reading" if split == _SPLITS[0] else f"reading_{split}"
    values[f"{name}/exact"] = float(right.mean())
    values[f"{name}/letters"] = float(np.mean(shares))
    if split == _SPLITS[0]:
      values |= _by_size(drawn, right)
      shown = _examples(drawn, images, said, right)
  guess = 1 / len(signs.LETTERS)
  floors = {
    name: guess if name.endswith("/letters") else guess**signs.LENGTH
    for name in values
  }
  settings = {"signs": count * len(_SPLITS), **bench.answered()}
  return Outcome(values, floors, settings, shown)


def letters(text: str) -> str:
  """An answer's letters; case and spaces do not count."""
  return "".join(text.lower().split())


def letter_share(text: str, word: str) -> float:
  """Share of a word's letters that an answer has in their places.

  Of the longer of the two: letters too many count as wrong ones.
  """
  read = letters(text)
  same = sum(a == b for a, b in zip(read, word, strict=False))
  return same / max(len(read), len(word))


def _by_size(
  drawn: Sequence[signs.Sign], right: np.ndarray
) -> dict[str, float]:
  """Share of whole words in scenes of each size that was drawn."""
  kinds = np.asarray([sign.kind for sign in drawn])
  return {
    f"reading/{kind}": float(right[kinds == kind].mean())
    for kind in map(signs.kind_of, signs.SIZES)
    if kind in kinds
  }


def _examples(
  drawn: Sequence[signs.Sign],
  images: Sequence[np.ndarray],
  said: Sequence[str],
  right: np.ndarray,
) -> list[Shown]:
  """The first signs of each size, for the report."""
  return [
    Shown("answer", images[i], signs.QUESTION, said[i],
          signs.spelled(drawn[i].word), bool(right[i]),
          task=f"reading {signs.kind_of(size)}")
    for size in signs.SIZES
    for i in [i for i, s in enumerate(drawn) if s.size == size][:_SHOWN]
  ]  # fmt: skip
