"""Tokenizers that are trained against captions: what is added, and to what."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tokenizer
from tests.parameters import filled
from tests.systems import tiny_vq
from unifluid_jax import systems
from unifluid_jax.core import presets
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.data.fields import Text
from unifluid_jax.models import alignment, vq
from unifluid_jax.ops.contrastive import contrastive
from unifluid_jax.systems import vq_training

# As small as can be: the compiler's time is what these tests cost.
TINY = presets.VqConfig(
  4, (1,), 0, 3, attention=False, groups=2, stem=8, codes=6, code_channels=3,
  normalised=True,
)  # fmt: skip
CAPTIONS = jnp.int32([[5, 6, 1], [7, 1, -1], [7, 1, -1], [8, 9, 1]])
WEIGHT = 3.0


def aligned():
  """A tiny tokenizer, and captions of three tokens."""
  c = tiny_vq.make(net=TINY, align=WEIGHT, codebook=0.0)
  towers = dataclasses.replace(
    c.model.alignment, vocab=10, width=8, image_depth=1, text_depth=1, heads=2
  )
  return dataclasses.replace(
    c,
    batch={"t2i": 4},
    text=dataclasses.replace(c.text, prompt=3),
    model=dataclasses.replace(c.model, alignment=towers),
  )


class Run:
  """One batch's metrics, and what the term adds to its loss and gradients."""

  def __init__(self):
    config = aligned()
    self.system = vq_training.VqSystem(config)
    shapes = jax.eval_shape(self.system.init, jax.random.key(0))
    self.params = filled(shapes)
    self.params["usage"] = {"count": jnp.ones(6)}
    rng = np.random.default_rng(1)
    images = jnp.float32(rng.uniform(-1, 1, (4, 16, 16, 3)))
    batch = {"t2i": {"image": images, "caption": CAPTIONS}}
    counts = self.system.counts(batch)
    towers = alignment.Alignment(config.model.alignment, 4, 3, 3)

    def reference(params):
      """Loss and hits; with equal captions apart, and as negatives."""
      net = vq.VqVae(TINY)
      found = net.apply({"params": params["vq"]}, images, method="quantise")
      # Two by two cells of a 16 x 16 image, in raster order.
      cells = found.nearest.reshape(4, 4, 3)
      of_towers = {"params": params["alignment"]}
      x, y, scale = towers.apply(of_towers, cells, CAPTIONS)
      same = np.eye(4, dtype=bool)
      apart = same.copy()
      apart[1, 2] = apart[2, 1] = True
      masks = (jnp.asarray(apart), jnp.asarray(same))
      return [contrastive(x, y, scale, mask) for mask in masks]

    @functools.partial(jax.value_and_grad, has_aux=True)
    def term(params):
      total, metrics, _ = self.system.loss(
        params, {}, batch, counts, tiny_vq.KEY, 0
      )
      return total - 0.7 * metrics["l1"] - 2 * metrics["l2"], metrics

    both = jax.jit(lambda params: (term(params), reference(params)))
    found, self.reference = jax.device_get(both(self.params))
    (self.term, self.metrics), self.grads = found


def norm(tree):
  return np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree)))


@pytest.fixture(scope="module")
def run():
  return Run()


def test_the_term_is_of_the_codes_vectors_and_joins_with_its_weight(run):
  m = run.metrics
  np.testing.assert_allclose(run.term, WEIGHT * m["alignment"], rtol=1e-5)
  (loss, hits), (as_negatives, _) = run.reference
  assert abs(loss - as_negatives) > 1e-3
  np.testing.assert_allclose(m["alignment"], loss, rtol=1e-4)
  np.testing.assert_allclose(m["retrieval"], hits, rtol=1e-6)


def test_it_trains_the_encoder_and_the_towers_alone(run):
  grads = run.grads
  for part in ("encoder", "quant_conv"):
    assert norm(grads["vq"][part]) > 1e-4
  for part in ("decoder", "post_quant_conv", "codebook"):
    assert norm(grads["vq"][part]) == 0
  for name, part in grads["alignment"].items():
    assert norm(part) > 1e-6, name


def test_without_it_a_tokenizer_is_as_ever(run):
  """The same parameters from the same key; captions are not asked for."""
  plain = vq_training.VqSystem(tiny_vq.make(net=TINY))
  assert list(plain.inputs) == ["image"]
  shapes = [jax.eval_shape(s.init, tiny_vq.KEY) for s in (plain, run.system)]
  assert set(shapes[1]) - set(shapes[0]) == {"alignment"}

  def table(system):
    def start(key):
      return system.init(key)["vq"]["codebook"]["table"]

    return jax.jit(start)(tiny_vq.KEY)

  np.testing.assert_array_equal(table(plain), table(run.system))


def test_trees_that_do_not_know_it_resolve_as_today():
  c = tokenizer.get_config("shapes")
  older = c.to_dict()
  del older["model"]["alignment"], older["loss"]["align"]
  assert systems.resolve(older) == systems.resolve(c)


def test_captions_end_and_stand_on_the_left(run):
  fields = run.system.inputs["t2i"]
  assert list(run.system.inputs) == ["t2i"]
  assert sorted(fields) == ["caption", "image"]
  assert fields["caption"] == Text("prompt", 3, after=("eos",), align="left")
  assert fields["image"].target and fields["image"].role == "drawn"


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"batch": {"image": 32}}, "set batch.t2i=32 and batch.image=0, or loss"),
    ({"loss.align": 0.0}, "set batch.image=32 and batch.t2i=0, or loss.align"),
    ({"accumulate": 2}, "accumulate=2 cuts it: set accumulate=1 or loss.align"),
    ({"batch": {"t2i": 1}}, "batch.t2i=1: .* set at least 2"),
    ({"text.prompt": 1}, "text.prompt=1: captions need at least 2"),
    ({"model.alignment.heads": 5}, "model.alignment.width=64 must be a multip"),
    ({"loss.align": -1.0}, "loss.align=-1.0 must be"),
    ({"model.alignment.vocab": 0}, "model.alignment.vocab=0 must be"),
  ],
)
def test_unusable_configs_are_refused_with_the_fix(changes, message):
  c = tokenizer.get_config("shapes_aligned")
  c.loss.update(data_init=False, revive_every=0)
  batch = changes.pop("batch", None)
  c.batch = c.batch if batch is None else batch
  c.update_from_flattened_dict(changes)
  with pytest.raises(ConfigError, match=message) as error:
    systems.resolve(c)
  assert "\n" not in str(error.value)
