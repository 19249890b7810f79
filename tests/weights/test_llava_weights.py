"""LLaVA-1.5 under the names of its files; no PyTorch needed.

tests/parity/test_llava_parity.py holds the numbers against transformers.
"""

import json

import numpy as np
import pytest

from tests.weights import helpers
from tests.weights.test_llama_weights import SETTINGS, hf_shapes, random
from unifluid_jax.core.presets import DECODER
from unifluid_jax.weights import (
  clip,
  convert,
  engine,
  llama,
  llava,
  readers,
  safetensors_file,
)
from unifluid_jax.weights.rows import WeightsError

CLIP = helpers.FIXTURES / "tiny_clip"
D, W = 24, 16  # widths of the decoder and of the fixture's encoder
# Prefixes of the decoder, its output layer, CLIP and the projector.
RELEASED = (
  "language_model.model.", "language_model.", "vision_tower.vision_model.", "",
)  # fmt: skip
FORMS = {
  "released": RELEASED,
  "saved by transformers 5": (*RELEASED[:2], "vision_tower.", ""),
  "newer": (
    "model.language_model.", "", "model.vision_tower.vision_model.", "model.",
  ),
}  # fmt: skip
PROJECTOR = {
  "linear_1.weight": (D, W), "linear_1.bias": (D,),
  "linear_2.weight": (D, D), "linear_2.bias": (D,),
}  # fmt: skip
# What the released 7B says of itself.
PUBLISHED = {
  "model_type": "llava", "image_token_index": 32_000,
  "projector_hidden_act": "gelu", "vision_feature_layer": -2,
  "vision_feature_select_strategy": "default",
  "text_config": {
    "max_position_embeddings": 4096, "model_type": "llama",
    "rms_norm_eps": 1e-5, "vocab_size": 32_064,
  },
  "vision_config": {
    "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
    "model_type": "clip_vision_model", "num_attention_heads": 16,
    "num_hidden_layers": 24, "patch_size": 14,
  },
}  # fmt: skip


def parts():
  """The decoder's tensors, CLIP's and the projector's, by their own names."""
  eyes = readers.open_source(str(CLIP))
  return (
    random(hf_shapes("llama")),
    {n.removeprefix("vision_model."): eyes.read(n) for n in eyes.names()},
    random(PROJECTOR),
  )


def named(form, text, eyes, projector):
  """One file's tensors."""
  decoder, head, vision, top = FORMS[form]
  out = {f"{vision}{name}": x for name, x in eyes.items()}
  out |= {f"{top}multi_modal_projector.{n}": x for n, x in projector.items()}
  for name, x in text.items():
    prefix = head if name == "lm_head.weight" else decoder
    out[prefix + name.removeprefix("model.")] = x
  return out


def tensors(form):
  return named(form, *parts())


def settings(changes=(), **text):
  """config.json of the tiny model."""
  tree = PUBLISHED | dict(changes)
  vision = json.loads((CLIP / "config.json").read_text())
  text = {"model_type": "llama"} | SETTINGS | text
  return tree | {"vision_config": vision, "text_config": text}


def source(at, tensors, tree):
  (at / "config.json").write_text(json.dumps(tree))
  return helpers.Tensors(tensors, str(at / "model.safetensors"))


@pytest.mark.parametrize("form", FORMS)
def test_parts_are_read_as_if_alone(tmp_path, form):
  text, eyes, projector = parts()
  file = source(tmp_path, named(form, text, eyes, projector), settings())
  recipe = llava.recipe(file)
  got = helpers.in_memory(file, recipe)
  (tmp_path / "text").mkdir()
  tree = SETTINGS | {"model_type": "llama"}
  alone = source(tmp_path / "text", text, tree)
  want = helpers.in_memory(alone, llama.recipe(alone, "llama"))
  alone = helpers.Tensors(eyes, str(CLIP / "x"))
  vit = helpers.in_memory(alone, clip.recipe(alone))
  want |= {f"encoder{path.removeprefix('vit')}": x for path, x in vit.items()}
  for theirs, ours in (("linear_1", "in"), ("linear_2", "out")):
    want[f"projector/{ours}/kernel"] = projector[f"{theirs}.weight"].T
    want[f"projector/{ours}/bias"] = projector[f"{theirs}.bias"]
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], path)
  assert recipe.meta["decoder"]["rope_base_global"] == 500.0
  assert recipe.meta["vit"]["heads"] == 2
  # CLIP's last block is behind what is read.
  vision = FORMS[form][2]
  dropped = {n for n, _ in engine.make_plan(file, recipe).dropped}
  last = (f"{vision}encoder.layers.2.", f"{vision}post_layernorm.")
  assert dropped == {n for n in file.names() if n.startswith(last)}
  assert len(dropped) == 18


def published_shapes():
  """Names and shapes of the 7B."""
  d, w, f, v = 4096, 1024, 11_008, 32_064
  shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,),
            "lm_head.weight": (v, d)}  # fmt: skip
  for i in range(32):
    at = f"model.layers.{i}."
    shapes |= {f"{at}self_attn.{x}_proj.weight": (d, d) for x in "qkvo"}
    shapes |= {f"{at}mlp.{x}_proj.weight": (f, d) for x in ("gate", "up")}
    shapes |= {
      f"{at}mlp.down_proj.weight": (d, f), f"{at}input_layernorm.weight": (d,),
      f"{at}post_attention_layernorm.weight": (d,),
    }  # fmt: skip
  eyes = {
    "embeddings.class_embedding": (w,),
    "embeddings.patch_embedding.weight": (w, 3, 14, 14),
    "embeddings.position_embedding.weight": (577, w),
  }
  for i in range(24):
    at = f"encoder.layers.{i}."
    kernels = {f"self_attn.{x}_proj": (w, w) for x in ("q", "k", "v", "out")}
    kernels |= {"mlp.fc1": (4 * w, w), "mlp.fc2": (w, 4 * w)}
    kernels |= {f"layer_norm{x}": (w,) for x in (1, 2)}
    for name, shape in kernels.items():
      eyes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
  for name in ("pre_layrnorm", "post_layernorm"):
    eyes |= {f"{name}.{x}": (w,) for x in ("weight", "bias")}
  projector = {
    "linear_1.weight": (d, w), "linear_1.bias": (d,),
    "linear_2.weight": (d, d), "linear_2.bias": (d,),
  }  # fmt: skip
  return named("released", shapes, eyes, projector)


