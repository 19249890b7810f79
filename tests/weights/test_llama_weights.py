"""Llama, Qwen2 and Chameleon under Hugging Face names; no PyTorch needed.

tests/parity/test_decoder_parity.py holds the numbers against transformers.
"""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from tests.weights import helpers
from unifluid_jax.core.presets import DECODER, GEMMA
from unifluid_jax.weights import (
  convert,
  engine,
  llama,
  llama_settings,
  readers,
  safetensors_file,
)
from unifluid_jax.weights.rows import WeightsError

BF16 = np.dtype(ml_dtypes.bfloat16)
V, D, L, F, N, K, H = 40, 24, 3, 32, 4, 2, 6
SETTINGS = {
  "vocab_size": V, "hidden_size": D, "num_hidden_layers": L,
  "intermediate_size": F, "num_attention_heads": N, "num_key_value_heads": K,
  "rms_norm_eps": 1e-5, "rope_theta": 500.0, "hidden_act": "silu",
}  # fmt: skip
LLAMA3 = {
  "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
  "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def hf_shapes(kind, tied=False):
  """Names and shapes as transformers has them."""
  at = {
    "self_attn.q_proj.weight": (N * H, D),
    "self_attn.k_proj.weight": (K * H, D),
    "self_attn.v_proj.weight": (K * H, D),
    "self_attn.o_proj.weight": (D, N * H),
    "mlp.gate_proj.weight": (F, D), "mlp.up_proj.weight": (F, D),
    "mlp.down_proj.weight": (D, F), "input_layernorm.weight": (D,),
    "post_attention_layernorm.weight": (D,),
  }  # fmt: skip
  if kind == "qwen2":
    for name, heads in (("q", N), ("k", K), ("v", K)):
      at[f"self_attn.{name}_proj.bias"] = (heads * H,)
  if kind == "chameleon":
    for name, heads in (("q", N), ("k", K)):
      for leaf in ("weight", "bias"):
        at[f"self_attn.{name}_norm.{leaf}"] = (heads, H)
  out = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
  for i in range(L):
    out |= {f"model.layers.{i}.{name}": shape for name, shape in at.items()}
  return out if tied else out | {"lm_head.weight": (V, D)}


def random(shapes):
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=shape).astype(BF16) for name, shape in shapes.items()
  }


def folder(tmp_path, tensors, kind, **settings):
  """A directory of the released form."""
  path = tmp_path / "hf"
  path.mkdir()
  layout = {name: (x.shape, x.dtype) for name, x in tensors.items()}
  file = str(path / "model.safetensors")
  safetensors_file.write(file, layout, tensors.items())
  tree = SETTINGS | {"model_type": kind} | settings
  (path / "config.json").write_text(json.dumps(tree))
  return path


def convert_to_ours(tmp_path, kind):
  to = str(tmp_path / "ours")
  convert.to_checkpoint(f"{kind}:{tmp_path / 'hf'}", to, lambda _: None)
  source = readers.open_source(to)
  return {n.removeprefix("params/decoder/"): source.read(n)
          for n in source.names()}  # fmt: skip


CASES = [
  ("llama", {"tie_word_embeddings": True}),
  ("llama", {"rope_scaling": LLAMA3}),
  ("qwen2", {"tie_word_embeddings": True}),
  ("chameleon", {}),
  ("chameleon", {"swin_norm": True}),
]


@pytest.mark.parametrize("kind, settings", CASES)
def test_there_and_back_bit_by_bit(tmp_path, kind, settings):
  tied = settings.get("tie_word_embeddings", False)
  theirs = random(hf_shapes(kind, tied))
  extra = random({"model.vqmodel.encoder.x": (2,)} if kind[0] == "c" else {})
  path = folder(tmp_path, theirs | extra, kind, **settings)
  ours = convert_to_ours(tmp_path, kind)
  check_layout(ours, theirs, kind, tied, swin="swin_norm" in settings)

  spec = f"{kind}:{tmp_path / 'ours'}"
  convert.to_hugging_face(spec, str(tmp_path / "back"), lambda _: None)
  back = readers.open_source(str(tmp_path / "back"))
  assert sorted(back.names()) == sorted(theirs)
  for name, want in theirs.items():
    assert back.read(name).tobytes() == want.tobytes(), name
  # What it says of itself is what the original said.
  depth = SETTINGS["num_hidden_layers"]
  again, first = (
    llama_settings.read(str(at), kind, depth)
    for at in (tmp_path / "back", path)
  )
  assert again == first and first.rope_base_global == 500.0


