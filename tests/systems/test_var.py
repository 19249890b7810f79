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
from unifluid_jax import api, systems
from unifluid_jax.aot import lower
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.data.transforms import to_uint8
from unifluid_jax.ops.cross_entropy import TokenLosses
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
  m.vq.update(base=8, multipliers=(1,), latent=8, groups=4, stem=4, codes=K,
              code_channels=5, scales=SIDES)  # fmt: skip
  m.decoder.update(width=32, depth=1, heads=2, mlp=48, codes=K,
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
  for loss in (dict(), dict(label_smoothing=0.2, vocab_chunk=5,
                            scale_weights="inverse_side")):  # fmt: skip
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
  moved = moved.at[jnp.arange(N), jnp.arange(N)].set((moved[0] + 1) % K)
  labels = jnp.tile(fields["class"], N)
  whole = model.logits(labels, jnp.tile(fields["image"], (N, 1)))
  change = np.abs(model.logits(labels, moved) - whole).max(-1)
  seen = LEVELS[:, None] < LEVELS[None]
  np.testing.assert_array_equal(change > 1e-6, seen)


def test_dropped_classes_train_the_null_class(model, monkeypatch):
  batch, rows = examples(), jnp.ones((ROWS, N))

  def labels(dropout):
    """Mean label of the rows that the model is given, of many keys."""
    system = changed(model, class_dropout=dropout)
    monkeypatch.setattr(
      system, "token_losses", lambda params, frozen, codes, labels, key:
      TokenLosses(rows * labels[:, None], rows, rows, rows),
    )  # fmt: skip
    return jax.vmap(lambda key: system.loss(
      model.params, model.frozen, batch, system.counts(batch), key, 0)[0])(
      jax.random.split(jax.random.key(0), 100))  # fmt: skip

  given = np.mean(batch["t2i"]["class"])
  np.testing.assert_allclose(labels(0.0), given)
  np.testing.assert_allclose(labels(1.0), CLASSES)
  some = labels(0.4)
  assert len(np.unique(some)) > 10
  np.testing.assert_allclose(some.mean(), 0.6 * given + 0.4 * CLASSES, atol=0.2)


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
    last_newest = newest
    want = np.where(np.arange(k) <= newest, 1.0, 0.0)
    if first <= newest < k - 1:
      want[newest] = max(min(since / ramp, 1), 0.01)
    got = np.asarray(system._progress(jnp.int32(step)))[begins]
    np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=f"step {step}")
  assert newest == k - 1


# ----------------------------------------------------------------------- draw


@pytest.fixture(scope="module")
def greedy(model):
  """cfg → codes of `LABELS`, the likeliest given those drawn before."""

  @functools.cache
  def call(cfg):
    how = dataclasses.replace(model.config.sampling, temperature=1e-4, cfg=cfg)
    codec, labels = model.frozen["codec"], jnp.asarray(LABELS, jnp.int32)
    run = jax.jit(functools.partial(model.system.draw, sampling=how))
    return np.asarray(run(model.params, codec, labels, keys(6)).codes)

  return call


LABELS = np.arange(6) % CLASSES


def test_cached_greedy_codes_are_those_of_all_scales_at_once(model, greedy):
  codes = greedy(0.0)
  logits = model.logits(jnp.asarray(LABELS, jnp.int32), codes)
  np.testing.assert_array_equal(codes, logits.argmax(-1))
  assert len(np.unique(codes)) > 4


def test_guidance_leads_away_from_the_null_class(model, greedy):
  """(1 + t) cond - t null with t = cfg k / (K - 1): none at the first."""
  cfg = 3.0
  codes = greedy(cfg)
  labels = jnp.asarray(LABELS, jnp.int32)
  cond = np.float64(model.logits(labels, codes))
  null = np.float64(model.logits(jnp.full_like(labels, CLASSES), codes))
  t = (cfg * LEVELS / 2)[None, :, None]
  np.testing.assert_array_equal(codes, ((1 + t) * cond - t * null).argmax(-1))
  assert (codes != cond.argmax(-1)).any()
  np.testing.assert_array_equal(codes[:, 0], greedy(0.0)[:, 0])


