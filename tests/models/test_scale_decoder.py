"""VAR's transformer against a plain computation in float64."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax.core import presets
from unifluid_jax.models import scale_decoder_params
from unifluid_jax.models.scale_decoder import ScaleDecoder
from unifluid_jax.ops import scales

# Parameters of the released models.
PUBLISHED = {
  "d16": 310_283_520,
  "d20": 600_917_136,
  "d24": 1_033_399_360,
  "d30": 2_010_020_356,
  "d36": 2_353_893_904,
}
B, W, HEADS, V, Z, SIDES = 3, 16, 2, 11, 5, (1, 2, 3)
N = 14
LAYERWISE = presets.ScaleDecoderConfig(W, 2, HEADS, 24, V, Z, SIDES, 7)
# What the other published variant, and none of them, has.
SHARED = dataclasses.replace(LAYERWISE, shared_adaln=True, l2_norm=False)


def apply(module, params, *args, **how):
  return module.apply({"params": params}, *args, **how)


def shapes_of(config):
  module = ScaleDecoder(config)
  inputs = jnp.zeros((1, 1, config.code_channels))
  cond = jnp.zeros((1, config.width))
  made = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs, cond))
  return made["params"]


def random_params(config, seed=0):
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: jnp.float32(0.4 * rng.normal(size=x.shape)), shapes_of(config)
  )
  if config.l2_norm:  # one head above the largest temperature
    params["layers"]["attn"]["temperature"] = jnp.float32([[1.0, 5.0], [2, 0]])
  return params


@pytest.fixture(scope="module", params=[LAYERWISE, SHARED],
                ids=["layerwise", "shared"])  # fmt: skip
def model(request):
  config, rng = request.param, np.random.default_rng(1)
  module, params = ScaleDecoder(config), random_params(config)
  inputs = jnp.float32(rng.normal(size=(B, N, Z)))
  labels = jnp.asarray([2, 7, 0])
  whole = jax.jit(lambda p, x, y: apply(
    module, p, x, apply(module, p, y, method="cond")))  # fmt: skip
  return SimpleNamespace(
    config=config, module=module, params=params, inputs=inputs, labels=labels,
    whole=whole,
  )  # fmt: skip


# -------------------------------------------------------- a plain computation


def norm(x):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def silu(x):
  return x / (1 + np.exp(-x))


def gelu(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attended(config, p, x, level):
  """One row [n, W], head by head, query by query."""
  heads = []
  for h in range(config.heads):
    q, k, v = (x @ p["qkv"][:, i, h] for i in range(3))
    q, v = q + p["q_bias"][h], v + p["v_bias"][h]
    scale = 0.25 / math.sqrt(q.shape[-1])
    if config.l2_norm:
      q = q / np.linalg.norm(q, axis=-1, keepdims=True)
      k = k / np.linalg.norm(k, axis=-1, keepdims=True)
      scale = min(math.exp(p["temperature"][h]), 100)
    rows = []
    for i in range(len(x)):
      seen = level <= level[i]
      weights = np.exp(scale * k[seen] @ q[i])
      rows.append(weights @ v[seen] / weights.sum())
    heads.append(np.stack(rows) @ p["out"]["kernel"][h])
  return sum(heads) + p["out"]["bias"]


def plain(config, params, inputs, label):
  """Logits of one row [N, Z]."""
  p = jax.tree.map(np.float64, params)
  level = np.repeat([0, 1, 2], [1, 4, 9])
  cond = p["classes"]["table"][label]
  x = inputs @ p["words"]["kernel"] + p["words"]["bias"]
  x[0] = cond + p["start"]
  x = x + p["position"] + p["level"][level]
  for i in range(config.depth):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
    if config.shared_adaln:
      kernel, bias = p["modulation"]["kernel"], p["modulation"]["bias"]
      bias = bias + layer["modulation"]["offset"]
    else:
      kernel, bias = layer["modulation"]["kernel"], layer["modulation"]["bias"]
    six = np.einsum("d,dpe->pe", silu(cond), kernel) + bias
    gate1, gate2, scale1, scale2, shift1, shift2 = six
    y = norm(x) * (1 + scale1) + shift1
    x = x + gate1 * attended(config, layer["attn"], y, level)
    y = norm(x) * (1 + scale2) + shift2
    up, down = layer["mlp"]["up"], layer["mlp"]["down"]
    y = gelu(y @ up["kernel"] + up["bias"]) @ down["kernel"] + down["bias"]
    x = x + gate2 * y
  two = p["head"]["modulation"]
  scale, shift = np.einsum("d,dpe->pe", silu(cond), two["kernel"]) + two["bias"]
  x = norm(x) * (1 + scale) + shift
  return x @ p["head"]["kernel"] + p["head"]["bias"]


def test_logits_are_those_of_a_plain_computation(model):
  got = model.whole(model.params, model.inputs, model.labels)
  for i in range(B):
    want = plain(
      model.config, model.params, np.float64(model.inputs[i]),
      int(model.labels[i]),
    )  # fmt: skip
    np.testing.assert_allclose(got[i], want, rtol=2e-4, atol=2e-4)
  assert got.dtype == jnp.float32


def test_scale_by_scale_with_a_cache_is_all_scales_at_once(model):
  want = model.whole(model.params, model.inputs, model.labels)

  @jax.jit
  def cached(params):
    cond = apply(model.module, params, model.labels, method="cond")
    cache, out = apply(model.module, params, B, method="empty_cache"), []
    for k in range(3):
      x = model.inputs[:, scales.slots(SIDES, k)]
      x = apply(model.module, params, x, cond, range(k, k + 1), method="embed")
      x, cache = apply(model.module, params, x, cond, cache, k, method="blocks")
      out.append(apply(model.module, params, x, cond, method="head"))
    return jnp.concatenate(out, axis=1)

  np.testing.assert_allclose(cached(model.params), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [LAYERWISE, SHARED])
def test_without_layers_the_head_reads_the_embedding(config):
  """The network around it then mixes slots; nothing is kept for layers."""
  config = dataclasses.replace(config, depth=0, l2_norm=False)
  params, module = random_params(config), ScaleDecoder(config)
  assert set(params) == {
    "classes", "start", "position", "level", "words", "head"
  }  # fmt: skip
  inputs = np.random.default_rng(1).normal(size=(2, N, Z))
  cond = params["classes"]["table"][jnp.asarray([2, 7])]
  x = jnp.float32(inputs)
  got = apply(module, params, x, cond)
  for i, label in enumerate((2, 7)):
    want = plain(config, params, inputs[i].copy(), label)
    np.testing.assert_allclose(got[i], want, rtol=2e-4, atol=2e-4)
  cache = apply(module, params, 2, method="empty_cache")
  last, span = scales.slots(SIDES, 2), range(2, 3)
  x = apply(module, params, x[:, last], cond, span, method="embed")
  x, after = apply(module, params, x, cond, cache, 2, method="blocks")
  assert after is cache and not jax.tree.leaves(cache)[0].size
  logits = apply(module, params, x, cond, method="head")
  np.testing.assert_allclose(logits, got[:, last], rtol=1e-6)


def test_first_scales_alone_have_the_logits_that_all_have(model):
  want = model.whole(model.params, model.inputs, model.labels)
  first = model.whole(model.params, model.inputs[:, :5], model.labels)
  np.testing.assert_allclose(first, want[:, :5], rtol=1e-4, atol=1e-4)


def test_a_slot_sees_its_scale_and_those_before():
  """What slot j reads moves the logits of its scale and of later ones."""
  module, params = ScaleDecoder(LAYERWISE), random_params(LAYERWISE)
  rng = np.random.default_rng(2)
  inputs = jnp.float32(rng.normal(size=(1, N, Z)))
  moved = jnp.tile(inputs, (N, 1, 1))
  moved = moved.at[jnp.arange(N), jnp.arange(N)].add(0.5)
  cond = apply(module, params, jnp.zeros(N, jnp.int32), method="cond")
  out = jax.jit(lambda x: apply(module, params, x, cond))
  change = np.abs(out(moved) - out(jnp.tile(inputs, (N, 1, 1)))).max(-1)
  level = np.repeat([0, 1, 2], [1, 4, 9])
  seen = level[:, None] <= level[None]
  seen[0] = False  # slot 0 reads the condition alone
  np.testing.assert_array_equal(change > 1e-6, seen)


def test_rows_of_scales():
  np.testing.assert_array_equal(scales.levels(SIDES), [0, 1, 1, 1, 1, *[2] * 9])
  assert scales.slots(SIDES, 1) == slice(1, 5)
  assert scales.slots(SIDES, 1, 2) == slice(1, 14)
  tokens = {k: c.tokens for k, c in presets.SCALE_DECODER.items()}
  assert tokens == dict(d16=680, d20=680, d24=680, d30=680, d36=2240)


def test_what_does_not_fit_is_refused():
  module, params = ScaleDecoder(LAYERWISE), random_params(LAYERWISE)
  x, cond = jnp.zeros((1, 4, Z)), jnp.zeros((1, W))
  with pytest.raises(ValueError, match="1 to 1 have 4 slots"):
    apply(module, params, x[:, :3], cond, range(1, 2), method="embed")
  with pytest.raises(ValueError, match=r"whole scales end at \[1, 5, 14\]"):
    apply(module, params, x, cond)
  with pytest.raises(ValueError, match="cache and k go together"):
    apply(module, params, jnp.zeros((1, 4, W)), cond, None, 1, method="blocks")


# ------------------------------------------------------------------- training


def test_dropped_paths_are_left_out_of_whole_rows_and_made_up_for():
  """Of the last of two layers; of the first none."""
  rate, rows = 0.4, 64
  config = dataclasses.replace(LAYERWISE, drop_path=rate)
  module, params = ScaleDecoder(config), random_params(config)
  rng = np.random.default_rng(3)
  x = jnp.tile(jnp.float32(rng.normal(size=(1, N, W))), (rows, 1, 1))
  cond = jnp.tile(jnp.float32(rng.normal(size=(1, W))), (rows, 1))

  @jax.jit
  def run(factors, key):
    """The last layer's gates times factors; one row without a key."""
    m = params["layers"]["modulation"]
    factor = jnp.ones((2, 6)).at[1, :2].set(factors)[..., None]
    m = {"kernel": m["kernel"] * factor[:, None], "bias": m["bias"] * factor}
    p = params | {"layers": params["layers"] | {"modulation": m}}
    rest = (x, cond) if key is not None else (x[:1], cond[:1])
    return apply(module, p, *rest, key=key, method="blocks")[0]

  kept = 1 / (1 - rate)
  options = [run(jnp.float32([a, b]), None)[0] for a in (0, kept)
             for b in (0, kept)]  # fmt: skip
  got = run(jnp.ones(2), jax.random.key(0))
  distance = np.stack([np.abs(got - o).max((1, 2)) for o in options])
  assert (distance.min(0) < 1e-4).all()
  shares = np.bincount(distance.argmin(0), minlength=4) / rows
  want = [rate**2, rate * (1 - rate), rate * (1 - rate), (1 - rate) ** 2]
  np.testing.assert_allclose(shares, want, atol=0.15)


