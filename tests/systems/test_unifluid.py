"""UniFluid's training side: locality, routing, one pass for all tasks."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems.conftest import Tiny, examples
from unifluid_jax import train
from unifluid_jax.codecs.inputs import encode_pixels
from unifluid_jax.core import parallel
from unifluid_jax.core.config import MeshConfig
from unifluid_jax.core.types import BOS, PAD
from unifluid_jax.models import decoder
from unifluid_jax.models.kl_vae import KlVae
from unifluid_jax.ops.attention import block_causal_mask
from unifluid_jax.ops.cross_entropy import chunked_cross_entropy
from unifluid_jax.systems.common import embed, packing

KEY = jax.random.key(7)


def loss(m, batch, key=KEY, step=0):
  return m.loss(m.params, m.frozen, batch, key, step)


def test_losses_of_all_tasks_are_finite_and_weighted():
  m = Tiny(loss__text_weight=0.25)
  total, metrics = loss(m, examples(edit=True, text=True))
  expected = metrics["loss_visual"] + 0.25 * metrics["loss_text"]
  np.testing.assert_allclose(total, expected, rtol=1e-6)
  np.testing.assert_allclose(
    metrics["loss_visual"], metrics["mse"] + metrics["vb"], rtol=1e-6
  )


def test_understanding_loss_does_not_depend_on_the_company(model):
  """Merged with other tasks or alone, i2t has the same loss."""
  batch = examples(edit=True)
  _, joint = loss(model, batch)
  _, alone = loss(model, {"i2t": batch["i2t"]})
  np.testing.assert_allclose(joint["loss_text"], alone["loss_text"], rtol=1e-5)
  assert "loss_visual" not in alone


def test_text_loss_equals_a_plain_computation(model):
  """Mean NLL of all answer tokens, by full logits of each row alone."""
  i2t = examples(rows=3)["i2t"]
  _, metrics = loss(model, {"i2t": i2t})
  s, params = model.system, model.params
  nll = []

  @jax.jit
  def log_p(image, ids, answer):
    pixels = embed.pixels(s.vit, s.project, params, image[None])
    fed = jnp.concatenate([ids, answer[:-1]])[None]
    x = jnp.concatenate([pixels, embed.text(s.decoder, params, fed)], axis=1)
    seen = pixels.shape[1] + len(ids)
    block = jnp.maximum(jnp.arange(x.shape[1])[None] - seen + 1, 0)
    hidden, _ = s.decoder.apply(
      {"params": params["decoder"]}, x, jnp.arange(x.shape[1])[None],
      block_causal_mask(block, jnp.ones_like(block, bool)),
    )  # fmt: skip
    logits = decoder.logits(
      model.config.model.decoder, params["decoder"]["embedder"]["table"],
      hidden[0, seen - 1 :],
    )  # fmt: skip
    return jax.nn.log_softmax(logits)

  rows = zip(*(i2t[k] for k in ("seen", "prefix", "suffix")), strict=True)
  for image, prefix, suffix in rows:
    ids, answer = (np.asarray(row)[row != PAD] for row in (prefix, suffix))
    row = log_p(image, ids, answer)
    nll.extend(-row[i, t] for i, t in enumerate(answer))
  np.testing.assert_allclose(metrics["loss_text"], np.mean(nll), rtol=2e-5)


@functools.partial(jax.jit, static_argnums=0)
def image_hidden(model, params, x, cells):
  s = model.system
  text = jnp.asarray([[PAD, PAD, BOS, 5, 6]])
  head = s.prompt_parts(params, model.frozen, {"prompt": text})
  tail = s.embed_image(params, x, cells)
  packed = packing.join([head, packing.causal(tail, packing.all_valid(tail))])
  return packing.hidden_states(s.decoder, params, [packed])[0][:, 5:]


@pytest.fixture(scope="module")
def image(model):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(1, 16, 16)), jnp.float32)
  return x, jnp.asarray(rng.permutation(16))[None].astype(jnp.int32)


@pytest.mark.parametrize("i", [0, 6, 15])
def test_next_position_reaches_only_its_slot_and_later_ones(model, image, i):
  x, cells = image
  before = image_hidden(model, model.params, x, cells)
  params = jax.tree.map(jnp.copy, model.params)
  table = params["image"]["next_position"]
  params["image"]["next_position"] = table.at[cells[0, i]].add(1.0)
  changed = jnp.abs(image_hidden(model, params, x, cells) - before).max(-1)[0]
  np.testing.assert_array_equal(changed[:i], 0)
  assert (changed[i:] > 1e-4).all()


@pytest.mark.parametrize("i", [0, 6, 15])
def test_tokens_reach_only_later_slots(model, image, i):
  x, cells = image
  before = image_hidden(model, model.params, x, cells)
  moved = image_hidden(model, model.params, x.at[0, i].add(1.0), cells)
  changed = jnp.abs(moved - before).max(-1)[0]
  np.testing.assert_array_equal(changed[: i + 1], 0)
  assert (changed[i + 1 :] > 1e-4).all()


def test_current_position_belongs_to_the_token_that_is_fed(model, image):
  x, cells = image
  before = image_hidden(model, model.params, x, cells)
  for i, first in ((0, 1), (6, 7), (15, 16)):
    params = jax.tree.map(jnp.copy, model.params)
    table = params["image"]["position"]
    params["image"]["position"] = table.at[cells[0, i]].add(1.0)
    after = image_hidden(model, params, x, cells)
    changed = jnp.abs(after - before).max(-1)[0]
    np.testing.assert_array_equal(changed[:first], 0)
    assert (changed[first:] > 1e-4).all()


def test_vb_trains_only_the_variance_output(model):
  batch = {"t2i": examples()["t2i"]}

  @jax.jit
  def outputs(params):
    """Gradients of both terms by the output's bias."""

    def terms(bias):
      head = params["head"]
      out = {**head["final"]["out"], "bias": bias}
      head = {**head, "final": {**head["final"], "out": out}}
      changed = {**params, "head": head}
      metrics = model.whole_loss(changed, model.frozen, batch, KEY, 0)[1]
      return metrics["vb"], metrics["mse"]

    return jax.jacrev(terms)(params["head"]["final"]["out"]["bias"])

  vb, mse = outputs(model.params)
  np.testing.assert_array_equal(vb[:16], 0)
  np.testing.assert_array_equal(mse[16:], 0)
  assert (vb[16:] != 0).all() and (mse[:16] != 0).all()


