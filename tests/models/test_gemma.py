"""The decoder against a float64 reference in plain loops, and its cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax import presets
from unifluid_jax.models import gemma
from unifluid_jax.ops import attention

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
}

# Caps, windows and scales are small enough to change the result; N * H != D.
_SHAPE = dict(
  vocab=17, width=12, depth=3, mlp=20, heads=4, kv_heads=2, head_dim=8
)
_LOCAL = dict(post_norms=True, window=3)
TINY = {
  "gemma1": presets.GemmaConfig(**_SHAPE | dict(kv_heads=1)),
  "gemma2": presets.GemmaConfig(
    **_SHAPE, **_LOCAL, attn_softcap=1.5, final_softcap=2.0,
    pattern=("local", "global"), query_scale=0.45,
  ),
  "gemma3": presets.GemmaConfig(
    **_SHAPE, **_LOCAL, qk_norm=True, pattern=("local", "local", "global"),
    rope_base=100.0, rope_base_global=1e6, rope_scale_global=8.0,
  ),
}  # fmt: skip

T = 9
# Rows: a causal text with left pads, a bidirectional prefix with pads inside
# (image tokens, then a right-aligned prompt), both without pads.
BLOCK = jnp.array(
  [
    [0, 0, *range(1, 8)],
    [0] * 6 + [1, 2, 3],
    range(9),
    [0] * 4 + [*range(1, 6)],
  ]
)
VALID = jnp.array(
  [[0, 0] + [1] * 7, [1, 1, 0, 0] + [1] * 5, [1] * 9, [1] * 9], bool
)
POSITIONS = jnp.maximum(jnp.cumsum(VALID, axis=1) - 1, 0)
MASK = attention.block_causal_mask(BLOCK, VALID)


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


@functools.cache
def make(name, dtype="float32", **changes):
  """A tiny model and parameters of which no part is at its neutral value."""
  model = gemma.Gemma(TINY[name], jnp.dtype(dtype), **changes)
  shapes = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32), method="embed"),
    jax.random.key(0),
  )["params"]
  draw = np.random.default_rng(0).normal
  return model, jax.tree.map(
    lambda x: jnp.asarray(0.4 * draw(size=x.shape), x.dtype), shapes
  )


def embedded(name, seed=2):
  return jax.random.normal(
    jax.random.key(seed), (len(BLOCK), T, TINY[name].width)
  )


@functools.cache
def full(name, **changes):
  model, params = make(name, **changes)
  hidden, cache = model.apply(
    {"params": params}, embedded(name), POSITIONS, MASK
  )
  assert cache is None
  return hidden


# ---------------------------------------------------------------- reference


def ref_norm(x, scale):
  return x / np.sqrt(np.mean(x * x) + 1e-6) * (1 + scale)


def ref_rotate(x, position, base, scale):
  out, half = np.zeros_like(x), len(x) // 2
  for i in range(half):
    angle = position / scale * base ** (-2 * i / len(x))
    out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
    out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
  return out


def ref_attention(c, p, x, positions, mask, local):
  """One sequence x[T, D], head by head, query by query."""
  base = c.rope_base if local else c.rope_base_global
  stretch = 1.0 if local else c.rope_scale_global
  scale = c.query_scale or 1 / np.sqrt(c.head_dim)

  def project(kernel, norm):
    y = [token @ kernel for token in x]
    if c.qk_norm:
      y = [ref_norm(token, p[norm]["scale"]) for token in y]
    return [
      ref_rotate(y_t, t, base, stretch)
      for y_t, t in zip(y, positions, strict=True)
    ]

  out = np.zeros_like(x)
  for n in range(c.heads):
    m = n // (c.heads // c.kv_heads)
    queries = project(p["q"][:, n], "q_norm")
    keys = project(p["k"][:, m], "k_norm")
    for i, query in enumerate(queries):
      weights = np.zeros(len(keys))
      for j, key in enumerate(keys):
        near = abs(positions[i] - positions[j]) < c.window
        if not mask[i, j] or (local and not near):
          continue
        z = query @ key * scale
        if c.attn_softcap:
          z = c.attn_softcap * np.tanh(z / c.attn_softcap)
        weights[j] = np.exp(z)
      head = weights / weights.sum() @ (x @ p["v"][:, m])
      out[i] += head @ p["o"][n]
  return out


def ref_mlp(p, x):
  z = x @ p["gate"]
  gelu = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
  return (gelu * (x @ p["up"])) @ p["down"]


def ref_decoder(c, params, x, positions, mask, drop=None):
  """Hidden states of one sequence; drop[layer, branch] scales each entry."""
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x, positions = np.asarray(x, np.float64), np.asarray(positions)
  drop = np.ones((c.depth, 2, *x.shape)) if drop is None else drop

  def norms(y, p):
    return np.stack([ref_norm(token, p["scale"]) for token in y])

  for layer in range(c.depth):
    p = jax.tree.map(lambda a, i=layer: a[i], params["layers"])
    local = c.pattern[layer % len(c.pattern)] == "local"
    y = norms(x, p["pre_attn"])
    y = ref_attention(c, p["attn"], y, positions, mask, local)
    y = norms(y, p["post_attn"]) if c.post_norms else y
    x = x + y * drop[layer, 0]
    y = ref_mlp(p["mlp"], norms(x, p["pre_ffw"])) * drop[layer, 1]
    x = x + (norms(y, p["post_ffw"]) if c.post_norms else y)
  return norms(x, params["final_norm"])


# -------------------------------------------------------------------- tests


@pytest.mark.parametrize("name", TINY)
def test_equals_plain_loops(name):
  config, (_, params) = TINY[name], make(name)
  hidden = full(name)
  for row in (1, 2):
    x, mask = embedded(name)[row], np.asarray(MASK[row])
    if config.window:  # alone, pads in the local layers would see nothing
      mask = mask | np.eye(T, dtype=bool)[:] * ~np.asarray(VALID[row])
    want = ref_decoder(config, params, x, POSITIONS[row], mask)
    valid = np.asarray(VALID[row])
    np.testing.assert_allclose(hidden[row][valid], want[valid], atol=2e-5)
  table = params["embedder"]["table"]
  scores = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
  cap = config.final_softcap
  want = cap * np.tanh(scores / cap) if cap else scores
  np.testing.assert_allclose(
    gemma.logits(config, table, hidden), want, atol=3e-5
  )


@pytest.mark.parametrize(
  "name, field, neutral",
  [
    ("gemma2", "attn_softcap", 0.0),
    ("gemma2", "window", 0),
    ("gemma2", "pattern", ("global", "local")),
    ("gemma3", "rope_base", 1e6),
    ("gemma3", "rope_scale_global", 1.0),
  ],
)
def test_every_setting_binds(name, field, neutral):
  # Else the comparison with the reference would prove nothing about it.
  model, params = make(name)
  other = model.clone(
    config=dataclasses.replace(model.config, **{field: neutral})
  )
  changed, _ = other.apply({"params": params}, embedded(name), POSITIONS, MASK)
  assert np.abs(changed - full(name))[2].max() > 1e-3


@pytest.mark.parametrize("name", TINY)
def test_prefill_and_steps_equal_the_full_forward(name):
  model, params = make(name)
  size, prefill = T + 2, 6
  mask = jnp.pad(MASK, ((0, 0), (0, 0), (0, size - T)))
  x = embedded(name)
  cache = gemma.init_cache(model.config, len(x), size, jnp.float32)
  # Whatever slots hold before they are written must not matter.
  cache = cache._replace(k=cache.k + 9.0, v=cache.v - 9.0)

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


@pytest.mark.parametrize("name", TINY)
def test_pads_change_nothing(name):
  model, params = make(name)
  x = jnp.where(VALID[..., None], embedded(name), 50 * embedded(name, 7))
  hidden, _ = model.apply({"params": params}, x, POSITIONS, MASK)
  np.testing.assert_array_equal(hidden[VALID], full(name)[VALID])
  assert np.isfinite(hidden).all()


@pytest.mark.parametrize("name", TINY)
def test_scan_and_python_loop_share_parameters(name):
  np.testing.assert_allclose(full(name), full(name, scan=False), atol=1e-5)
  _, scanned = make(name)
  _, looped = make(name, scan=False)
  jax.tree.map(np.testing.assert_array_equal, scanned, looped)


def grads(remat, scan=True):
  model, params = make("gemma2", remat=remat, scan=scan)

  def loss(params):
    hidden, _ = model.apply(
      {"params": params}, embedded("gemma2"), POSITIONS, MASK
    )
    return jnp.sum(jnp.sin(hidden) * VALID[..., None])

  return str(jax.make_jaxpr(loss)(params)), jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize(
  "remat, scan, policy",
  [
    ("dots", True, "dots_with_no_batch_dims_saveable"),
    ("full", True, "nothing_saveable"),
    ("full", False, "nothing_saveable"),
  ],
)
def test_remat_keeps_gradients(remat, scan, policy):
  text, got = grads(remat, scan)
  plain_text, want = _plain_grads()
  assert f"policy={getattr(jax.checkpoint_policies, policy)}" in text
  assert "policy=" not in plain_text
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
    got,
    want,
  )


@functools.cache
def _plain_grads():
  return grads("none")


def test_unknown_remat_is_refused():
  with pytest.raises(ValueError, match="none, dots, full"):
    full("gemma1", remat="some")


def test_bfloat16_keeps_float32_parameters():
  model, params = make("gemma2", "bfloat16")
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  tokens = jnp.arange(T)[None] % TINY["gemma2"].vocab
  x = model.apply({"params": params}, tokens, method="embed")
  cache = gemma.init_cache(model.config, 1, T, jnp.bfloat16)
  hidden, cache = model.apply(
    {"params": params}, x, POSITIONS[2:3], MASK[2:3], cache, 0
  )
  assert (x.dtype, hidden.dtype, cache.k.dtype) == (jnp.bfloat16,) * 3
  scores = gemma.logits(model.config, params["embedder"]["table"], hidden)
  assert scores.dtype == jnp.float32
  wide, params = make("gemma2")
  want, _ = wide.apply(
    {"params": params}, x.astype(jnp.float32), POSITIONS[2:3], MASK[2:3]
  )
  np.testing.assert_allclose(hidden.astype(jnp.float32), want, atol=0.15)


def test_norm_multiplies_before_the_downcast():
  x = jax.random.normal(jax.random.key(0), (64, 12)).astype(jnp.bfloat16)
  scale = jax.random.normal(jax.random.key(1), (12,))
  wide = np.asarray(x, np.float64)
  want = np.stack([ref_norm(row, np.asarray(scale)) for row in wide])
  np.testing.assert_array_equal(
    gemma.rms_norm(x, scale), jnp.asarray(want, jnp.float32).astype(x.dtype)
  )


@pytest.mark.parametrize(
  "width, rounded",
  [(640, 25.25), (1152, 34), (2048, 45.25), (2304, 48), (3072, 55.5)]
  + [(2560, 50.5), (3584, 59.75), (4608, 68)],
)
def test_embedding_scale_is_rounded_to_the_activation_dtype(width, rounded):
  config = dataclasses.replace(TINY["gemma1"], width=width, vocab=2)
  model = gemma.Gemma(config, jnp.bfloat16)
  params = {"embedder": {"table": jnp.ones((2, width))}}
  params |= {"layers": {}, "final_norm": {"scale": jnp.zeros(width)}}
  x = model.apply({"params": params}, jnp.zeros((1, 1), int), method="embed")
  assert float(x[0, 0, 0]) == rounded
  exact = model.clone(dtype=jnp.float32)
  x = exact.apply({"params": params}, jnp.zeros((1, 1), int), method="embed")
  np.testing.assert_allclose(x[0, 0, 0], width**0.5, rtol=1e-6)


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
    model.apply, {"params": params}, x, POSITIONS[2:3], MASK[2:3]
  )
  np.testing.assert_array_equal(call()[0], full("gemma2")[2:3])
  keep = np.array(
    [
      [
        jax.random.bernoulli(
          jax.random.fold_in(key, 2 * layer + branch), 1 - rate, x.shape
        )[0]
        for branch in range(2)
      ]
      for layer in range(config.depth)
    ]
  )
  want = ref_decoder(
    config, params, x[0], POSITIONS[2], MASK[2], keep / (1 - rate)
  )
  np.testing.assert_allclose(call(dropout_key=key)[0][0], want, atol=2e-5)


def test_initial_values():
  config = dataclasses.replace(
    TINY["gemma3"], vocab=512, width=96, mlp=80, depth=2, heads=6, head_dim=24
  )
  model = gemma.Gemma(config, jnp.float32)
  params = jax.jit(functools.partial(model.init, method="embed"))(
    jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
  )["params"]
  layers = params["layers"]
  fan_in = {
    "q": 96,
    "k": 96,
    "v": 96,
    "o": 6 * 24,
    "gate": 96,
    "up": 96,
    "down": 80,
  }
  for name, fan in fan_in.items():
    value = {**layers["attn"], **layers["mlp"]}[name]
    np.testing.assert_allclose(value.std() * fan**0.5, 1, atol=0.05)
    assert np.abs(value).max() < 2.3 * fan**-0.5  # truncated at two deviations
    assert np.mean(value[0] == value[1]) < 0.01  # layers differ
  table = params["embedder"]["table"]
  np.testing.assert_allclose(table.std() * 96**0.5, 1, atol=0.05)
  scales = [
    x for x in jax.tree.leaves(params) if x.shape[-1] in (96, 24) and x.ndim < 3
  ]
  assert sum(float(jnp.abs(x).sum()) == 0 for x in scales) == 7


@pytest.mark.parametrize("name", presets.GEMMA)
def test_parameter_counts(name):
  model = gemma.Gemma(presets.GEMMA[name], jnp.bfloat16)
  params = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32), method="embed"),
    jax.random.key(0),
  )["params"]
  total = sum(x.size for x in jax.tree.leaves(params))
  if name == "gemma2_700m":
    assert total - params["embedder"]["table"].size == pytest.approx(
      0.698e9, rel=1e-3
    )
  else:
    assert total == PUBLISHED[name]


def test_cache_without_index_and_wrong_masks_are_refused():
  model, params = make("gemma1")
  run = functools.partial(model.apply, {"params": params}, embedded("gemma1"))
  cache = gemma.init_cache(model.config, len(BLOCK), T + 1, jnp.float32)
  with pytest.raises(ValueError, match="both or neither"):
    run(POSITIONS, MASK, cache)
  with pytest.raises(ValueError, match="attention runs over 10"):
    run(POSITIONS, MASK, cache, 0)