def test_images_are_decoded_from_what_was_drawn(model, monkeypatch):
  """One key is split by row; keys of rows are taken as they are."""
  latent = random_tree(jax.ShapeDtypeStruct((6, 3, 3, 5), jnp.float32), 1.0)
  used = []

  def drawn(params, frozen, labels, keys, sampling):
    used.append((labels, keys))
    return scale_decode.Drawn(None, (latent,))

  system = systems.build(model.config)
  monkeypatch.setattr(system, "draw", drawn)
  labels = jnp.asarray(LABELS, jnp.int32)
  for key in (jax.random.key(3), keys(6)):
    got = system.generate(
      model.params, model.frozen, {"t2i": {"class": labels}}, key, None
    )
    want = system.codec.image(model.frozen["codec"], latent)
    np.testing.assert_array_equal(got, want)
  assert got.shape == (6, 12, 12, 3)
  assert (used[0][0] == labels).all() and (used[1][1] == keys(6)).all()
  assert (used[0][1] == jax.random.split(jax.random.key(3), 6)).all()


# -------------------------------------------------------------- configuration


@pytest.mark.parametrize("changes, message", [
  (dict(model__decoder__scales=(1, 3)), r"scales=\(1, 3\) must be model.vq"),
  (dict(model__vq__codes=14), "model.decoder.codes=13 must be model.vq.codes"),
  (dict(model__decoder__heads=3), "must be a multiple of model.decoder.heads"),
  (dict(model__vq__scales=(2, 3), model__decoder__scales=(2, 3)),
   "must begin with 1"),
  (dict(model__decoder__depth=0), "model.decoder.depth=0"),
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
  flops = N * (layer + 32 * 5 + 32 * K) + (6 + 2) * 32 * 32
  np.testing.assert_allclose(cost.flops, 3 * ROWS * 2 * flops)


def test_full_size_recipes():
  for name, steps in dict(d16=333_637, d20=417_046, d24=583_864,
                          d30=437_898, d36=583_864).items():  # fmt: skip
    config = systems.resolve(var.get_config(name))
    assert math.isclose(config.steps, steps, rel_tol=1e-3)
    assert config.model.decoder.depth == int(name[1:])


# ------------------------------------------------------------------ the package


def test_a_model_draws_classes_and_refuses_what_it_cannot_do(
  model, monkeypatch, tmp_path
):
  """Without a tokenizer of texts, of which the system reads none."""
  shown = jnp.linspace(-1, 1, CLASSES + 1)

  def generate(params, frozen, prompts, keys, sampling):
    values = shown[prompts["t2i"]["class"]][:, None, None, None]
    return jnp.broadcast_to(values, (len(values), 12, 12, 3))

  system = systems.build(model.config)
  monkeypatch.setattr(system, "generate", generate)
  assert api.read_tokenizer(model.config, str(tmp_path)) is None
  mapper = api.jitted(model.params, model.frozen, 4)
  drawing = api.Model(model.config, system, None, mapper)
  prompts = ["a red square", "two crosses left of a circle"]
  images = [np.asarray(x)[0, 0, 0] for x in drawing.generate(prompts)]
  want = [model.config.model.names.index(x) for x in ("square", "cross")]
  np.testing.assert_array_equal(images, to_uint8(shown[np.asarray(want)]))
  assert drawing.unknown_words("square") == []
  with pytest.raises(ValueError, match="mentions no class of this run: circle"):
    drawing.generate("a house")
  blank = np.zeros((12, 12, 3), np.uint8)
  for ask in (
    lambda: drawing.answer(blank, "how many"), lambda: drawing.caption(blank)
  ):  # fmt: skip
    with pytest.raises(ValueError, match="'var' cannot do 'i2t', only t2i"):
      ask()
  with pytest.raises(ConfigError, match="'var' draws images only"):
    lower.programs(model.config, "answer", jax.devices()[:1])
