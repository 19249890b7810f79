"""Decoding with a cache equals recomputing everything, step by step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.systems.conftest import Tiny, examples, right_aligned
from unifluid_jax.config import SamplingConfig
from unifluid_jax.models import gemma
from unifluid_jax.models.diffusion_head import sample_tokens
from unifluid_jax.models.kl_vae import from_latents
from unifluid_jax.ops import diffusion, order, patches
from unifluid_jax.ops.attention import block_causal_mask
from unifluid_jax.systems import packing
from unifluid_jax.types import BOS, EOS, PAD, Batch, Prompts

SAMPLING = SamplingConfig(
  steps=3, cfg=2.0, cfg_schedule="linear", temperature=0.9, clip=0.0,
  order="raster",
  text="greedy", text_temperature=1.0, top_k=0, top_p=1.0, beams=2, seed=0,
)  # fmt: skip
TEXT = right_aligned(np.random.default_rng(1), 3, 5, 5)


def keys(*seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


@pytest.fixture(scope="module")
def draw(model):
  @jax.jit
  def plain(text, keys):
    return model.system.generate(
      model.params, model.frozen, Prompts(text), keys, SAMPLING
    )

  return plain


def recomputed(model, text, row_keys, cells):
  """The same images with a full forward pass for every token."""
  s, params, b, n = model.system, model.params, len(text), 16
  prompts = Prompts(jnp.concatenate([text, packing.null_prompt(text)]))
  head = s.prompt_parts(params, model.frozen, prompts)
  schedule = diffusion.respace(SAMPLING.steps)
  token_keys = jax.vmap(lambda k: jax.random.split(k, 2)[1])(row_keys)

  @jax.jit
  def hidden_of(x):
    both = jnp.concatenate([x, x])
    tail = s.embed_image(params, both, jnp.concatenate([cells, cells]))
    packed = packing.join([head, packing.causal(tail, packing.all_valid(tail))])
    return s._backbone(params, [packed], None)[0]

  x = jnp.zeros((b, n, 16))
  for i in range(n):
    z = hidden_of(x)[:, 5 + i]
    scale = 1 + (SAMPLING.cfg - 1) * (i + 1) / n
    token = sample_tokens(
      s.head, params["head"], schedule, z[:b], z[b:],
      jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(token_keys),
      scale, SAMPLING.temperature,
    )  # fmt: skip
    x = x.at[:, i].set(token)
  z = patches.unpatchify(order.put_tokens(x, cells), 2, 4)
  z = from_latents(z, model.frozen["latent_mean"], model.frozen["latent_scale"])
  images = s.vae.apply({"params": model.frozen["vae"]}, z, method="decode")
  return jnp.clip(images, -1, 1)


def test_generation_equals_full_recomputation(model, draw):
  text, k = jnp.asarray(TEXT), keys(3, 4, 5)
  raster = order.raster_orders(3, 16)
  np.testing.assert_allclose(
    draw(text, k), recomputed(model, text, k, raster), atol=2e-4
  )


def test_any_order_equals_full_recomputation(model):
  text, k = jnp.asarray(TEXT[:2]), keys(8, 9)
  rng = np.random.default_rng(2)
  cells = jnp.asarray(np.stack([rng.permutation(16) for _ in range(2)]))
  got = jax.jit(
    lambda: model.system.generate(
      model.params, model.frozen, Prompts(text), k, SAMPLING, cells
    )
  )()
  np.testing.assert_allclose(got, recomputed(model, text, k, cells), atol=2e-4)


def test_an_image_depends_on_its_own_seed_and_prompt_only(model, draw):
  text = jnp.asarray(TEXT)
  a = draw(text, keys(3, 4, 5))
  b = draw(text[::-1], keys(5, 7, 3))
  np.testing.assert_allclose(a[0], b[2], atol=1e-5)
  np.testing.assert_allclose(a[2], b[0], atol=1e-5)
  assert np.abs(a[1] - b[1]).max() > 1e-2


def test_guidance_off_ignores_the_null_prompt(model):
  """cfg 1 takes the short path and equals the guided formula at 1."""
  text, k = jnp.asarray(TEXT[:2]), keys(1, 2)

  def run(cfg):
    sampling = dataclasses.replace(SAMPLING, cfg=cfg, cfg_schedule="constant")
    return jax.jit(
      lambda: model.system.generate(
        model.params, model.frozen, Prompts(text), k, sampling
      )
    )()

  np.testing.assert_allclose(run(1.0), run(1.0 + 1e-7), atol=2e-4)
  assert np.abs(run(1.0) - run(4.0)).max() > 1e-2


def test_greedy_answers_equal_full_recomputation(model):
  batch = examples(rows=4).i2t
  s, params = model.system, model.params
  got = np.asarray(
    jax.jit(lambda: s.answer(params, {}, batch.image, batch.prefix, SAMPLING))()
  )
  table = params["decoder"]["embedder"]["table"]

  @jax.jit
  def next_token(suffix, length):
    example = batch._replace(suffix=suffix)
    packed = s._pack_answer(params, example)
    mask = block_causal_mask(packed.block, packed.valid)
    hidden, _ = s.decoder.apply(
      {"params": params["decoder"]}, packed.x,
      packing.positions(packed.valid), mask,
    )  # fmt: skip
    start = packed.x.shape[1] - suffix.shape[1]
    logits = gemma.logits(
      model.config.model.decoder, table, hidden[:, start + length]
    )
    return logits.argmax(-1)

  suffix, done = np.full((4, 4), PAD), np.zeros(4, bool)
  for i in range(4):
    # A pad that was emitted is fed as a token: give it another id to stay
    # visible would change it, so rows stop at their first pad.
    token = np.asarray(next_token(jnp.asarray(suffix), i))
    token = np.where(done, PAD, token)
    done |= np.isin(token, (EOS, PAD))
    suffix[:, i] = token
  first_stop = [
    next((j for j, t in enumerate(r) if t in (PAD, EOS)), 4) for r in suffix
  ]
  for row, want, stop in zip(got, suffix, first_stop, strict=True):
    np.testing.assert_array_equal(row[: stop + 1], want[: stop + 1])


def test_beam_of_one_is_greedy_and_more_beams_score_no_worse(model):
  batch = examples(rows=4).i2t
  s = model.system

  def run(**changes):
    sampling = dataclasses.replace(SAMPLING, **changes)
    return np.asarray(
      jax.jit(
        lambda: s.answer(model.params, {}, batch.image, batch.prefix, sampling)
      )()
    )

  sampled = run(text="sample", top_k=1)
  np.testing.assert_array_equal(sampled, run())
  beams = run(text="beam", beams=3)
  assert beams.shape == (4, 4) and (beams >= 0).all()
  ended = (beams == EOS).any(1)
  assert ended.all()


def test_edit_prompts_see_the_source_image(model):
  m = Tiny(batch__edit=4, model__edit_latents=True)
  image = examples().i2t.image[:2]
  text = jnp.asarray(TEXT[:2])
  draw = jax.jit(
    lambda source: m.system.generate(
      m.params, m.frozen, Prompts(text, source, source), keys(1, 2), SAMPLING
    )
  )
  a, b = draw(image), draw(image[::-1])
  assert a.shape == (2, 32, 32, 3)
  assert np.abs(a - b).max() > 1e-3


def test_overfit_regenerates_tokens_and_captions_exactly():
  """Eight examples, both tasks: sampling returns what was learned."""
  m = Tiny(
    loss__prompt_dropout=0.0, sampling__cfg=1.0, loss__text_weight=0.3,
    loss__draws=8, model__head__width=64, model__head__depth=2,
    model__decoder__width=48,
  )  # fmt: skip
  rng = np.random.default_rng(3)
  batch = examples()
  prompt = np.zeros((8, 5), np.int32)
  prompt[:, 3], prompt[:, 4] = BOS, np.arange(8) + 8
  moments = rng.normal(size=(8, 8, 8, 8)).astype(np.float32)
  moments[..., 4:] = -30
  batch = Batch(
    t2i=batch.t2i._replace(
      prompt=jnp.asarray(prompt), moments=jnp.asarray(moments)
    ),
    i2t=batch.i2t,
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(6e-3, 1000))
  params = jax.jit(m.system.init)(jax.random.key(5))
  state = optimizer.init(params)

  @jax.jit
  def update(params, state, key):
    def objective(p):
      return m.system.loss(p, m.frozen, batch, key, 0)

    grads, metrics = jax.grad(objective, has_aux=True)(params)
    change, state = optimizer.update(grads, state)
    return optax.apply_updates(params, change), state, metrics

  key = jax.random.key(0)
  for i in range(1000):
    params, state, metrics = update(params, state, jax.random.fold_in(key, i))
  assert metrics["text_accuracy"] == 1
  answers = jax.jit(
    lambda p: m.system.answer(
      p, {}, batch.i2t.image, batch.i2t.prefix, SAMPLING
    )
  )(params)
  np.testing.assert_array_equal(answers, batch.i2t.suffix)
  sampling = dataclasses.replace(SAMPLING, cfg=1.0, steps=25, clip=4.0)
  target = m.system.vae.apply(
    {"params": m.frozen["vae"]}, jnp.asarray(moments[..., :4]), method="decode"
  )
  images = jax.jit(
    lambda p: m.system.generate(
      p, m.frozen, Prompts(batch.t2i.prompt), keys(*range(8)), sampling
    )
  )(params)
  error = np.square(images - np.clip(target, -1, 1)).mean((1, 2, 3))
  other = np.square(images - np.clip(target[::-1], -1, 1)).mean((1, 2, 3))
  assert error.max() < 0.1 * other.min(), (error, other)
