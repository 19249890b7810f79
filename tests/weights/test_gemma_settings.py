"""What a Gemma computes is what its config.json says.

That these settings give transformers' numbers is in test_gemma_weights.py:
its fixtures are converted with nothing but their config.json.
"""

import dataclasses
import json

import pytest

from tests.weights import helpers
from tests.weights.test_gemma_weights import hf_shapes
from unifluid_jax.core.presets import GEMMA, DecoderConfig
from unifluid_jax.weights import gemma, gemma_settings
from unifluid_jax.weights.rows import WeightsError

SHAPE = (40, 24, 3, 32, 4, 2, 8)
DECODERS = {
  generation: DecoderConfig(*SHAPE, **values)
  for generation, values in helpers.OURS.items()
}


def fixture(generation):
  file = helpers.FIXTURES / f"gemma{generation}" / "config.json"
  return json.loads(file.read_text())


def complete(tmp_path, generation, content):
  """What the settings make of the shapes of a fixture."""
  (tmp_path / "config.json").write_text(json.dumps(content))
  bare = DecoderConfig(
    *SHAPE, post_norms=generation > 1, qk_norm=generation == 3
  )  # fmt: skip
  return gemma_settings.complete(str(tmp_path / "x.safetensors"), bare)


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_the_layout_of_newer_saves(tmp_path, generation):
  got = complete(tmp_path, generation, fixture(generation))
  assert got == DECODERS[generation]


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_the_layout_of_released_files(tmp_path, generation):
  content = fixture(generation)
  for key in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
    content.pop(key, None)
  content["rope_theta"] = 1e6 if generation == 3 else 1e4
  if generation == 3:
    content |= {
      "rope_local_base_freq": 10_000, "sliding_window_pattern": 3,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }  # fmt: skip
  assert complete(tmp_path, generation, content) == DECODERS[generation]


@pytest.mark.parametrize(
  "generation, key, value, field, want",
  [
    (2, "attn_logit_softcapping", 7, "attn_softcap", 7.0),
    (2, "attn_logit_softcapping", None, "attn_softcap", 0.0),
    (2, "final_logit_softcapping", 20.0, "final_softcap", 20.0),
    (3, "final_logit_softcapping", 9.0, "final_softcap", 9.0),
    (2, "query_pre_attn_scalar", 16, "query_scale", 0.25),
    (2, "query_pre_attn_scalar", 8, "query_scale", None),  # a head's size
    (2, "sliding_window", 2, "window", 2),
    (3, "sliding_window", None, "window", 0),
    (2, "layer_types", ["full_attention"] * 3, "pattern", ("global",)),
    (
      2, "layer_types",
      ["full_attention", "sliding_attention", "sliding_attention"],
      "pattern", ("global", "local", "local"),
    ),
    (1, "rope_parameters", {"rope_theta": 5e3}, "rope_base_global", 5e3),
    (
      1, "rope_parameters", {"rope_type": "linear", "factor": 2},
      "rope_scale_global", 2.0,
    ),
    (2, "rope_parameters", {"rope_theta": 77}, "rope_base", 77.0),
    (
      3, "rope_parameters",
      {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {
        "rope_theta": 3e4}}, "rope_base", 3e4,
    ),
  ],
)  # fmt: skip
def test_every_key_is_taken(tmp_path, generation, key, value, field, want):
  got = complete(tmp_path, generation, fixture(generation) | {key: value})
  assert getattr(got, field) == want != getattr(DECODERS[generation], field)


@pytest.mark.parametrize("generation, key, value", [
  (3, "attn_logit_softcapping", 7),  # which transformers never reads
  (2, "use_bidirectional_attention", True),  # of PaliGemma's prefix
])  # fmt: skip
def test_keys_that_change_nothing(tmp_path, generation, key, value):
  got = complete(tmp_path, generation, fixture(generation) | {key: value})
  assert got == DECODERS[generation]


def test_what_is_not_written_is_as_transformers_has_it(tmp_path):
  got = complete(tmp_path, 2, {"head_dim": 8})
  assert got == DecoderConfig(
    *SHAPE, query_scale=1 / 16, attn_softcap=50.0, final_softcap=30.0,
    post_norms=True, window=4096, pattern=("local", "global"),
  )  # fmt: skip
  got = complete(tmp_path, 3, {"head_dim": 8})
  assert (got.window, len(got.pattern), got.rope_base_global) == (4096, 6, 1e6)


def test_without_configuration_only_shapes_are_known(tmp_path):
  path = str(tmp_path / "x.npz")
  bare = DecoderConfig(*SHAPE, post_norms=True)
  assert gemma_settings.complete(path, bare) == bare
  assert list(gemma_settings.describe(path, bare)) == [
    "vocab", "width", "depth", "mlp", "heads", "kv_heads", "head_dim"
  ]  # fmt: skip


