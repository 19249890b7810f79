"""A tiny VQ tokenizer in training, for the tests of its parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs import tokenizer
from tests.parameters import filled
from unifluid_jax import systems
from unifluid_jax.core import presets
from unifluid_jax.models import vq
from unifluid_jax.systems import vq_training

TINY = presets.VqConfig(
  8, (1, 1), 0, 3, attention=False, groups=4, codes=6, code_channels=3,
  normalised=True,
)  # fmt: skip
KEY = jax.random.key(7)


def tree(**changes):
  c = tokenizer.get_config("shapes")
  c.loss.update(data_init=False, revive_every=0)
  c.update_from_flattened_dict(changes)
  return c


def make(accumulate=1, net=TINY, **losses):
  losses = (
    dict(l1=0.7, l2=2.0, codebook=0.5, commitment=0.25, usage_decay=0.75,
         adversarial_start=5, discriminator_width=4, discriminator_layers=1)
    | losses
  )  # fmt: skip
  c = systems.resolve(tree())
  return dataclasses.replace(
    c,
    batch={"image": 4},
    model=dataclasses.replace(c.model, vq=net, image_size=16),
    loss=dataclasses.replace(c.loss, **losses),
    accumulate=accumulate,
  )


class Made:
  """A system, its parameters, and its jitted loss, `seen` and gradients."""

  def __init__(self, **losses):
    self.system = vq_training.VqSystem(make(**losses))
    shapes = jax.eval_shape(self.system.init, jax.random.key(0))
    self.params = filled(shapes)
    used = jnp.asarray([0.0, 0.05, 0.25, 1.0, 3.0, 2.0])
    self.params["usage"] = {"count": used}

    def loss(params, images, step, count):
      batch, counts = {"image": {"image": images}}, {"images": count}
      total, metrics, seen = self.system.loss(
        params, {}, batch, counts, KEY, step
      )
      return total, (metrics, seen)

    self.loss = loss
    self._run = jax.jit(
      jax.value_and_grad(loss, has_aux=True), static_argnums=3
    )

  def run(self, images, step=0, count=4, params=None):
    (total, (metrics, seen)), grads = self._run(
      params or self.params, images, step, count
    )
    return total, metrics, seen, grads


@functools.cache
def plain(order="standard"):
  return Made(order=order)


@functools.cache
def images():
  """[4, 16, 16, 3]: blocks of plain colours."""
  rng = np.random.default_rng(0)
  flat = rng.uniform(-1, 1, (4, 2, 2, 3))
  return jnp.float32(np.kron(flat, np.ones((1, 8, 8, 1))))


@functools.cache
def quantised():
  net = vq.VqVae(TINY)
  return jax.jit(
    lambda params, images: net.apply(
      {"params": params}, images, method="quantise"
    )
  )