def check_layout(ours, theirs, kind, tied, swin):
  """Each array by its own formula."""

  def layer(name, i=1):
    return theirs[f"model.layers.{i}.{name}"]

  norm = "post" if swin else "pre"
  q = layer("self_attn.q_proj.weight")
  want = {
    "embedder/table": theirs["model.embed_tokens.weight"],
    "final_norm/scale": theirs["model.norm.weight"],
    f"layers/{norm}_attn/scale": layer("input_layernorm.weight"),
    f"layers/{norm}_ffw/scale": layer("post_attention_layernorm.weight"),
    # Channel h of head n is row n * H + h of their matrix.
    "layers/attn/q": np.stack([q[n * H : n * H + H].T for n in range(N)], 1),
    "layers/attn/o": layer("self_attn.o_proj.weight").T.reshape(N, H, D),
    "layers/mlp/gate": layer("mlp.gate_proj.weight").T,
    "layers/mlp/down": layer("mlp.down_proj.weight").T,
  }
  if not tied:
    want["lm_head/table"] = theirs["lm_head.weight"]
  if kind == "qwen2":
    want["layers/attn/k_bias"] = layer("self_attn.k_proj.bias")
  if kind == "chameleon":
    for name in ("q_norm", "k_norm"):
      for a, b in (("weight", "scale"), ("bias", "bias")):
        x = np.concatenate(list(layer(f"self_attn.{name}.{a}")))
        want[f"layers/attn/{name}/{b}"] = x
  for path, x in want.items():
    got = ours[path][1] if path.startswith("layers/") else ours[path]
    np.testing.assert_array_equal(got, x, path)
  paths = {"layers/attn/k", "layers/attn/v", "layers/mlp/up", *want}
  paths |= {f"layers/attn/{x}_bias" for x in "qv" if kind == "qwen2"}
  assert set(ours) == paths


@pytest.mark.parametrize("parts", [1, 2])
def test_norms_per_part_of_a_split_model(tmp_path, parts):
  """Lumina-mGPT's files: each row serves neighbouring heads."""
  shapes = hf_shapes("chameleon")
  for name in shapes:
    if "_norm." in name and "self_attn" in name:
      shapes[name] = (parts, H)
  theirs = random(shapes)
  folder(tmp_path, theirs, "chameleon")
  ours = convert_to_ours(tmp_path, "chameleon")
  for x, heads in (("q", N), ("k", K)):
    stored = theirs[f"model.layers.2.self_attn.{x}_norm.weight"]
    want = [stored[n * parts // heads] for n in range(heads)]
    got = ours[f"layers/attn/{x}_norm/scale"][2].reshape(heads, H)
    np.testing.assert_array_equal(got, want)


def test_norms_of_a_number_of_parts_that_cannot_be(tmp_path):
  shapes = hf_shapes("chameleon")
  shapes["model.layers.0.self_attn.q_norm.weight"] = (3, H)
  folder(tmp_path, random(shapes), "chameleon")
  with pytest.raises(WeightsError, match="expected 4 rows, or .* found 3"):
    convert_to_ours(tmp_path, "chameleon")


@pytest.mark.parametrize("name", sorted({*DECODER} - {*GEMMA}))
def test_configurations_of_presets(tmp_path, name):
  """Written and read again; the preset is recognised."""
  kind = llama_settings.kind_of(DECODER[name])
  llama_settings.check_writable("x", kind, DECODER[name])
  tree = llama_settings.write(kind, DECODER[name])
  (tmp_path / "config.json").write_text(json.dumps(tree))
  depth = DECODER[name].depth
  found = llama_settings.read(str(tmp_path), kind, depth)
  assert found == DECODER[name]
  assert llama_settings.published(found) == name


@pytest.mark.parametrize(
  "spelling",
  [
    {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
  ],
  ids=["released", "newer"],
)
def test_llama_3_as_it_is_published(tmp_path, spelling):
  tree = {
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048,
    "num_hidden_layers": 16, "intermediate_size": 8192, "head_dim": 64,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
  }  # fmt: skip
  (tmp_path / "config.json").write_text(json.dumps(tree | spelling))
  found = llama_settings.read(str(tmp_path), "llama", 16)
  assert found == DECODER["llama3_1b"]


@pytest.mark.parametrize(
  "kind, settings, message",
  [
    ("llama", {"model_type": "qwen2"}, "expected llama, .*--from=qwen2:"),
    ("llama", {"model_type": ["x"]}, "model_type: expected llama"),
    ("llama", {"num_hidden_layers": 4}, "expected 4 layers"),
    ("llama", {"num_attention_heads": 3}, "a divisor of 3, found 2"),
    ("llama", {"head_dim": 8}, "expected 4 heads of 8"),
    ("llama", {"head_dim": 3}, "even number, not 3"),
    ("llama", {"num_attention_heads": None}, "num_attention_heads: expected a"),
    ("llama", {"num_key_value_heads": 1}, r"k_proj.weight: expected \(6, 24\)"),
    ("llama", {"vocab_size": 39}, r"embed_tokens.weight: expected \(39, 24\)"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act: expected silu"),
    ("llama", {"attention_bias": True}, "attention_bias: expected false"),
    ("llama", {"swin_norm": True}, "swin_norm: expected false"),
    ("llama", {"tie_word_embeddings": True}, "expected a copy of model.embed"),
    ("llama", {"rope_scaling": {"type": "yarn"}}, "default, linear or llama3"),
    ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 2}}, "low_freq"),
    ("llama", {"rope_scaling": "x"}, "rope_scaling: expected a table"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "expected a number"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "full_attention"),
    ("qwen2", {"layer_types": [[]] * 3}, "full_attention alone"),
    ("chameleon", {"rms_norm_eps": 1e-6}, "rms_norm_eps: expected 1e-05"),
  ],
)
def test_wrong_configurations_are_named(tmp_path, kind, settings, message):
  folder(tmp_path, random(hf_shapes(kind)), kind, **settings)
  with pytest.raises(WeightsError, match=message) as error:
    convert_to_ours(tmp_path, kind)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "ours").exists()


