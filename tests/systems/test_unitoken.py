"""UniToken: layouts, what is predicted, what reaches what, drawing."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems import unitoken_tiny as world
from tests.systems.conftest import whole_loss
from tests.systems.test_accumulate import assert_one_objective, lopsided
from tests.systems.unitoken_tiny import (
  BOS,
  CODE,
  EOI,
  LINE,
  PREFIX,
  PROMPT,
  SEP,
  SIZE,
  SOI,
  SUFFIX,
  TURN,
)  # fmt: skip
from unifluid_jax import systems
from unifluid_jax.codecs.vq import VqCodec
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import PAD
from unifluid_jax.models import decoder, vit
from unifluid_jax.ops.attention import block_causal_mask
from unifluid_jax.systems import unitoken_config
from unifluid_jax.systems.common import packing
from unifluid_jax.systems.unitoken import UniToken


def random_params(system, scale=0.2):
  """None at its initial value: zeros would hide mistakes."""
  rng = np.random.default_rng(3)
  return jax.tree.map(
    lambda x: jnp.float32(scale * rng.normal(size=x.shape)),
    systems.init_shapes(system),
  )


@pytest.fixture(scope="module")
def model():
  system = UniToken(world.tiny())
  frozen = {"codec": {}}
  batch = world.examples(text=True)
  loss = whole_loss(system)
  return SimpleNamespace(
    system=system, params=random_params(system), frozen=frozen, batch=batch,
    whole_loss=loss, loss=jax.jit(loss),
  )  # fmt: skip


def keys(count):
  return jax.vmap(jax.random.key)(jnp.arange(count))


def test_codes_are_those_of_the_float32_tokenizer():
  """Whatever the decoder's dtype: caches do not say by which they were made."""
  system = UniToken(world.tiny(model__dtype="bfloat16"))
  codec = VqCodec(system.config.model.vq, "", 32)
  shapes = codec.shapes()["vq"]
  rng = np.random.default_rng(0)
  vq = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), shapes)
  images = jnp.float32(rng.uniform(-1, 1, (16, 32, 32, 3)))
  got = system.codec.encode({"vq": vq}, images)
  np.testing.assert_array_equal(got, codec.encode({"vq": vq}, images))


# ------------------------------------------------------- layouts, from numpy


def discrete(codes):
  """D of a 4 x 4 image, token by token."""
  ids = [SOI, SIZE, SIZE]
  for row in range(4):
    ids += [CODE + int(c) for c in codes[4 * row : 4 * row + 4]] + [LINE]
  return [*ids, EOI]


def test_sizes_stand_height_first_and_every_row_ends_with_a_new_line():
  m = world.tiny().model
  ids = dict(soi=SOI, eoi=EOI, line=LINE)
  got = unitoken_config.template(m, ids, 64, 32)
  row = [PAD] * 4 + [LINE]
  assert got.tolist() == [SOI, SIZE + 1, SIZE, *row * 8, EOI]
  full = dataclasses.replace(
    m, vq=dataclasses.replace(m.vq, stem=16), size_offset=8804
  )
  got = unitoken_config.template(
    full, dict(soi=8197, eoi=8196, line=8803), 512, 512
  )
  assert len(got) == 1060 and (got == PAD).sum() == 1024
  assert got[:3].tolist() == [8197, 8820, 8820]
  assert (got[3 + 32 :: 33] == [8803] * 32).all() and got[-1] == 8196


class Fake:
  """An embedding that shows which ids stand where."""

  def __init__(self, system, monkeypatch):
    def text(network, params, ids):
      del network, params
      return jnp.repeat(ids.astype(jnp.float32)[..., None], 2, axis=-1)

    def pixels(network, projector, params, views):
      """Feature j of the views of an image is 1000 + j."""
      del network, projector, params
      b, n = views.shape[0], views.shape[1] * 4
      x = 1000 + jnp.arange(n, dtype=jnp.float32)
      return jnp.broadcast_to(x[None, :, None], (b, n, 2))

    module = "unifluid_jax.systems.common.embed"
    monkeypatch.setattr(f"{module}.text", text)
    monkeypatch.setattr(f"{module}.pixels", pixels)
    self.system = system

  def rows(self, packed):
    """Ids of each row's valid positions; blocks must be plain causal."""
    t = packed.x.shape[1]
    np.testing.assert_array_equal(
      packed.block, np.broadcast_to(np.arange(t), packed.block.shape)
    )
    return [
      x[v, 0].astype(int).tolist()
      for x, v in zip(np.asarray(packed.x), np.asarray(packed.valid),
                      strict=True)
    ]  # fmt: skip


