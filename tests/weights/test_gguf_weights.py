"""Llama decoders and their tokenizer out of GGUF files."""

import json
import struct
import sys

import numpy as np
import pytest

from tests.weights import gguf_writer, helpers
from unifluid_jax.core.presets import DECODER
from unifluid_jax.weights import convert, gguf_llama, readers
from unifluid_jax.weights.rows import WeightsError

FIELDS = gguf_writer.FIELDS


def make(tmp_path, changes=None, arrays=None):
  """A file; a change of None takes a field away."""
  fields = {k: v for k, v in (FIELDS | (changes or {})).items()
            if v is not None}  # fmt: skip
  return gguf_writer.write(
    tmp_path / "x.gguf", fields, arrays or gguf_writer.tensors()
  )


def in_memory(path):
  source = readers.open_source(str(path))
  recipe = gguf_llama.recipe(source)
  return helpers.in_memory(source, recipe), recipe


def test_every_tensor_and_its_layout(tmp_path):
  theirs = gguf_writer.tensors()
  ours, recipe = in_memory(make(tmp_path, arrays=theirs))

  def layer(name):
    return theirs[f"blk.1.{name}.weight"]

  # Channel c of a head is row 2 c, channel c + 3 row 2 c + 1 of its six.
  order = [0, 2, 4, 1, 3, 5]
  want = {
    "attn/q": layer("attn_q").reshape(4, 6, 24)[:, order].transpose(2, 0, 1),
    "attn/k": layer("attn_k").reshape(2, 6, 24)[:, order].transpose(2, 0, 1),
    "attn/v": layer("attn_v").reshape(2, 6, 24).transpose(2, 0, 1),
    "attn/o": layer("attn_output").T.reshape(4, 6, 24),
    "mlp/gate": layer("ffn_gate").T,
    "mlp/up": layer("ffn_up").T,
    "mlp/down": layer("ffn_down").T,
    "pre_attn/scale": layer("attn_norm"),
    "pre_ffw/scale": layer("ffn_norm"),
  }
  for path, x in want.items():
    np.testing.assert_array_equal(ours[f"decoder/layers/{path}"][1], x, path)
  table = theirs["token_embd.weight"]
  np.testing.assert_array_equal(ours["decoder/embedder/table"], table)
  norm = ours["decoder/final_norm/scale"]
  np.testing.assert_array_equal(norm, theirs["output_norm.weight"])
  assert len(ours) == len(want) + 2
  config = helpers.gemma_config(recipe.meta)
  assert (config.norm_epsilon, config.rope_base_global) == (1e-5, 1e5)
  assert config.tied and config.activation == "silu" and config.head_dim == 6


def test_an_output_layer_of_its_own(tmp_path):
  arrays = gguf_writer.tensors() | {
    "output.weight": np.ones((8, 24), np.float16)
  }
  ours, recipe = in_memory(make(tmp_path, arrays=arrays))
  assert not recipe.meta["decoder"]["tied"]
  assert ours["decoder/lm_head/table"].dtype == np.float16


def test_smollm2_is_recognised(tmp_path):
  """Its metadata, as the released file has them."""
  fields = {
    "llama.block_count": 2, "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536, "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3, "llama.rope.dimension_count": 64,
  }  # fmt: skip
  shapes = {
    "token_embd.weight": (8, 576), "blk.0.attn_q.weight": (576, 1),
    "blk.1.attn_q.weight": (576, 1),
  }  # fmt: skip
  arrays = {k: np.zeros(v, np.float32) for k, v in shapes.items()}
  source = readers.open_source(str(make(tmp_path, fields, arrays)))
  found = helpers.gemma_config(gguf_llama.recipe(source).meta, depth=30)
  assert found == helpers.without(DECODER["smollm2_135m"], vocab=8)


