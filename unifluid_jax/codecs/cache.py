"""Cached moments of images, and statistics of latents: fresh or stale.

Both are made by `encode` of a data set and a VAE, and remember the digests of
both, so that they are never used with others.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from unifluid_jax.codecs import kl_vae as frozen_vae
from unifluid_jax.core import files
from unifluid_jax.core.config import Config, ConfigError, SourceConfig
from unifluid_jax.data import identity as data_identity
from unifluid_jax.data.sources import source as sources

_FIT = "centre_crop_resize"  # how images become squares, for the VAE


def note_of(
  config: Config, source: SourceConfig, weights: str, data: str
) -> dict[str, Any]:
  """What is written beside cached moments: all that they depend on.

  Args:
    config: for the size of the images.
    source: of the images.
    weights: digest of the VAE.
    data: digest of the source.
  """
  return {
    "weights": weights,
    "data": data,
    "size": config.model.image_size,
    "fit": _FIT,
    "limit": source.limit,
  }


def path_of(config: Config, source: SourceConfig) -> str:
  """The file that a source's moments are cached in."""
  return str(epath.Path(config.data.root) / source.moments)


def check_moments(config: Config, identity: Mapping[str, Any]) -> None:
  """Whether cached moments are of this data set and this VAE.

  Args:
    config: of the run.
    identity: its "codec" and "data"; without codec none are read.

  Raises:
    ConfigError: of others, or they do not say of which.
  """
  codec, data = identity["codec"], identity["data"]
  for name, source in config.data.train.items():
    path = path_of(config, source)
    if not (codec and source.moments and name in data):
      continue
    if not epath.Path(path).exists():
      continue  # opening the source names it
    want = note_of(config, source, codec["weights"], data[name]["digest"])
    there = data_identity.read_note(path)
    # Of another limit, the number of records tells whether they fit.
    wrong = [k for k in want if there.get(k) != want[k] and k != "limit"]
    if wrong:
      raise ConfigError(
        f"data.train.{name}.moments={path} were made from other "
        f"{' and '.join(wrong)} than this configuration has: make them anew "
        "with python -m unifluid_jax.encode and the same flags"
      )


def check_stats(config: Config, data: Mapping[str, Any]) -> None:
  """Whether the latents' statistics were measured on data of a new run.

  Args:
    config: of the run.
    data: identity of its sources.

  Raises:
    ConfigError: on other data.
  """
  m = config.model
  if m.vae.latent_mean is not None and m.vae.latent_scale is not None:
    return
  measured = (frozen_vae.read_stats(m.vae_path) or {}).get("data")
  if measured and measured not in [d["digest"] for d in data.values()]:
    raise ConfigError(
      f"{epath.Path(m.vae_path) / frozen_vae.STATS} was measured on other data "
      f"({measured[:8]}) than config.data.train names: measure again with "
      "python -m unifluid_jax.encode; to keep a run's statistics, set "
      "config.model.vae_path=RUN/codec"
    )


def write(
  path: str,
  note: dict[str, Any],
  moments: Callable[[], Iterator[np.ndarray | None]],
) -> str:
  """Writes a moments file, unless it is there and of this note.

  Args:
    path: the file.
    note: what it depends on, see `note_of`; kept beside it.
    moments: makes its content.

  Returns:
    What was done, for people.
  """
  there = epath.Path(path).exists()
  old = data_identity.read_note(path)
  if there and old == note:
    return "kept"
  # First, so that no interruption leaves a note beside other moments.
  epath.Path(path + ".json").unlink(missing_ok=True)
  sources.write_moments(path, moments())
  files.write(path + ".json", json.dumps(note))
  if not there:
    return "written"
  changed = " and ".join(k for k in note if old.get(k) != note[k])
  return f"made anew, as {changed} changed"


def write_stats(
  vae_path: str,
  made: dict[str, Any],
  measure: Callable[[], dict[str, Any]],
) -> str:
  """Measures the latents, unless it was done of these weights and data.

  Statistics that do not say what they were measured on came with the weights,
  converted or copied, and are kept.

  Args:
    vae_path: of the VAE.
    made: digests of "weights" and "data".
    measure: gives "mean", "scale" and "values", how many were measured.

  Returns:
    The statistics, for people.
  """
  path, done = epath.Path(vae_path) / frozen_vae.STATS, "kept"
  stats = frozen_vae.read_stats(vae_path)
  ours = stats is None or "values" in stats
  if ours and any((stats or {}).get(k) != v for k, v in made.items()):
    done, stats = "measured", measure() | made
    files.write(path, json.dumps(stats))
  mean, scale = stats["mean"], stats["scale"]
  return f"latents: mean {mean:.4f}, scale {scale:.4f} ({done}): {path}"


def measure(moments: Iterator[np.ndarray | None]) -> dict[str, float]:
  """Mean and 1/std of posterior samples: E[z], E[z^2] in closed form."""
  n = total = square = 0.0
  for m in filter(lambda m: m is not None, moments):
    mean, logvar = np.split(np.asarray(m, np.float64), 2, axis=-1)
    total += mean.sum()
    square += (mean**2 + np.exp(logvar)).sum()
    n += mean.size
  average = total / n
  std = math.sqrt(max(square / n - average**2, 1e-12))
  return {"mean": average, "scale": 1 / std, "values": int(n)}
