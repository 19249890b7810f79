"""Llama, Qwen2 and Chameleon against transformers, as random tiny models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.parity.test_gemma_parity import (  # noqa: E402
  B,
  T,
  agree,
  both_gradients,
  both_padded,
  close,
  same_words,
)
from tests.weights import helpers, references  # noqa: E402
from unifluid_jax.core import checkpoint  # noqa: E402
from unifluid_jax.core.presets import DecoderConfig  # noqa: E402
from unifluid_jax.weights import convert, gemma, llama, readers  # noqa: E402
from unifluid_jax.weights.rows import Recipe, nested  # noqa: E402

_SIZES = dict(
  vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=3,
  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
  attn_implementation="eager", use_cache=False,
)  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 50.0}
_LLAMA3 = {
  "rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0,
  "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 40,
}  # fmt: skip
_VQ = dict(
  embed_dim=8, num_embeddings=8, latent_channels=8, base_channels=32,
  channel_multiplier=(1, 1), num_res_blocks=1, resolution=16,
)  # fmt: skip
_OURS = dict(
  vocab=40, width=24, depth=3, mlp=32, heads=4, kv_heads=2, head_dim=6,
  activation="silu", norm="llama", norm_epsilon=0.05, scale_embedding=False,
  tied=False, rope_base=50.0, rope_base_global=50.0,
)  # fmt: skip
_CHAMELEON = dict(norm_epsilon=1e-5, qk_norm=True, qk_norm_kind="layer")
CONFIGS = {
  "llama2": DecoderConfig(**_OURS),
  "llama3": DecoderConfig(
    **_OURS | dict(tied=True), rope_scale_global=4.0, rope_original_length=40
  ),
  "qwen2": DecoderConfig(**_OURS | dict(tied=True), qkv_bias=True),
  "chameleon": DecoderConfig(**_OURS | _CHAMELEON),
  "chameleon_swin": DecoderConfig(
    **_OURS | _CHAMELEON, pre_norms=False, post_norms=True
  ),
}


def reference(name):
  """Their model of a configuration."""
  sizes = _SIZES | {"tie_word_embeddings": CONFIGS[name].tied}
  if name.startswith("llama"):
    rope = _LLAMA3 if name == "llama3" else _ROPE
    config = transformers.LlamaConfig(
      **sizes, rms_norm_eps=0.05, rope_parameters=rope
    )
    model = transformers.LlamaForCausalLM(config)
  elif name == "qwen2":
    config = transformers.Qwen2Config(
      **sizes, rms_norm_eps=0.05, rope_parameters=_ROPE
    )
    model = transformers.Qwen2ForCausalLM(config)
  else:
    config = transformers.ChameleonConfig(
      **sizes, rms_norm_eps=1e-5, rope_parameters=_ROPE, vq_config=_VQ,
      vocabulary_map={"<image>": 39}, swin_norm=name.endswith("swin"),
    )  # fmt: skip
    model = transformers.ChameleonForConditionalGeneration(config)
  return references.randomise(model, 0)


def converted(name, tensors):
  """Their tensors as our tree, by the table that imports them."""
  config, source = CONFIGS[name], helpers.Tensors(tensors)
  source.tensors = {k: v for k, v in tensors.items() if "vqmodel" not in k}
  if config.tied:
    source.tensors.pop("lm_head.weight", None)
  rows = llama.hf_rows(config, "model.", "lm_head.weight")
  rows += llama.norm_rows(config, "model.")
  sizes = {"n": config.heads, "k": config.kv_heads, "h": config.head_dim}
  recipe = Recipe("llama", name, rows, gemma.like(config), sizes)
  found = helpers.in_memory(source, recipe)
  return jax.tree.map(jnp.asarray, nested(found)["decoder"])


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
  """Their model, our configuration and parameters, the name."""
  model = reference(request.param)
  tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
  params = converted(request.param, tensors)
  return model, CONFIGS[request.param], params, request.param


def test_causal(pair):
  model, config, params, _ = pair
  tokens = references.tokens(B, T)
  want = references.run(model, tokens)
  agree(helpers.run_gemma(config, params, tokens), want)


@pytest.mark.parametrize(
  "off",
  [
    {"activation": "gelu_tanh"}, {"norm_epsilon": 1e-2},
    {"scale_embedding": True}, {"rope_scale_global": 1.0},
    {"rope_original_length": 0}, {"rope_base_global": 1e4},
  ],
  ids=lambda off: next(iter(off)),
)  # fmt: skip
def test_settings_bind(pair, off):
  """Each changes the logits by far over what is tolerated."""
  model, config, params, _ = pair
  if helpers.without(config, **off) == config or (
    "rope_scale" in next(iter(off)) and not config.rope_original_length
  ):
    pytest.skip("not a setting of this model")
  tokens = references.tokens(B, T)
  _, want = references.run(model, tokens)
  _, got = helpers.run_gemma(helpers.without(config, **off), params, tokens)
  assert helpers.absolute(got, want.detach()) > 1e-2


def test_padding_and_position_gaps(pair):
  model, config, params, _ = pair
  tokens = references.tokens(B, T)
  valid = np.ones((B, T), bool)
  valid[1, :4] = False
  steps = np.random.default_rng(0).integers(1, 9, (B, T))
  positions = np.maximum(np.cumsum(valid * steps, 1) - 1, 0)
  agree(*both_padded(model, config, params, tokens, valid, positions), valid)


def test_gradients(pair):
  """For every parameter, by the same table."""
  model, config, params, name = pair
  got, theirs = both_gradients(model, config, params)
  jax.tree.map(close, got, converted(name, theirs))


def test_greedy_generation_with_cache(pair):
  model, config, params, _ = pair
  same_words(model, config, params)


# ------------------------------------------------- files, there and back again


def kind_of(name):
  return {"qwen": "qwen2", "cham": "chameleon", "llam": "llama"}[name[:4]]


@pytest.mark.parametrize("form", ["safetensors", "shards", "torch shards"])
def test_their_files_convert(pair, tmp_path, form):
  """By the command's way; config.json tells everything but the numbers."""
  model, config, params, name = pair
  save(model, tmp_path / "hf", form)
  convert.to_checkpoint(
    f"{kind_of(name)}:{tmp_path / 'hf'}", str(tmp_path / "x"), lambda _: None
  )
  source = readers.open_source(str(tmp_path / "x"))
  meta = checkpoint.read_meta(str(tmp_path / "x"), 0)["weights"]
  assert helpers.gemma_config(meta) == config
  for path, want in paths(params).items():
    np.testing.assert_array_equal(source.read(f"params/decoder/{path}"), want)


