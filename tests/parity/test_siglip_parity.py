"""SigLIP's encoder against transformers, saved by it and converted."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import save_file  # noqa: E402

from tests.weights import helpers, references  # noqa: E402
from unifluid_jax.weights import siglip  # noqa: E402


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize("size", [12, 14])
def test_tokens(tmp_path, prefix, size):
  """Both generations of names; 14 pixels leave a rest beside 4-pixel cells."""
  model = references.siglip(image_size=size)
  model.config.save_pretrained(tmp_path / "theirs")
  tensors = {
    prefix + name.removeprefix("vision_model."): x
    for name, x in references.numbers(model).items()
  }
  save_file(tensors, str(tmp_path / "theirs/model.safetensors"))
  params, meta = helpers.convert(
    tmp_path / "theirs", siglip.recipe, tmp_path / "ours"
  )
  shape = (2, size, size, 3)
  images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
  with torch.no_grad():
    want = model(torch.tensor(images.transpose(0, 3, 1, 2)))
  meta["vit"]["image_size"] = size
  got = helpers.run_vit(meta, params["vit"], images)
  assert helpers.relative(got, want.last_hidden_state) < 2e-5