def test_configuration_is_needed(tmp_path):
  path = folder(tmp_path, random(hf_shapes("llama")), "llama")
  (path / "config.json").unlink()
  with pytest.raises(WeightsError, match="expected config.json beside it"):
    convert_to_ours(tmp_path, "llama")


def test_a_lost_tensor_is_named(tmp_path):
  theirs = random(hf_shapes("qwen2"))
  del theirs["model.layers.1.self_attn.k_proj.bias"]
  folder(tmp_path, theirs, "qwen2")
  with pytest.raises(WeightsError, match=r"layers.1.self_attn.k_proj.bias"):
    convert_to_ours(tmp_path, "qwen2")


def test_the_way_back_keeps_to_its_kind(tmp_path):
  folder(tmp_path, random(hf_shapes("qwen2")), "qwen2")
  convert_to_ours(tmp_path, "qwen2")

  def back(kind, path):
    convert.to_hugging_face(
      f"{kind}:{path}", str(tmp_path / "back"), lambda _: None
    )

  with pytest.raises(WeightsError, match="holds a qwen2 decoder, not llama"):
    back("llama", tmp_path / "ours")
  with pytest.raises(WeightsError, match="no checkpoint of this project"):
    back("qwen2", tmp_path / "hf")
  gemma = tmp_path / "gemma"
  convert.to_checkpoint(
    f"gemma:{helpers.FIXTURES / 'gemma1'}", str(gemma), lambda _: None
  )
  with pytest.raises(WeightsError, match="activation gelu_tanh .there silu"):
    back("llama", gemma)
  assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
  "change", [{"rope_scale_global": 8.0}, {"rope_base_global": 1e6}]
)
def test_local_layers_that_rotate_otherwise_are_not_written(change):
  config = dataclasses.replace(DECODER["llama2_7b"], **change)
  llama_settings.check_writable("x", "llama", config)
  mixed = dataclasses.replace(config, pattern=("local", "global"))
  with pytest.raises(WeightsError, match="cannot compute its decoder: rope"):
    llama_settings.check_writable("x", "llama", mixed)


def test_vocabulary_of_a_run_may_be_longer(tmp_path):
  """A table that grew by image codes is written with its own length."""
  theirs = random(hf_shapes("llama"))
  folder(tmp_path, theirs, "llama")
  convert_to_ours(tmp_path, "llama")

  class Longer(helpers.Tensors):
    path = str(tmp_path / "ours")

  source = Longer({"decoder/embedder/table": np.zeros((V + 8, D))})
  source.path = Longer.path
  tree = llama.hf_recipe(source, "llama").files["config.json"]
  assert tree["vocab_size"] == V + 8


def test_torch_shards(tmp_path):
  """The index of older releases leads to PyTorch files."""
  fixture = helpers.FIXTURES / "variety.pth"
  names = readers.open_source(str(fixture)).names()
  file = "pytorch_model-00001-of-00001.bin"
  (tmp_path / file).write_bytes(fixture.read_bytes())
  index = tmp_path / "pytorch_model.bin.index.json"
  index.write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
  for path in (tmp_path, index):
    source = readers.open_source(str(path))
    assert source.names() == names
  index.unlink()
  (tmp_path / file).rename(tmp_path / "pytorch_model.bin")
  assert readers.open_source(str(tmp_path)).names() == names


def test_a_tied_copy_is_dropped(tmp_path):
  theirs = random(hf_shapes("llama"))
  theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"]
  path = folder(tmp_path, theirs, "llama", tie_word_embeddings=True)
  source = readers.open_source(str(path))
  plan = engine.make_plan(source, llama.recipe(source, "llama"))
  assert plan.dropped == [("lm_head.weight", "tied")]
  assert "decoder/lm_head/table" not in plan.leaves
