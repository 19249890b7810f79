"""Gemma 1-3 against transformers: saved by it, converted, run by ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.weights import helpers, references  # noqa: E402
from unifluid_jax.models import decoder as ours  # noqa: E402
from unifluid_jax.models import key_cache  # noqa: E402
from unifluid_jax.weights import gemma, rows  # noqa: E402
from unifluid_jax.weights.rows import nested  # noqa: E402

B, T = 2, 10
HIDDEN, LOGITS = 1e-5, 1e-4


@pytest.fixture(scope="module", params=[1, 2, 3], ids="gemma{}".format)
def pair(request, tmp_path_factory):
  """Generation, their model, our configuration and parameters."""
  return _pair(request.param, tmp_path_factory.mktemp("pair"))


def _pair(generation, directory, **rest):
  model = references.gemma(generation, **rest)
  model.save_pretrained(directory / "theirs")
  params, meta = helpers.convert(
    directory / "theirs", gemma.recipe, directory / "ours"
  )
  config = helpers.gemma_config(meta)
  return generation, model, config, params["decoder"]


def agree(got, want, where=None):
  """Asserts equal hidden states and logits, at positions `where`."""
  where = np.ones(got[0].shape[:2], bool) if where is None else where
  (hidden, logits), (hidden2, logits2) = (
    [np.asarray(x.detach() if torch.is_tensor(x) else x)[where] for x in pair]
    for pair in (got, want)
  )
  assert helpers.relative(hidden, hidden2) < HIDDEN
  assert helpers.absolute(logits, logits2) < LOGITS


def test_causal(pair):
  _, model, config, params = pair
  tokens = references.tokens(B, T)
  want = references.run(model, tokens)
  agree(helpers.run_gemma(config, params, tokens), want)


@pytest.mark.parametrize(
  "off",
  [
    {"attn_softcap": 0.0}, {"final_softcap": 0.0}, {"window": 0},
    {"query_scale": None}, {"rope_scale_global": 1.0},
    {"rope_base_global": 1e4},
  ],
  ids=lambda off: next(iter(off)),
)  # fmt: skip
def test_what_is_switched_on_binds(pair, off):
  """Each feature of the reference changes the logits by far over 1e-4."""
  generation, model, config, params = pair
  (name,) = off
  if name not in helpers.OURS[generation]:
    pytest.skip("not a feature of this generation")
  tokens = references.tokens(B, T)
  _, want = references.run(model, tokens)
  changed = helpers.without(config, **off)
  _, got = helpers.run_gemma(changed, params, tokens)
  assert helpers.absolute(got, want.detach()) > 100 * LOGITS


def test_prefix_mask(pair):
  generation, model, config, params = pair
  tokens = references.tokens(B, T)
  mask = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T)).copy()
  mask[0, :4, :4] = True
  mask[1, :7, :7] = True
  positions = np.broadcast_to(np.arange(T), (B, T))
  want = references.run(
    model, tokens, references.masks(generation, mask, positions)
  )
  agree(helpers.run_gemma(config, params, tokens, mask=mask), want)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair, side):
  _, model, config, params = pair
  tokens = references.tokens(B, T)
  valid = np.ones((B, T), bool)
  valid[1, slice(0, 4) if side == "left" else slice(6, T)] = False
  positions = np.maximum(np.cumsum(valid, 1) - 1, 0)
  agree(*both_padded(model, config, params, tokens, valid, positions), valid)


def both_padded(model, config, params, tokens, valid, positions):
  """Ours and theirs on causal texts with pads."""
  want = references.run(
    model,
    tokens,
    torch.tensor(valid.astype(int)),
    position_ids=torch.tensor(positions),
  )
  mask = np.tril(np.ones((T, T), bool)) & valid[:, None, :]
  return helpers.run_gemma(config, params, tokens, positions, mask), want


def test_position_gaps(pair):
  generation, model, config, params = pair
  tokens = references.tokens(B, T)
  steps = np.random.default_rng(0).integers(1, 4, (B, T))
  positions = np.cumsum(steps, 1)
  mask = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
  want = references.run(
    model,
    tokens,
    references.masks(generation, mask, positions),
    position_ids=torch.tensor(positions),
  )
  agree(helpers.run_gemma(config, params, tokens, positions), want)


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_one_key_head_and_one_for_each(tmp_path, generation, kv_heads):
  _, model, config, params = _pair(
    generation, tmp_path, num_key_value_heads=kv_heads
  )
  assert config.kv_heads == kv_heads
  tokens = references.tokens(B, T)
  want = references.run(model, tokens)
  agree(helpers.run_gemma(config, params, tokens), want)


def test_gradients(pair):
  """For every parameter, by the same table."""
  _, model, config, params = pair
  got, theirs = both_gradients(model, config, params)
  want = nested(_converted(theirs, config))["decoder"]
  jax.tree.map(close, got, want)


def both_gradients(model, config, params):
  """d(sum of logits * noise): ours, and theirs by name where they have one."""
  tokens = references.tokens(B, T)
  noise = np.random.default_rng(2).normal(size=(B, T, config.vocab))
  noise = noise.astype(np.float32)
  model.zero_grad()
  _, logits = references.run(model, tokens)
  (logits * torch.tensor(noise)).sum().backward()

  def loss(params):
    _, logits = helpers.run_gemma(config, params, tokens)
    return (logits * noise).sum()

  named = model.named_parameters()
  theirs = {k: x.grad.numpy() for k, x in named if x.grad is not None}
  return jax.grad(loss)(params), theirs


def close(got, want):
  """Asserts equality relative to the largest number."""
  assert helpers.relative(got, want) < HIDDEN


def _converted(tensors, config):
  source = helpers.Tensors(tensors)
  recipe = rows.Recipe(
    "gemma",
    "gradients",
    gemma.hf_rows("model.", config.post_norms, config.qk_norm),
    gemma.like(config),
  )
  return helpers.in_memory(source, recipe)


def test_greedy_generation_with_cache(pair):
  _, model, config, params = pair
  same_words(model, config, params)


def same_words(model, config, params):
  """transformers' generate, token by token; both with their caches."""
  start, new = references.tokens(1, 5), 8
  want = model.generate(
    torch.tensor(start).long(),
    attention_mask=torch.ones(start.shape),
    max_new_tokens=new,
    do_sample=False,
    use_cache=True,
    eos_token_id=None,
    pad_token_id=0,
  )
  got = generate(config, params, start, new)
  np.testing.assert_array_equal(got, want.numpy()[0, 5:])


def generate(config, params, start, new):
  """Greedy tokens after `start`, i32[1, T], with a cache."""
  net, size = ours.Decoder(config, jnp.float32), start.shape[1] + new
  variables = {"params": params}
  cache = key_cache.empty(config, 1, size, jnp.float32)
  slots = np.arange(size)
  tokens, at, out = start, 0, []
  for _ in range(new):
    positions = at + np.arange(tokens.shape[1])
    mask = slots[None] <= positions[:, None]
    x = net.apply(variables, jnp.asarray(tokens), method="embed")
    hidden, cache = net.apply(
      variables, x, jnp.asarray(positions[None]), jnp.asarray(mask[None]),
      cache, at,
    )  # fmt: skip
    table = ours.output_table(params)
    best = int(ours.logits(config, table, hidden)[0, -1].argmax())
    at, tokens = at + tokens.shape[1], np.array([[best]])
    out.append(best)
  return out
