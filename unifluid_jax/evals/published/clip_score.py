"""How well drawn images match their prompts, by CLIP.

Two scales are in use for the cosine of image and text, and both are given:
CLIPScore, 2.5 * max(cos, 0) (Hessel et al. 2021, arXiv 2104.08718), and
100 * cos, as text-to-image papers print it.

Differs: from CLIPScore, prompts are embedded as they are, without "A photo
depicts" before them.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Float

from unifluid_jax.core import shards, telemetry
from unifluid_jax.evals.published import drawn_images, image_sets
from unifluid_jax.evals.published.geneval_detector import Clip, normalised

_BATCH = 64


def cosines(images: Any, texts: Any) -> Float[np.ndarray, " B"]:
  """Cosine of each image [B, D] with its own text [B, D]."""
  return np.sum(normalised(images) * normalised(texts), axis=1)


def summary(cosine: Float[np.ndarray, " B"]) -> dict[str, float]:
  """The means of both scales."""
  return {
    "clipscore_2.5_max_cos_0": float(np.mean(2.5 * np.maximum(cosine, 0))),
    "clip_100_cos": float(np.mean(100 * cosine)),
  }


def score(
  folder: str, clip: Clip, say: Callable[[str], None], prompts: str = ""
) -> dict[str, Any]:
  """Scores a folder of images.

  Args:
    folder: of the images.
    clip: the network.
    say: takes progress lines.
    prompts: JSON lines {"image": name below the folder, "text": prompt}; "":
      those of the manifest that `drawn_images.draw` left.

  Raises:
    FileNotFoundError: no manifest, or no such file of prompts.
    ValueError: no image can be read, a line is wrong.
  """
  if prompts:
    texts = _read_prompts(prompts)
  else:
    drawn_images.check_complete(folder)
    manifest = drawn_images.read_manifest(folder)["images"]
    texts = {name: entry[0] for name, entry in manifest.items()}
  names = sorted(texts)
  files = [os.fspath(epath.Path(folder) / name) for name in names]
  images = image_sets.files_set(folder, files)
  cosine, bad = _cosines(clip, images, [texts[name] for name in names], say)
  done = len(cosine)
  if not done:
    listed = prompts or f"{folder}/{drawn_images.MANIFEST}"
    if not names:
      raise ValueError(f"{listed} lists no images")
    raise ValueError(f"none of {listed}'s images can be read: {bad[:1]}")
  scores = summary(cosine)
  shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
  skipped = len(names) - done
  left = f", {skipped} unreadable left out" if skipped else ""
  say(f"{shown}  ({done} images of {folder}{left}; {clip.name})")
  return {
    "metric": "clip_score",
    "scores": scores,
    "source": folder,
    "images": done,
    "skipped": skipped,
    "network": clip.name,
    "text": "prompts as they are",
  }


def _cosines(
  clip: Clip,
  images: image_sets.ImageSet,
  texts: Sequence[str],
  say: Callable[[str], None],
) -> tuple[Float[np.ndarray, " B"], list[str]]:
  """Cosines of all readable images, in order; what is wrong with others.

  Each process scores every k-th batch; all get all cosines, of the others'
  unreadable images they hear nothing.
  """
  count, bad = len(texts), []
  batches = [range(i, min(i + _BATCH, count)) for i in range(0, count, _BATCH)]
  mine = [i for number in shards.share(len(batches)) for i in batches[number]]
  found = np.zeros((2, count))  # cosines; 1 where there is one
  progress = telemetry.Progress("matched", 0, len(mine))
  for batch in image_sets.batches(images, mine, _BATCH, 0, bad):
    places = [i for i, _ in batch]
    seen = clip.images([image for _, image in batch])
    said = clip.texts([texts[i] for i in places])
    found[:, places] = cosines(seen, said), np.ones(len(places))
    say(progress.line(int(found[1].sum()))[0])
  if jax.process_count() > 1:
    shards.wait("images and prompts are matched")
    # As words: JAX would gather float64 as float32.
    words = multihost_utils.process_allgather(found.view(np.uint32))
    found = np.asarray(words).view(np.float64).sum(0)
  return found[0, found[1] > 0], bad


def _read_prompts(path: str) -> dict[str, str]:
  """Image → prompt of a file of JSON lines; each image once."""
  texts: dict[str, str] = {}
  # str.splitlines would also break at U+2028, which JSON leaves bare.
  for number, line in enumerate(epath.Path(path).read_text().split("\n"), 1):
    if not line.strip():
      continue
    try:
      entry = json.loads(line)
      name, text = entry["image"], entry["text"]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{path}, line {number}: expected {{"image": name, "text": prompt}}, '
        f"found {line[:80]}"
      ) from error
    if name in texts:
      raise ValueError(f"{path}, line {number}: {name} has a prompt already")
    texts[name] = text
  return texts
