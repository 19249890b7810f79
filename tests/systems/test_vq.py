"""Training of VQ tokenizers: each term, and what becomes of the codebook."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tokenizer
from tests.parameters import filled
from tests.systems.test_vae import flat_norm, relative
from unifluid_jax import systems, train
from unifluid_jax.codecs import vq as codecs
from unifluid_jax.core import presets
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.data import fields
from unifluid_jax.data.sources import cached
from unifluid_jax.models import convolutions, patch_gan, vq
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


@pytest.fixture(scope="module")
def images():
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


def test_loss_is_the_weighted_sum_of_its_parts(images):
  made = plain()
  assert sorted(made.params) == ["usage", "vq"]
  total, metrics, seen, _ = made.run(images)
  found = quantised()(made.params["vq"], images)
  net = vq.VqVae(TINY)
  out = jax.jit(net.apply)({"params": made.params["vq"]}, images)
  error = np.float64(out) - np.float64(images)
  mse = np.square(error).mean((1, 2, 3))
  commitment = np.square(np.float64(found.z) - found.nearest).mean()
  used = np.float64(made.params["usage"]["count"])
  p = used / used.sum()
  expected = dict(
    l1=np.abs(error).mean(),
    l2=mse.mean(),
    psnr=np.mean(10 * np.log10(4 / mse)),
    commitment=commitment,
    usage=4 / 6,  # used within 1 / (1 - .75) steps: at least .25 / e
    perplexity=np.exp(-(p[1:] * np.log(p[1:])).sum()),
  )
  assert sorted(metrics) == sorted(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  wanted = 0.7 * expected["l1"] + 2 * expected["l2"]
  # Both terms have one value; only what they train differs.
  wanted += 0.5 * (1 + 0.25) * commitment
  np.testing.assert_allclose(total, wanted, rtol=1e-5)
  counts = np.bincount(np.ravel(found.codes), minlength=6)
  np.testing.assert_array_equal(seen["count"], counts)
  assert list(seen) == ["count"]


def test_the_orders_differ_in_gradients_alone(images):
  """The codebook's of a row: twice the mean error of its cells, weighted."""
  found = quantised()(plain().params["vq"], images)
  raw = np.float64(plain().params["vq"]["codebook"]["table"])
  norm = np.linalg.norm(raw, axis=-1, keepdims=True)
  unit, n = raw / norm, found.z.size
  rows = np.zeros_like(raw)
  error = np.reshape(np.float64(found.nearest) - found.z, (-1, 3))
  np.add.at(rows, np.ravel(found.codes), 2 * error / n)
  rows = (rows - (rows * unit).sum(-1, keepdims=True) * unit) / norm
  runs = {order: plain(order).run(images) for order in ("standard", "legacy")}
  np.testing.assert_allclose(runs["standard"][0], runs["legacy"][0], rtol=1e-6)
  for order, weight in (("standard", 0.5), ("legacy", 0.5 * 0.25)):
    table = runs[order][3]["vq"]["codebook"]["table"]
    np.testing.assert_allclose(table, weight * rows, rtol=1e-3, atol=1e-6)


def test_the_encoder_is_committed_to_its_codes(images):
  """Its gradient beside the reconstruction's: commitment's, weighted."""
  made, net = plain(), vq.VqVae(TINY)

  @jax.jit
  def parts(params):
    def apply(p, x, method):
      return net.apply({"params": p}, x, method=method)

    def losses(p):
      found = apply(p, images, "quantise")
      nearest = jax.lax.stop_gradient(found.nearest)
      moved = found.z + jax.lax.stop_gradient(nearest - found.z)
      features = apply(p, moved, "decode_features")
      error = apply(p, features, "decode_output") - images
      plain = 0.7 * jnp.abs(error).mean() + 2 * jnp.square(error).mean()
      return plain, jnp.square(found.z - nearest).mean()

    return jax.jacrev(losses)(params)

  rebuilt, committed = parts(made.params["vq"])
  weights = {"standard": 0.5 * 0.25, "legacy": 0.5}
  for order, weight in weights.items():
    grads = plain(order).run(images)[3]["vq"]
    for part in ("encoder", "quant_conv"):
      own = jax.tree.map(
        lambda a, b, w=weight: a + w * b, rebuilt[part], committed[part]
      )
      assert relative(rebuilt[part], own) > 1e-2
      assert relative(grads[part], own) < 1e-4, (order, part)
    assert relative(grads["decoder"], rebuilt["decoder"]) < 1e-4


