"""CLIP vision encoders of transformers' files, run against transformers."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import helpers
from unifluid_jax.core import presets
from unifluid_jax.models.clip_vit import ClipVit
from unifluid_jax.weights import clip, engine, readers, vit_rows
from unifluid_jax.weights.rows import WeightsError

FIXTURES = Path(__file__).with_name("fixtures")
TINY = presets.VitConfig(16, 3, 24, 2, patch=4, image_size=12)


@pytest.fixture(scope="module")
def source():
  file = readers.open_source(str(FIXTURES / "tiny_clip"))
  return helpers.Tensors(
    {n.removeprefix("vision_model."): file.read(n) for n in file.names()},
    file.path,
  )


def test_numbers_are_those_of_transformers(tmp_path):
  want = np.load(FIXTURES / "vision.npz")
  tree, meta = helpers.convert(
    FIXTURES / "tiny_clip", clip.recipe, tmp_path / "clip"
  )
  config = presets.VitConfig(**meta["vit"])
  images = jnp.asarray(want["clip_images"])[:, :12, :12]
  with jax.default_matmul_precision("highest"):
    got = ClipVit(config, jnp.float32).apply({"params": tree["vit"]}, images)
  np.testing.assert_allclose(got, want["clip_features"], atol=2e-5)
  assert config == TINY
  assert np.std(want["clip_features"]) > 0.1


def test_with_prefix_and_text_encoder(source):
  other = (
    "text_model.x", "text_projection.weight", "visual_projection.weight",
    "logit_scale", "vision_model.embeddings.position_ids",
  )  # fmt: skip
  whole = helpers.Tensors(
    {
      **{f"vision_model.{k}": v for k, v in source.tensors.items()},
      **dict.fromkeys(other, np.zeros(1, np.float32)),
    },
    source.path,
  )
  want = helpers.in_memory(source, clip.recipe(source))
  got = helpers.in_memory(whole, clip.recipe(whole))
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], path)
  plan = engine.make_plan(whole, clip.recipe(whole))
  assert {n for n, _ in plan.dropped} - set(other) == {
    f"vision_model.{n}"
    for n in source.names()
    if n.startswith(("encoder.layers.2.", "post_layernorm."))
  }


def test_heads_that_a_larger_model_leaves_out(source, tmp_path):
  """transformers wrote no 12 there; alone a head is as wide as released."""
  wide = {
    k: np.zeros([{16: 192}.get(n, n) for n in v.shape], np.float32)
    for k, v in source.tensors.items()
  }
  alone = helpers.Tensors(wide, str(tmp_path / "x.safetensors"))
  assert clip.recipe(alone).meta["vit"]["heads"] == 3
  (tmp_path / "config.json").write_text('{"vision_config": {}}')
  assert clip.recipe(alone).meta["vit"]["heads"] == 12


def test_positions_of_another_grid(source):
  """The class token's is kept; the grid is resized corner to corner."""
  recipe = clip.recipe(source, 20)
  assert recipe.meta["vit"]["image_size"] == 20
  got = helpers.in_memory(source, recipe)["vit/position"]
  old = source.read("embeddings.position_embedding.weight")
  assert got.shape == (26, 16)
  np.testing.assert_array_equal(got[0], old[0])
  for new, was in [(0, 0), (2, 1), (4, 2), (12, 4), (24, 8)]:
    np.testing.assert_allclose(got[1 + new], old[1 + was], atol=1e-6)
  np.testing.assert_allclose(got[2], (old[1] + old[2]) / 2, atol=1e-6)
  np.testing.assert_array_equal(got[1:], vit_rows.resize_positions(old[1:], 5))
  with pytest.raises(WeightsError, match="image_size=3 is smaller than a pat"):
    clip.recipe(source, 3)


def test_published_size():
  """Heads of 64 channels without config.json."""
  config = presets.CLIP_VIT["l14_336"]
  d, f = config.width, config.mlp
  shapes = {
    "embeddings.class_embedding": (d,),
    "embeddings.patch_embedding.weight": (d, 3, 14, 14),
    "embeddings.position_embedding.weight": (577, d),
    **{f"{n}.{p}": (d,) for n in ("pre_layrnorm", "post_layernorm")
       for p in ("weight", "bias")},
  }  # fmt: skip
  for i in range(24):
    for name, shape in [
      *((f"self_attn.{n}_proj", (d, d)) for n in ("q", "k", "v", "out")),
      ("mlp.fc1", (f, d)), ("mlp.fc2", (d, f)),
      ("layer_norm1", (d,)), ("layer_norm2", (d,)),
    ]:  # fmt: skip
      shapes[f"encoder.layers.{i}.{name}.weight"] = shape
      shapes[f"encoder.layers.{i}.{name}.bias"] = shape[:1]
  zero = np.zeros((), np.float32)
  whole = helpers.Tensors(
    {f"vision_model.{k}": np.broadcast_to(zero, v) for k, v in shapes.items()}
  )
  assert sum(x.size for x in whole.tensors.values()) == 303_507_456
  recipe = clip.recipe(whole)
  assert recipe.meta["preset"] == "l14_336"
  engine.make_plan(whole, recipe)


def test_wrong_files_are_named(source, tmp_path):
  lost = dict(source.tensors)
  del lost["encoder.layers.1.mlp.fc2.bias"]
  wrong = helpers.Tensors(lost, source.path)
  with pytest.raises(WeightsError, match="encoder.layers.1.mlp.fc2.bias: miss"):
    engine.make_plan(wrong, clip.recipe(wrong))
  with pytest.raises(WeightsError, match="no CLIP.*class_embedding.*found a"):
    clip.recipe(helpers.Tensors({"a": np.zeros(1)}))
  alone = helpers.Tensors(source.tensors, str(tmp_path / "x.safetensors"))
  with pytest.raises(WeightsError, match="0 heads of 16.*config.json"):
    clip.recipe(alone)
  shutil.copy(FIXTURES / "tiny_clip" / "config.json", tmp_path)
  assert clip.recipe(alone).meta["vit"]["heads"] == 2
