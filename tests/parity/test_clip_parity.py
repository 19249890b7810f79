"""CLIP's vision encoder against transformers: the layer before the last."""

import jax
import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.weights import helpers  # noqa: E402
from tests.weights.make_fixtures_vision import randomized  # noqa: E402
from unifluid_jax.core import presets  # noqa: E402
from unifluid_jax.models.clip_vit import ClipVit  # noqa: E402
from unifluid_jax.weights import clip  # noqa: E402

VISION = dict(
  hidden_size=48,
  intermediate_size=80,
  num_hidden_layers=5,
  num_attention_heads=4,
  image_size=70,
  patch_size=14,
)


def compare(theirs, vision, directory):
  theirs.save_pretrained(directory / "hf")
  params, meta = helpers.convert(
    directory / "hf", clip.recipe, directory / "ours"
  )
  config = presets.VitConfig(**meta["vit"])
  assert (config.heads, config.depth, config.image_size) == (4, 5, 70)
  torch.manual_seed(0)
  images = torch.randn(3, 3, 70, 70)
  with torch.no_grad():
    states = vision(images, output_hidden_states=True).hidden_states
  assert len(states) == 6
  with jax.default_matmul_precision("highest"):
    got = jax.jit(ClipVit(config, jnp.float32).apply)(
      {"params": params["vit"]}, jnp.asarray(images.permute(0, 2, 3, 1).numpy())
    )
  want = states[-2][:, 1:]
  assert want.std() > 0.3
  assert helpers.absolute(got, want) < 2e-5
  # The neighbouring layers are something else.
  assert helpers.absolute(got, states[-1][:, 1:]) > 0.1
  assert helpers.absolute(got, states[-3][:, 1:]) > 0.1


def test_vision_model(tmp_path):
  theirs = randomized(
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
  )
  compare(theirs, theirs, tmp_path)


def test_vision_half_of_a_whole_clip(tmp_path):
  text = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    vocab_size=20,
    max_position_embeddings=8,
    bos_token_id=0,
    eos_token_id=1,
  )
  theirs = randomized(
    transformers.CLIPModel(
      transformers.CLIPConfig(text_config=text, vision_config=VISION)
    )
  )
  compare(theirs, theirs.vision_model, tmp_path)
