"""Fréchet Inception distances as papers report them, from files to a result.

Each function returns what is printed and stored; nothing is hidden in it.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from unifluid_jax.evals.published import drawn_images, image_fid, image_sets
from unifluid_jax.evals.published.drawn_images import Painter
from unifluid_jax.evals.published.image_fid import Features, Measured
from unifluid_jax.evals.published.image_sets import ImageSet
from unifluid_jax.evals.published.published_prompts import PromptSet

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Against:
  """What generated images are compared with.

  Attributes:
    path: what `image_sets.open_set` reads, or an .npz of `image_fid.save`;
      empty: the prompts' own images.
    split: of a prepared data set.
    save: .npz that keeps the reference's statistics; empty: none does.
    crop: side of the central squares of both sets; 0: whole images.
  """

  path: str = ""
  split: str = "train"
  save: str = ""
  crop: int = 0


@dataclasses.dataclass(frozen=True)
class Run:
  """A model that draws, and where.

  Attributes:
    painter: the model.
    folder: of its images.
    rows: images at once.
    made_by: run, step and sampling options, as JSON.
  """

  painter: Painter
  folder: str
  rows: int
  made_by: Mapping[str, Any]


def folder_fid(
  net: Features, images: str, against: Against, say: Say
) -> dict[str, Any]:
  """Distance of the images at a path to a reference.

  Raises:
    ValueError: no reference, or images that are not all drawn yet.
  """
  if not against.path:
    raise ValueError("--reference is missing: what should it be compared with?")
  drawn_images.check_complete(images)
  generated = image_sets.open_set(images, against.split)
  real = _reference(net, against, None, say)
  made = image_fid.measure(net, generated, against.crop, say)
  result = {"metric": "fid", **image_fid.compare(real, made)}
  say(image_fid.line("fid", result))
  return result


def coco_fid(
  net: Features, run: Run, prompts: PromptSet, against: Against, say: Say
) -> dict[str, Any]:
  """Draws captions and compares: COCO-30K with 30,000 of them."""
  real = _reference(net, against, prompts, say)
  _draw(run, prompts, say)
  made = image_fid.measure(net, _drawn(run, prompts), against.crop, say)
  result = image_fid.compare(real, made)
  result = {"metric": "coco_fid", **result, "made_by": dict(run.made_by)}
  say(image_fid.line("coco_fid", result))
  return result


def mjhq_fid(
  net: Features, run: Run, prompts: PromptSet, against: Against, say: Say
) -> dict[str, Any]:
  """Draws MJHQ-30K's prompts; the distance of all and of each category.

  Categories of a sample with a single image have no distance and are left
  out; `by_category` names what was compared. Each keeps its reference's
  statistics in a file of its own, see `category_file`.
  """
  rows = {
    group: [i for i, g in enumerate(prompts.groups) if g == group]
    for group in sorted(set(prompts.groups))
  }
  crop, reals, mades = against.crop, {}, {}
  for group, indices in rows.items():
    real = _some(prompts.real, indices)
    file = category_file(against.save, group)
    reals[group] = image_fid.kept(net, real, crop, file, say, _of(group))
  _draw(run, prompts, say)
  drawn = _drawn(run, prompts)
  for group, indices in rows.items():
    mades[group] = image_fid.measure(
      net, _some(drawn, indices), crop, say, _of(group)
    )
  result = {
    "metric": "mjhq_fid",
    **image_fid.compare(_joined(reals, prompts.real), _joined(mades, drawn)),
    "by_category": {
      group: image_fid.compare(reals[group], mades[group])
      for group, indices in rows.items()
      if len(indices) > 1
    },
    "made_by": dict(run.made_by),
  }
  for group, found in result["by_category"].items():
    say(image_fid.line(f"mjhq_fid/{group}", found))
  say(image_fid.line("mjhq_fid", result))
  return result


def _draw(run: Run, prompts: PromptSet, say: Say) -> None:
  drawn_images.draw(
    run.painter, prompts.drawings, run.folder, run.rows, run.made_by, say
  )


def _drawn(run: Run, prompts: PromptSet) -> ImageSet:
  """The drawings of these prompts alone; the folder may hold more."""
  files = [os.fspath(epath.Path(run.folder) / d.file) for d in prompts.drawings]
  return image_sets.files_set(run.folder, files)


def _some(images: ImageSet, indices: list[int]) -> ImageSet:
  names = [images.names[i] for i in indices]
  return ImageSet(images.source, names, lambda i: images.read(indices[i]))


def category_file(path: str, group: str) -> str:
  """Where a category's statistics are kept: of REF.npz, REF_<category>.npz."""
  return f"{path.removesuffix('.npz')}_{group}.npz" if path else ""


def _reference(
  net: Features, against: Against, prompts: PromptSet | None, say: Say
) -> Measured:
  path, save = against.path, against.save
  if path.endswith(".npz"):
    if save:
      raise ValueError(
        f"--reference={path} is stored already: leave out --save_reference"
      )
    return image_fid.load(path, net, against.crop)
  if prompts is None or path:
    images = image_sets.open_set(path, against.split)
    return image_fid.kept(net, images, against.crop, save, say)
  kind = "images of the drawn captions"
  return image_fid.kept(net, prompts.real, against.crop, save, say, kind)


def _joined(parts: Mapping[str, Measured], images: ImageSet) -> Measured:
  """All categories as one set, which these images are."""
  found = list(parts.values())
  whole = image_fid.merge_all([m.statistics for m in found])
  record = dataclasses.replace(
    found[0].record,
    count=whole.count,
    skipped=sum(m.record.skipped for m in found),
    kind=_of(),
    images=image_sets.fingerprint(images),
  )
  return Measured(whole, record)


def _of(group: str = "") -> str:
  return "images of the drawn prompts" + (f", {group}" if group else "")
