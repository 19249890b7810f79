"""Training of multi-scale tokenizers, and their codec."""

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
from unifluid_jax import systems, train
from unifluid_jax.codecs import cache
from unifluid_jax.codecs import multiscale_vq as codecs
from unifluid_jax.core import presets
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.data.sources import cached
from unifluid_jax.models import multiscale_vq
from unifluid_jax.systems import vq_training

TINY = presets.MultiscaleVqConfig(
  8, (1,), 0, 3, attention=False, groups=4, stem=4, codes=8, code_channels=3,
  scales=(1, 4), phi=2,
)  # fmt: skip
KEY = jax.random.key(7)
SCALES, N = (1, 4), 17
NET = multiscale_vq.MultiscaleVqVae(TINY)
HALF = 0.5  # the share of the images below in the batch that they are part of


def tree(**changes):
  c = tokenizer.get_config("multiscale_shapes")
  c.loss.update(data_init=False, revive_every=0)
  c.update_from_flattened_dict(changes)
  return c


def make(accumulate=1, **losses):
  losses = (
    dict(l1=0.7, l2=2.0, codebook=0.5, commitment=0.25, usage_decay=0.75,
         adversarial_start=5, discriminator_width=4, discriminator_layers=1)
    | losses
  )  # fmt: skip
  c = systems.resolve(tree())
  return dataclasses.replace(
    c,
    batch={"image": 4},
    model=dataclasses.replace(c.model, vq=TINY, image_size=16),
    loss=dataclasses.replace(c.loss, **losses),
    accumulate=accumulate,
  )


def build(**losses):
  system = vq_training.VqSystem(make(**losses))
  params = filled(jax.eval_shape(system.init, jax.random.key(0)))
  count = jnp.abs(params["usage"]["count"])
  table = 10 * params["vq"]["codebook"]["table"]
  vq = {**params["vq"], "codebook": {"table": table}}
  return system, {**params, "usage": {"count": count}, "vq": vq}


@functools.cache
def images():
  flat = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4, 3))
  return jnp.float32(np.kron(flat, np.ones((1, 4, 4, 1))))


_quantise = jax.jit(
  lambda p: NET.apply({"params": p}, images(), method="quantise")
)


def quantised(params):
  return _quantise(params["vq"])


@pytest.fixture(scope="module")
def made():
  """Parameters; loss, metrics and what `revise` gets of them."""
  system, params = build(data_init=True)
  batch, counts = {"image": {"image": images()}}, {"images": 8}
  run = jax.jit(lambda p: system.loss(p, {}, batch, counts, KEY, 0))
  return params, *run(params)


def test_the_loss_is_a_mean_over_scales(made):
  params, total, metrics, seen = made
  found = quantised(params)
  f, sums = np.float64(found.z), np.float64(found.sums)
  each = [np.square(sums[:, k] - f).mean() for k in range(2)]
  assert min(each) > 1e-3 and np.ptp(each) > 1e-3
  wanted = 0.7 * metrics["l1"] + 2 * metrics["l2"]
  wanted += HALF * 0.5 * (1 + 0.25) * np.mean(each)
  np.testing.assert_allclose(total, wanted, rtol=1e-5)
  np.testing.assert_allclose(metrics["commitment"], HALF * each[-1], rtol=1e-4)
  codes = np.split(np.asarray(found.codes), [1], axis=1)
  for row, part in zip(seen["count"], codes, strict=True):
    np.testing.assert_array_equal(row, np.bincount(part.ravel(), minlength=8))
  # Used within 1 / (1 - .75) steps: at least .25 / e, in any scale or in one.
  used = np.asarray(params["usage"]["count"])
  once = 0.25 / np.e
  for side, row in zip(SCALES, used, strict=True):
    np.testing.assert_allclose(
      metrics[f"usage_{side}x{side}"], HALF * (row >= once).mean()
    )
  of_any = (used.sum(0) >= once).mean()
  np.testing.assert_allclose(metrics["usage"], HALF * of_any)
  assert (used >= once).mean() < of_any


