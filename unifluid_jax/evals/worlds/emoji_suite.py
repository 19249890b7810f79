"""What a model draws of the emoji world: is it right, does it look real.

Every score stands for pairs of concept and style that training has seen (the
first evaluation split) and for pairs that it has not (the others), whose true
pictures exist. `emoji_classifier` says how pictures are judged. Two baselines:
chance, or what knows nothing, as the floor of each score, and a true training
picture that is looked up ("_nearest"): on seen pairs it is the right one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from unifluid_jax.data.worlds.emoji import Picture
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.metrics import fid
from unifluid_jax.evals.worlds import emoji_album
from unifluid_jax.evals.worlds.emoji_album import album_of
from unifluid_jax.evals.worlds.emoji_classifier import Judge, judge_of

_SHOWN = 12  # drawn pictures of each split
_JUDGE = "classifier of concept and style, trained on true training pictures"
_BY_WORDS = "the training picture whose prompt is nearest by words"


class Prompts(NamedTuple):
  """What a split asks to draw."""

  pictures: tuple[Picture, ...]
  texts: tuple[str, ...]
  truth: UInt8[np.ndarray, "n H W 3"]  # at the generated size


def prompts_of(bench: Bench, split: str, metric: str) -> Prompts:
  """The first prompt of each record of a split, and its true picture.

  Raises:
    ValueError: data that are not of the emoji world, or without prompts.
  """
  records, images = bench.records(split), bench.pixels(split)
  rows = [i for i, r in enumerate(records) if r.prompts]
  if not rows:
    raise ValueError(
      f"config.data.eval.{split} has no prompts: leave {metric!r} out of "
      "config.eval.metrics"
    )
  return Prompts(
    tuple(emoji_album.picture_of(records[i], metric) for i in rows),
    tuple(records[i].prompts[0] for i in rows),
    images[rows],
  )


def drawn(subject: Subject, bench: Bench) -> Outcome:
  """Whether the right picture is found again by what was drawn.

  "top1": among the true pictures of all concepts in the asked style, that of
  the asked concept is the nearest; "top5": one of the five nearest. "style":
  among the true pictures of the asked concept in all styles, that of the asked
  style is the nearest. "real_top1" and the like are what true pictures score,
  from another view (`emoji_classifier.views`): of held-out pairs, which the
  classifier has not seen, they say how far it can be trusted. "real_named": the
  share of true pictures that the classifier calls by their concept; of held-out
  pairs, what a network trained for nothing else makes of an unseen drawing.

  Raises:
    ValueError: data that are not of the emoji world, or without prompts.
  """
  judge, album = judge_of(bench), album_of(bench)
  values, nearest, floors, shown, count = {}, {}, {}, [], 0
  for split in bench.splits:
    asked = prompts_of(bench, split, "emoji_drawn")
    seeds = bench.seeds(len(asked.texts))
    images = subject.images(asked.texts, seeds)
    found = [album.by_words(text).image for text in asked.texts]
    scores = retrieval(judge, images, asked.pictures)
    real = retrieval(judge, judge.other_views(asked.truth), asked.pictures)
    real["named"] = float(judge.named(asked.truth, asked.pictures).mean())
    looked_up = retrieval(judge, found, asked.pictures)
    chance = chance_retrieval(judge, asked.pictures)
    name = bench.name("emoji_drawn", split)
    other = bench.name("emoji_drawn_nearest", split)
    values |= {f"{name}/{key}": score for key, score in scores.items()}
    values |= {f"{name}/real_{key}": score for key, score in real.items()}
    nearest |= {f"{other}/{key}": score for key, score in looked_up.items()}
    for key, score in chance.items():
      floors |= {f"{name}/{key}": score, f"{other}/{key}": score}
    right = judge.ranks(images, asked.pictures) == 0
    count += len(asked.texts)
    shown += [
      Shown("generated", images[i], asked.texts[i], correct=bool(right[i]),
            target=asked.truth[i], task=split.replace("_", " "), seed=seeds[i])
      for i in range(min(_SHOWN, len(asked.texts)))
    ]  # fmt: skip
  settings = {
    "images": count,
    "judge": _JUDGE,
    "nearest": _BY_WORDS,
    **bench.sampled("images"),
    **bench.skipped(*bench.splits),
  }
  return Outcome(values | nearest, floors, settings, shown)


def retrieval(
  judge: Judge, images: Any, asked: Sequence[Picture]
) -> dict[str, float]:
  """Shares of images by which the asked picture is found again."""
  ranks = judge.ranks(images, asked)
  return {
    "top1": float((ranks < 1).mean()),
    "top5": float((ranks < 5).mean()),
    "style": float(judge.in_style(images, asked).mean()),
  }


def chance_retrieval(
  judge: Judge, asked: Sequence[Picture]
) -> dict[str, float]:
  """What choosing a concept, or a style, at random scores on average."""
  choices = [judge.choices(picture) for picture in asked]
  concepts, styles = np.array(choices, float).T
  return {
    "top1": float(np.mean(1 / concepts)),
    "top5": float(np.mean(np.minimum(5 / concepts, 1))),
    "style": float(np.mean(1 / styles)),
  }


def frechet(subject: Subject, bench: Bench) -> Outcome:
  """Fréchet distance of drawn pictures to all true ones.

  "real" is the distance of the true pictures of the same prompts, what drawing
  them exactly would score; "ratio" is "generated" over it, 1 is ideal. The
  floor draws the mean of all training pictures, whatever it is asked.

  It says whether drawn pictures look like emoji at all, not whether they are
  what was asked for: any true pictures score well.

  Raises:
    ValueError: data that are not of the emoji world, or without prompts.
  """
  judge, album = judge_of(bench), album_of(bench)
  reference = fid.statistics(judge.true_features)

  def distance(images):
    found = fid.statistics(judge.features(images))
    return fid.distance(reference, found)

  mean = np.mean([e.image for e in album.trained], axis=0)
  mean = mean.round().astype(np.uint8)
  values, nearest, floors, warnings, count = {}, {}, {}, [], 0
  for split in bench.splits:
    asked = prompts_of(bench, split, "emoji_fid")
    size = len(asked.texts)
    images = subject.images(asked.texts, bench.seeds(size))
    found = [album.by_words(text).image for text in asked.texts]
    real = distance(asked.truth)
    name = bench.name("emoji_fid", split)
    other = bench.name("emoji_fid_nearest", split)
    values |= _relative(name, distance(images), real)
    values[f"{name}/real"] = real.value
    nearest |= _relative(other, distance(found), real)
    blank = distance([mean] * size)
    floors |= _relative(name, blank, real) | _relative(other, blank, real)
    warnings += [f"{split}: {real.warning}"] if real.warning else []
    count += size
  settings = {
    "images": count,
    "features": _JUDGE,
    "floor": "the mean training picture",
    "nearest": _BY_WORDS,
    "warning": "; ".join(warnings),
    **bench.sampled("images"),
    **bench.skipped(*bench.splits),
  }
  return Outcome(values | nearest, floors, settings)


def _relative(
  name: str, found: fid.Distance, real: fid.Distance
) -> dict[str, float]:
  """A distance, and how many times that of true pictures it is."""
  ratio = found.value / max(real.value, 1e-9)
  return {f"{name}/generated": found.value, f"{name}/ratio": ratio}
