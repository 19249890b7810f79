"""The PyTorch peer of the benchmarks computes what UniFluid computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.peers import torch_unifluid as peer  # noqa: E402
from tests.systems.conftest import Tiny, examples, without_draws  # noqa: E402
from unifluid_jax.core.types import BOS, PAD, UNK  # noqa: E402
from unifluid_jax.ops import diffusion  # noqa: E402

__all__ = ["without_draws"]  # a fixture


def tensors(tree):
  return jax.tree.map(lambda x: torch.tensor(np.asarray(x)), tree)


def chain(schedule):
  return {k: torch.tensor(v) for k, v in schedule._asdict().items()}


def test_reserved_ids():
  assert (peer.PAD, peer.BOS, peer.UNK) == (PAD, BOS, UNK)


@pytest.fixture(scope="module")
def drawn():
  """Made before `without_draws` replaces what initial values need."""
  return Tiny(
    loss__prompt_dropout=0.0, sampling__cfg=1.0, loss__text_weight=0.5,
    loss__draws=3,
  )  # fmt: skip


def test_loss_and_gradients(drawn, without_draws):
  """In reversed order; gradients of every parameter."""
  m, batch = drawn, examples()
  given = (m.frozen, batch, jax.random.key(0), 0)
  whole = jax.jit(jax.value_and_grad(m.whole_loss, has_aux=True))
  (want, _), grads = whole(m.params, *given)

  config, rows, n = m.config, 8, 16
  shape = (3, rows, n)
  draws = peer.Draws(
    latents=torch.zeros(rows, 8, 8, 4),
    cells=torch.arange(n).flip(0).expand(rows, n),
    null=torch.zeros(rows, dtype=bool),
    unknown=torch.zeros(rows, 3, dtype=bool),
    t=tensors(diffusion.sample_steps(None, 3, shape[1:])).long(),
    noise=tensors(
      jax.random.normal(None, (*shape, config.model.token_channels), None)
    ),
  )
  params = jax.tree.map(lambda x: x.requires_grad_(), tensors(m.params))
  batch["t2i"]["image"] = batch["t2i"]["image"].astype(jnp.float32)
  got = peer.loss(
    config, chain(diffusion.cosine_schedule()), params,
    tensors(m.frozen["codec"]), tensors(batch), draws,
  )  # fmt: skip
  got.backward()
  np.testing.assert_allclose(got.item(), want, rtol=2e-5)

  def close(tensor, gradient):
    # Of keys' biases the softmax leaves none but rounding.
    scale = max(np.abs(gradient).max(), 1e-4)
    np.testing.assert_allclose(tensor.grad / scale, gradient / scale, atol=2e-4)

  jax.tree.map(close, params, grads)


def test_left_out_prompts_and_words():
  """As the null condition of guidance; as words that nobody knows."""
  m = Tiny()
  batch = tensors(examples())
  batch["t2i"]["image"] = batch["t2i"]["image"].float()
  generator = torch.Generator().manual_seed(0)
  draws = peer.draw(m.config, batch, generator)
  everywhere = draws._replace(null=torch.ones(8, dtype=bool))

  def loss(batch, draws):
    return peer.loss(
      m.config, chain(diffusion.cosine_schedule()), tensors(m.params),
      tensors(m.frozen["codec"]), batch, draws,
    ).item()  # fmt: skip

  empty = torch.full((8, 5), PAD)
  empty[:, -1] = BOS
  bare = {**batch, "t2i": {**batch["t2i"], "prompt": empty}}
  assert loss(batch, everywhere) == loss(bare, draws)
  lost = draws._replace(unknown=batch["i2t"]["suffix"][:, :-1] != PAD)
  assert abs(loss(batch, lost) - loss(batch, draws)) > 1e-4


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_tokens(cfg):
  """Raster order, guided, with the same noise."""
  m = Tiny(
    sampling__cfg=cfg, sampling__temperature=0.9, sampling__clip=2.0,
    sampling__order="raster", loss__prompt_dropout=0.2,
  )  # fmt: skip
  prompt = examples(rows=3)["t2i"]["prompt"]
  keys = jax.random.split(jax.random.key(3), 3)
  options = m.config.sampling
  want, _ = jax.jit(
    lambda: m.system._draw(
      m.params, m.frozen, {"t2i": {"prompt": prompt}}, keys, options
    )
  )()
  own = jax.vmap(lambda k: jax.random.split(k, 2)[1])(keys)

  def noise(i, step):
    def one(key):
      start, steps = jax.random.split(jax.random.fold_in(key, i))
      key = start if step is None else jax.random.fold_in(steps, step)
      return jax.random.normal(key, (m.config.model.token_channels,))

    return tensors(jax.vmap(one)(own))

  with torch.no_grad():
    got = peer.generate(
      m.config, chain(diffusion.respace(options.steps)), tensors(m.params),
      tensors(prompt), noise,
    )  # fmt: skip
  np.testing.assert_allclose(got, want, atol=2e-4)


def test_other_networks_are_refused():
  config = Tiny(model__head__kind="flow").config
  with pytest.raises(ValueError, match=r"model\.head\.kind in one way"):
    peer.check(config)