def test_dropped_prompts_are_the_null_prompt(model):
  always = Tiny(loss__prompt_dropout=0.999999)
  t2i = examples()["t2i"]
  null = packing.null_prompt(jnp.asarray(t2i["prompt"]))
  np.testing.assert_array_equal(null[0], [*[PAD] * 4, BOS])
  a, _ = loss(always, {"t2i": t2i})
  b, _ = loss(always, {"t2i": t2i | {"prompt": null}})
  np.testing.assert_array_equal(a, b)
  never = Tiny(loss__prompt_dropout=0.0, sampling__cfg=1.0)
  c, _ = loss(never, {"t2i": t2i})
  assert abs(float(a - c)) > 1e-4


def test_order_is_annealed_by_the_step():
  m = Tiny(loss__random_until=10, loss__raster_from=20)
  batch = {"t2i": examples()["t2i"]}
  values = {s: loss(m, batch, step=s)[1]["order_randomness"] for s in
            (5, 10, 15, 20, 30)}  # fmt: skip
  assert list(map(float, values.values())) == [1, 1, 0.5, 0, 0]


def test_moments_and_pixels_give_the_same_tokens(model):
  images, codec = examples()["i2t"]["seen"], model.system.codec
  frozen = model.frozen["codec"]
  moments = KlVae(model.config.model.vae).apply(
    {"params": frozen["vae"]}, images, method="encode"
  )
  batch = {"t2i": {"image.pixels": images}}
  got = encode_pixels(model.system, model.frozen, batch)["t2i"]["image"]
  np.testing.assert_allclose(got, moments, atol=1e-6)
  mode = codec.tokens(frozen, moments, None)
  first = (moments[..., :4] - 0.1) * 1.3
  # Token 0 holds channel 0's 2 x 2 block first (MAR's order).
  np.testing.assert_allclose(
    mode[:, 0, :4], first[:, :2, :2, 0].reshape(-1, 4), rtol=1e-5
  )