def test_the_released_7b(tmp_path):
  """Names, shapes and the few settings that it writes down; no numbers."""
  (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
  file = helpers.Shapes(published_shapes(), str(tmp_path / "x"))
  assert sum(np.prod(x) for x in file.tensors.values()) == 7_063_427_072
  recipe = llava.recipe(file)
  assert "llama2_7b + l14_336; 336 pixels, vocabulary 32064" in recipe.found
  assert recipe.meta["preset"] == "llama2_7b"
  assert helpers.gemma_config(recipe.meta) == helpers.without(
    DECODER["llama2_7b"], vocab=32_064
  )
  plan = engine.make_plan(file, recipe)
  read = sum(np.prod(leaf.shape) for leaf in plan.leaves.values())
  w = 1024
  last = 12 * w * w + 13 * w + 2 * w  # CLIP's last block and final norm
  assert read == 7_063_427_072 - last
  # A download that lacks the last layers is not taken for a smaller model.
  lost = {n: x for n, x in file.tensors.items() if "model.layers.31." not in n}
  with pytest.raises(WeightsError, match="expected 32 layers.*found 31"):
    llava.recipe(helpers.Shapes(lost, file.path))


def test_another_image_size(tmp_path):
  file = source(tmp_path, tensors("released"), settings())
  recipe = llava.recipe(file, 20)
  assert recipe.meta["vit"]["image_size"] == 20
  assert helpers.in_memory(file, recipe)["encoder/position"].shape == (26, W)


@pytest.mark.parametrize(
  "changes, text, message",
  [
    ({"vision_feature_layer": -1}, {}, "vision_feature_layer: expected -2"),
    ({"vision_feature_select_strategy": "full"}, {}, "expected default"),
    ({"projector_hidden_act": "relu"}, {}, "expected gelu, found relu"),
    ({}, {"model_type": "mistral"}, "text_config: model_type: expected llama"),
    ({}, {"num_attention_heads": 3}, "text_config: num_key_value_heads"),
    ({}, {"num_hidden_layers": 4}, "expected 4 layers"),
  ],
)
def test_other_networks_are_refused(tmp_path, changes, text, message):
  tree = settings(changes, **text)
  file = source(tmp_path, tensors("released"), tree)
  with pytest.raises(WeightsError, match=message):
    llava.recipe(file)


def test_gelus_of_encoders_are_told_apart(tmp_path):
  """OpenCLIP's networks have CLIP's shapes and another activation."""
  tree = settings()
  tree["vision_config"]["hidden_act"] = "gelu"
  file = source(tmp_path, tensors("released"), tree)
  with pytest.raises(WeightsError, match="hidden_act: expected quick_gelu"):
    llava.recipe(file)


@pytest.mark.parametrize(
  "name, shape, message",
  [
    ("projector.linear_1.weight", None, "holds no LLaVA.*correct the kind"),
    ("projector.linear_1.weight", (D, W + 1), "from 16 to 24, found 17 to 24"),
    ("projector.linear_2.bias", None, r"projector/out/bias \(24,\): missing"),
    ("class_embedding", None, "holds no LLaVA with CLIP"),
    ("pre_layrnorm.bias", None, "no CLIP.*vision_model.pre_layrnorm.bias"),
    ("lm_head.weight", None, "decoder/lm_head/table .*missing"),
  ],
)
def test_wrong_tensors_are_named(tmp_path, name, shape, message):
  theirs = tensors("released")
  (whole,) = (n for n in theirs if n.endswith(name))
  del theirs[whole]
  if shape:
    theirs[whole] = np.zeros(shape)
  file = source(tmp_path, theirs, settings())
  with pytest.raises(WeightsError, match=message) as error:
    engine.make_plan(file, llava.recipe(file))
  assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_config_json_is_needed(tmp_path):
  file = helpers.Tensors(tensors("released"), str(tmp_path / "x"))
  with pytest.raises(WeightsError, match="config.json beside it with text_co"):
    llava.recipe(file)


def test_the_way_back_is_the_decoders(tmp_path):
  made = tensors("newer")
  file = source(tmp_path, made, settings())
  layout = {name: (x.shape, x.dtype) for name, x in made.items()}
  safetensors_file.write(file.path, layout, made.items())
  convert.to_checkpoint(
    f"llava:{tmp_path}", str(tmp_path / "ours"), lambda _: None
  )
  back = str(tmp_path / "back")
  with pytest.raises(WeightsError, match="decoder of a llava .* as llama"):
    convert.to_hugging_face(f"llava:{tmp_path}/ours", back, lambda _: None)
  convert.to_hugging_face(f"llama:{tmp_path}/ours", back, lambda _: None)
  text, _, _ = parts()
  got = readers.open_source(back)
  assert sorted(got.names()) == sorted(text)
  for name, want in text.items():
    assert got.read(name).tobytes() == want.tobytes(), name
