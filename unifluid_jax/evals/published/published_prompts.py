"""The prompts of published image benchmarks, sampled without a random state.

COCO-30K: 30,000 captions of the training or validation images, one an image
(UniFluid takes MS-COCO's training images). MJHQ-30K (arXiv 2402.17245):
30,000 prompts in ten categories with an image each.

What is sampled is ranked by a digest of seed and id: it depends on no library
version, and fewer are the first of more.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from unifluid_jax.data import json_files
from unifluid_jax.evals.published import image_sets
from unifluid_jax.evals.published.drawn_images import Drawing, seed_of
from unifluid_jax.evals.published.image_sets import ImageSet


class PromptSet(NamedTuple):
  """What is drawn, and the real images of the very same prompts."""

  drawings: Sequence[Drawing]
  real: ImageSet
  groups: Sequence[str]  # category of each; empty where there are none


def coco(path: str, count: int, seed: int = 0) -> PromptSet:
  """Captions of distinct COCO images.

  Args:
    path: a captions JSON, "FILE.json" or "FILE.json:IMAGEDIR".
    count: prompts; published numbers take 30,000.
    seed: another one takes other images and captions, and other noise.

  Returns:
    Drawings 00000.png and on in the order of the sample.

  Raises:
    ValueError: no captions, or fewer captioned images than `count`.
  """
  entries, folder = image_sets.read_coco(path)
  usable = {}
  for e in entries:
    captions = sorted(filter(None, e["captions"]))
    if captions:
      usable[e["id"]] = (e["file_name"], captions)
  chosen = _first(list(usable), count, seed, f"{path}: captioned images")
  drawings, files = [], []
  for index, key in enumerate(chosen):
    name, captions = usable[key]
    caption = captions[seed_of(seed, key, "caption") % len(captions)]
    noise = seed_of(seed, key, "noise")
    drawings.append(Drawing(f"{index:05d}.png", caption, noise))
    files.append(os.fspath(folder / name))
  return PromptSet(drawings, image_sets.files_set(path, files), ())


def mjhq(path: str, images: str, count: int, seed: int = 0) -> PromptSet:
  """MJHQ-30K's prompts.

  Args:
    path: its meta_data.json: id → {"category", "prompt"}.
    images: folder of its images, <category>/<id>.jpg.
    count: prompts; 0: all.
    seed: of the sample and the noise.

  Returns:
    Drawings <category>/<id>.png.

  Raises:
    FileNotFoundError: no such file or folder.
    ValueError: not of that format, or fewer prompts than `count`.
  """
  file = epath.Path(path)
  if not file.exists():
    raise FileNotFoundError(f"no MJHQ-30K prompts at {path}")
  if not epath.Path(images).is_dir():
    raise FileNotFoundError(
      f"no folder of MJHQ-30K's images at {images}: --reference holds "
      "<category>/<id>.jpg, also where --save_reference has their statistics"
    )
  listed = json_files.load(file, "it is no meta_data.json of MJHQ-30K")
  try:
    content = {
      key: (str(entry["category"]), json_files.text(entry["prompt"], "prompt"))
      for key, entry in listed.items()
    }
    if odd := [k for k, (c, _) in content.items() if "/" in k + c or c == ".."]:
      raise ValueError(f"{odd[0]!r} or its category is no name of a file")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{path} is no meta_data.json of MJHQ-30K, id → category and prompt: "
      f"{error!r}"
    ) from error
  chosen = _first(list(content), count or len(content), seed, path)
  drawings = [
    Drawing(
      f"{content[k][0]}/{k}.png", content[k][1], seed_of(seed, k, "noise")
    )
    for k in chosen
  ]
  files = [f"{images}/{content[k][0]}/{k}.jpg" for k in chosen]
  return PromptSet(
    drawings,
    image_sets.files_set(images, files),
    [content[k][0] for k in chosen],
  )


def _first(keys: list, count: int, seed: int, what: str) -> list:
  """The `count` keys of lowest digest."""
  if not 0 < count <= len(keys):
    raise ValueError(
      f"{what}: {len(keys)} of them, {count} asked for: change --count"
    )
  ranked = sorted(keys, key=lambda key: (seed_of(seed, key), str(key)))
  return ranked[:count]