def test_transformers_reads_what_we_write(pair, tmp_path):
  model, config, _, name = pair
  save(model, tmp_path / "hf", "safetensors")
  spec = f"{kind_of(name)}:{tmp_path}"
  convert.to_checkpoint(f"{spec}/hf", str(tmp_path / "x"), lambda _: None)
  convert.to_hugging_face(f"{spec}/x", str(tmp_path / "back"), lambda _: None)
  if kind_of(name) == "chameleon":  # without its image tokenizer
    again = type(model)(model.config)
    source = readers.open_source(str(tmp_path / "back"))
    state = {n: torch.tensor(source.read(n)) for n in source.names()}
    lost, extra = again.load_state_dict(state, strict=False)
    assert not extra and all("vqmodel" in n for n in lost)
    again = again.eval()
  else:
    again = type(model).from_pretrained(
      tmp_path / "back", attn_implementation="eager"
    )
  tokens = references.tokens(B, T)
  _, want = references.run(model, tokens)
  _, got = references.run(again, tokens)
  assert torch.equal(got, want)


def save(model, path, form):
  """A directory as transformers, or an older one, saves it."""
  model.save_pretrained(
    path, max_shard_size="5kB" if "shards" in form else "1GB"
  )
  index = path / "model.safetensors.index.json"
  assert index.exists() == ("shards" in form)
  if not form.startswith("torch"):
    return
  where = json.loads(index.read_text())["weight_map"]
  source = readers.open_source(str(path))
  for file in set(where.values()):
    tensors = {
      name: torch.tensor(source.read(name))
      for name, place in where.items()
      if place == file
    }
    torch.save(tensors, path / torch_name(file))
    (path / file).unlink()
  moved = {name: torch_name(file) for name, file in where.items()}
  index.unlink()
  (path / "pytorch_model.bin.index.json").write_text(
    json.dumps({"weight_map": moved})
  )


def torch_name(file):
  return file.replace("model", "pytorch_model").replace(".safetensors", ".bin")


def paths(params):
  return {
    "/".join(key.key for key in keys): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
