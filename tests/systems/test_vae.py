import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.base import base, image_tokenizer
from tests.parameters import filled
from tests.systems.conftest import whole_loss
from unifluid_jax import systems
from unifluid_jax.core import presets
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.models import convolutions, kl_vae, lpips, patch_gan
from unifluid_jax.systems import tokenizer_training as vae_system
from unifluid_jax.systems.common import reconstruction

# Few blocks: the tests spend their time compiling.
TINY = presets.VaeConfig(8, (1, 1), 0, 3, attention=False, groups=4)
START = 5
KEY = jax.random.key(7)


def make(accumulate=1, **losses):
  tree = base()
  image_tokenizer(tree)
  tree.batch.image = 4
  tree.data.train = dict(a=dict(format="jsonl", path="a.jsonl"))
  c = systems.resolve(tree)
  model = dataclasses.replace(c.model, vae=TINY, image_size=16, dtype="float32")
  losses = (
    dict(
      l1=0.7,
      l2=2.0,
      kl=0.1,
      adversarial_start=START,
      discriminator_width=4,
      discriminator_layers=1,
    )
    | losses
  )
  loss = dataclasses.replace(c.loss, **losses)
  return dataclasses.replace(c, model=model, loss=loss, accumulate=accumulate)


class Made:
  """A system, its parameters, and its jitted loss and gradients."""

  def __init__(self, **losses):
    self.system = vae_system.VaeSystem(make(**losses))
    shapes = jax.eval_shape(self.system.init, jax.random.key(0))
    self.params = filled(shapes)
    self.whole_loss = whole_loss(self.system)
    run = jax.value_and_grad(self.whole_loss, has_aux=True)
    self.run = jax.jit(
      lambda params, batch, step: run(params, {}, batch, KEY, step)
    )


@functools.cache
def plain():
  return Made()


@functools.cache
def adversarial():
  return Made(adversarial=0.5)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  flat = rng.uniform(-1, 1, (4, 2, 2, 3))
  images = np.kron(flat, np.ones((1, 8, 8, 1))).astype(np.float32)
  return {"image": {"image": jnp.asarray(images)}}


def flat_norm(tree):
  return float(optax.tree.norm(tree))


def relative(x, y):
  """Norm of x - y in units of y's."""
  return flat_norm(jax.tree.map(jnp.subtract, x, y)) / flat_norm(y)


def test_loss_is_the_weighted_sum_of_its_parts(batch):
  made = plain()
  assert list(made.params) == ["vae"]
  (total, metrics), _ = made.run(made.params, batch, 0)
  images = np.asarray(batch["image"]["image"])
  vae = kl_vae.KlVae(TINY)

  @jax.jit
  def reference(params, images):
    moments = vae.apply({"params": params}, images, method="encode")
    z = kl_vae.sample(moments, KEY)
    return moments, z, vae.apply({"params": params}, z, method="decode")

  tensors = reference(made.params["vae"], batch["image"]["image"])
  moments, z, out = (np.float64(x) for x in tensors)
  l1, l2 = np.abs(out - images).mean(), np.square(out - images).mean()
  mean, log_var = np.split(moments, 2, -1)
  kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).mean()
  mse = np.square(out - images).mean((1, 2, 3))
  expected = dict(
    l1=l1,
    l2=l2,
    psnr=np.mean(10 * np.log10(4 / mse)),
    kl=kl,
    latent_mean=z.mean(),
    latent_square=np.square(z).mean(),
  )
  assert sorted(metrics) == sorted(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  np.testing.assert_allclose(total, 0.7 * l1 + 2 * l2 + 0.1 * kl, rtol=1e-5)


def test_parts_of_a_batch_add_up(batch, monkeypatch):
  """Loss, metrics and gradients of halves, without the draw."""
  draw = kl_vae.sample
  monkeypatch.setattr(kl_vae, "sample", lambda moments, _: draw(moments, None))
  system, params = vae_system.VaeSystem(make()), plain().params
  counts = system.counts(batch)
  assert counts == {"images": 4}

  @jax.jit
  def run(params, images):
    part = {"image": {"image": images}}
    grad = jax.value_and_grad(
      lambda *args: system.loss(*args)[:2], has_aux=True
    )
    return grad(params, {}, part, counts, KEY, 0)

  images = batch["image"]["image"]
  parts = run(params, images[:2]), run(params, images[2:])
  whole, added = run(params, images), jax.tree.map(jnp.add, *parts)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()
    ),
    added, whole,
  )  # fmt: skip


def test_perceptual_term_is_added(batch, monkeypatch):
  # Distances 1, 2, 3, 4: their mean has to come in with its weight.
  monkeypatch.setattr(lpips, "distance", lambda p, x, y: p * jnp.arange(1.0, 5))
  made = Made(perceptual=0.3, perceptual_weights="w.npz")
  expected = plain().run(made.params, batch, 0)[0][0]
  loss = jax.jit(made.whole_loss)
  total, metrics = loss(made.params, {"lpips": 10.0}, batch, KEY, 0)
  np.testing.assert_allclose(total - expected, 0.3 * 25, rtol=1e-5)
  assert float(metrics["perceptual"]) == 25


def test_load_frozen_reads_lpips_only_when_it_takes_part(monkeypatch):
  monkeypatch.setattr(lpips, "load_lpips", lambda path: {"from": path})
  assert systems.load_frozen(vae_system.VaeSystem(make())) == {}
  c = make(perceptual=1.0, perceptual_weights="w.npz")
  frozen = systems.load_frozen(vae_system.VaeSystem(c))
  assert frozen == {"lpips": {"from": "w.npz"}}


