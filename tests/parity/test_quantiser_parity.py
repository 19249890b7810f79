"""The quantiser against Chameleon's in transformers, gradients included."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
chameleon = pytest.importorskip(
  "transformers.models.chameleon.modeling_chameleon"
)

from unifluid_jax.models import vq  # noqa: E402
from unifluid_jax.systems import vq_training  # noqa: E402

WEIGHTS = SimpleNamespace(commitment=0.25, order="legacy", average=0.0)


def test_codes_loss_and_gradients_are_those_of_chameleon():
  rng = np.random.default_rng(0)
  z = rng.standard_normal((2, 5, 6, 16)).astype(np.float32)
  table = rng.standard_normal((64, 16)).astype(np.float32)
  reads = rng.standard_normal(z.shape).astype(np.float32)  # the decoder's

  theirs = chameleon.ChameleonVQVAEVectorQuantizer(
    SimpleNamespace(num_embeddings=64, embed_dim=16, beta=0.25)
  )
  theirs.embedding.weight.data = torch.tensor(table)
  x = torch.tensor(z).permute(0, 3, 1, 2).clone().requires_grad_()
  out, loss, codes = theirs(x)
  read = torch.tensor(reads).permute(0, 3, 1, 2)
  (loss + (read * out).sum()).backward()

  def ours(z, table):
    found = vq.quantise(z, table, False)
    loss = vq_training.quantisation_loss(WEIGHTS, found, len(z))
    return loss + (reads * found.straight_through).sum(), (found, loss)

  grad = jax.value_and_grad(ours, (0, 1), has_aux=True)
  (_, (found, value)), (dz, dtable) = grad(jnp.asarray(z), jnp.asarray(table))
  np.testing.assert_array_equal(np.ravel(found.codes), codes.numpy())
  np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
  np.testing.assert_allclose(
    dz, x.grad.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-6
  )
  wanted = theirs.embedding.weight.grad.numpy()
  assert np.abs(wanted).max() > 1e-3
  np.testing.assert_allclose(dtable, wanted, rtol=1e-4, atol=1e-7)
