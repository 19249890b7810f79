"""Encodes training images with the frozen VAE, once, and measures latents.

  python -m unifluid_jax.encode --config=configs/shapes.py

Writes the posterior moments of every training image to the `moments` file of
its source (where one is named), so that training need not run the encoder;
and, where config.model.vae leaves them open, the latents' mean and scale to
the VAE's workdir. Both remember the data and the weights they were made from:
what is there already is kept, and made anew when either has changed. MAR does
the same (main_cache.py); its scale is 1/std, ours too, of latents whose mean
is subtracted.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from unifluid_jax.codecs import cache as latents
from unifluid_jax.codecs import kl_vae as frozen_vae
from unifluid_jax.core import cli, telemetry
from unifluid_jax.core.config import Config, SourceConfig, resolve
from unifluid_jax.data import identity as data_identity
from unifluid_jax.data import transforms
from unifluid_jax.data.sources import source as sources
from unifluid_jax.models.kl_vae import KlVae

_CONFIG = cli.define_config()
_BATCH = flags.DEFINE_integer("batch", 64, "Images encoded at once.")

# Images measured for mean and scale where no moments are cached.
_MEASURED = 2048


def main(_: list[str]) -> None:
  """Every training source that names a moments file, then the statistics."""
  config = resolve(_CONFIG.value)
  say = cli.speaker()
  say(f"unifluid_jax.encode: {config.name}")
  params = frozen_vae.vae_weights(config.model)
  weights = frozen_vae.digest(params)
  data = data_identity.of_data(config.data)
  encoder = make_encoder(config, params)
  cached = []
  for name, source in config.data.train.items():
    if source.moments and name in data:
      note = latents.note_of(config, source, weights, data[name]["digest"])
      path = latents.path_of(config, source)
      done = latents.write(
        path, note, lambda source=source: _encode(config, source, encoder, say)
      )
      say(f"moments of {name}: {done}: {path}")
      cached.append((name, path))
  if config.model.vae.latent_scale is None:
    first = cached[0][0] if cached else next(iter(data))
    made = {"weights": weights, "data": data[first]["digest"]}

    def moments():
      if cached:
        return _read(cached[0][1])
      return _encode(config, config.data.train[first], encoder, say, _MEASURED)

    say(
      latents.write_stats(
        config.model.vae_path, made, lambda: latents.measure(moments())
      )
    )


def make_encoder(config: Config, params: Any):
  """images [B, H, W, 3] in [-1, 1] → moments, jitted, weights bound."""
  vae = KlVae(config.model.vae, jnp.dtype(config.model.dtype))
  return jax.jit(
    lambda images: vae.apply({"params": params}, images, method="encode")
  )


def _encode(
  config: Config, source_config: SourceConfig, encoder, say, limit: int = 0
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


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
