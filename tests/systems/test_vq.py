"""Training of VQ tokenizers: each term of the loss, and what is learned."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tokenizer, vae
from tests.systems import tiny_vq
from tests.systems.test_vae import flat_norm, relative
from tests.systems.tiny_vq import TINY, Made, make, plain, quantised, tree
from unifluid_jax import systems, train
from unifluid_jax.codecs import vq as codecs
from unifluid_jax.core import presets
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.data import fields
from unifluid_jax.data.sources import cached
from unifluid_jax.models import convolutions, patch_gan, vq


@pytest.fixture(scope="module")
def images():
  return tiny_vq.images()


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
    (
      {"loss.average": 0.9, "init.vq": "runs/a", "init.averages": "new"},
      "these from nowhere, the codebook from runs/a: take both from one run",
    ),
    (
      {"loss.average": 0.9, "init.all": "runs/a", "init.averages": "runs/b"},
      "these from runs/b, the codebook from runs/a",
    ),
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


@pytest.mark.parametrize(
  "init",
  [
    {},
    {"init.all": "runs/a"},
    {"init.all": "runs/a", "init.discriminator": "new"},
    {"init.vq": "runs/a", "init.averages": "runs/a#averages"},
    {"init.all": "runs/a", "init.vq": "new", "init.averages": "new"},
  ],
)
def test_an_averaged_codebook_and_its_averages_start_alike(init):
  assert systems.resolve(tree(**{"loss.average": 0.9} | init)).loss.average


@pytest.mark.parametrize(
  "c", [tree(), tokenizer.get_config("multiscale_shapes"),
        vae.get_config("shapes")],
)  # fmt: skip
def test_every_part_of_a_tokenizer_can_start_from_a_run(c):
  """`--config.init.PART` exists: what a run lacks is set to "new"."""
  parts = systems.build(systems.resolve(c)).parts
  assert set(c.init) == {"all", *parts}
