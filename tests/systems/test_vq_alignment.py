"""Tokenizers that are trained against captions: what is added, and to what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tokenizer
from tests.systems import test_vq
from tests.systems.test_vae import filled
from unifluid_jax import systems
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.data.fields import Text
from unifluid_jax.models import alignment
from unifluid_jax.ops.contrastive import contrastive
from unifluid_jax.systems import vq_training

CAPTIONS = jnp.int32([[5, 6, 1], [7, 1, -1], [7, 1, -1], [8, 9, 1]])
WEIGHT = 3.0


def aligned():
  """The tiny tokenizer of test_vq, and captions of three tokens."""
  c = test_vq.make(align=WEIGHT)
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
  """One batch's loss and metrics, and gradients of the loss and the term."""

  def __init__(self):
    config = aligned()
    self.system = vq_training.VqSystem(config)
    self.towers = config.model.alignment
    shapes = jax.eval_shape(self.system.init, jax.random.key(0))
    self.params = filled(shapes)
    self.params["usage"] = {"count": jnp.ones(6)}
    rng = np.random.default_rng(1)
    self.images = jnp.float32(rng.uniform(-1, 1, (4, 16, 16, 3)))
    batch = {"t2i": {"image": self.images, "caption": CAPTIONS}}
    counts = self.system.counts(batch)

    def losses(params):
      total, metrics, _ = self.system.loss(
        params, {}, batch, counts, test_vq.KEY, 0
      )
      return (total, metrics["alignment"]), {**metrics, "total": total}

    jacobian = jax.jit(jax.jacrev(losses, has_aux=True))
    grads, self.metrics = jax.device_get(jacobian(self.params))
    self.grads, self.term_grads = grads


def norm(tree):
  return np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree)))


@pytest.fixture(scope="module")
def run():
  return Run()


def test_the_term_is_of_the_codes_vectors_and_joins_with_its_weight(run):
  m = {k: float(v) for k, v in run.metrics.items()}
  wanted = 0.7 * m["l1"] + 2 * m["l2"] + 0.5 * 1.25 * m["commitment"]
  np.testing.assert_allclose(
    m["total"], wanted + WEIGHT * m["alignment"], rtol=1e-5
  )
  found = test_vq.quantised()(run.params["vq"], run.images)
  # Two by two cells of a 16 x 16 image, in raster order.
  cells = found.nearest.reshape(4, -1, 3)
  net = alignment.Alignment(run.towers, cells.shape[1], 3, 3)
  x, y, scale = jax.jit(net.apply)(
    {"params": run.params["alignment"]}, cells, CAPTIONS
  )
  same = np.eye(4, dtype=bool)
  compare = jax.jit(contrastive)
  loss, _ = compare(x, y, scale, jnp.asarray(same))
  assert abs(float(loss) - m["alignment"]) > 1e-3  # two captions are equal
  same[1, 2] = same[2, 1] = True
  loss, hits = compare(x, y, scale, jnp.asarray(same))
  np.testing.assert_allclose(m["alignment"], loss, rtol=1e-4)
  np.testing.assert_allclose(m["retrieval"], hits, rtol=1e-6)


def test_it_trains_the_encoder_and_the_towers_alone(run):
  term, whole = run.term_grads, run.grads
  for part in ("encoder", "quant_conv"):
    assert norm(term["vq"][part]) > 1e-4
  for part in ("decoder", "post_quant_conv", "codebook"):
    assert norm(term["vq"][part]) == 0
  for name, part in term["alignment"].items():
    assert norm(part) > 1e-6, name
  jax.tree.map(
    lambda g, own: np.testing.assert_allclose(g, WEIGHT * own, atol=1e-5),
    whole["alignment"], term["alignment"],
  )  # fmt: skip


def test_without_it_a_tokenizer_is_as_ever(run):
  """The same parameters from the same key; captions are not asked for."""
  plain = vq_training.VqSystem(test_vq.make())
  assert list(plain.inputs) == ["image"]
  shapes = [jax.eval_shape(s.init, test_vq.KEY) for s in (plain, run.system)]
  assert set(shapes[1]) - set(shapes[0]) == {"alignment"}

  def table(system):
    def start(key):
      return system.init(key)["vq"]["codebook"]["table"]

    return jax.jit(start)(test_vq.KEY)

  np.testing.assert_array_equal(table(plain), table(run.system))


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
