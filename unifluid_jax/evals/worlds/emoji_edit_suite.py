"""Edits of the emoji world's pictures, whose true results exist.

"redraw in noto style" and "make the skin tone dark" lead to pictures that an
artist drew. How close a result comes is measured in pixels, and by whether the
true picture is found again by it, as for drawn pictures (`emoji_suite`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from unifluid_jax.data import transforms
from unifluid_jax.data.worlds import emoji
from unifluid_jax.data.worlds.emoji import Picture
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.worlds import emoji_album
from unifluid_jax.evals.worlds.emoji_album import Album, album_of
from unifluid_jax.evals.worlds.emoji_classifier import Judge, judge_of

KINDS = ("style", "tone")  # what an instruction changes
_SHOWN = 4  # of each kind and split


class Edit(NamedTuple):
  """An instruction, and the pictures before and after it."""

  instruction: str
  image: UInt8[np.ndarray, "H W 3"]  # as the model gets it
  source: UInt8[np.ndarray, "S S 3"]  # the same at the generated size
  target: UInt8[np.ndarray, "S S 3"]
  before: Picture
  after: Picture

  @property
  def kind(self) -> str:
    """One of KINDS."""
    return KINDS[0] if self.before.style != self.after.style else KINDS[1]


def edits(subject: Subject, bench: Bench) -> Outcome:
  """How close edited pictures come to the true ones, and by kind.

  "psnr": of each result against the true picture, in dB, averaged. "top1" and
  "top5": whether the true picture is found again among all concepts in its
  style. The floor returns the source unchanged. "_nearest" gives the training
  picture in the asked style that looks most like the source, other than the
  source itself.

  Raises:
    ValueError: data that are not of the emoji world, or without edits.
  """
  judge, album = judge_of(bench), album_of(bench)
  values, nearest, floors, shown, count = {}, {}, {}, [], 0
  for split in bench.splits:
    asked = edits_of(bench, split)
    results = subject.edits(
      [e.image for e in asked],
      [e.instruction for e in asked],
      bench.seeds(len(asked)),
    )
    found = [_looked_up(album, e) for e in asked]
    name = bench.name("emoji_edits", split)
    other = bench.name("emoji_edits_nearest", split)
    values |= scores(name, judge, asked, results)
    nearest |= scores(other, judge, asked, found)
    idle = [e.source for e in asked]
    floors |= scores(name, judge, asked, idle)
    floors |= scores(other, judge, asked, idle)
    count += len(asked)
    shown += _shown(split, asked, results, judge)
  settings = {
    "edits": count,
    "floor": "the source, unchanged",
    "nearest": "the most similar training picture in the asked style",
    **bench.sampled("images", "edits"),
    **bench.skipped(*bench.splits),
  }
  return Outcome(values | nearest, floors, settings, shown)


def edits_of(bench: Bench, split: str) -> list[Edit]:
  """The edits of a split.

  Raises:
    ValueError: data that are not of the emoji world, or without edits.
  """
  size, found = bench.config.model.image_size, []
  for record in bench.records(split):
    if record.edit is None or not record.edit_scene:
      continue
    before = emoji_album.picture_of(record, "emoji_edits")
    image = bench.decode(record.image)
    target = bench.decode(record.edit[1])
    found.append(
      Edit(
        record.edit[0],
        image,
        transforms.centre_crop_resize(image, size),
        transforms.centre_crop_resize(target, size),
        before,
        emoji.picture_from_json(record.edit_scene),
      )
    )
  if not found:
    raise ValueError(
      f"config.data.eval.{split} has no edits: leave 'emoji_edits' out of "
      "config.eval.metrics"
    )
  return found


def scores(
  name: str, judge: Judge, asked: Sequence[Edit], images: Any
) -> dict[str, float]:
  """All scores of results; first over all edits, then by kind that occurs.

  Args:
    name: of the metric.
    judge: of the data.
    asked: the edits.
    images: u8[H, W, 3] each, the results, at the generated size or, looked up
      in the album, at the album's.
  """
  size = asked[0].target.shape[0]
  sized = [transforms.centre_crop_resize(x, size) for x in images]
  ratios = np.array(
    [psnr(x, e.target) for x, e in zip(sized, asked, strict=True)]
  )
  ranks = judge.ranks(sized, [e.after for e in asked])
  each = {"psnr": ratios, "top1": ranks < 1, "top5": ranks < 5}
  kinds = np.array([e.kind for e in asked])
  found = {f"{name}/{key}": float(x.mean()) for key, x in each.items()}
  for kind in (k for k in KINDS if k in kinds):
    rows = kinds == kind
    found |= {f"{name}/{key}/{kind}": float(x[rows].mean())
              for key, x in each.items()}  # fmt: skip
  return found


def psnr(
  image: UInt8[np.ndarray, "H W 3"], truth: UInt8[np.ndarray, "H W 3"]
) -> float:
  """Peak signal-to-noise ratio, in dB."""
  error = np.mean((image.astype(np.float64) - truth) ** 2)
  return float(10 * np.log10(255**2 / (error + 1e-9)))


def _looked_up(album: Album, edit: Edit) -> UInt8[np.ndarray, "S S 3"]:
  """The most similar training picture in the asked style."""
  style, source = edit.after.style, edit.before
  return album.by_pixels(edit.source, style, other_than=source).image


def _shown(
  split: str, asked: Sequence[Edit], results: Any, judge: Judge
) -> list[Shown]:
  """The first of each kind."""
  right = judge.ranks(results, [e.after for e in asked]) == 0
  return [
    Shown("edit", results[i], asked[i].instruction, correct=bool(right[i]),
          source=asked[i].source, target=asked[i].target,
          task=f"{split}, {kind}".replace("_", " "))
    for kind in KINDS
    for i in [i for i, e in enumerate(asked) if e.kind == kind][:_SHOWN]
  ]  # fmt: skip