# As released; of 4B and of PaliGemma only what differs from the defaults.
RELEASED = {
  "gemma1_2b": {
    "head_dim": 256, "hidden_act": "gelu", "hidden_activation": None,
    "hidden_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000.0,
  },
  "gemma2_27b": {
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "head_dim": 128, "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 144, "rope_theta": 10000.0,
    "sliding_window": 4096, "sliding_window_size": 4096,
  },
  "gemma3_1b": {
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6,
  },
  "gemma3_4b": {
    "text_config": {
      "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
  },
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_released_configurations_are_the_presets(tmp_path, name):
  (tmp_path / "config.json").write_text(json.dumps(RELEASED[name]))
  source = helpers.Shapes(
    hf_shapes(GEMMA[name], GEMMA[name].vocab), str(tmp_path / "x")
  )
  _, config, _, _ = gemma.decoder(source)
  assert config == GEMMA[name] and not gemma_settings.differing(config)


def test_a_published_size_with_settings_of_its_own(tmp_path):
  content = {"final_logit_softcapping": None, "sliding_window": 1024}
  (tmp_path / "config.json").write_text(json.dumps(content))
  preset = GEMMA["gemma2_2b"]
  source = helpers.Shapes(hf_shapes(preset, 256_128), str(tmp_path / "x"))
  recipe = gemma.recipe(source)
  assert "unlike the preset: final_softcap 0, window 1024" in recipe.found
  kept = recipe.meta["decoder"]
  assert kept["vocab"] == 256_000 and kept["pattern"] == ("local", "global")
  assert (kept["attn_softcap"], kept["final_softcap"]) == (50.0, 0.0)
  assert json.loads(json.dumps(recipe.meta))["preset"] == "gemma2_2b"


@pytest.mark.parametrize(
  "generation, key, value",
  [
    (1, "hidden_act", "silu"), (2, "hidden_activation", "relu"),
    (2, "rms_norm_eps", 1e-5), (2, "attention_bias", True),
    (2, "hidden_size", 25), (1, "num_attention_heads", 8),
    (1, "num_key_value_heads", 4), (3, "head_dim", 16),
    (2, "attn_logit_softcapping", "50"), (2, "attn_logit_softcapping", -1),
    (2, "final_logit_softcapping", float("nan")),
    (2, "final_logit_softcapping", True),
    (2, "query_pre_attn_scalar", 0), (2, "query_pre_attn_scalar", -8),
    (2, "query_pre_attn_scalar", 10**400), (2, "sliding_window", 0),
    (2, "sliding_window", 2.5), (2, "layer_types", ["full_attention"]),
    (2, "layer_types", ["chunked_attention"] * 3), (2, "layer_types", "x"),
    (2, "layer_types", [[]] * 3), (1, "rope_parameters", [1]),
    (1, "rope_parameters", {"rope_type": "yarn", "factor": 2.0}),
    (1, "rope_parameters", {"rope_type": "linear"}),
    (1, "rope_parameters", {"rope_theta": float("inf")}),
    (1, "rope_parameters", {"rope_theta": 0}),
    (1, "rope_parameters", {"partial_rotary_factor": 0.5}),
    (2, "rope_parameters", {"rope_type": "linear", "factor": 2.0}),
    (3, "rope_parameters", {"rope_theta": 1e4}),
    (3, "use_bidirectional_attention", True),
    (3, "rope_parameters", {"full_attention": {}, "sliding_attention": 3}),
  ],
)  # fmt: skip
def test_what_the_decoder_does_not_compute_is_refused(
  tmp_path, generation, key, value
):
  with pytest.raises(WeightsError) as error:
    complete(tmp_path, generation, fixture(generation) | {key: value})
  text = str(error.value)
  assert f"config.json: {key}: expected" in text and "found" in text
  assert "\n" not in text and len(text) < 400


@pytest.mark.parametrize("key", ["sliding_window_pattern"])
@pytest.mark.parametrize("value", [0, "6", 2.0])
def test_a_pattern_that_is_none(tmp_path, key, value):
  content = fixture(3) | {key: value, "layer_types": None}
  with pytest.raises(WeightsError, match=f"{key}: expected a whole number"):
    complete(tmp_path, 3, content)


# -------------------------------------------------------------- the way back


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_settings_that_are_written_are_read_again(tmp_path, generation):
  written = gemma_settings.write(DECODERS[generation])
  assert complete(tmp_path, generation, written) == DECODERS[generation]
  assert (
    written["model_type"] == ("gemma", "gemma2", "gemma3_text")[generation - 1]
  )


@pytest.mark.parametrize("generation, changes, key", [
  (1, {"attn_softcap": 2.0}, "attn_softcap 2.0"),
  (1, {"pattern": ("local", "global")}, "pattern"),
  (2, {"rope_base_global": 1e6}, "rope_base 10000.0"),
  (2, {"qkv_bias": True}, "qkv_bias True"),
  (3, {"tied": False}, "tied False"),
  (2, {"rope_scale_global": 8.0}, "rope_scale_global 8.0"),
  (2, {"window": 0}, "window 0"),
  (3, {"window": 0}, "window 0"),
  (3, {"attn_softcap": 1.0}, "attn_softcap 1.0"),
])  # fmt: skip
def test_what_transformers_cannot_compute_is_not_written(
  generation, changes, key
):
  config = dataclasses.replace(DECODERS[generation], **changes)
  words = f"Gemma {generation} cannot compute its decoder: {key}"
  with pytest.raises(WeightsError, match=words):
    gemma_settings.check_writable("run", config)
  gemma_settings.check_writable("run", DECODERS[generation])
  everywhere = {"pattern": ("global",), "window": 0, "rope_scale_global": 8.0}
  gemma_settings.check_writable(
    "run", dataclasses.replace(DECODERS[generation], **everywhere)
  )