def test_parts_of_a_batch_add_up(images):
  made = plain()
  assert made.system.counts({"image": {"image": images}}) == {"images": 4}
  whole = made.run(images)
  halves = [made.run(half) for half in (images[:2], images[2:])]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()
    ),
    jax.tree.map(jnp.add, *halves),
    whole,
  )


# ------------------------------------------------------------------- codebook

SEEN = {
  "count": jnp.asarray([0.0, 0.0, 4.0, 8.0, 0.0, 4.0]),
  "candidates": 10 + jnp.arange(18.0).reshape(6, 3),
}


def revised(made, step, seen=SEEN, params=None):
  params = params or made.params
  return jax.tree.map(np.asarray, made.system.revise(params, seen, KEY, step))


def test_codes_that_hardly_occur_are_replaced_when_it_is_due():
  made = Made(revive_every=3, revive_below=0.5)
  old = np.asarray(made.params["vq"]["codebook"]["table"])
  used = 0.75 * np.asarray(made.params["usage"]["count"])
  used += 0.25 * np.asarray(SEEN["count"])
  dead = used < 0.5 * used.mean()
  assert dead.tolist() == [True, True, False, False, False, False]
  for step in (0, 1, 3):
    new = revised(made, step)
    np.testing.assert_array_equal(new["vq"]["codebook"]["table"], old)
    np.testing.assert_allclose(new["usage"]["count"], used)
  new = revised(made, 2)
  table = np.where(dead[:, None], SEEN["candidates"], old)
  np.testing.assert_array_equal(new["vq"]["codebook"]["table"], table)
  counts = np.where(dead, used.mean(), used)
  np.testing.assert_allclose(new["usage"]["count"], counts, rtol=1e-6)
  jax.tree.map(
    np.testing.assert_array_equal, new["vq"]["encoder"],
    jax.tree.map(np.asarray, made.params["vq"]["encoder"]),
  )  # fmt: skip


def test_codes_begin_as_outputs_of_the_encoder():
  made = Made(data_init=True)
  new = revised(made, 0)["vq"]["codebook"]["table"]
  np.testing.assert_array_equal(new, SEEN["candidates"])
  old = made.params["vq"]["codebook"]["table"]
  new = revised(made, 1)["vq"]["codebook"]["table"]
  np.testing.assert_array_equal(new, old)


def test_candidates_are_vectors_of_the_batch_each_at_most_once(images):
  made = Made(data_init=True)
  rng = np.random.default_rng(1)
  images = jnp.float32(rng.uniform(-1, 1, images.shape))
  seen = made.run(images)[2]
  z = np.reshape(quantised()(made.params["vq"], images).z, (-1, 3))
  at = [
    np.flatnonzero(np.abs(z - row).max(-1) < 1e-5) for row in seen["candidates"]
  ]
  assert all(len(found) == 1 for found in at)
  assert len({int(found[0]) for found in at}) == 6
  assert [int(found[0]) for found in at] != list(range(6))


def test_an_averaged_codebook_follows_the_formulas(images):
  """Counts and sums decay; codes are sums over smoothed counts."""
  made = Made(average=0.9)
  assert made.system.held == ("usage", "averages", "vq/codebook")
  count = np.float64([1.0, 2.0, 0.5, 1.0, 1.0, 3.0])
  sums = np.random.default_rng(3).standard_normal((6, 3))
  params = {
    **made.params,
    "averages": {"count": jnp.float32(count), "sum": jnp.float32(sums)},
  }
  total, metrics, seen, _ = made.run(images, params=params)
  found = quantised()(made.params["vq"], images)
  codes, z = np.ravel(found.codes), np.reshape(np.float64(found.z), (-1, 3))
  new_sums = 0.9 * sums
  np.add.at(new_sums, codes, 0.1 * z)
  new = 0.9 * count + 0.1 * np.bincount(codes, minlength=6)
  smooth = (new + 1e-5) / (new.sum() + 6e-5) * new.sum()
  got = revised(made, 0, seen, params)
  table = got["vq"]["codebook"]["table"]
  np.testing.assert_allclose(got["averages"]["count"], new, rtol=1e-5)
  np.testing.assert_allclose(got["averages"]["sum"], new_sums, rtol=1e-4,
                             atol=1e-5)  # fmt: skip
  np.testing.assert_allclose(table, new_sums / smooth[:, None], rtol=1e-4,
                             atol=1e-5)  # fmt: skip
  wanted = 0.7 * metrics["l1"] + 2 * metrics["l2"]
  wanted += 0.5 * 0.25 * metrics["commitment"]
  np.testing.assert_allclose(total, wanted, rtol=1e-5)


