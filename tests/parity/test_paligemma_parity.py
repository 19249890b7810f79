"""PaliGemma against transformers: image, prefix and suffix to logits."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import save_file  # noqa: E402

from tests.weights import helpers, references  # noqa: E402
from unifluid_jax.weights import paligemma  # noqa: E402

PREFIX, SUFFIX = 4, 5
WIDE = {1: {}, 2: {"sliding_window": 64}}
LEGACY = {
  "model.vision_tower.": "vision_tower.vision_model.",
  "model.multi_modal_projector.": "multi_modal_projector.",
  "model.language_model.": "language_model.model.",
}


@pytest.mark.parametrize("legacy", [False, True], ids=["new", "legacy"])
@pytest.mark.parametrize("generation", [1, 2])
def test_logits(tmp_path, generation, legacy):
  """Attention from prefix to suffix would be seen: logits of all tokens.

  The window is longer than the sequence, as in every released PaliGemma:
  transformers lets the prefix see beyond it, gemma's own code does not.
  """
  model = references.paligemma(generation, **WIDE[generation])
  model.config.save_pretrained(tmp_path / "theirs")
  tensors = references.numbers(model)
  if legacy:
    tensors = {_legacy(name): x for name, x in tensors.items()}
  save_file(tensors, str(tmp_path / "theirs/model.safetensors"))
  params, meta = helpers.convert(
    tmp_path / "theirs", paligemma.recipe, tmp_path / "ours"
  )
  images, tokens = _inputs()
  want = references.run_paligemma(model, images, tokens, PREFIX)
  config = helpers.gemma_config(meta)
  config = helpers.without(config, window=64 * bool(config.window))
  got = helpers.run_paligemma(config, meta, params, images, tokens, PREFIX)
  assert helpers.absolute(got, want) < 1e-4


def _inputs():
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 12, 12, 3)).astype(np.float32)
  return images, references.tokens(2, PREFIX + SUFFIX)


def _legacy(name):
  for new, old in LEGACY.items():
    if name.startswith(new):
      return old + name.removeprefix(new)
  return name