def test_a_share_of_orders_stays_random():
  m = Tiny(loss__random_until=10, loss__raster_from=20, loss__random_share=0.25)
  batch = {"t2i": examples()["t2i"]}
  values = [loss(m, batch, step=s)[1]["order_randomness"] for s in (15, 20)]
  assert list(map(float, values)) == [0.5, 0.25]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_merge_and_split_are_inverse_and_keep_rows_in_their_group(groups):
  def packed(rows, length, start):
    x = start + jnp.arange(rows * length, dtype=jnp.float32)
    x = x.reshape(rows, length, 1)
    return packing.causal(x, packing.all_valid(x))

  a, b = packed(4, 3, 0), packed(8, 5, 100)
  whole = packing.merge([a, b], groups)
  assert whole.x.shape == (12, 5, 1)
  back_a, back_b = packing.split(whole.x, [4, 8], groups)
  np.testing.assert_array_equal(back_a[:, :3], a.x)
  np.testing.assert_array_equal(back_b, b.x)
  valid = packing.split(whole.valid, [4, 8], groups)[0]
  assert not np.asarray(valid)[:, 3:].any()
  per = 12 // groups
  first = np.asarray(whole.x[:per, 0, 0])
  assert (first < 100).sum() == 4 // groups


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16])
def test_chunked_cross_entropy_equals_the_plain_one(chunk):
  rng = np.random.default_rng(0)
  h = jnp.asarray(rng.normal(size=(2, 7, 5)), jnp.float32)
  table = jnp.asarray(rng.normal(size=(11, 5)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 11, (2, 7)))

  def total(h, table):
    nll, hits, *_ = chunked_cross_entropy(
      lambda x: x @ table.T, h, targets, chunk
    )
    return nll.sum(), (nll, hits)

  (_, (nll, hits)), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(
    h, table
  )
  logp = jax.nn.log_softmax(h @ table.T)
  expected = -jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(nll, expected, rtol=1e-5)
  np.testing.assert_array_equal(hits, logp.argmax(-1) == targets)
  plain = jax.grad(
    lambda h, t: -jnp.take_along_axis(
      jax.nn.log_softmax(h @ t.T), targets[..., None], -1
    ).sum(), (0, 1),
  )(h, table)  # fmt: skip
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    grads, plain,
  )  # fmt: skip


def test_wide_logits_never_exist_whole():
  """The compiled loss holds no array of all answer positions by vocabulary."""
  m = Tiny(model__decoder__vocab=4099, loss__vocab_chunk=1)
  batch = {"i2t": examples()["i2t"]}
  grad = jax.jit(jax.grad(lambda p: loss_of(m, p, batch)))
  text = grad.lower(m.params).as_text()
  assert "8x1x4099xf32" in text
  assert "8x4x4099xf32" not in text and "32x4099xf32" not in text


def test_the_vocabulary_stays_split_over_devices():
  """No device holds the whole table, its gradient, or a whole row of logits;
  yet loss and gradient are those of one device."""
  m = Tiny(model__decoder__vocab=4096, model__dtype="float32")
  batch = examples()
  grad = jax.value_and_grad(lambda p, b: loss_of(m, p, b))
  want = jax.jit(grad)(m.params, batch)
  mesh = parallel.make_mesh(MeshConfig(2, 4, 1))
  with jax.set_mesh(mesh):
    places = parallel.shardings(m.params, m.params, m.system.parts, mesh)
    params = jax.device_put(m.params, places)
    run = jax.jit(grad, out_shardings=(None, places))
    run = run.lower(params, parallel.to_global(batch, mesh)).compile()
    got = run(params, parallel.to_global(batch, mesh))
  text = run.as_text()
  assert "[1024,32]" in text and not re.search(r"\b4096\b.*\]", text)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    limit = 2e-5 * float(np.abs(b).max()) + 1e-8
    np.testing.assert_allclose(a, b, rtol=0, atol=limit)


def loss_of(m, params, batch):
  return m.whole_loss(params, m.frozen, batch, KEY, 0)[0]


def test_sharded_step_equals_single_device(model):
  """8 fake devices, data 2 x fsdp 2 x tensor 2, against one."""
  c = dataclasses.replace(model.config, mesh=MeshConfig(2, 2, 2))
  one = dataclasses.replace(model.config, mesh=MeshConfig(1, 1, 1))
  batch, results = examples(), []
  for config, devices in ((one, jax.devices()[:1]), (c, jax.devices())):
    job = train.make_job(config, model.system, devices)
    with jax.set_mesh(job.mesh):
      state = jax.jit(
        lambda job=job: train.init_state(job.system, job.optimizer,
                                         job.config)._replace(
          params=jax.tree.map(jnp.copy, model.params)),
        out_shardings=job.shardings,
      )()  # fmt: skip
      frozen = jax.device_put(
        model.frozen, jax.sharding.NamedSharding(job.mesh, jax.P())
      )
      _, metrics = job.step(state, frozen, parallel.to_global(batch, job.mesh))
      results.append(jax.device_get(metrics))
  for key in ("loss", "loss_text", "mse", "grad_norm"):
    np.testing.assert_allclose(results[0][key], results[1][key], rtol=2e-4)