def without_pads(row):
  return [int(x) for x in row if x != PAD]


def test_understanding_rows_are_those_of_the_released_code(model, monkeypatch):
  fields = model.batch["i2t"]
  fake = Fake(model.system, monkeypatch)
  packed = model.system.asked({}, fields, fields["suffix"][:, :-1])
  # The views' indices with the stitched new line, 20, as its token's id.
  for i, got in enumerate(fake.rows(packed)):
    d = discrete(fields["codes"][i])
    index = np.asarray(fields["seen.index"][i])
    index = index[np.asarray(fields["seen.valid"][i])]
    c = [LINE if j == 20 else 1000 + int(j) for j in index]
    assert c[:4] == [1000, 1001, 1002, 1003] and c[-1] == LINE
    want = [BOS, *d[:-1], SEP, *c, EOI, *without_pads(fields["prefix"][i])]
    assert want[-1] == TURN
    assert got == want + without_pads(fields["suffix"][i, :-1])
  # The end of the question, which predicts the answer, is one static slot.
  last = packed.x.shape[1] - SUFFIX
  assert (packed.x[:, last, 0] == TURN).all()


def test_generation_and_text_rows(model, monkeypatch):
  fake, system = Fake(model.system, monkeypatch), model.system
  fields = model.batch["t2i"]
  packed, target = system._pack_image(
    {}, {"codec": {}}, fields, jax.random.key(0)
  )
  for i, got in enumerate(fake.rows(packed)):
    d = discrete(fields["image"][i])
    prompt = without_pads(fields["prompt"][i])
    assert prompt[0] == BOS and prompt[-1] == TURN
    assert got == prompt + d
    assert target[i].tolist() == [*d, TURN]
  fields = model.batch["text"]
  for i, got in enumerate(fake.rows(system.asked({}, fields))):
    assert got == without_pads(fields["prefix"][i])


def test_dropped_prompts_begin_with_soi_at_position_0(model, monkeypatch):
  loss = dataclasses.replace(model.system.config.loss, prompt_dropout=0.5)
  system = UniToken(dataclasses.replace(model.system.config, loss=loss))
  fake, fields = Fake(system, monkeypatch), model.batch["t2i"]
  packed, target = system._pack_image(
    {}, {"codec": {}}, fields, jax.random.key(1)
  )
  position = packing.positions(packed.valid)
  dropped = 0
  for i, got in enumerate(fake.rows(packed)):
    d = discrete(fields["image"][i])
    if got[0] == SOI:
      assert got == d and position[i, PROMPT] == 0
      assert target[i].tolist() == [PAD, *d[1:], TURN]
      dropped += 1
    else:
      assert got == without_pads(fields["prompt"][i]) + d
      assert target[i, 0] == SOI
  assert 0 < dropped < 8


def test_without_continuous_features_images_are_discrete_tokens(monkeypatch):
  system = UniToken(world.tiny(model__continuous=False))
  assert set(system.parts) == {"decoder"} == set(systems.init_shapes(system))
  assert set(system.inputs["i2t"]) == {"codes", "prefix", "suffix"}
  fields, fake = world.examples()["i2t"], Fake(system, monkeypatch)
  for i, got in enumerate(fake.rows(system.asked({}, fields))):
    d, question = (
      discrete(fields["codes"][i]),
      without_pads(fields["prefix"][i]),
    )
    assert got == [BOS, *d, *question]
  assert system.counts({"i2t": fields})["image_tokens"] == 0


# ------------------------------------------------------------------ features


