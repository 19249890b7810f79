"""The Inception network against the same written out in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.weights import helpers  # noqa: E402
from tests.weights.make_fixtures_vision import (  # noqa: E402
  inception_image,
  inception_network,
)
from unifluid_jax.evals.published import inception_features  # noqa: E402
from unifluid_jax.models.inception import Inception  # noqa: E402
from unifluid_jax.weights import inception  # noqa: E402


@pytest.mark.parametrize("legacy", [True, False])
def test_features_and_logits(tmp_path, legacy):
  """Through a file as pytorch-fid's is: state dict, older format."""
  theirs = inception_network()
  path = tmp_path / "pt_inception.pth"
  torch.save(
    theirs.state_dict(), path, _use_new_zipfile_serialization=not legacy
  )
  params, _ = helpers.convert(path, inception.recipe, tmp_path / "ours")
  pixels = np.random.default_rng(0).integers(0, 256, (1, 9, 9, 3), np.uint8)
  pixels = pixels.repeat(20, axis=1).repeat(20, axis=2)
  resized = inception_features.pytorch_fid(jnp.asarray(pixels))
  images = np.concatenate([inception_image(), np.asarray(resized)])
  got = jax.jit(Inception().apply)(
    {"params": params["inception"]}, jnp.asarray(images)
  )
  x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
  x = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear")
  first = torch.from_numpy(inception_image()).permute(0, 3, 1, 2)
  with torch.no_grad():
    features, logits = theirs(torch.cat([first, 2 * x - 1]))
  assert features.std() > 0.1 and (features[0] - features[1]).abs().max() > 0.01
  assert got.features.shape == (2, 2048) and got.logits.shape == (2, 1008)
  assert helpers.absolute(got.features, features) < 2e-5
  assert helpers.absolute(got.logits, logits) < 2e-5
