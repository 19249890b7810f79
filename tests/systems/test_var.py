"""VAR: objective and drawing against plain computations."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import var
from tests.systems.test_accumulate import assert_one_objective
from unifluid_jax import systems
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.systems import var_config
from unifluid_jax.systems.common import scale_decode

SIDES, K, N, CLASSES = (1, 2, 3), 13, 14, 4
LEVELS = np.repeat([0, 1, 2], [1, 4, 9])
ROWS = 8


def tiny(**changes):
  c = var.get_config("shapes")
  c.batch = dict(t2i=ROWS)
  m = c.model
  m.image_size = 12
  m.vq.update(base=8, latent=8, groups=4, stem=4, codes=K, code_channels=5,
              scales=SIDES)  # fmt: skip
  m.decoder.update(width=32, depth=2, heads=2, mlp=48, codes=K,
                   code_channels=5, scales=SIDES)  # fmt: skip
  c.loss.update(class_dropout=0.0, vocab_chunk=N)
  c.sampling.update(cfg=0.0)
  c.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return systems.resolve(c)


def random_tree(shapes, scale, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.float32(scale * rng.normal(size=x.shape)), shapes
  )


def examples(rows=ROWS, seed=0):
  rng = np.random.default_rng(seed)
  return {"t2i": {
    "class": jnp.asarray(np.arange(rows) % CLASSES, jnp.int32),
    "image": jnp.asarray(rng.integers(0, K, (rows, N)), jnp.int32),
  }}  # fmt: skip


@pytest.fixture(scope="module")
def model():
  config = tiny()
  system = systems.build(config)
  params = random_tree(systems.init_shapes(system), 0.3)
  frozen = {"codec": random_tree(system.codec.shapes(), 0.5, seed=1)}
  forced = jax.jit(functools.partial(teacher_forced, system))

  def logits(labels, codes):
    return forced(params, frozen["codec"], labels, codes)

  return SimpleNamespace(config=config, system=system, params=params,
                         frozen=frozen, logits=logits)  # fmt: skip


def changed(model, **loss):
  """The same system with another objective."""
  loss = dataclasses.replace(model.config.loss, **loss)
  return systems.build(dataclasses.replace(model.config, loss=loss))


def teacher_forced(system, params, frozen, labels, codes):
  """Logits of all codes at once, f32[B, N, V]."""
  net = {"params": params["decoder"]}
  cond = system.decoder.apply(net, labels, method="cond")
  return system.decoder.apply(net, system.codec.inputs(frozen, codes), cond)


def keys(count, first=0):
  return jax.vmap(jax.random.key)(jnp.arange(first, first + count))


# ----------------------------------------------------------------------- loss


def plain_nll(model, batch, smoothing=0.0):
  """Cross entropy of every code as PyTorch smooths it, f64[B, N], and hits."""
  fields = batch["t2i"]
  z = np.float64(model.logits(fields["class"], fields["image"]))
  logs = z - z.max(-1, keepdims=True)
  logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
  codes = np.asarray(fields["image"])[..., None]
  picked = np.take_along_axis(logs, codes, -1)[..., 0]
  nll = -(1 - smoothing) * picked - smoothing * logs.mean(-1)
  return nll, z.argmax(-1) == codes[..., 0]


def test_the_loss_is_a_plain_cross_entropy_over_all_scales(model):
  batch = examples()
  run = jax.jit(lambda s, p: s.loss(p, model.frozen, batch, s.counts(batch),
                jax.random.key(0), 0)[:2], static_argnums=0)  # fmt: skip
  side = np.asarray(SIDES)[LEVELS]
  for loss in (dict(), dict(label_smoothing=0.2, vocab_chunk=5),
               dict(scale_weights="inverse_side")):  # fmt: skip
    nll, hits = plain_nll(model, batch, loss.get("label_smoothing", 0.0))
    weights = 1 / side if "scale_weights" in loss else np.ones(N)
    got, metrics = run(changed(model, **loss), model.params)
    np.testing.assert_allclose(
      got, (nll * weights).sum() / weights.sum() / ROWS, rtol=1e-5
    )
    want = {
      "loss_image": nll.mean(), "image_accuracy": hits.mean(),
      "loss_last_scale": nll[:, 5:].mean(),
      "last_scale_accuracy": hits[:, 5:].mean(),
    }  # fmt: skip
    assert set(metrics) == set(want)
    for name, value in want.items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


def test_codes_move_predictions_of_later_scales_alone(model):
  """Slot j does not see its own code, nor others of its scale."""
  fields = jax.tree.map(lambda x: x[:1], examples()["t2i"])
  moved = jnp.tile(fields["image"], (N, 1))
  moved = moved.at[jnp.arange(N), jnp.arange(N)].set(
    (moved[0] + 1) % K
  )
  labels = jnp.tile(fields["class"], N)
  whole = model.logits(labels, jnp.tile(fields["image"], (N, 1)))
  change = np.abs(model.logits(labels, moved) - whole).max(-1)
  seen = LEVELS[:, None] < LEVELS[None]
  np.testing.assert_array_equal(change > 1e-6, seen)


def test_dropped_classes_train_the_null_class(model):
  batch = examples()
  null = {"t2i": batch["t2i"] | {"class": jnp.full(ROWS, CLASSES)}}

  def of(dropout, batch):
    system = changed(model, class_dropout=dropout)
    return jax.jit(jax.vmap(lambda key: system.loss(
      model.params, model.frozen, batch, system.counts(batch), key, 0)[0]))  # fmt: skip

  key = jax.random.split(jax.random.key(0), 100)
  none, all_null = of(0.0, batch)(key[:1]), of(0.0, null)(key[:1])
  assert abs(all_null - none) > 1e-3
  np.testing.assert_allclose(of(1.0, batch)(key[:1]), all_null, rtol=1e-6)
  share = (of(0.4, batch)(key).mean() - none) / (all_null - none)
  assert abs(share - 0.4) < 0.1


def test_mesh_and_accumulation_change_no_objective(model):
  assert_one_objective(model.system, model, examples(), [(2, (2, 2, 2))])


def test_scales_join_one_after_another(model):
  """Against the loop of the released trainer, written out step by step."""
  steps, warmup, share, first, ramp, k = 60, 7, 0.8, 2, 4, 6
  sides = tuple(range(1, k + 1))
  decoder = dataclasses.replace(model.config.model.decoder, scales=sides)
  config = dataclasses.replace(
    model.config,
    steps=steps,
    model=dataclasses.replace(model.config.model, decoder=decoder),
    optim=dataclasses.replace(model.config.optim, warmup=warmup),
    loss=dataclasses.replace(
      model.config.loss, progressive=share, progressive_first=first,
      progressive_ramp=ramp,
    ),
  )  # fmt: skip
  system = systems.build(config)
  last_newest, since = -1, 0
  begins = np.cumsum([0, *np.square(sides)])[:-1]
  for step in range(steps):
    progress = (step - warmup) / (steps * share - warmup)
    progress = min(max(progress, 0), 1)
    newest = first - 1 + round(progress * (k - first))
    since = 1 if newest != last_newest else since + 1
    ramped = last_newest not in (-1,) or newest != first - 1
    last_newest = newest
    want = np.where(np.arange(k) <= newest, 1.0, 0.0)
    if first <= newest < k - 1:
      assert ramped
      want[newest] = max(min(since / ramp, 1), 0.01)
    got = np.asarray(system._progress(jnp.int32(step)))[begins]
    np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=f"step {step}")
  assert newest == k - 1


# ----------------------------------------------------------------------- draw


@pytest.fixture(scope="module")
def draw(model):
  """(sampling changes, labels, keys) → codes and latents."""

  @functools.cache
  def compiled(changes):
    how = dataclasses.replace(model.config.sampling, **dict(changes))
    return jax.jit(lambda labels, keys: model.system.draw(
      model.params, model.frozen["codec"], labels, keys, how))  # fmt: skip

  def call(labels, keys, **changes):
    run = compiled(tuple(sorted(changes.items())))
    return jax.device_get(run(jnp.asarray(labels, jnp.int32), keys))

  return call


LABELS = np.arange(6) % CLASSES


def test_cached_greedy_codes_are_those_of_all_scales_at_once(model, draw):
  codes = draw(LABELS, keys(6), temperature=1e-4).codes
  logits = model.logits(jnp.asarray(LABELS, jnp.int32), codes)
  np.testing.assert_array_equal(codes, logits.argmax(-1))
  assert len(np.unique(codes)) > 4


def test_guidance_grows_over_the_scales(model, draw):
  """(1 + t) cond - t null with t = cfg k / (K - 1): none at the first."""
  cfg = 3.0
  codes = draw(LABELS, keys(6), temperature=1e-4, cfg=cfg).codes
  labels = jnp.asarray(LABELS, jnp.int32)
  cond = np.float64(model.logits(labels, codes))
  null = np.float64(model.logits(jnp.full_like(labels, CLASSES), codes))
  t = (cfg * LEVELS / 2)[None, :, None]
  want = (1 + t) * cond - t * null
  np.testing.assert_array_equal(codes, want.argmax(-1))
  assert (codes != cond.argmax(-1)).any()


def test_the_first_code_knows_no_guidance(draw):
  plain, guided = (draw(LABELS, keys(6), cfg=cfg).codes for cfg in (0.0, 3.0))
  np.testing.assert_array_equal(plain[:, 0], guided[:, 0])
  assert (plain[:, 1:] != guided[:, 1:]).any()


def test_rows_depend_on_their_own_keys_and_slots_on_their_own(draw):
  whole = draw(LABELS, keys(6), cfg=3.0)
  row = draw(LABELS[4:5], keys(1, first=4), cfg=3.0)
  np.testing.assert_array_equal(row.codes[0], whole.codes[4])
  # 400 keys: slots of one scale are no copies of each other.
  drawn = jax.vmap(lambda key: jax.random.categorical(key, jnp.zeros(K)))(
    scale_decode.slot_keys(keys(400), 1, 4)
  ).reshape(400, 4)
  assert abs((drawn[:, 0] == drawn[:, 1]).mean() - 1 / K) < 0.05
  other = scale_decode.slot_keys(keys(1), 2, 4)
  assert (other != scale_decode.slot_keys(keys(1), 1, 4)).all()


def test_images_are_the_codecs_of_the_drawn_codes(model, draw):
  drawn = draw(LABELS, keys(6))
  want = model.system.codec.decode(model.frozen["codec"], drawn.codes)
  prompts = {"t2i": {"class": jnp.asarray(LABELS, jnp.int32)}}
  got = jax.jit(lambda p: model.system.generate(
    p, model.frozen, prompts, keys(6), model.config.sampling))(model.params)  # fmt: skip
  assert got.shape == (6, 12, 12, 3)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_smooth_images_are_means_over_what_may_be_drawn(draw):
  rng = np.random.default_rng(0)
  scores, table = rng.normal(size=(5, K)), rng.normal(size=(K, 3))
  scores[:, 3:6] = -np.inf
  slots = keys(5)
  noise = [jax.random.gumbel(key, (K,)) for key in slots]
  for share in (0.0, 0.5, 1.0):
    tau = 0.27 * (1 - 0.95 * share)
    weights = np.exp(((1 + share) * scores + np.stack(noise)) / tau)
    want = weights @ table / weights.sum(-1, keepdims=True)
    got = scale_decode._mean_vectors(
      slots, jnp.float32(scores), share, jnp.float32(table)
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  # Where one code is left, it is the mean.
  one, mean = (draw(LABELS, keys(6), image_top_k=1, smooth=smooth)
               for smooth in (False, True))  # fmt: skip
  np.testing.assert_array_equal(one.codes, mean.codes)
  np.testing.assert_allclose(one.latent, mean.latent, atol=1e-5)
  free = draw(LABELS, keys(6), smooth=True)
  plain = draw(LABELS, keys(6))
  np.testing.assert_array_equal(free.codes[:, 0], plain.codes[:, 0])
  assert np.abs(free.latent - plain.latent).max() > 1e-3


# -------------------------------------------------------------- configuration


@pytest.mark.parametrize("changes, message", [
  (dict(model__decoder__scales=(1, 3)), r"scales=\(1, 3\) must be model.vq"),
  (dict(model__vq__codes=14), "model.decoder.codes=13 must be model.vq.codes"),
  (dict(model__decoder__heads=3), "must be a multiple of model.decoder.heads"),
  (dict(model__vq__scales=(2, 3), model__decoder__scales=(2, 3)),
   "must begin with 1"),
  (dict(model__image_size=16), "must end at 4, the latent's side"),
  (dict(model__classes=("circle", "square")), "model.classes names 2"),
  (dict(model__classes=("a", "b", "b", "c")), "'b' is empty or there twice"),
  (dict(sampling__cfg=2.0), "set loss.class_dropout > 0 or sampling.cfg=0"),
  (dict(loss__progressive=0.5, loss__progressive_first=3), "leaves none"),
  (dict(loss__progressive=0.01, loss__progressive_first=1),
   "ends before optim.warmup"),
])  # fmt: skip
def test_what_cannot_work_is_refused_with_the_fix(changes, message):
  with pytest.raises(ConfigError, match=message):
    tiny(**changes)


def test_guidance_needs_a_null_class_that_was_trained(model):
  how = dataclasses.replace(model.config.sampling, cfg=2.0)
  with pytest.raises(ValueError, match="use cfg=0"):
    var_config.check_guidance(model.config, how, "t2i")


def test_classes_without_names_are_numbers():
  config = tiny(model__classes=(), model__label="name")
  assert config.model.names == ("0", "1", "2", "3")


def test_a_step_costs_what_its_slots_cost():
  cost = systems.build(tiny()).cost()
  assert cost.tokens == ROWS * N
  layer = 4 * 32 * 32 + 2 * 32 * 48 + 2 * 32 * N
  flops = N * (2 * layer + 32 * 5 + 32 * K) + (2 * 6 + 2) * 32 * 32
  np.testing.assert_allclose(cost.flops, 3 * ROWS * 2 * flops)


def test_full_size_recipes():
  for name, steps in dict(d16=333_637, d20=417_046, d24=583_864,
                          d30=437_898, d36=583_864).items():  # fmt: skip
    config = systems.resolve(var.get_config(name))
    assert math.isclose(config.steps, steps, rel_tol=1e-3)
    assert config.model.decoder.depth == int(name[1:])