def test_the_tokenizer_comes_along(tmp_path):
  path = make(tmp_path)
  to = tmp_path / "ours"
  convert.to_checkpoint(f"gguf:{path}", str(to), lambda _: None)
  tree = json.loads((to / "tokenizer.json").read_text())
  assert tree["model"]["vocab"]["ab"] == 4 and tree["model"]["merges"] == [
    "a b"
  ]
  steps = [step["type"] for step in tree["pre_tokenizer"]["pretokenizers"]]
  assert steps == ["Digits", "ByteLevel"]
  added = [(t["id"], t["content"], t["special"]) for t in tree["added_tokens"]]
  assert added == [(0, "<s>", True), (1, "<e>", True), (7, "x", False)]
  spec = f"llama:{to}"
  convert.to_hugging_face(spec, str(tmp_path / "hf"), lambda _: None)
  back = readers.open_source(str(tmp_path / "hf"))
  q = gguf_writer.tensors()["blk.0.attn_q.weight"]
  hf = back.read("model.layers.0.self_attn.q_proj.weight")
  np.testing.assert_array_equal(gguf_writer.permuted(hf, 4), q)


@pytest.mark.parametrize("rule, count", [("gpt-2", 1), ("smollm", 2)])
def test_rules_of_splitting(tmp_path, rule, count):
  _, recipe = in_memory(make(tmp_path, {"tokenizer.ggml.pre": rule}))
  steps = recipe.files["tokenizer.json"]["pre_tokenizer"]["pretokenizers"]
  assert len(steps) == count and steps[-1]["type"] == "ByteLevel"
  assert not steps[-1]["add_prefix_space"]


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("general.architecture", "gemma", "expected llama, found gemma"),
    ("llama.rope.scaling.type", "yarn", "expected none, found yarn"),
    ("llama.rope.scaling.factor", 4.0, "expected 1, found 4.0"),
    ("llama.rope.scale_linear", 4.0, "expected 1, found 4.0"),
    ("llama.expert_count", 8, "expected 0, found 8"),
    ("llama.block_count", 3, "expected 2, as the tensors say"),
    ("llama.embedding_length", None, "a whole number above 0, found nothing"),
    ("llama.embedding_length", "x", "a whole number above 0"),
    ("llama.attention.head_count", 2, "24 rows of 12 a head|of an even number"),
    ("llama.attention.head_count_kv", 3, "a divisor of 4"),
    ("llama.rope.dimension_count", 4, "expected 6, all of an even number"),
    ("llama.attention.layer_norm_rms_epsilon", None, "expected a number"),
    ("tokenizer.ggml.model", "llama", "expected gpt2"),
    ("tokenizer.ggml.pre", "qwen2", "one of smollm, gpt-2, found qwen2"),
    ("tokenizer.ggml.tokens", ["a"] * 8, "pieces that differ"),
    ("tokenizer.ggml.tokens", None, "a list of texts"),
    ("tokenizer.ggml.token_type", [1], "expected 8 numbers"),
    ("tokenizer.ggml.merges", ["ab"], "two pieces each"),
    ("tokenizer.ggml.eos_token_id", 8, "an id below 8"),
  ],
)
def test_what_is_not_read_is_named(tmp_path, key, value, message):
  path = make(tmp_path, {key: value})
  with pytest.raises(WeightsError, match=message) as error:
    in_memory(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_scaled_rotations_are_refused(tmp_path):
  arrays = gguf_writer.tensors()
  arrays["rope_freqs.weight"] = np.ones(3, np.float32)
  with pytest.raises(WeightsError, match=r"--from=llama:"):
    in_memory(make(tmp_path, arrays=arrays))


def test_other_files_are_none(tmp_path):
  source = helpers.Tensors(gguf_writer.tensors())
  with pytest.raises(WeightsError, match="no GGUF file: correct --from"):
    gguf_llama.recipe(source)


def quantised(tmp_path):
  raw = {"token_embd.weight": ((2, 64), 8, bytes(2 * 2 * 34))}
  return gguf_writer.write(tmp_path / "x.gguf", FIELDS, {}, raw)


def test_quantised_files_need_the_package(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "gguf", None)
  with pytest.raises(WeightsError, match=r"pip install 'unifluid_jax\[gguf\]'"):
    readers.open_source(str(quantised(tmp_path)))
  readers.open_source(str(make(tmp_path)))  # plain numbers do not


def test_blocks_become_numbers(tmp_path):
  """Q8_0: a float16 scale and 32 signed bytes."""
  pytest.importorskip("gguf", reason="of the extra `gguf`")
  rng = np.random.default_rng(0)
  scales = rng.normal(size=(6, 2)).astype(np.float16)
  bytes_ = rng.integers(-128, 128, (6, 2, 32)).astype(np.int8)
  data = b"".join(
    s.tobytes() + b.tobytes()
    for s, b in zip(scales.ravel(), bytes_.reshape(12, 32), strict=True)
  )
  raw = {"x": ((6, 64), 8, data)}
  path = gguf_writer.write(tmp_path / "x.gguf", {}, {}, raw)
  source = readers.open_source(str(path))
  want = (scales.astype(np.float32)[..., None] * bytes_).reshape(6, 64)
  np.testing.assert_array_equal(source.read("x"), want)
  parts = list(source.blocks("x", 4))
  assert [len(part) for part in parts] == [4, 2]
  np.testing.assert_array_equal(np.concatenate(parts), want)


# ------------------------------------------------------------------- damage


def test_every_cut_and_every_changed_byte(tmp_path):
  """Refused in a line, or read: never another error."""
  data = make(tmp_path).read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for case in range(160):
    broken = bytearray(data)
    if case < 40:
      broken = broken[: rng.integers(4, len(data))]
    else:
      for _ in range(2):
        broken[rng.integers(4, 2000)] ^= 1 << int(rng.integers(8))
    path = tmp_path / "broken.gguf"
    path.write_bytes(broken)
    try:
      in_memory(path)
    except WeightsError as error:
      refused += 1
      assert str(path) in str(error) and "\n" not in str(error)
  assert refused > 80


@pytest.mark.parametrize(
  "pairs, message",
  [
    (struct.pack("<QQ", 0, 2**63), "header ends after"),
    (struct.pack("<QQ", 2**63, 0), "header ends after"),
    (
      struct.pack("<QQ", 0, 1) + gguf_writer.text("a")
      + struct.pack("<IIQ", 9, 0, 2**60),
      "a list of 1152921504606846976 values",
    ),
    (
      struct.pack("<QQ", 0, 1) + gguf_writer.text("a")
      + struct.pack("<IIQ", 9, 9, 1),
      "a list of values of type 9",
    ),
    (struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**64 - 1), "header ends"),
    (
      struct.pack("<QQ", 0, 2) + 2 * (gguf_writer.text("a") +
      gguf_writer.typed(1)), "'a' is there twice",
    ),
  ],
)  # fmt: skip
def test_headers_that_attack(tmp_path, pairs, message):
  path = tmp_path / "x.gguf"
  path.write_bytes(b"GGUF" + struct.pack("<I", 3) + pairs)
  with pytest.raises(WeightsError, match=message):
    readers.open_source(str(path))


def test_tensors_beyond_the_file(tmp_path):
  raw = {"x": ((2**20, 32), 0, b"")}
  path = gguf_writer.write(tmp_path / "x.gguf", {}, {}, raw)
  with pytest.raises(WeightsError, match="is truncated: x ends at byte"):
    readers.open_source(str(path))
  raw = {"x": ((2, 32), 16, b"")}
  path = gguf_writer.write(tmp_path / "y.gguf", {}, {}, raw)
  with pytest.raises(WeightsError, match="type 16; expected one of F32, F16"):
    readers.open_source(str(path))
  raw = {"x": ((2, 33), 8, b"")}
  path = gguf_writer.write(tmp_path / "z.gguf", {}, {}, raw)
  with pytest.raises(WeightsError, match="33 numbers a row are no multiple"):
    readers.open_source(str(path))
