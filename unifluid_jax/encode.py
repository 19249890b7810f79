"""Encodes training images with the frozen VAE, once, and measures latents.

  python -m unifluid_jax.encode --config=configs/shapes.py

Writes the posterior moments of every training image to the `moments` file of
its source (where one is named), so that training need not run the encoder;
and, where config.model.vae leaves them open, the latents' mean and scale to
the VAE's workdir. What is there already is kept. MAR does the same
(main_cache.py); its scale is 1/std, ours too, of latents whose mean is
subtracted.
"""

import json
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from etils import epath

from unifluid_jax import checkpoint, cli, telemetry
from unifluid_jax.config import Config, SourceConfig, resolve
from unifluid_jax.data import sources, transforms
from unifluid_jax.models.kl_vae import KlVae
from unifluid_jax.systems.frozen_vae import STATS, vae_weights

_CONFIG = cli.define_config()
_BATCH = flags.DEFINE_integer("batch", 64, "Images encoded at once.")

# Images measured for mean and scale where no moments are cached.
_MEASURED = 2048


def main(_: list[str]) -> None:
  """Every training source that names a moments file, then the statistics."""
  config = resolve(_CONFIG.value)
  say = cli.speaker()
  say(f"unifluid_jax.encode: {config.name}")
  encoder = make_encoder(config)
  moments = None
  for name, source_config in config.data.train.items():
    if source_config.moments:
      path = str(epath.Path(config.data.root) / source_config.moments)
      if not _fresh(path, config):
        sources.write_moments(
          path, _encode(config, source_config, encoder, say, 0)
        )
        _mark(path, config)
      say(f"moments of {name}: {path}")
      moments = moments or _read(path)
  if config.model.vae.latent_scale is None:
    if moments is None:
      first = next(iter(config.data.train.values()))
      moments = _encode(config, first, encoder, say, _MEASURED)
    stats = measure(moments)
    path = epath.Path(config.model.vae_path) / STATS
    path.write_text(json.dumps(stats))
    mean, scale = stats["mean"], stats["scale"]
    say(f"latents: mean {mean:.4f}, scale {scale:.4f}: {path}")


def make_encoder(config: Config):
  """images [B, H, W, 3] in [-1, 1] → moments, jitted, weights bound."""
  vae = KlVae(config.model.vae, jnp.dtype(config.model.dtype))
  params = vae_weights(config.model)
  return jax.jit(
    lambda images: vae.apply({"params": params}, images, method="encode")
  )


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


def _encode(
  config: Config, source_config: SourceConfig, encoder, say, limit: int
) -> Iterator[np.ndarray | None]:
  """Moments of a source's images in order; None for unreadable ones."""
  source = sources.open_source(
    source_config, config.data.root, config.data.caption_prefix
  )
  total = min(len(source), limit or len(source))
  progress = telemetry.Progress("encode", 0, total)
  size, width = config.model.image_size, _BATCH.value
  for start in range(0, total, width):
    batch = [_pixels(source, i, size, config.data.max_pixels)
             for i in range(start, min(start + width, total))]  # fmt: skip
    padded = np.zeros((width, size, size, 3), np.float32)
    for row, image in zip(padded, batch, strict=False):
      row[:] = 0 if image is None else image
    for image, m in zip(batch, np.asarray(encoder(padded)), strict=False):
      yield None if image is None else m
    if (start // width) % 32 == 31:
      say(progress.line(start + len(batch))[0])


def _pixels(
  source: sources.Source, i: int, size: int, max_pixels: int
) -> np.ndarray | None:
  """An image as the VAE sees it; None where it cannot be read."""
  try:
    image = transforms.decode_image(source[i].image, max_pixels)
  except sources.BadRecord as error:
    logging.warning("record %d: %s", i, error)
    return None
  return transforms.to_float(transforms.centre_crop_resize(image, size))


def _read(path: str) -> Iterator[np.ndarray | None]:
  reader = sources.MomentsReader(path)
  for i in range(len(reader)):
    try:
      yield reader[i]
    except sources.BadRecord:
      yield None


def _tag(config: Config) -> str:
  """Names the weights that made a moments file."""
  step = checkpoint.latest_step(config.model.vae_path)
  return f"{config.model.vae_path} step {step} size {config.model.image_size}"


def _fresh(path: str, config: Config) -> bool:
  note = epath.Path(path + ".json")
  return note.exists() and json.loads(note.read_text())["vae"] == _tag(config)


def _mark(path: str, config: Config) -> None:
  epath.Path(path + ".json").write_text(json.dumps({"vae": _tag(config)}))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