def test_the_adversarial_loss_reads_the_last_sum():
  """Shapes alone: its terms are those of system "vq"."""
  system, params = build(adversarial=0.5, adaptive=True)
  batch, counts = {"image": {"image": images()}}, {"images": 4}
  _, metrics, seen = jax.eval_shape(
    lambda p: system.loss(p, {}, batch, counts, KEY, 0), params
  )
  assert {"generator", "discriminator", "adaptive_weight"} < set(metrics)
  assert seen["count"].shape == (2, 8) and set(seen) == {"count"}


def test_the_quantisation_loss_has_vars_gradients():
  """Commitment moves the latent; the rest moves codes and phi."""
  params = build()[1]["vq"]
  rng = np.random.default_rng(1)
  f = jnp.float32(2 * rng.standard_normal((2, 4, 4, 3)))
  weights = make().loss

  def ours(p, f):
    found = NET.apply({"params": p}, f, method="quantise_latents")
    return vq_training.quantisation_loss(weights, found, 4), found

  @jax.jit
  def wanted(p, f, codes):
    def sums(p):  # of codes, through which nothing has a gradient
      return jnp.stack(NET.apply({"params": p}, codes, method="sums")[1:], 1)

    own = jax.grad(lambda p: jnp.square(sums(p) - f[:, None]).mean())(p)
    return own, 0.25 * 2 * (f[:, None] - sums(p)).sum(1) / sums(p).size

  gradient = jax.value_and_grad(ours, (0, 1), has_aux=True)
  (_, found), (dp, df) = jax.jit(gradient)(params, f)
  own, latent = wanted(params, f, found.codes)
  assert len(np.unique(found.codes)) > 4
  for part in ("codebook", "phi"):
    for name, want in own[part].items():
      assert np.abs(want).max() > 1e-3
      np.testing.assert_allclose(
        dp[part][name], HALF * want, rtol=1e-3, atol=1e-6
      )
  np.testing.assert_allclose(df, HALF * latent, rtol=1e-3, atol=1e-7)


def test_codes_of_no_scale_are_replaced_by_vectors_of_all(made):
  params, _, _, seen = made
  found = quantised(params)
  rows = np.reshape(found.compared, (-1, 3))
  nearest = np.abs(rows - np.asarray(seen["candidates"])[:, None]).max(-1)
  assert (nearest.min(-1) < 1e-5).all()
  assert len({int(i) for i in nearest.argmin(-1)}) == 8

  system, _ = build(revive_every=3, revive_below=0.5)
  used = np.zeros((2, 8), np.float32)
  used[0, 0], used[1, 1:7] = 4, 2  # of each scale; 7 is of none
  before = {**params, "usage": {"count": jnp.asarray(used)}}
  quiet = {"count": jnp.asarray(used), "candidates": seen["candidates"]}
  for step, dead in ((1, []), (2, [7])):
    new = system.revise(before, quiet, KEY, step)
    changed = np.asarray(new["vq"]["codebook"]["table"])
    old = np.asarray(before["vq"]["codebook"]["table"])
    moved = np.flatnonzero(np.abs(changed - old).max(-1)).tolist()
    assert moved == dead
    count = used.copy()
    count[1, dead] = used.sum(0).mean()  # coarse scales do not look in use
    np.testing.assert_allclose(new["usage"]["count"], count, rtol=1e-6)
  np.testing.assert_array_equal(changed[7], seen["candidates"][7])


