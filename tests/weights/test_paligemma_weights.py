import numpy as np
import pytest

from tests.weights import helpers
from tests.weights.test_gemma_weights import bare, official_layer
from tests.weights.test_siglip_weights import big_vision
from unifluid_jax.weights import engine, paligemma, readers
from unifluid_jax.weights.rows import WeightsError

AT = helpers.FIXTURES / "paligemma"
LEGACY = {
  "model.vision_tower.": "vision_tower.vision_model.",
  "model.multi_modal_projector.": "multi_modal_projector.",
  "model.language_model.": "language_model.model.",
}


def tensors():
  """Hugging Face's, with the newer names."""
  source = readers.open_source(str(AT))
  return {name: source.read(name) for name in source.names()}


def in_memory(theirs, **options):
  source = helpers.Tensors(theirs, str(AT / "model.safetensors"))
  return helpers.in_memory(source, paligemma.recipe(source, **options))


def same(got, want):
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_agrees_with_transformers(tmp_path):
  """Image, prefix and suffix to the logits of every position."""
  params, meta = helpers.convert(AT, paligemma.recipe, tmp_path / "ours")
  assert sorted(params) == ["decoder", "projector", "vit"]
  want = np.load(AT / "expected.npz")
  got = helpers.run_paligemma(
    helpers.gemma_config(meta), meta, params, want["images"],
    want["tokens"], prefix=4,
  )  # fmt: skip
  assert helpers.absolute(got, want["logits"]) < 1e-4


def test_names_of_released_files():
  theirs = tensors()
  legacy = {}
  for name, x in theirs.items():
    for new, old in LEGACY.items():
      if name.startswith(new):
        name = old + name.removeprefix(new).removeprefix("vision_model.")
    legacy[name] = x
  assert any(n.startswith("language_model.model.layers") for n in legacy)
  table = legacy["language_model.model.embed_tokens.weight"]
  legacy["language_model.lm_head.weight"] = table
  same(in_memory(legacy), in_memory(theirs))


@pytest.mark.parametrize("prefix", ["", "params/"])
def test_big_vision_npz(tmp_path, prefix):
  theirs = tensors()
  text = {
    name.replace("model.language_model.", "model."): x
    for name, x in theirs.items()
  }
  layers = [official_layer(text, i, 2) for i in range(2)]
  arrays = {
    f"{prefix}llm/layers/{bare(path)}": np.stack([x[path] for x in layers])
    for path in layers[0]
  }
  eyes = {n: x for n, x in theirs.items() if "vision_tower" in n}
  arrays |= big_vision(eyes, True, f"{prefix}img/")
  projector = "model.multi_modal_projector.linear"
  arrays |= {
    f"{prefix}llm/embedder/input_embedding": text["model.embed_tokens.weight"],
    f"{prefix}llm/final_norm/scale": text["model.norm.weight"],
    f"{prefix}img/head/kernel": theirs[f"{projector}.weight"].T,
    f"{prefix}img/head/bias": theirs[f"{projector}.bias"],
  }
  np.savez(tmp_path / "x.npz", **arrays)
  source = readers.open_source(str(tmp_path / "x.npz"))
  recipe = paligemma.recipe(source)
  assert "PaliGemma 2" in recipe.found and "big_vision" in recipe.found
  same(helpers.in_memory(source, recipe), in_memory(theirs))


def test_padding_rows_go_and_location_rows_stay():
  theirs = tensors()
  name = "model.language_model.embed_tokens.weight"
  table = np.zeros((257_216, 24), np.float16)
  table[257_151] = 7  # the last <seg> token
  theirs[name] = table
  source = helpers.Tensors(theirs, str(AT / "x"))
  plan = engine.make_plan(source, paligemma.recipe(source))
  assert plan.cut[0][0] == f"{name}[257152:257216]"
  leaf = plan.leaves["decoder/embedder/table"]
  assert leaf.shape == (257_152, 24)
  *_, (start, last) = leaf.blocks()
  assert start + len(last) == 257_152 and (last[-1] == 7).all()


def test_another_image_size():
  same(
    {k: v for k, v in in_memory(tensors(), image_size=24).items()
     if k != "vit/position"},
    {k: v for k, v in in_memory(tensors()).items() if k != "vit/position"},
  )  # fmt: skip
  assert in_memory(tensors(), image_size=24)["vit/position"].shape == (36, 24)


@pytest.mark.parametrize(
  "name, shape, message",
  [
    ("projector.linear.weight", None, "holds no PaliGemma.*correct the kind"),
    ("projector.linear.weight", (24, 25), "lead from 24 to 24, found 25 to 24"),
    ("projector.linear.bias", None, r"projector/bias \(24,\): missing"),
    ("language_model.norm.weight", None, "final_norm/scale .*missing"),
    ("post_layernorm.weight", None, "vit/norm/scale .*missing"),
  ],
)
def test_wrong_tensors_are_named(name, shape, message):
  theirs = tensors()
  (whole,) = (n for n in theirs if n.endswith(name))
  del theirs[whole]
  if shape:
    theirs[whole] = np.zeros(shape)
  with pytest.raises(WeightsError, match=message) as error:
    in_memory(theirs)
  assert str(AT) in str(error.value) and "\n" not in str(error.value)