def test_unused_averages_stay_where_they_began():
  """From a count of 0 they would be divided by the smoothing alone."""
  system = vq_training.VqSystem(make(average=0.99))
  params = jax.jit(system.init)(jax.random.key(0))
  seen = {"count": jnp.zeros(6), "sum": jnp.zeros((6, 3))}
  new = system.revise(params, seen, KEY, 0)["vq"]["codebook"]["table"]
  unit = vq.vectors(params["vq"]["codebook"]["table"], True)
  np.testing.assert_allclose(new, unit, rtol=1e-4, atol=1e-6)


def test_replaced_averages_begin_anew():
  made = Made(average=0.9, data_init=True)
  seen = {**SEEN, "sum": jnp.ones((6, 3))}
  new = revised(made, 0, seen)
  for tree in (new["vq"]["codebook"]["table"], new["averages"]["sum"]):
    np.testing.assert_array_equal(tree, SEEN["candidates"])
  np.testing.assert_array_equal(new["averages"]["count"], 1)


# ---------------------------------------------------------------- adversarial


def test_the_adversarial_weight_is_constant_or_a_ratio_of_means(images):
  """LlamaGen's and VQGAN's; the ratio's norms are of averaged losses."""
  net, gan = vq.VqVae(TINY), patch_gan.PatchGan(4, 1)
  constant, adaptive = (
    Made(adversarial=0.5, adaptive=a) for a in (False, True)
  )
  params = constant.params

  @jax.jit
  def gradients(p):
    def losses(p):
      found = net.apply({"params": p}, images, method="quantise")
      features = net.apply(
        {"params": p}, found.straight_through, method="decode_features"
      )
      out = net.apply({"params": p}, features, method="decode_output")
      error = out - images
      nll = 0.7 * jnp.abs(error).mean() + 2 * jnp.square(error).mean()
      fake = gan.apply({"params": params["discriminator"]}, out)
      return nll, -fake.mean()

    return jax.jacrev(losses)(p)

  nll, fool = gradients(params["vq"])
  a, b = (np.linalg.norm(convolutions.last_kernel(g)) for g in (nll, fool))
  runs = [made.run(images, step=5, params=params)
          for made in (constant, adaptive)]  # fmt: skip
  for (_, metrics, _, grads), weight in zip(
    runs, (1.0, a / (b + 1e-4)), strict=True
  ):
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-3)
    own = jax.tree.map(
      lambda x, y, w=weight: x + 0.5 * w * y, nll["decoder"], fool["decoder"]
    )
    assert relative(nll["decoder"], own) > 1e-2
    assert relative(grads["vq"]["decoder"], own) < 1e-3
    assert flat_norm(grads["discriminator"]) > 1e-3
  early = constant.run(images, step=4, params=params)[3]
  assert flat_norm(early["discriminator"]) == 0
  assert relative(early["vq"]["decoder"], nll["decoder"]) < 1e-4


def test_the_entropy_term_is_added(images):
  made = Made(entropy=0.3)
  loss = jax.jit(made.loss, static_argnums=3)
  total, (metrics, _) = loss(made.params, images, 0, 4)
  table = vq.vectors(made.params["vq"]["codebook"]["table"], True)
  z = quantised()(made.params["vq"], images).z
  expected = vq.entropy_loss(z, table)
  assert abs(expected) > 0.01
  np.testing.assert_allclose(metrics["entropy"], expected, rtol=1e-4)
  np.testing.assert_allclose(
    total - plain().run(images)[0], 0.3 * expected, rtol=1e-3
  )


# ------------------------------------------------------------- training, codec