# ------------------------------------------------------------- training, codec


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """As `main` trains; the workdir is a codec's path."""
  root = tmp_path_factory.mktemp("multiscale")
  c = make(data_init=True, revive_every=2, l1=1.0, codebook=1.0)
  c = dataclasses.replace(
    c, steps=30,
    optim=dataclasses.replace(c.optim, lr=1e-2, warmup=1),
    log=dataclasses.replace(c.log, every=3, tensorboard=False),
  )  # fmt: skip
  system, path = systems.build(c), str(root / "run")
  batch = {"image": {"image": np.asarray(images())}}
  state = train.run(
    train.make_job(c, system, jax.devices()[:1]), path,
    lambda _: itertools.repeat(batch), {}, lambda _: None,
  )  # fmt: skip
  codec = codecs.MultiscaleVqCodec(c.model.vq, path, 16)
  frozen = codec.load()

  @jax.jit
  def run(params, frozen, x):
    codes = codec.encode(frozen, x)
    f_hat, inputs = codec.empty(len(x)), []
    for k, part in enumerate(jnp.split(codes, [1], axis=1)):
      inputs.append(codec.next_input(f_hat, k))
      f_hat = codec.add(frozen, f_hat, k, part)
    return dict(
      codes=codes, own=system.encode(params, x),
      inputs=codec.inputs(frozen, codes), fed=jnp.concatenate(inputs, 1),
      images=[
        codec.decode(frozen, codes), codec.image(frozen, f_hat),
        codec.reconstruct(frozen, x),
        jnp.clip(system.reconstruct(params, {}, x), -1, 1),
      ],
    )  # fmt: skip

  rows = (root / "run" / "metrics.jsonl").read_text().splitlines()
  return root, codec, frozen, run(state.params, frozen, images()), [
    json.loads(row) for row in rows
  ]  # fmt: skip


def test_four_images_are_learned_and_read_back_by_the_codec(trained):
  _, codec, _, got, rows = trained
  assert rows[-1]["l1"] < 0.6 * rows[0]["l1"]
  assert rows[-1]["usage"] > 0.8 and rows[-1]["usage_1x1"] > 0
  assert got["codes"].shape == (4, N) == (4, *codec.cache.shape)
  assert got["codes"].dtype == codec.cache.dtype
  np.testing.assert_array_equal(got["codes"], got["own"])
  first, *others = got["images"]
  assert float(jnp.abs(first - images()).mean()) < 0.6 * rows[0]["l1"]
  for other in others:
    np.testing.assert_allclose(first, other, rtol=1e-4, atol=1e-5)


def test_drawing_scale_after_scale_is_fed_what_training_was(trained):
  got = trained[3]
  assert got["inputs"].shape == (4, N, 3)
  np.testing.assert_allclose(got["fed"], got["inputs"], rtol=1e-5, atol=1e-6)
  assert not got["fed"][:, 0].any() and got["fed"][:, 1:].all(-1).any()


def test_vectors_may_stand_for_codes(trained):
  """As where a scale is drawn as a mean over the codebook."""
  _, codec, frozen, got, _ = trained
  codes = got["codes"][:, 1:]
  weights = jax.nn.one_hot(codes, 8) @ codec.table(frozen)
  a, b = jax.jit(lambda p: (
    codec.add(p, codec.empty(4), 1, codes),
    codec.add_vectors(p, codec.empty(4), 1, weights),
  ))(frozen)  # fmt: skip
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_codes_are_cached_as_they_are(trained):
  """As `encode` writes them, and a field reads them."""
  root, codec, _, got, _ = trained
  path = str(root / "codes")
  note = {"test": 1}
  codes = np.asarray(got["codes"])
  assert cache.write(path, note, len(codes), lambda records: codes[records],
                     codec.file_dtype) == "written"  # fmt: skip
  read = cached.CachedReader(path)
  for i, row in enumerate(np.asarray(got["codes"])):
    np.testing.assert_array_equal(np.asarray(read[i], np.int32), row)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model.vq.scales": (1, 2, 3)}, "must end at 4, the latent's side"),
    ({"model.vq.scales": (1, 3, 3, 4)}, "must grow from each scale"),
    ({"model.vq.scales": ()}, r"scales=\(\) must have an entry"),
    ({"model.vq.normalised": True}, "compared by distance; set it to False"),
    ({"model.vq.phi": -1}, "phi=-1 must be at least 0"),
    ({"model.vq.phi_ratio": 1.5}, "phi_ratio=1.5 must be in"),
    ({"loss.average": 0.9}, "set loss.average=0"),
    ({"loss.entropy": 0.1}, "set loss.entropy=0"),
    ({"loss.revive_every": 9, "accumulate": 2}, "loss.revive_every=0"),
    ({"model.image_size": 36}, "a multiple of 8, the factor of model.vq"),
  ],
)
def test_unusable_configs_are_refused_with_the_fix(changes, message):
  with pytest.raises(ConfigError, match=message) as error:
    systems.resolve(tree(**changes))
  assert "\n" not in str(error.value)