def test_stitched_features_equal_a_naive_loop(model):
  system, params = model.system, model.params
  fields, m = model.batch["i2t"], model.system.config.model
  line = params["decoder"]["embedder"]["table"][LINE] * m.decoder.width**0.5
  line = jnp.broadcast_to(line, (8, 1, m.decoder.width))
  got = np.asarray(jax.jit(system.continuous)(params, fields, line).x)
  line = np.asarray(line)
  network = vit.Vit(m.vit, jnp.float32, scan=False)
  encode = jax.jit(lambda view: network.apply({"params": params["vit"]}, view))
  p = jax.device_get(params["projector"])
  for i in range(8):
    views = [np.asarray(encode(view[None])[0]) for view in
             np.asarray(fields["seen.views"][i])]  # fmt: skip
    for j, valid in enumerate(np.asarray(fields["seen.valid"][i])):
      if not valid:
        continue
      k = int(fields["seen.index"][i, j])
      want = line[i, 0]
      if k < 20:
        x = views[k // 4][k % 4] @ p["in"]["kernel"] + p["in"]["bias"]
        x = x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
        want = x @ p["out"]["kernel"] + p["out"]["bias"]
      np.testing.assert_allclose(got[i, j], want, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- loss


def plain_losses(model, batch):
  """nll, hits and squared log-normaliser of each kind of labelled token.

  Each row alone, unpadded, in one forward pass with plain causal attention.
  """
  s, params = model.system, model.params
  m = s.config.model
  found = {"image": [], "text": []}

  @jax.jit
  def scores(x):
    t = x.shape[1]
    hidden, _ = s.decoder.apply(
      {"params": params["decoder"]}, x, jnp.arange(t)[None],
      jnp.tril(jnp.ones((1, t, t), bool)),
    )  # fmt: skip
    table = decoder.output_table(params["decoder"])
    return decoder.logits(m.decoder, table, hidden)[0]

  rows = np.asarray(params["decoder"]["embedder"]["table"])
  rows = rows * np.float32(m.decoder.width**0.5)
  line = jnp.broadcast_to(rows[LINE], (8, 1, m.decoder.width))
  features = jax.jit(s.continuous)(params, batch["i2t"], line)
  features = jax.device_get(features)

  def embedded(ids):
    return rows[np.asarray(ids)][None]

  def note(kind, x, labels):
    """`labels`: position → id that it predicts."""
    # One length for all: rows are causal, what follows changes nothing.
    x = np.pad(x, ((0, 0), (0, 64 - x.shape[1]), (0, 0)))
    logits = np.asarray(scores(x), np.float64)
    for i, label in labels.items():
      log_z = np.log(np.exp(logits[i]).sum())
      found[kind].append(
        (log_z - logits[i, label], logits[i].argmax() == label, log_z**2)
      )

  def following(start, targets):
    return {start + i: int(t) for i, t in enumerate(targets)}

  for i in range(8):
    fields = batch["t2i"]
    prompt = without_pads(fields["prompt"][i])
    d = discrete(fields["image"][i])
    note("image", embedded([*prompt, *d]),
         following(len(prompt) - 1, [*d, TURN]))  # fmt: skip
    fields = batch["i2t"]
    d = discrete(fields["codes"][i])
    c = features.x[i][features.valid[i]][None]
    head, question = [BOS, *d[:-1], SEP], without_pads(fields["prefix"][i])
    answer = without_pads(fields["suffix"][i])
    x = [embedded(head), c, embedded([EOI, *question, *answer[:-1]])]
    x = np.concatenate(x, axis=1)
    note("image", x, {len(head) - 2: SEP})
    note("text", x, following(x.shape[1] - len(answer), answer))
    fields = batch["text"]
    question = without_pads(fields["prefix"][i])
    answer = without_pads(fields["suffix"][i])
    note("text", embedded([*question, *answer[:-1]]),
         following(len(question) - 1, answer))  # fmt: skip
  return {k: np.array(v, float) for k, v in found.items()}


def test_the_loss_is_a_plain_cross_entropy_with_z_loss(model):
  want = plain_losses(model, model.batch)
  assert len(want["image"]) == 8 * (len(model.system.template) + 1 + 1)
  changes = dict(z_loss=0.25, text_weight=3.0)
  config = model.system.config
  loss = dataclasses.replace(config.loss, **changes)
  system = UniToken(dataclasses.replace(config, loss=loss))
  total, metrics = jax.jit(whole_loss(system))(
    model.params, {"codec": {}}, model.batch, jax.random.key(0), 0
  )
  for kind, values in want.items():
    np.testing.assert_allclose(
      metrics[f"loss_{kind}"], values[:, 0].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
      metrics[f"{kind}_accuracy"], values[:, 1].mean(), rtol=1e-5
    )
  every = np.concatenate([want["image"], want["text"]])
  weights = np.repeat([1.0, 3.0], [len(want["image"]), len(want["text"])])
  nll = (weights * every[:, 0]).sum() / weights.sum()
  np.testing.assert_allclose(total, nll + 0.25 * every[:, 2].mean(), rtol=1e-5)


def test_no_task_is_padded_to_another(model, monkeypatch):
  """What the decoder runs over is what the cost of a step says."""
  merge, seen = packing.merge, []

  def note(tasks, groups):
    seen.append([t.x.shape[:2] for t in tasks])
    return merge(tasks, groups)

  monkeypatch.setattr(packing, "merge", note)
  jax.eval_shape(
    whole_loss(model.system), model.params, {"codec": {}}, model.batch,
    jax.random.key(0), 0,
  )  # fmt: skip
  assert sorted(map(len, seen)) == [1, 1, 1]
  config = dataclasses.replace(
    model.system.config, batch={k: 8 for k in model.batch}
  )
  tokens = unitoken_config.step_cost(config).tokens
  assert tokens == sum(rows * length for ((rows, length),) in seen)


def test_sep_need_not_be_supervised(model):
  loss = dataclasses.replace(model.system.config.loss, supervise_sep=False)
  system = UniToken(dataclasses.replace(model.system.config, loss=loss))
  n = 8 * (len(system.template) + 1)
  assert system.counts(model.batch)["image_tokens"] == n
  assert model.system.counts(model.batch)["image_tokens"] == n + 8
  only = {"i2t": model.batch["i2t"]}
  _, metrics = jax.jit(whole_loss(system))(
    model.params, model.frozen, only, jax.random.key(0), 0
  )
  assert set(metrics) == {"loss_text", "text_accuracy", "z_loss"}


def test_mesh_and_accumulation_change_no_objective(model):
  batch = lopsided(world.examples(rows=16))
  assert_one_objective(model.system, model, batch, [(2, (2, 2, 2))])


def test_codes_are_told_by_the_prompt_and_earlier_codes_alone(model):
  """The states that predict a token know nothing of it or what follows."""
  s, fields = model.system, model.batch["t2i"]
  image = s.discrete(fields["image"])

  @jax.jit
  def states(prompt, image):
    packed = s.drawn(model.params, prompt, image, jnp.zeros((8, 1), bool))
    return packing.hidden_states(s.decoder, model.params, [packed])[0]

  before = states(fields["prompt"], image)
  k = 10
  changed = image.at[:, k].set(CODE + (image[:, k] - CODE + 1) % 16)
  after = states(fields["prompt"], changed)
  same = np.isclose(before, after, atol=1e-6).all((0, 2))[PROMPT:]
  assert same[:k].all() and not same[k:].any()


def test_answers_depend_on_codes_and_on_each_valid_feature(model):
  s, fields = model.system, model.batch["i2t"]

  @jax.jit
  def slope(views):
    def total(views):
      given = {**fields, "seen.views": views}
      packed = s.asked(model.params, given)
      (hidden,) = packing.hidden_states(s.decoder, model.params, [packed])
      return jnp.square(hidden[:, -1]).sum()

    return jax.grad(total)(views)

  felt = np.abs(slope(fields["seen.views"])).sum((2, 3, 4)) > 0
  for i in range(8):
    index = np.asarray(fields["seen.index"][i])
    index = index[np.asarray(fields["seen.valid"][i])]
    used = {int(j) // 4 for j in index if j < 20}
    assert set(np.flatnonzero(felt[i])) == used


# ------------------------------------------------------------------- drawing


def test_drawing_with_a_cache_is_teacher_forcing(model):
  """Also of the null branch, which is its own row without a prompt."""
  s, params, prompt = model.system, model.params, model.batch["t2i"]["prompt"]
  how = dataclasses.replace(s.config.sampling, cfg=3.0, temperature=0.7)
  codes = jax.jit(lambda k: s.draw(params, prompt, k, how))(keys(8))
  image = s.discrete(codes)

  @jax.jit
  def full(ids, valid):
    packed = packing.causal_sequence(
      s.decoder.apply(
        {"params": params["decoder"]}, jnp.maximum(ids, 0), method="embed"
      ), valid,
    )  # fmt: skip
    return s.decoder.apply(
      {"params": params["decoder"]}, packed.x, packing.positions(valid),
      block_causal_mask(packed.block, valid),
    )[0]  # fmt: skip

  ids = jnp.concatenate([prompt, image], axis=1)
  cond = full(ids, ids != PAD)[:, PROMPT:]
  null = full(image, image != PAD)
  plan = s.template
  # Slots of D count from its second: soi is given, the sizes are forced.
  for i in range(len(plan)):
    if plan[i] != PAD:
      continue
    folded = jax.vmap(lambda k, i=i: jax.random.fold_in(k, i - 1))(keys(8))
    want = jax.jit(lambda a, b, k: s.pick(params, [a, b], k, how))(
      cond[:, i - 1], null[:, i - 1], folded
    )
    np.testing.assert_array_equal(want, image[:, i], err_msg=str(i))
  assert len(np.unique(codes, axis=0)) == 8


def test_guidance_of_1_is_none_and_the_null_has_no_prompt(model):
  s, params, prompt = model.system, model.params, model.batch["t2i"]["prompt"]

  def draw(prompt, cfg):
    how = dataclasses.replace(s.config.sampling, cfg=cfg, temperature=0.5)
    return jax.jit(lambda p: s.draw(params, p, keys(8), how))(prompt)

  one = draw(prompt, 1.0)
  np.testing.assert_array_equal(one, draw(prompt, 1.0 + 1e-7))
  assert (one != draw(prompt, 3.0)).any(1).sum() > 4
  # Nothing leads away from itself.
  empty = jnp.full_like(prompt, PAD)
  np.testing.assert_array_equal(draw(empty, 1.0), draw(empty, 3.0))


def test_codes_alone_are_drawn_and_the_best_k_of_them(model):
  s, params = model.system, model.params
  states = jax.random.normal(jax.random.key(0), (2, 8, 32))
  how = dataclasses.replace(
    s.config.sampling, cfg=2.0, temperature=5.0, image_top_k=3
  )
  table = np.asarray(decoder.output_table(params["decoder"]))
  cap = s.config.model.decoder.final_softcap
  a, b = (cap * np.tanh(np.asarray(h) @ table.T / cap) for h in states)
  guided = b + 2.0 * (a - b)
  best = [set(np.argsort(row[CODE:])[-3:] + CODE) for row in guided]
  pick = jax.jit(lambda k: s.pick(params, list(states), k, how))
  seen = [set() for _ in range(8)]
  for i in range(40):
    folded = jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys(8))
    for row, code in zip(seen, pick(folded), strict=True):
      row.add(int(code))
  assert seen == best


def test_greedy_answers_equal_full_recomputation(model):
  s, params, fields = model.system, model.params, model.batch["i2t"]
  answer = jax.jit(
    lambda p: s.answer(p, {}, {"i2t": fields}, keys(8), s.config.sampling)
  )
  # The end of the turn comes where another token would.
  table = decoder.output_table(params["decoder"])
  row = 1.05 * table[answer(params)[0, 1]]
  table = {"table": table.at[TURN].set(row)}
  params = params | {"decoder": params["decoder"] | {"lm_head": table}}
  got = answer(params)
  assert (got == TURN).any() and (got[:, 1:] == PAD).any()

  @jax.jit
  def best(fed, i):
    """The likeliest id after the first i tokens of the answers."""
    packed = s.asked(params, fields, fed)
    (hidden,) = packing.hidden_states(s.decoder, params, [packed])
    start = packed.x.shape[1] - fed.shape[1] - 1
    table = decoder.output_table(params["decoder"])
    logits = decoder.logits(s.config.model.decoder, table, hidden[:, start + i])
    return jnp.argmax(logits, axis=-1)

  want = np.full((8, SUFFIX), PAD)
  done = np.zeros(8, bool)
  for i in range(SUFFIX):
    fed = jnp.asarray(want, jnp.int32)
    want[:, i] = np.where(done, PAD, best(fed, i))
    done |= want[:, i] == TURN
  np.testing.assert_array_equal(got, want)


# ------------------------------------------------------------- configuration


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(text__special=dict(bos="<s>")), "special.bos='<s>'.*reads its id"),
    (dict(text__special=dict(soi=24)), "lacks eoi, sep, line, turn"),
    (dict(model__code_offset=27), "text.special.line is id 28, which an image"),
    (dict(model__size_offset=27), "model.image_size is id 28, which text.spec"),
    (dict(model__decoder__vocab=40), "set it to 46 at least"),
    (dict(model__pinpoints=((8, 12),)), "multiples of model.vit.image_size=8"),
    (dict(data__images=2), "looks at one image"),
    (dict(model__image_size=40), "multiple of 32"),
  ],
)
def test_what_cannot_work_is_refused_with_the_fix(changes, message):
  with pytest.raises(ConfigError, match=message):
    world.tiny(**changes)


def test_prompts_begin_with_the_same_sentence():
  system = UniToken(world.tiny(model__lead="draw: "))

  class Letters:
    special = dict(bos=BOS, turn=TURN)

    def encode(self, text):
      return [ord(x) for x in text]

    def fit(self, ids, room):
      return ids[:room]

  row = system.inputs["t2i"]["prompt"].row
  assert row(Letters(), "x")[1:-1].tolist() == [ord(x) for x in "draw"]
  long = dataclasses.replace(system.inputs["t2i"]["prompt"], length=12)
  want = [PAD, PAD, PAD, BOS, *map(ord, "draw: x"), TURN]
  assert long.row(Letters(), "x").tolist() == want
  assert long.row(Letters(), None).tolist() == [PAD] * 11 + [BOS]
  assert PREFIX == system.inputs["i2t"]["prefix"].length
