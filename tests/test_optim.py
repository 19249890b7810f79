"""Learning rates by part, frozen parts; schedules and decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unifluid_jax.core import optim
from unifluid_jax.core.config import OptimConfig, OptimPartConfig
from unifluid_jax.core.parameter_rows import Row
from unifluid_jax.models import decoder, diffusion_head, vit

BASE = OptimConfig(
  name="adamw", lr=0.1, warmup=1, schedule="constant", adam_lr=0.1, b1=0.9,
  b2=0.95, eps=1e-8, weight_decay=0.0, clip=0.0, ema=0.0, mu_dtype="float32",
  rates={},
)  # fmt: skip
PARTS = {
  "decoder": decoder.ROWS,
  "vit": vit.ROWS,
  "image": (Row("boi", (None,)),),
  "head": diffusion_head.ROWS,
}


def tree():
  return {
    "decoder": {"layers": {"mlp": {"up": jnp.ones((1, 4, 3))}}},
    "vit": {"norm": {"scale": jnp.ones(3)}, "position": jnp.ones((2, 3))},
  }


def updates(**changes):
  config = dataclasses.replace(BASE, **changes)
  params = tree()
  grads = jax.tree.map(lambda x: 2.0 * x, params)
  optimizer = optim.make_optimizer(config, 10, PARTS)
  state = optimizer.init(params)
  out, _ = optimizer.update(grads, state, params)
  return out, state


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rates_scale_updates_of_their_part(name):
  plain, _ = updates(name=name)
  scaled, _ = updates(name=name, rates={"vit": 0.25, "vit/position": 3.0})
  up = ("decoder", "layers", "mlp", "up")
  for path, factor in (
    (up, 1.0), (("vit", "norm", "scale"), 0.25), (("vit", "position"), 3.0),
  ):  # fmt: skip
    a, b = plain, scaled
    for part in path:
      a, b = a[part], b[part]
    np.testing.assert_allclose(b, factor * a, rtol=1e-6)
    assert np.abs(a).max() > 0


def test_frozen_parts_stay_and_have_no_moments():
  out, state = updates(rates={"decoder": 0.0})
  np.testing.assert_array_equal(out["decoder"]["layers"]["mlp"]["up"], 0)
  assert np.abs(out["vit"]["position"]).max() > 0
  shapes = [x.shape for x in jax.tree.leaves(state)]
  assert (2, 3) in shapes and (1, 4, 3) not in shapes


def test_frozen_gradients_do_not_count_in_the_clip():
  clipped, _ = updates(rates={"decoder": 0.0}, clip=1e-9, eps=1.0)
  wide = jnp.sqrt(jnp.float32(9))  # the trained part: nine entries
  want = -0.1 * (1e-9 / wide) / (1e-9 / wide + 1.0)
  np.testing.assert_allclose(clipped["vit"]["position"], want, rtol=1e-5)


def test_decay_as_paligemma_is_absolute_and_touches_kernels_alone():
  """Two steps on one gradient, after which Adam's moments are g and g^2."""
  kernel, table = np.float32([[2.0, -4.0]]), np.float32([[3.0]])
  params = {
    "vit": {"patch": {"kernel": kernel}},
    "decoder": {"embedder": {"table": table}},
  }
  config = dataclasses.replace(
    BASE, lr=0.01, warmup=2, schedule="cosine", weight_decay=0.1,
    decay="paligemma",
  )  # fmt: skip
  optimizer = optim.make_optimizer(config, 4, PARTS)
  state = optimizer.init(params)
  # Warm-up over two of four steps: factors 1/2, 1; its decay is not times lr.
  for factor in (0.5, 1.0):
    grads = jax.tree.map(np.ones_like, params)
    out, state = optimizer.update(grads, state, params)
    kernel = kernel - factor * (0.01 * 1.0 + 0.1 * kernel)
    table = table - factor * 0.01 * 1.0
    params = optax.apply_updates(params, out)
  np.testing.assert_allclose(
    params["vit"]["patch"]["kernel"], kernel, rtol=1e-6
  )
  np.testing.assert_allclose(
    params["decoder"]["embedder"]["table"], table, rtol=1e-6
  )


