"""The decoder against a float64 reference in plain loops, and its cache."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.jaxprs import operations
from tests.models.decoder_reference import ref_decoder, ref_norm
from unifluid_jax.core import optim, parallel, presets
from unifluid_jax.core.config import MeshConfig
from unifluid_jax.models import decoder, key_cache, norms, stack
from unifluid_jax.ops import attention

# Encoder, codebook and two convolutions of the image tokenizer inside.
_CHAMELEON_VQ = 27_194_880 + 2_097_152 + 2 * 65_792
# Total parameters with the tied embedding counted once, as published.
PUBLISHED = {
  "gemma1_2b": 2_506_172_416,
  "gemma1_7b": 8_537_680_896,
  "gemma2_2b": 2_614_341_888,
  "gemma2_9b": 9_241_705_984,
  "gemma2_27b": 27_227_128_320,
  "gemma3_270m": 268_098_176,
  "gemma3_1b": 999_885_952,
  "gemma3_4b": 3_880_099_328,
  "llama2_7b": 6_738_415_616,
  "llama3_1b": 1_235_814_400,
  "smollm2_135m": 134_515_008,
  "qwen2_5_0_5b": 494_032_768,
  "qwen2_5_7b": 7_615_616_512,
  "qwen2_5_32b": 32_763_876_352,
  "chameleon_7b": 7_043_090_432 - _CHAMELEON_VQ,
  "chameleon_34b": 34_323_732_480 - _CHAMELEON_VQ,
}

# Caps, windows and scales are small enough to change the result; N * H != D.
_SHAPE = dict(
  vocab=17, width=12, depth=3, mlp=20, heads=4, kv_heads=2, head_dim=8
)
_LOCAL = dict(post_norms=True, window=3)
_LLAMA = dict(
  activation="silu", norm="llama", norm_epsilon=0.3, scale_embedding=False
)
TINY = {
  "gemma1": presets.DecoderConfig(**_SHAPE | dict(kv_heads=1)),
  "gemma2": presets.DecoderConfig(
    **_SHAPE, **_LOCAL, attn_softcap=1.5, final_softcap=2.0,
    pattern=("local", "global"), query_scale=0.45,
  ),
  "gemma3": presets.DecoderConfig(
    **_SHAPE, **_LOCAL, qk_norm=True, pattern=("local", "local", "global"),
    rope_base=100.0, rope_base_global=1e6, rope_scale_global=8.0,
  ),
  # With the biases of Qwen2.
  "llama": presets.DecoderConfig(
    **_SHAPE, **_LLAMA, tied=False, qkv_bias=True, rope_base_global=20.0,
    rope_scale_global=4.0, rope_original_length=40,
  ),
  # Norms stand as in the 34B one.
  "chameleon": presets.DecoderConfig(
    **_SHAPE, **_LLAMA, tied=False, pre_norms=False, post_norms=True,
    qk_norm=True, qk_norm_kind="layer",
  ),
}  # fmt: skip

T = 9
# Rows: a causal text with left pads, a bidirectional prefix with pads inside
# (image tokens, then a right-aligned prompt), both without pads.
BLOCK = jnp.array([[int(c) for c in row] for row in (
  "001234567", "000000123", "012345678", "000012345"
)])  # fmt: skip
VALID = jnp.array([[c == "1" for c in row] for row in (
  "001111111", "110011111", "111111111", "111111111"
)])  # fmt: skip
POSITIONS = jnp.maximum(jnp.cumsum(VALID, axis=1) - 1, 0)
MASK = attention.block_causal_mask(BLOCK, VALID)


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


def init(model, transform):
  call = transform(functools.partial(model.init, method="embed"))
  return call(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def shapes(model):
  return init(model, lambda f: functools.partial(jax.eval_shape, f))


@functools.cache
def make(name, dtype="float32", **changes):
  """A tiny model and parameters of which no part is at its neutral value."""
  model = decoder.Decoder(TINY[name], jnp.dtype(dtype), **changes)
  draw = np.random.default_rng(0).normal
  return model, jax.tree.map(
    lambda x: jnp.asarray(0.4 * draw(size=x.shape), x.dtype), shapes(model)
  )


def embedded(name, seed=2):
  shape = (len(BLOCK), T, TINY[name].width)
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


@functools.cache
def full(name, **changes):
  model, params = make(name, **changes)
  run = jax.jit(model.apply)
  hidden, cache = run({"params": params}, embedded(name), POSITIONS, MASK)
  assert cache is None
  return hidden


@pytest.mark.parametrize("name", TINY)
def test_equals_plain_loops(name):
  config, (_, params) = TINY[name], make(name)
  hidden = full(name)
  for row, valid in enumerate(np.asarray(VALID)):
    x, positions, mask = embedded(name)[row], POSITIONS[row], MASK[row]
    want = ref_decoder(config, params, x, positions, mask)
    np.testing.assert_allclose(hidden[row][valid], want[valid], atol=2e-5)
  table = params["embedder" if config.tied else "lm_head"]["table"]
  scores = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
  cap = config.final_softcap
  want = cap * np.tanh(scores / cap) if cap else scores
  np.testing.assert_allclose(
    decoder.logits(config, decoder.output_table(params), hidden),
    want,
    atol=3e-5,
  )


@pytest.mark.parametrize(
  "name, field, neutral",
  [
    ("gemma2", "attn_softcap", 0.0),
    ("gemma2", "window", 4),
    ("gemma2", "pattern", ("global", "local")),
    ("gemma3", "rope_base", 1e6),
    ("gemma3", "rope_scale_global", 1.0),
    ("llama", "activation", "gelu_tanh"),
    ("llama", "norm_epsilon", 1e-6),
    ("llama", "qkv_bias", False),
    ("llama", "rope_original_length", 0),
    ("llama", "rope_scale_global", 1.0),
    ("chameleon", "norm_epsilon", 1e-6),
    ("chameleon", "qk_norm", False),
  ],
)
def test_every_setting_binds(name, field, neutral):
  # Else the comparison with the reference would prove nothing about it.
  other = dataclasses.replace(TINY[name], **{field: neutral})
  x, params = embedded(name)[2], make(name)[1]
  changed = ref_decoder(other, params, x, POSITIONS[2], MASK[2])
  assert np.abs(changed - full(name)[2]).max() > 1e-2


@pytest.mark.parametrize("name", TINY)
def test_prefill_and_steps_equal_the_full_forward(name):
  model, params = make(name)
  size, prefill = T + 2, 6
  mask = jnp.pad(MASK, ((0, 0), (0, 0), (0, size - T)))
  x = embedded(name)
  cache = key_cache.empty(model.config, len(x), size, jnp.float32)
  # Whatever slots hold before they are written must not matter.
  used = tuple(key_cache.LayerCache(k + 9.0, v - 9.0) for k, v in cache.layers)
  cache = cache._replace(layers=used)

  @jax.jit
  def run(cache, x, positions, mask, index):
    return model.apply({"params": params}, x, positions, mask, cache, index)

  parts = []
  for start, stop in [(0, prefill), *((i, i + 1) for i in range(prefill, T))]:
    now = slice(start, stop)
    hidden, cache = run(
      cache, x[:, now], POSITIONS[:, now], mask[:, now], jnp.int32(start)
    )
    parts.append(hidden)
  got = jnp.concatenate(parts, axis=1)
  np.testing.assert_allclose(got[VALID], full(name)[VALID], atol=1e-5)
  np.testing.assert_array_equal(cache.positions[:, :T], POSITIONS)


@pytest.mark.parametrize("name", ["gemma1", "gemma2", "gemma3"])
def test_pads_change_nothing(name):
  model, params = make(name)
  x = jnp.where(VALID[..., None], embedded(name), 50 * embedded(name, 7))
  hidden, _ = jax.jit(model.apply)({"params": params}, x, POSITIONS, MASK)
  np.testing.assert_array_equal(hidden[VALID], full(name)[VALID])
  assert np.isfinite(hidden).all()


@pytest.mark.parametrize("name", ["gemma3", "chameleon"])
def test_scan_and_python_loop_share_parameters(name):
  np.testing.assert_allclose(full(name), full(name, scan=False), atol=1e-5)


def test_bfloat16_keeps_float32_parameters():
  model, params = make("gemma2", "bfloat16")
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  tokens = jnp.arange(T)[None] % TINY["gemma2"].vocab
  x = model.apply({"params": params}, tokens, method="embed")
  cache = key_cache.empty(model.config, 1, T, jnp.bfloat16)
  hidden, cache = jax.jit(model.apply)(
    {"params": params}, x, POSITIONS[2:3], MASK[2:3], cache, 0
  )
  assert (x.dtype, hidden.dtype, cache.layers[0].k.dtype) == (jnp.bfloat16,) * 3
  scores = decoder.logits(model.config, params["embedder"]["table"], hidden)
  assert scores.dtype == jnp.float32
  wide, _ = make("gemma2")
  want, _ = jax.jit(wide.apply)(
    {"params": params}, x.astype(jnp.float32), POSITIONS[2:3], MASK[2:3]
  )
  np.testing.assert_allclose(hidden.astype(jnp.float32), want, atol=0.15)


def test_norm_multiplies_before_the_downcast_and_has_its_epsilon():
  x = jax.random.normal(jax.random.key(0), (64, 12)).astype(jnp.bfloat16)
  scale = jax.random.normal(jax.random.key(1), (12,))
  wide = np.asarray(x, np.float64)
  want = np.stack([ref_norm(row, 1 + np.asarray(scale)) for row in wide])
  np.testing.assert_array_equal(
    norms.gemma_rms_norm(x, scale),
    jnp.asarray(want, jnp.float32).astype(x.dtype),
  )
  x = np.random.default_rng(3).normal(size=12) * 1e-3
  got = norms.gemma_rms_norm(jnp.asarray(x, jnp.float32), jnp.zeros(12))
  np.testing.assert_allclose(got, ref_norm(x, 1), rtol=1e-5)


def test_llamas_norm_multiplies_after_the_downcast():
  x = jax.random.normal(jax.random.key(0), (64, 12)).astype(jnp.bfloat16)
  scale = jax.random.normal(jax.random.key(1), (12,)).astype(jnp.bfloat16)
  wide = np.asarray(x, np.float64)
  normed = np.stack([ref_norm(row, 1, 0.1) for row in wide])
  want = jnp.asarray(normed, jnp.bfloat16) * scale
  got = norms.llama_rms_norm(x, scale.astype(jnp.float32), 0.1)
  np.testing.assert_array_equal(got, want)
  early = norms.gemma_rms_norm(x, scale.astype(jnp.float32) - 1, 0.1)
  assert (early != want).any()


def test_llamas_embedding_is_not_scaled():
  model, params = make("llama")
  x = model.apply({"params": params}, jnp.array([[3, 1]]), method="embed")
  rows = params["embedder"]["table"][jnp.array([3, 1])]
  np.testing.assert_array_equal(x[0], rows)


def test_vectors_of_all_heads_stay_float32_and_do_not_decay():
  for name in ("llama", "chameleon"):
    model, params = make(name, "bfloat16")
    loop = stack.narrow(params["layers"], model.dtype)
    vectors = {
      k: v for k, v in loop["attn"].items() if k.endswith(("bias", "norm"))
    }
    assert {x.dtype.name for x in jax.tree.leaves(vectors)} == {"float32"}
    tree, parts = {"decoder": params}, {"decoder": decoder.ROWS}
    decays = optim.decay_mask(parts, "adamw", tree)["decoder"]["layers"]["attn"]
    assert not any(jax.tree.leaves({k: decays[k] for k in vectors}))
    assert decays["q"]


@pytest.mark.parametrize("name", sorted({*presets.DECODER} - {*presets.GEMMA}))
def test_every_parameter_of_the_others_has_a_layout(name):
  params = {
    "decoder": shapes(decoder.Decoder(presets.DECODER[name], jnp.bfloat16))
  }
  # Nine heads cannot be split in two.
  even = presets.DECODER[name].heads % 2 == 0
  split = MeshConfig(2, 2, 2) if even else MeshConfig(2, 4, 1)
  mesh = parallel.make_mesh(split)
  places = parallel.shardings(params, params, {"decoder": decoder.ROWS}, mesh)
  for leaf, place in zip(
    jax.tree.leaves(params), jax.tree.leaves(places), strict=True
  ):
    # Norms and biases of all layers stay whole: 2 MiB at most.
    whole = 2 * parallel.SMALL if leaf.ndim < 3 else parallel.SMALL
    assert leaf.size <= whole or any(place.spec)


@pytest.mark.parametrize("width, rounded", [(2048, 45.25), (3584, 59.75)])
def test_embedding_scale_is_rounded_to_the_activation_dtype(width, rounded):
  config = dataclasses.replace(TINY["gemma1"], width=width, vocab=2)
  model = decoder.Decoder(config, jnp.bfloat16)
  params = {"embedder": {"table": jnp.ones((2, width))}}
  params |= {"layers": {}, "final_norm": {"scale": jnp.zeros(width)}}
  x = model.apply({"params": params}, jnp.zeros((1, 1), int), method="embed")
  assert float(x[0, 0, 0]) == rounded


def test_a_frequent_word_goes_on_counting():
  """In bfloat16 a sum of ones ends at 256, unless the compiler widens it."""
  table = jnp.zeros((3, 2), jnp.bfloat16)
  ids = jnp.array([[1] * 1000, [2] * 1000]).at[1, 0].set(7)  # 7: no such row
  grad = jax.grad(lambda t: decoder._rows(t, ids).astype(jnp.float32).sum())
  program = str(jax.make_jaxpr(grad)(table))
  assert re.search(r"f32\[1,3,2\] = scatter-add", program)
  got = grad(table)
  assert got.dtype == jnp.bfloat16
  want = jnp.array([[0] * 2, [1000] * 2, [999] * 2], jnp.bfloat16)
  np.testing.assert_array_equal(got, want)


def test_gradients_of_rows_are_added_over_groups_in_the_tables_dtype():
  mesh = parallel.make_mesh(MeshConfig(2, 4, 1))
  table = jax.random.normal(jax.random.key(0), (16, 6)).astype(jnp.bfloat16)
  ids = jax.random.randint(jax.random.key(1), (8, 5), -2, 18)

  def loss(table, ids):
    return jnp.sum(jnp.sin(jnp.nan_to_num(decoder._rows(table, ids))))

  first, second = (jax.grad(loss)(table, ids[i : i + 4]) for i in (0, 4))
  with jax.set_mesh(mesh):
    program = jax.make_jaxpr(jax.grad(loss))(table, ids)
    got = jax.jit(jax.grad(loss))(table, ids)
  np.testing.assert_array_equal(got, first + second)
  (added,) = (
    x for x in operations(program.jaxpr) if str(x.primitive) == "reduce"
  )
  assert added.invars[0].aval.dtype == jnp.bfloat16
  assert added.invars[0].aval.shape == (2, 16, 6)


def test_ids_beyond_the_vocabulary_are_nan():
  model, params = make("gemma1")
  x = model.apply({"params": params}, jnp.array([[16, 17]]), method="embed")
  assert np.isfinite(x[0, 0]).all() and np.isnan(x[0, 1]).all()


def test_dropout_after_one_norm_and_before_the_other():
  model, params = make("gemma2")
  rate, key = 0.4, jax.random.key(5)
  config = dataclasses.replace(TINY["gemma2"], dropout=rate)
  model = model.clone(config=config)
  x = embedded("gemma2")[2:3]
  call = functools.partial(
    jax.jit(model.apply), {"params": params}, x, POSITIONS[2:3], MASK[2:3]
  )
  np.testing.assert_allclose(call()[0], full("gemma2")[2:3], atol=1e-5)
  keys = [jax.random.fold_in(key, i) for i in range(2 * config.depth)]
  keep = np.array([jax.random.bernoulli(k, 1 - rate, x.shape) for k in keys])
  drop = keep.reshape(config.depth, 2, *x.shape[1:]) / (1 - rate)
  want = ref_decoder(config, params, x[0], POSITIONS[2], MASK[2], drop)
  np.testing.assert_allclose(call(dropout_key=key)[0][0], want, atol=2e-5)


def test_initial_values():
  config = dataclasses.replace(
    TINY["gemma3"], vocab=512, width=96, mlp=80, depth=2, heads=6, head_dim=24
  )
  params = init(decoder.Decoder(config, jnp.float32), jax.jit)
  params = jax.tree.map(np.asarray, params)
  layers = params["layers"]
  fan_in = dict(q=96, k=96, v=96, o=6 * 24, gate=96, up=96, down=80)
  for name, fan in fan_in.items():
    value = {**layers["attn"], **layers["mlp"]}[name]
    np.testing.assert_allclose(value.std() * fan**0.5, 1, atol=0.05)
    assert np.abs(value).max() < 2.3 * fan**-0.5  # truncated at two deviations
    assert np.mean(value[0] == value[1]) < 0.01  # layers differ
  table = params["embedder"]["table"]
  np.testing.assert_allclose(table.std() * 96**0.5, 1, atol=0.05)
  scales = [p["scale"] for p in (*layers.values(), *layers["attn"].values(),
            params["final_norm"]) if "scale" in p]  # fmt: skip
  assert len(scales) == 7 and not any(x.any() for x in scales)


@pytest.mark.parametrize("name", presets.DECODER)
def test_parameter_counts(name):
  params = shapes(decoder.Decoder(presets.DECODER[name], jnp.bfloat16))
  total = sum(x.size for x in jax.tree.leaves(params))
  if name == "gemma2_700m":
    body = total - params["embedder"]["table"].size
    assert body == pytest.approx(0.698e9, rel=1e-3)
  else:
    assert total == PUBLISHED[name]


def test_wrong_arguments_are_refused():
  with pytest.raises(ValueError, match="none, dots, full"):
    full("gemma1", remat="some")
  model, params = make("gemma1")
  run = functools.partial(model.apply, {"params": params}, embedded("gemma1"))
  cache = key_cache.empty(model.config, len(BLOCK), T + 1, jnp.float32)
  with pytest.raises(ValueError, match="both or neither"):
    run(POSITIONS, MASK, cache)
  with pytest.raises(ValueError, match="attention runs over 10"):
    run(POSITIONS, MASK, cache, 0)
