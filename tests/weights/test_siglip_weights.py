import json

import ml_dtypes
import numpy as np
import pytest

from tests.weights import helpers
from unifluid_jax.core.presets import VIT
from unifluid_jax.weights import (
  axes,
  engine,
  orbax_files,
  readers,
  siglip,
  to_hf,
  vit_rows,
)
from unifluid_jax.weights.rows import WeightsError

BF16 = np.dtype(ml_dtypes.bfloat16)
AT = helpers.FIXTURES / "siglip"
ATTENTION = "MultiHeadDotProductAttention_0"


def tensors():
  """Hugging Face's; width 24, two layers, three heads, 4-pixel cells."""
  source = readers.open_source(str(AT))
  return {name: source.read(name) for name in source.names()}


def in_memory(theirs, **options):
  source = helpers.Tensors(theirs, str(AT / "model.safetensors"))
  return helpers.in_memory(source, siglip.recipe(source, **options))


def test_agrees_with_transformers(tmp_path):
  """On 14 pixels, of which cells of 4 cover 12."""
  params, meta = helpers.convert(AT, siglip.recipe, tmp_path / "ours")
  want = np.load(AT / "expected.npz")
  # Positions tell cells, not pixels.
  assert meta["vit"].pop("image_size") == 12
  meta["vit"]["image_size"] = 14
  got = helpers.run_vit(meta, params["vit"], want["images"])
  assert helpers.relative(got, want["tokens"]) < 2e-5


def test_pooling_head_is_named_as_dropped():
  source = readers.open_source(str(AT))
  plan = engine.make_plan(source, siglip.recipe(source))
  dropped = dict(plan.dropped)
  heads = [name for name in source.names() if "head." in name]
  assert len(heads) == 11 and sorted(dropped) == sorted(heads)
  assert set(dropped.values()) == {"pooling head"}


@pytest.mark.parametrize("prefix", ["vision_model.", "siglip.vision_model."])
def test_prefixes(prefix):
  theirs = tensors()
  bare = {n.removeprefix("vision_model."): x for n, x in theirs.items()}
  named = {prefix + name: x for name, x in bare.items()}
  named |= {
    "text_model.x": np.zeros(2), "logit_scale": np.zeros(()),
    "logit_bias": np.zeros(()),
    f"{prefix}embeddings.position_ids": np.zeros((1, 9)),
  }  # fmt: skip
  want = in_memory(bare)
  got = in_memory(named)
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(got[path], want[path])


def block(theirs, i):
  """A layer as big_vision names and shapes it."""
  prefix = next(n for n in theirs if n.endswith("layers.0.layer_norm1.bias"))
  at = prefix.replace("0.layer_norm1.bias", f"{i}.")
  out = {}
  for n in (0, 1):
    norm = f"{at}layer_norm{n + 1}"
    out[f"LayerNorm_{n}/scale"] = theirs[f"{norm}.weight"]
    out[f"LayerNorm_{n}/bias"] = theirs[f"{norm}.bias"]
    dense = f"{at}mlp.fc{n + 1}"
    out[f"MlpBlock_0/Dense_{n}/kernel"] = theirs[f"{dense}.weight"].T
    out[f"MlpBlock_0/Dense_{n}/bias"] = theirs[f"{dense}.bias"]
  for name in ("query", "key", "value"):
    dense = f"{at}self_attn.{name[0]}_proj"
    kernel = theirs[f"{dense}.weight"].T.reshape(24, 3, 8)
    out[f"{ATTENTION}/{name}/kernel"] = kernel
    out[f"{ATTENTION}/{name}/bias"] = theirs[f"{dense}.bias"].reshape(3, 8)
  dense = f"{at}self_attn.out_proj"
  out[f"{ATTENTION}/out/kernel"] = theirs[f"{dense}.weight"].T.reshape(3, 8, 24)
  out[f"{ATTENTION}/out/bias"] = theirs[f"{dense}.bias"]
  return out


