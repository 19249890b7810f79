"""Statistics of latents, from the moments of their posteriors."""

import numpy as np
import pytest

from unifluid_jax.codecs.kl_vae import KlVaeCodec
from unifluid_jax.core import presets


def test_scale_brings_sampled_latents_to_unit_variance():
  rng = np.random.default_rng(0)
  mean = rng.normal(3.0, 2.0, (500, 4, 4, 2))
  log_var = np.full_like(mean, np.log(1.5**2))
  moments = list(np.concatenate([mean, log_var], axis=-1))
  codec = KlVaeCodec(presets.VAE["sd_f8"], "", 32)
  stats = codec.measure(iter([*moments, None]))  # one could not be read
  assert stats["values"] == mean.size
  assert stats["mean"] == pytest.approx(mean.mean())
  # Var z = Var E[z] + E Var z.
  assert 1 / stats["scale"] ** 2 == pytest.approx(mean.var() + 1.5**2)
  z = mean + 1.5 * rng.normal(size=mean.shape)
  assert ((z - stats["mean"]) * stats["scale"]).std() == pytest.approx(
    1, abs=0.02
  )
