"""Sets of image files to be scored: folders, COCO, prepared data sets.

A set only names its images and reads their bytes; what is decoded is streamed
in batches, so that a set may be larger than memory.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8

from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import json_files, transforms
from unifluid_jax.data.images import decode_image, read_file, resolve_name
from unifluid_jax.data.sources import source as sources

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_THREADS = 16  # that read and decode
_COMPARED = 32  # images whose bytes tell two sets apart


class ImageSet(NamedTuple):
  """Encoded images by index."""

  source: str  # what it is, for results
  names: Sequence[str]  # of every image, for errors
  read: Callable[[int], bytes]


def open_set(path: str, split: str = "train") -> ImageSet:
  """The images at a path, by what it is.

  Args:
    path: a folder of images, read recursively; a COCO JSON (captions or
      instances), "FILE.json" or "FILE.json:IMAGEDIR" with a folder relative
      to the file's; or a prepared ArrayRecord data set.
    split: of a prepared data set.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: no images in it.
  """
  if path.endswith(".json") or ".json:" in path:
    return coco_set(path)
  where = epath.Path(path)
  if not where.is_dir():
    raise FileNotFoundError(
      f"no images at {path}: expected a folder of images, a COCO .json or a "
      "prepared data set"
    )
  depths = ("", "*/", "*/*/")
  if any(list(where.glob(d + "dataset_info.json")) for d in depths):
    return _prepared_set(path, split)
  files = sorted(_files_below(where))
  if not files:
    raise ValueError(f"{path} holds no images ({', '.join(SUFFIXES)})")
  return files_set(path, files)


def _files_below(folder: epath.Path) -> Iterator[str]:
  """Image files; epath's own recursion refuses buckets."""
  for entry in folder.iterdir():
    if entry.name.startswith("."):
      continue
    if entry.suffix.lower() in SUFFIXES:
      yield os.fspath(entry)
    elif entry.is_dir():
      yield from _files_below(entry)


def files_set(source: str, files: Sequence[str]) -> ImageSet:
  """Image files by their full paths."""
  return ImageSet(source, files, lambda i: read_file(files[i]))


def coco_set(path: str) -> ImageSet:
  """All images that a COCO JSON lists; see `open_set`."""
  content, folder = read_coco(path)
  files = [os.fspath(folder / entry["file_name"]) for entry in content]
  if not files:
    raise ValueError(f"{path} lists no images")
  return files_set(path, files)


def read_coco(path: str) -> tuple[list[dict], epath.Path]:
  """The `images` of a COCO JSON, each with its captions, and their folder.

  Args:
    path: "FILE.json", images beside it, or "FILE.json:IMAGEDIR".

  Returns:
    {"id", "file_name", "captions": [...]} an image, in the file's order.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not of that format.
  """
  stem, _, folder = path.partition(".json:")
  file = epath.Path(path if not folder else stem + ".json")
  if not file.exists():
    raise FileNotFoundError(f"no COCO file at {file}")
  content = json_files.load(file, "it is no COCO captions or instances file")
  try:
    images = {
      e["id"]: {"id": e["id"], "file_name": e["file_name"], "captions": []}
      for e in content["images"]
    }
    for entry in content.get("annotations", ()):
      if "caption" in entry:
        caption = json_files.text(entry["caption"], "caption").strip()
        images[entry["image_id"]]["captions"].append(caption)
    # Joined with the folder: an absolute name would lead out of it.
    names = [entry["file_name"] for entry in images.values()]
    folder = os.fspath(file.parent / folder)
    for name in names:
      resolve_name(json_files.text(name, "file_name"), folder, folder)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{file} is no COCO captions or instances file: {error!r}"
    ) from error
  return list(images.values()), epath.Path(folder)


def _prepared_set(path: str, split: str) -> ImageSet:
  """A data set in ArrayRecord format, as training reads it."""
  config = SourceConfig(format="array_record", path=path, split=split)
  try:
    records = sources.open_source(config, "", "", "--reference")
  except (KeyError, ValueError) as error:
    raise ValueError(f"{path}, split {split!r}: {error}") from error
  names = [f"{path} {split} record {i}" for i in range(len(records))]
  return ImageSet(f"{path} {split}", names, lambda i: records[i].image)


def fingerprint(images: ImageSet) -> str:
  """Sixteen digits of a set, wherever it lies and in any order.

  They depend on the names of all images without their folders, and on the
  bytes of 32 of them, or of all if there are fewer: reading the rest would
  take as long as measuring it.
  """
  names = [(os.path.basename(name), name) for name in images.names]
  order = sorted(range(len(names)), key=lambda i: names[i])
  found = hashlib.sha256()
  for i in order:
    found.update(names[i][0].encode() + b"\n")
  for i in order[:: max(1, -(-len(order) // _COMPARED))]:
    try:
      found.update(images.read(i))
    except (OSError, ValueError):
      found.update(b"unreadable")  # scores leave it out
  return found.hexdigest()[:16]


def decode(images: ImageSet, i: int, crop: int) -> UInt8[np.ndarray, "H W 3"]:
  """One image as RGB.

  Args:
    images: the set.
    i: index.
    crop: side of the central square it is reduced to (ADM's rule, as
      training images are); 0: the whole image.

  Raises:
    ValueError: it is missing or damaged; names the file.
  """
  try:
    image = decode_image(images.read(i))
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{images.names[i]}: {error}; replace the file, or take it out of the set"
    ) from error
  return transforms.centre_crop_resize(image, crop) if crop else image


def batches(
  images: ImageSet,
  indices: Sequence[int],
  size: int,
  crop: int,
  bad: list[str],
) -> Iterator[list[tuple[int, np.ndarray]]]:
  """Indices and decoded images, `size` at a time; threads read ahead.

  Args:
    images: the set.
    indices: of those to read.
    size: of a batch; damaged images are left out of it.
    crop: see `decode`.
    bad: takes what is wrong with each of those; the log does, too.

  Yields:
    Batches that are not empty.
  """
  chunks = [indices[i : i + size] for i in range(0, len(indices), size)]
  with ThreadPoolExecutor(_THREADS) as pool:

    def submit(chunk):
      return [(i, pool.submit(decode, images, i, crop)) for i in chunk]

    ahead = submit(chunks[0] if chunks else ())
    for following in [*chunks[1:], ()]:
      ready, ahead = ahead, submit(following)
      found = []
      for i, future in ready:
        try:
          found.append((i, future.result()))
        except ValueError as error:
          logging.warning("left out of the scores: %s", error)
          bad.append(str(error))
      if found:
        yield found