def big_vision(theirs, stacked, prefix):
  end = "embeddings.patch_embedding.weight"
  (root,) = (n.removesuffix(end) for n in theirs if n.endswith(end))
  patch = f"{root}embeddings.patch_embedding"
  position = theirs[f"{root}embeddings.position_embedding.weight"]
  out = {
    "embedding/kernel": theirs[f"{patch}.weight"].transpose(2, 3, 1, 0),
    "embedding/bias": theirs[f"{patch}.bias"],
    "pos_embedding": position[None],
    "Transformer/encoder_norm/scale": theirs[f"{root}post_layernorm.weight"],
    "Transformer/encoder_norm/bias": theirs[f"{root}post_layernorm.bias"],
    "MAPHead_0/probe": np.zeros((1, 1, 24)),
    f"MAPHead_0/{ATTENTION}/query/kernel": np.zeros((24, 3, 8)),
  }
  layers = [block(theirs, i) for i in range(2)]
  for name in layers[0]:
    if stacked:
      x = np.stack([layer[name] for layer in layers])
      out[f"Transformer/encoderblock/{name}"] = x
    else:
      for i, layer in enumerate(layers):
        out[f"Transformer/encoderblock_{i}/{name}"] = layer[name]
  return {f"{prefix}{name}": x for name, x in out.items()}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("prefix", ["img/", "params/img/"])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_big_vision_npz(tmp_path, stacked, prefix, dtype):
  theirs = {name: x.astype(dtype) for name, x in tensors().items()}
  arrays = big_vision(theirs, stacked, prefix)
  root = prefix.removesuffix("img/")
  arrays |= {
    f"{root}t": np.zeros(1), f"{root}b": np.zeros(1),
    f"{root}txt/pos_embedding": np.zeros((1, 4, 8)),
    f"{root}txt/Encoder_0/x": np.zeros(3),
  }  # fmt: skip
  np.savez(tmp_path / "x.npz", **arrays)
  source = readers.open_source(str(tmp_path / "x.npz"))
  recipe = siglip.recipe(source)
  assert ("stacked" if stacked else "looped") in recipe.found
  got, want = helpers.in_memory(source, recipe), in_memory(theirs)
  assert got.keys() == want.keys()
  for path in want:
    assert got[path].dtype == dtype
    np.testing.assert_array_equal(got[path], want[path])


# -------------------------------------------------------------- positions


def test_resize_is_linear_from_corner_to_corner():
  """4 → 8 cells a side: steps of 3/7, as big_vision's zoom gives."""
  ramp = np.arange(4, dtype=np.float32)
  rows = np.broadcast_to(ramp[:, None], (4, 4)).reshape(16, 1)
  columns = np.broadcast_to(ramp[None], (4, 4)).reshape(16, 1)
  x = np.concatenate([rows, columns, rows * columns], 1)
  got = vit_rows.resize_positions(x, 8).reshape(8, 8, 3)
  fine = np.arange(8) * 3 / 7
  np.testing.assert_allclose(got[:, 0, 0], fine, rtol=1e-6)
  np.testing.assert_allclose(got[0, :, 1], fine, rtol=1e-6)
  np.testing.assert_allclose(got[..., 2], np.outer(fine, fine), atol=1e-6)


def test_resize_keeps_what_fits_and_leaves_out_a_class_token():
  x = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
  np.testing.assert_array_equal(vit_rows.resize_positions(x, 3), x[1:])
  np.testing.assert_array_equal(vit_rows.resize_positions(x[1:], 3), x[1:])
  corners = x[1:].reshape(3, 3, 5)[::2, ::2].reshape(4, 5)
  for dtype in (BF16, np.float16):
    half = vit_rows.resize_positions(x[1:].astype(dtype), 2)
    assert half.dtype == dtype
    np.testing.assert_array_equal(half, corners.astype(dtype))


@pytest.mark.parametrize("big_vision_names", [False, True])
def test_another_image_size(tmp_path, big_vision_names):
  theirs = tensors()
  if big_vision_names:
    theirs = big_vision(theirs, True, "img/")
  source = helpers.Tensors(theirs, str(AT / "model.safetensors"))
  recipe = siglip.recipe(source, image_size=20)
  assert "positions resized from 3 x 3 to 5 x 5" in recipe.found
  assert recipe.meta["vit"]["image_size"] == 20
  got = helpers.in_memory(source, recipe)["vit/position"]
  want = vit_rows.resize_positions(in_memory(tensors())["vit/position"], 5)
  np.testing.assert_array_equal(got, want)