def test_initial_values_are_those_of_the_source():
  config = presets.ScaleDecoderConfig(
    64, 2, 2, 128, 50, 40, SIDES, 70, shared_adaln=True, gate_init=1e-3
  )
  inputs, cond = jnp.zeros((1, 1, 40)), jnp.zeros((1, 64))
  init = jax.jit(ScaleDecoder(config).init)
  made = init(jax.random.key(0), inputs, cond)["params"]
  std, layers = math.sqrt(1 / 64 / 3), made["layers"]
  deep = std / math.sqrt(2 * 2)
  own = scale_decoder_params.layers(
    dataclasses.replace(config, shared_adaln=False)
  )["modulation"]["kernel"]
  own = own[0](jax.random.key(1), own[1], jnp.float32) / std
  offset = layers["modulation"]["offset"] * 8  # sqrt(W)
  std_of = {
    "modulation": (made["modulation"]["kernel"], std),
    "classes": (made["classes"]["table"], std),
    "words": (made["words"]["kernel"], std),
    "qkv": (layers["attn"]["qkv"], std),
    "out": (layers["attn"]["out"]["kernel"], deep),
    "up": (layers["mlp"]["up"]["kernel"], std),
    "down": (layers["mlp"]["down"]["kernel"], deep),
    "head": (made["head"]["kernel"], 0.02 * std),
    "last": (made["head"]["modulation"]["kernel"], 0.5 * std),
  }
  six = {
    "own": np.moveaxis(np.asarray(own), 2, 0),
    "offset": np.moveaxis(np.asarray(offset), 1, 0),
  }
  for name, parts in six.items():
    wanted = [1e-3] * 2 + [0.5] * 4
    std_of |= {f"{name} {i}": (parts[i], w) for i, w in enumerate(wanted)}
  for name, (x, want) in std_of.items():
    np.testing.assert_allclose(np.std(x), want, rtol=0.15, err_msg=name)
  np.testing.assert_allclose(layers["attn"]["temperature"], math.log(4))
  biases = [x for path, x in jax.tree_util.tree_leaves_with_path(made)
            if "bias" in str(path[-1])]  # fmt: skip
  assert len(biases) >= 8 and not any(np.any(x) for x in biases)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
  made = shapes_of(presets.SCALE_DECODER[name])
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(made))
  assert count == PUBLISHED[name]
