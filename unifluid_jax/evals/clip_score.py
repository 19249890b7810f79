"""How well drawn images match their prompts, by CLIP.

Two scales are in use for the cosine of image and text, and both are given:
CLIPScore, 2.5 * max(cos, 0) (Hessel et al. 2021, arXiv 2104.08718), and
100 * cos, as text-to-image papers print it.

Differs: from CLIPScore, prompts are embedded as they are, without "A photo
depicts" before them.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from unifluid_jax import telemetry
from unifluid_jax.evals import drawn_images, image_sets
from unifluid_jax.evals.geneval_detector import Clip, normalised

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
  folder: str, clip: Clip, say: Callable[[str], None]
) -> dict[str, Any]:
  """Scores what `drawn_images.draw` drew; its manifest has the prompts.

  Raises:
    FileNotFoundError: no manifest.
    ValueError: an image is missing or damaged.
  """
  drawn_images.check_complete(folder)
  prompts = drawn_images.read_manifest(folder)["images"]
  names = sorted(prompts)
  files = [os.fspath(epath.Path(folder) / name) for name in names]
  images = image_sets.files_set(folder, files)
  progress = telemetry.Progress("matched", 0, len(names))
  found, done = [], 0
  for batch in image_sets.batches(images, range(len(names)), _BATCH, 0):
    texts = [prompts[name][0] for name in names[done : done + len(batch)]]
    found.append(cosines(clip.images(batch), clip.texts(texts)))
    done += len(batch)
    say(progress.line(done)[0])
  if not found:
    raise ValueError(f"{folder}/{drawn_images.MANIFEST} lists no images")
  scores = summary(np.concatenate(found))
  shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
  say(f"{shown}  ({len(names)} images of {folder}; {clip.name})")
  return {
    "metric": "clip_score",
    "scores": scores,
    "source": folder,
    "images": len(names),
    "network": clip.name,
    "text": "prompts as they are",
  }
