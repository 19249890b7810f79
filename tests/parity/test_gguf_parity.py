"""GGUF files against the package `gguf` and transformers' Llama.

`python -m tests.parity.smollm2 FILE` does the same for a released file.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from tests.parity.test_gemma_parity import B, T, agree  # noqa: E402
from tests.weights import gguf_writer, helpers, references  # noqa: E402
from unifluid_jax.weights import gguf_file, gguf_llama, readers  # noqa: E402
from unifluid_jax.weights.rows import nested  # noqa: E402

_NAMES = {
  "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
  "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def llama():
  config = transformers.LlamaConfig(
    vocab_size=8, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    tie_word_embeddings=True, attn_implementation="eager", use_cache=False,
  )  # fmt: skip
  return references.randomise(transformers.LlamaForCausalLM(config), 0)


def as_llama_cpp(model):
  """Their tensors under its names, rows of queries and keys in its order."""
  tensors = references.numbers(model)
  out = {
    "token_embd.weight": tensors["model.embed_tokens.weight"],
    "output_norm.weight": tensors["model.norm.weight"],
  }
  heads = {"attn_q": 4, "attn_k": 2}
  for i in range(2):
    for theirs, name in _NAMES.items():
      x = tensors[f"model.layers.{i}.{theirs}.weight"]
      if name in heads:
        x = gguf_writer.permuted(x, heads[name])
      out[f"blk.{i}.{name}.weight"] = x
  return out


def test_logits(tmp_path):
  model = llama()
  path = gguf_writer.write(
    tmp_path / "x.gguf", gguf_writer.FIELDS, as_llama_cpp(model)
  )
  source = readers.open_source(str(path))
  recipe = gguf_llama.recipe(source)
  params = nested(helpers.in_memory(source, recipe))["decoder"]
  params = jax.tree.map(jnp.asarray, params)
  tokens = references.tokens(B, T, vocab=8)
  want = references.run(model, tokens)
  config = helpers.gemma_config(recipe.meta)
  agree(helpers.run_gemma(config, params, tokens), want)


@pytest.mark.parametrize("name", ["F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_numbers_are_those_of_the_package(tmp_path, name):
  """It writes the file, and reads it too."""
  x = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
  kind = gguf.GGMLQuantizationType[name]
  path = str(tmp_path / "x.gguf")
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_array("some.texts", ["a", "ü"])
  writer.add_float32("some.number", 0.5)
  writer.add_tensor("first", np.ones(3, np.float32))
  writer.add_tensor("x", gguf.quants.quantize(x, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  source = readers.open_source(path)
  assert source.fields["some.texts"] == ["a", "ü"]
  assert source.fields["some.number"] == 0.5
  (theirs,) = (t for t in gguf.GGUFReader(path).tensors if t.name == "x")
  want = gguf.quants.dequantize(theirs.data, kind)
  got = source.read("x")
  np.testing.assert_array_equal(got, want)
  assert got.shape == (6, 64) and helpers.absolute(got, x) < 0.5


def test_sizes_of_blocks():
  for number, (name, numbers, size) in gguf_file.QUANTISED.items():
    kind = gguf.GGMLQuantizationType(number)
    assert kind.name == name
    assert gguf.GGML_QUANT_SIZES[kind] == (numbers, size)