def test_before_the_start_the_discriminator_takes_no_part(batch):
  made = adversarial()
  grads = made.run(made.params, batch, START - 1)[1]
  assert flat_norm(grads["discriminator"]) == 0
  expected = plain().run({"vae": made.params["vae"]}, batch, 0)[1]
  assert relative(grads["vae"], expected["vae"]) < 1e-5


@functools.cache
def reference():
  """Gradients of each loss alone through the whole networks, jitted."""
  vae, gan = kl_vae.KlVae(TINY), patch_gan.PatchGan(4, 1)

  def forward(p, images):
    moments = vae.apply({"params": p}, images, method="encode")
    z = kl_vae.sample(moments, KEY)
    out = vae.apply({"params": p}, z, method="decode")
    return moments, out

  @jax.jit
  def gradients(params, images):
    discriminator = params["discriminator"]

    def generator_losses(p):
      moments, out = forward(p, images)
      terms = 0.7 * jnp.abs(out - images) + 2 * (out - images) ** 2
      logits = gan.apply({"params": discriminator}, out)
      kl = kl_vae.kl(moments).mean() / (moments[0].size / 2)
      return terms.sum() / images.shape[0], -logits.mean(), kl

    def judge(p):
      out = forward(params["vae"], images)[1]
      real = gan.apply({"params": p}, images)
      fake = gan.apply({"params": p}, out)
      right = jnp.maximum(1 - real, 0).mean() + jnp.maximum(1 + fake, 0).mean()
      return 0.5 * right

    own = jax.jacrev(generator_losses)(params["vae"])
    return own, jax.grad(judge)(discriminator)

  return gradients


def test_adaptive_weight_equals_whole_generator_gradients(batch):
  made = adversarial()
  (nll, fool, _), _ = reference()(made.params, batch["image"]["image"])
  a = np.linalg.norm(convolutions.last_kernel(nll))
  b = np.linalg.norm(convolutions.last_kernel(fool))
  assert 0 < a / (b + 1e-4) < 1e4
  (_, metrics), _ = made.run(made.params, batch, START)
  np.testing.assert_allclose(
    metrics["adaptive_weight"], a / (b + 1e-4), rtol=1e-4
  )


def test_each_player_follows_its_own_term_only(batch):
  made, images = adversarial(), batch["image"]["image"]
  (_, metrics), grads = made.run(made.params, batch, START)
  (nll, fool, kl), judge = reference()(made.params, images)
  share = 0.5 * float(metrics["adaptive_weight"])
  n = images[0].size
  own = jax.tree.map(
    lambda a, b, c: (a + share * b) / n + 0.1 * c, nll, fool, kl
  )
  # The adversarial share has to be large enough to be seen missing.
  without = jax.tree.map(lambda a, c: a / n + 0.1 * c, nll, kl)
  assert relative(without, own) > 0.1
  assert relative(grads["vae"], own) < 1e-4
  assert flat_norm(judge) > 1e-3
  assert relative(grads["discriminator"], judge) < 1e-4


def test_adaptive_weight_is_bounded():
  kernel = jnp.ones((3, 3, 2, 3))
  weight = reconstruction.adaptive_weight(
    lambda k: 100 * k.sum(), lambda k: 0.0 * k.sum(), kernel
  )
  assert float(weight) == 1e4


def test_hinge_equals_its_formula():
  real = jnp.array([[[2.0, 0.5]]])
  fake = jnp.array([[[-3.0, 1.0]]])
  # 0.5 * (mean(0, 0.5) + mean(0, 2))
  assert float(reconstruction.hinge(real, fake)) == pytest.approx(0.625)


def test_four_images_are_learned(batch):
  made = plain()
  tx = optax.adam(1e-2)
  update = jax.jit(tx.update)
  params, state = made.params, tx.init(made.params)
  first = None
  for step in range(30):
    (_, metrics), grads = made.run(params, batch, step)
    updates, state = update(grads, state)
    params = optax.apply_updates(params, updates)
    first = first or float(metrics["l1"])
  assert float(metrics["l1"]) < 0.6 * first


def test_encode_moments_and_reconstruct_use_the_mode(batch):
  made, images = plain(), batch["image"]["image"]
  moments = jax.eval_shape(made.system.encode_moments, made.params, images)
  assert moments.shape == (4, 8, 8, 6)
  out = jax.jit(made.system.reconstruct)(made.params, images)
  vae = kl_vae.KlVae(TINY)
  expected = jax.jit(vae.apply)({"params": made.params["vae"]}, images)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_unusable_configs_are_refused_with_the_fix():
  for changes, message in (
    ({"batch.image": 0}, "every batch"),
    ({"batch": {"t2i": 8}}, "system 'vae' trains on image"),
    ({"accumulate": 2, "loss.adversarial": 0.5}, "accumulate=2 cuts it"),
  ):
    tree = base()
    image_tokenizer(tree)
    tree.batch.image = 4
    tree.data.train = dict(a=dict(format="jsonl", path="a.jsonl"))
    batch = changes.pop("batch", None)
    tree.update_from_flattened_dict(changes)
    tree.batch = batch or tree.batch
    with pytest.raises(ConfigError, match=message):
      systems.resolve(tree)