def test_four_images_are_learned_and_read_back_by_the_codec(tmp_path):
  """As `main` trains; the workdir is a codec's path."""
  c = make(data_init=True, revive_every=2, l1=1.0, codebook=1.0)
  c = dataclasses.replace(
    c, steps=30,
    optim=dataclasses.replace(c.optim, lr=1e-2, warmup=1),
    log=dataclasses.replace(c.log, every=3, tensorboard=False),
  )  # fmt: skip
  system, path = systems.build(c), str(tmp_path / "run")
  rng = np.random.default_rng(0)
  flat = rng.uniform(-1, 1, (4, 2, 2, 3))
  images = np.float32(np.kron(flat, np.ones((1, 8, 8, 1))))
  state = train.run(
    train.make_job(c, system, jax.devices()[:1]), path,
    lambda _: itertools.repeat({"image": {"image": images}}), {},
    lambda _: None,
  )  # fmt: skip
  rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  first, *_, last = (json.loads(row) for row in rows)
  assert last["l1"] < 0.6 * first["l1"]
  assert last["usage"] > 0.8 and last["perplexity"] > 2
  codec = codecs.VqCodec(c.model.vq, path, 16)
  frozen = codec.load()

  @jax.jit
  def run(params, frozen, images):
    codes = codec.encode(frozen, images)
    wide = codec.encode(frozen, images[:, :8])
    return (
      codes, system.encode(params, images), codec.decode(frozen, codes),
      codec.reconstruct(frozen, images),
      system.reconstruct(params, {}, images),
      codec.decode(frozen, wide, (4, 8)),
    )  # fmt: skip

  codes, own, rebuilt, *others, wide = run(state.params, frozen, images)
  assert codes.shape == (4, *codec.cache.shape) and codes.dtype == jnp.int32
  np.testing.assert_array_equal(codes, own.reshape(4, -1))
  assert float(jnp.abs(rebuilt - images).mean()) < 0.6 * first["l1"]
  for other in others:
    np.testing.assert_allclose(
      rebuilt, jnp.clip(other, -1, 1), rtol=1e-4, atol=1e-5
    )
  assert wide.shape == (4, 8, 16, 3)


def test_cached_codes_are_those_that_were_encoded(tmp_path):
  """Float16 would round every second code above 2048, and more above 4096."""
  config = presets.VQ["llamagen_vq16"]
  codec = codecs.VqCodec(config, "nowhere", 64)
  codes = np.int32([[0, 2049, 4097, 8191, *range(16_372, 16_384)]])
  assert codes[0].shape == codec.cache.shape
  path = str(tmp_path / "codes")
  cached.write_cached(path, codes, codec.file_dtype)
  picture = fields.Picture((b"",), cached=cached.CachedReader(path)[0])
  field = fields.Cached(
    "drawn", codec.cache.shape, codec.cache.dtype, 64, codec.fit, file=True
  )
  rows = field.rows(fields.Example({}, {"drawn": picture}, None), None)
  assert rows[""].dtype == np.int32
  np.testing.assert_array_equal(rows[""], codes[0])


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"accumulate": 2, "loss.data_init": True}, "set accumulate=1 or loss.dat"),
    ({"accumulate": 2, "loss.revive_every": 9}, "loss.revive_every=0"),
    ({"accumulate": 2, "loss.entropy": 0.1}, "loss.entropy=0"),
    ({"accumulate": 2, "loss.adversarial": 0.5}, "accumulate=2 cuts it"),
    ({"loss.data_init": True, "init.all": "runs/a"}, "set loss.data_init=Fal"),
    ({"loss.average": 0.9, "loss.order": "legacy"}, "or loss.average=0"),
    ({"loss.perceptual": 1.0}, "needs loss.perceptual_weights"),
    ({"model.image_size": 30}, "a multiple of 4, the factor of model.vq"),
    ({"model.vq.groups": 48}, "model.vq.groups=48 does not divide 64"),
    ({"model.vq.codes": 65_537}, "at most 65536"),
    ({"loss.revive_below": 1.5}, "loss.revive_below=1.5 must be in"),
    ({"batch": {"i2t": 8}}, "system 'vq' trains on image, t2i"),
  ],
)
def test_unusable_configs_are_refused_with_the_fix(changes, message):
  c = tree(**{k: v for k, v in changes.items() if k != "batch"})
  c.batch = changes.get("batch", c.batch)
  with pytest.raises(ConfigError, match=message) as error:
    systems.resolve(c)
  assert "\n" not in str(error.value)