def test_cosine_falls_to_zero_after_a_linear_rise():
  config = dataclasses.replace(BASE, warmup=5, schedule="cosine")
  factor = optim.learning_rate(config, 105)
  steps = [0, 4, 5, 55, 105]
  np.testing.assert_allclose(
    [float(factor(s)) for s in steps], [0.2, 1.0, 1.0, 0.5, 0.0], atol=1e-6
  )


def check(rates, held=(), parts=()):
  own = dict.fromkeys(parts, OptimPartConfig())
  config = dataclasses.replace(BASE, rates=rates, parts=own)
  optim.check_prefixes(config, held, tree())


def test_a_rate_of_nothing_is_refused():
  with pytest.raises(ValueError, match=r"'vti'.*decoder, vit"):
    check({"vti": 0.1})
  with pytest.raises(ValueError, match="'vit/pos'"):
    check({"vit/pos": 0.1})
  check({"vit/position": 0.1, "head": 1.0})


def test_an_optimizer_of_nothing_or_of_what_is_held_is_refused():
  with pytest.raises(ValueError, match=r"optim\.parts: no .*'head'"):
    check({}, parts=["vit/norm", "head"])
  for settings in (dict(rates={"vit/norm": 0.5}), dict(parts=["vit/norm"])):
    with pytest.raises(ValueError, match="replaces it by itself"):
      check(**{"rates": {}} | settings, held=["vit"])
  check({"vit/norm": 1.0}, held=["vit"], parts=["decoder"])


def test_adam_beside_muon_has_its_own_eps_rate_and_decay():
  """Tables decay, at adam_lr; vectors and the diffusion head do not."""
  params = {
    "decoder": {"embedder": {"table": jnp.full((2, 3), 2.0)}},
    "image": {"boi": jnp.full(3, 2.0)},
    "head": {"input": {"kernel": jnp.full((2, 3), 2.0)}},
  }
  grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
  config = dataclasses.replace(
    BASE, name="muon", lr=9.0, adam_lr=0.1, eps=1.0, weight_decay=0.5
  )
  optimizer = optim.make_optimizer(config, 10, PARTS)
  out, _ = optimizer.update(grads, optimizer.init(params), params)
  # Nesterov's first step: of the next momentum, both corrected for bias.
  momentum = (0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9)) * 1e-3
  step = -0.1 * momentum / (1e-3 + 1.0)
  table, boi, kernel = jax.tree.leaves(out)[:1] + [
    out["image"]["boi"], out["head"]["input"]["kernel"]
  ]  # fmt: skip
  np.testing.assert_allclose(boi, step, rtol=1e-5)
  np.testing.assert_allclose(kernel, step, rtol=1e-5)
  np.testing.assert_allclose(table, step - 0.1 * 0.5 * 2.0, rtol=1e-5)


def test_kernels_of_all_networks_decay_as_paligemma_fine_tunes():
  """The diffusion head's too, which AdamW spares; tables and Gemma's not."""
  names = {"input": {"kernel": 0, "bias": 0}}
  params = tree() | {"head": names}
  params["vit"]["patch"] = {"kernel": 0}
  for recipe, head, position in (
    ("adamw", False, True), ("paligemma", True, False)
  ):  # fmt: skip
    assert optim.decay_mask(PARTS, recipe, params) == {
      "decoder": {"layers": {"mlp": {"up": recipe == "adamw"}}},
      "vit": {
        "norm": {"scale": False},
        "position": position,
        "patch": {"kernel": True},
      },
      "head": {"input": {"kernel": head, "bias": False}},
    }


def test_muon_turns_patches_to_one_rotation():
  """The kernel [p, p, 3, D] is one matrix: its update's directions weigh alike.

  Five Newton-Schulz steps bring singular values to about 0.7 ... 1.2.
  """
  config = dataclasses.replace(BASE, name="muon")
  kernel = jax.random.normal(jax.random.key(0), (2, 2, 3, 12))
  kernel = kernel * jnp.logspace(0, 1, 12)  # unequal directions
  params = {"vit": {"patch": {"kernel": kernel}}}
  optimizer = optim.make_optimizer(config, 10, PARTS)
  out, _ = optimizer.update(params, optimizer.init(params), params)
  update = np.asarray(out["vit"]["patch"]["kernel"]).reshape(12, 12)
  values = np.linalg.svd(update / config.lr, compute_uv=False)
  assert values.max() < 1.3 and np.median(values) > 0.6
