"""pytorch-fid's names into our network, run against PyTorch's numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import helpers
from tests.weights.make_fixtures_vision import inception_image, random_weights
from unifluid_jax.models.inception import Inception
from unifluid_jax.weights import engine, inception
from unifluid_jax.weights.rows import WeightsError, nested

FIXTURES = Path(__file__).with_name("fixtures")


@pytest.fixture(scope="module")
def tensors():
  """A state dict: names and shapes, random numbers by name."""
  out = {}
  like = {"fc.weight": (1008, 2048)}
  for row, (path, shape) in zip(
    (inception._row(path) for path in inception._like()),
    inception._like().items(),
    strict=True,
  ):
    assert row.target == path
    shape = (*shape[3:], *shape[2:3], *shape[:2]) if len(shape) == 4 else shape
    shape = like.get(row.source, shape)
    out[row.source] = random_weights(row.source, shape)
  return out


def test_numbers_are_those_of_pytorch(tensors):
  """A wrong name, layout, pool or epsilon anywhere would change them."""
  source = helpers.Tensors(tensors)
  tree = nested(helpers.in_memory(source, inception.recipe(source)))
  got = jax.jit(Inception().apply)(
    {"params": tree["inception"]}, jnp.asarray(inception_image())
  )
  want = np.load(FIXTURES / "vision.npz")
  np.testing.assert_allclose(
    got.features, want["inception_features"], atol=2e-5
  )
  np.testing.assert_allclose(got.logits, want["inception_logits"], atol=2e-5)
  assert want["inception_features"].std() > 0.1


def test_counters_may_be_there_or_not(tensors):
  counters = {
    name.replace("running_var", "num_batches_tracked"): np.int64(0)
    for name in tensors
    if name.endswith("running_var")
  }
  assert len(counters) == 94
  source = helpers.Tensors({**tensors, **counters})
  plan = engine.make_plan(source, inception.recipe(source))
  assert {name for name, _ in plan.dropped} == set(counters)
  assert len(plan.leaves) == 472


def test_other_networks_are_refused(tensors):
  wide = np.zeros((1000, 2048), np.float32)
  with pytest.raises(WeightsError, match="expected 1008 classes, found 1000"):
    inception.recipe(helpers.Tensors({**tensors, "fc.weight": wide}))
  with pytest.raises(WeightsError, match="is no Inception of pytorch-fid"):
    inception.recipe(helpers.Tensors({"conv1.weight": wide}))
  lost = dict(tensors)
  del lost["Mixed_6c.branch7x7_2.bn.running_mean"]
  source = helpers.Tensors(lost)
  with pytest.raises(WeightsError, match="Mixed_6c/branch7x7_2/mean.*missing"):
    engine.make_plan(source, inception.recipe(source))
  aux = helpers.Tensors({**tensors, "AuxLogits.fc.bias": wide[0]})
  with pytest.raises(WeightsError, match="AuxLogits.fc.bias.*unknown tensor"):
    engine.make_plan(aux, inception.recipe(aux))