def test_a_class_token_of_old_files_is_left_out():
  theirs = big_vision(tensors(), False, "img/")
  old = theirs["img/pos_embedding"]
  theirs["img/pos_embedding"] = np.concatenate([old[:, :1] + 9, old], 1)
  np.testing.assert_array_equal(in_memory(theirs)["vit/position"], old[0])


# ------------------------------------------------------------ sizes, errors


@pytest.mark.parametrize("side, pixels", [(16, 224), (27, 384)])
def test_so400m_is_recognised(side, pixels):
  vit = VIT["so400m_14"]
  config = type(vit)(1152, 27, 4304, 16, patch=14, image_size=side * 14)
  shapes, like = {}, siglip.like(config)
  for row in siglip.hf_rows("vision_model."):
    for i in range(27 if row.stacks else 1):
      shapes[row.source.format(i=i)] = _shape(row, like)

  recipe = siglip.recipe(helpers.Shapes(shapes))
  assert recipe.meta["preset"] == "so400m_14"
  assert recipe.meta["vit"]["image_size"] == pixels
  assert recipe.like["vit/position"] == (side * side, 1152)


def _shape(row, like):
  move, shape = axes.parse(row.axes), like[row.target]
  return move.source_shape(move.sizes_of(shape[bool(row.stacks) :]))


@pytest.mark.parametrize(
  "name, shape, message",
  [
    ("encoder.layers.1.mlp.fc2.bias", (25,), r"expected \(24,\).*\(25,\)"),
    ("encoder.layers.1.layer_norm2.weight", None, "missing"),
    ("embeddings.position_embedding.weight", (11, 24), "no square grid"),
    ("embeddings.patch_embedding.weight", None, "holds no SigLIP.*correct"),
  ],
)
def test_wrong_tensors_are_named(name, shape, message):
  theirs = {n.removeprefix("vision_model."): x for n, x in tensors().items()}
  del theirs[name]
  if shape:
    theirs[name] = np.zeros(shape)
  with pytest.raises(WeightsError, match=message) as error:
    in_memory(theirs)
  assert str(AT) in str(error.value) and "\n" not in str(error.value)


def test_unknown_width_needs_its_configuration(tmp_path):
  source = helpers.Tensors(tensors(), str(tmp_path / "x"))
  with pytest.raises(WeightsError, match="config.json beside it"):
    siglip.recipe(source)


@pytest.mark.parametrize(
  "key, value", [("hidden_act", "gelu"), ("layer_norm_eps", 1e-5)]
)
@pytest.mark.parametrize("part", ["", "vision_config"])
def test_another_encoder_is_refused(tmp_path, part, key, value):
  """As CLIP's: the numbers would be others, and nothing would say so."""
  settings = json.loads((AT / "config.json").read_text()) | {key: value}
  settings = {part: settings} if part else settings
  (tmp_path / "config.json").write_text(json.dumps(settings))
  source = helpers.Tensors(tensors(), str(tmp_path / "x"))
  with pytest.raises(WeightsError, match=f"{key}: expected .*found {value}"):
    siglip.recipe(source)


def test_image_smaller_than_a_patch():
  with pytest.raises(WeightsError, match="image_size=3 is smaller"):
    in_memory(tensors(), image_size=3)


# ------------------------------------------------------------- the way back


def test_round_trip_is_bit_exact(tmp_path):
  theirs = {name: x.astype(BF16) for name, x in tensors().items()}
  source = helpers.Tensors(theirs, str(AT / "x"))
  plan = engine.make_plan(source, siglip.recipe(source))
  orbax_files.write(str(tmp_path / "ours"), plan.leaves, {}, {})
  ours = to_hf.Params(readers.open_source(str(tmp_path / "ours")))
  to_hf.write(str(tmp_path / "back"), "model", ours, siglip.hf_recipe(ours))
  back = readers.open_source(str(tmp_path / "back"))
  want = {
    "vision_model." + name.removeprefix("vision_model."): x
    for name, x in theirs.items()
    if "head." not in name
  }
  assert sorted(back.names()) == sorted(want)
  for name, x in want.items():
    assert back.read(name).tobytes() == x.tobytes(), name


def test_the_way_back_needs_an_encoder():
  with pytest.raises(WeightsError, match="holds no vision encoder"):
    siglip.hf_recipe(helpers.Tensors({"decoder/x": np.zeros(2)}))
