"""VARGPT: rows, masks, objective and drawing against plain computations."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems import vargpt_tiny as vg
from tests.systems.test_accumulate import assert_one_objective
from tests.systems.vargpt_tiny import BOI, BOS, EOI, EOS, NEWLINE, N
from unifluid_jax import systems
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import PAD
from unifluid_jax.models import decoder
from unifluid_jax.systems import vargpt_config
from unifluid_jax.systems.common import embed, packing

LONG = 52  # tokens, more than any row has
LEVEL = np.repeat([0, 1, 2], [1, 4, 9])  # of each slot, by hand
GEN = ("in_projector", "out_projector", "visual_decoder")


@pytest.fixture(scope="module")
def model():
  config = vg.tiny()
  system = systems.build(config)
  params = vg.filled(systems.init_shapes(system))
  frozen = vg.filled(systems.frozen_shapes(system), seed=1)
  return SimpleNamespace(
    config=config, system=system, params=params, frozen=frozen
  )


@pytest.fixture(scope="module")
def batch(model):
  return vg.examples(model.system, rows=4)


@pytest.fixture(scope="module")
def reference(model):
  return Reference(model)


def changed(model, **changes):
  """The same system with other settings of `model` or of `loss`."""
  c = model.config
  own = {f.name for f in dataclasses.fields(c.loss)}
  loss = {k: v for k, v in changes.items() if k in own}
  rest = {k: v for k, v in changes.items() if k not in own}
  return systems.build(dataclasses.replace(
    c, loss=dataclasses.replace(c.loss, **loss),
    model=dataclasses.replace(c.model, **rest),
  ))  # fmt: skip


# ---------------------------------------------------------------- references


def item_rows(batch, task, i):
  """Row i without pads: items ("id", id), ("slot", k, j), ("seen", k, f).

  And for each item whether it is predicted.
  """
  of = {k: np.asarray(x[i]) for k, x in batch[task].items()}

  def ids(row, learned=False):
    return [(("id", int(t)), learned) for t in row if t != PAD]

  if task == "t2i":
    slots = [(("slot", 0, j), True) for j in range(N)]
    *prompt, boi = ids(of["prompt"])
    return [*prompt, (boi[0], True), *slots, *ids([EOI, EOS], True)]
  if task == "dialogue":
    row = []
    for t in range(vg.TURNS):
      learned = bool(of["row.target"][t])
      if of["row.cell"][t] >= 0:
        row.append((("slot", *divmod(of["row.cell"][t], N)), learned))
      elif of["row.feature"][t] >= 0:
        where = divmod(of["row.feature"][t], vg.SEEN)
        row.append((("seen", *where), learned))
      else:
        row += ids(of["row.ids"][t : t + 1], learned)
    return row
  seen = [(("seen", 0, f), False) for f in range(vg.SEEN)]
  start = [*ids([BOS]), *seen] if task == "i2t" else []
  return [*start, *ids(of["prefix"]), *ids(of["suffix"], True)]


class Reference:
  """Whole rows one by one: positions 0, 1, ..., masks from a plain rule."""

  def __init__(self, model):
    s, params, frozen = model.system, model.params, model.frozen

    @jax.jit
    def text(x, mask):
      hidden, _ = s.decoder.apply(
        {"params": params["decoder"]}, x[None], jnp.arange(LONG)[None],
        mask[None],
      )  # fmt: skip
      table = decoder.output_table(params["decoder"])
      return hidden[0], decoder.logits(s.config.model.decoder, table, hidden[0])

    self.text = text
    self.embedded = jax.jit(lambda ids: embed.text(s.decoder, params, ids))
    self.whole = jax.jit(lambda codes: s.drawing.whole(params, frozen, codes))
    self.features = jax.jit(lambda views: s.features(params, views))
    self.codes = jax.jit(lambda x: s.drawing.logits(params, x[None])[0][0])

  def run(self, items, codes, views, slots="block_causal"):
    """Hidden states and logits of the vocabulary, position by position."""
    x = np.zeros((LONG, 32), np.float32)
    drawn = np.asarray(self.whole(codes)) if len(codes) else None
    seen = np.asarray(self.features(views)) if len(views) else None
    ids = [item[1] if item[0] == "id" else 0 for item in items]
    ids = np.asarray(ids + [0] * (LONG - len(ids)), np.int32)
    words = np.asarray(self.embedded(ids[None]))[0]
    for t, item in enumerate(items):
      kind = item[0]
      x[t] = (words[t] if kind == "id" else
              drawn[item[1], item[2]] if kind == "slot" else
              seen.reshape(-1, vg.SEEN, 32)[item[1], item[2]])  # fmt: skip
    mask = np.tril(np.ones((LONG, LONG), bool))
    for a, one in enumerate(items):
      for b, other in enumerate(items):
        if slots == "block_causal" and one[0] == other[0] == "slot":
          same_image = one[1] == other[1]
          mask[a, b] |= same_image and LEVEL[one[2]] == LEVEL[other[2]]
    return self.text(jnp.asarray(x), jnp.asarray(mask))

  def losses(self, row, codes, views, slots):
    """(kind, nll, hit, scale's level) of all that a row predicts."""
    items = [item for item, _ in row]
    hidden, logits = self.run(items, codes, views, slots)
    log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    found = []
    for t, (item, learned) in enumerate(row):
      if item[0] == "id" and learned:
        kind = "end" if item[1] in (BOI, EOI) else "text"
        right = log_p[t - 1].argmax() == item[1]
        found.append((kind, -log_p[t - 1, item[1]], right, 0))
    for k in sorted({i[1] for i, learned in row if i[0] == "slot" and learned}):
      where = [t for t, i in enumerate(items) if i[:2] == ("slot", k)]
      of_codes = self.codes(hidden[np.asarray(where)])
      of_codes = np.asarray(jax.nn.log_softmax(of_codes, axis=-1))
      for j in range(N):
        code = int(codes[k, j])
        right = of_codes[j].argmax() == code
        found.append(("image", -of_codes[j, code], right, LEVEL[j]))
    return found


def given_of(batch, task, i):
  """Codes [M, N] and views [M', H, W, 3] of row i."""
  of = batch[task]
  if task == "dialogue":
    return of["row.codes"][i], of["row.views"][i]
  return of["image"][i : i + 1] if task == "t2i" else (), (
    of["seen"][i : i + 1] if task == "i2t" else ()
  )


# --------------------------------------------------------------------- loss


@pytest.mark.parametrize("slots, weights, dropout, tasks", [
  ("block_causal", "equal", 0.0, ("t2i", "i2t", "text", "dialogue")),
  ("causal", "inverse_side", 1 - 1e-9, ("t2i",)),
])  # fmt: skip
def test_the_loss_is_that_of_plain_rows(
  model, batch, reference, slots, weights, dropout, tasks
):
  """Answers, what begins and ends images, and codes; each counts once.

  Of a prompt that is dropped bos and boi are left, and boi is not learned.
  """
  terms = []
  for task in tasks:
    for i in range(3):
      row = item_rows(batch, task, i)
      if dropout:
        boi = [item for item, _ in row].index(("id", BOI))
        row = [(("id", BOS), False), *row[boi:]]
      found = reference.losses(row, *given_of(batch, task, i), slots)
      if task == "t2i":  # EOS ends an image there
        kinds = [k for k, *_ in found]
        assert kinds == ["end", "end", "text"] + ["image"] * N
        found[2] = ("end", *found[2][1:])
      terms += found
  kinds, nll, hits, level = map(np.asarray, zip(*terms, strict=True))
  image, text = kinds == "image", kinds == "text"
  weight = np.ones(N)
  if weights == "inverse_side":
    weight = 1 / np.asarray([1.0, 2.0, 3.0])[LEVEL]
    weight /= weight.mean()
    weight = weight[np.asarray([0, 1, 5])]  # by level
  scale = weight[:3][level[image]]
  of_null = np.zeros(len(nll), bool)
  if dropout:  # the loss of boi is left out, its count is not
    of_null = np.arange(len(nll)) % (3 + N) == 0
    assert (kinds[of_null] == "end").all()
  want = nll[~image & ~of_null].sum() / (~image).sum()
  want += 0.5 * (nll[image] * scale).mean()
  system = changed(
    model, slots=slots, scale_weights=weights, prompt_dropout=dropout
  )
  part = jax.tree.map(lambda x: x[:3], {task: batch[task] for task in tasks})
  counts = system.counts(part)
  assert [int(counts[f"{k}_tokens"]) for k in ("image", "end", "text")] == [
    image.sum(), (kinds == "end").sum(), text.sum()
  ]  # fmt: skip
  key = jax.random.key(0)
  run = jax.jit(lambda counts: system.loss(
    model.params, model.frozen, part, counts, key, 0))  # fmt: skip
  got, metrics, _ = run(counts)
  # A part of a batch is divided by the counts of all.
  half, _, _ = run({kind: 2 * n for kind, n in counts.items()})
  np.testing.assert_allclose(2 * half, got, rtol=1e-6)
  np.testing.assert_allclose(got, want, rtol=2e-5)
  for name, mask in (("image", image), ("text", text)):
    if not mask.any():
      assert f"loss_{name}" not in metrics
      continue
    np.testing.assert_allclose(metrics[f"loss_{name}"], nll[mask].mean(), 2e-5)
    np.testing.assert_allclose(metrics[f"{name}_accuracy"], hits[mask].mean())


def test_a_task_depends_only_on_the_networks_it_uses(model, batch):
  """So that understanding trains nothing that draws, and the reverse."""
  system, parts = model.system, ("decoder", "encoder", "projector", *GEN)
  used = {"i2t": parts[:3], "t2i": ("decoder", *GEN)}
  for task, names in used.items():
    part = {task: batch[task]}
    loss = jax.jit(lambda p, part=part: system.loss(
      p, model.frozen, part, system.counts(part), jax.random.key(0), 0
    )[0])  # fmt: skip
    plain = loss(model.params)
    for name in parts:
      other = jax.tree.map(lambda x: 1.5 * x, model.params[name])
      moved = loss(model.params | {name: other})
      assert (moved != plain) == (name in names), (task, name)


@pytest.mark.parametrize("slots", ["block_causal", "causal"])
def test_a_code_depends_on_the_prompt_and_on_coarser_scales(
  model, batch, slots
):
  system = changed(model, slots=slots)
  prompt, codes = batch["t2i"]["prompt"][:1], batch["t2i"]["image"][:1]

  @jax.jit
  def logits(prompt, codes):
    rows = system.drawn(
      model.params, model.frozen, prompt, codes, jnp.zeros((1, 1), bool)
    )
    (states,) = packing.hidden_states(
      system.decoder, model.params, [rows.packed]
    )
    states = states[:, vg.PROMPT : vg.PROMPT + N]
    return system.drawing.logits(model.params, states)[0][0]

  plain = logits(prompt, codes)
  other = jnp.where(prompt == NEWLINE, 5, prompt)
  assert (np.abs(logits(other, codes) - plain).max(axis=1) > 1e-6).all()
  for j in (0, 2, 9):
    moved = logits(prompt, codes.at[0, j].set((codes[0, j] + 1) % vg.CODES))
    moved = np.abs(moved - plain).max(axis=1)
    assert (moved[LEVEL <= LEVEL[j]] == 0).all()
    assert (moved[LEVEL > LEVEL[j]] > 1e-7).all()


def test_dropped_prompts_are_null_and_do_not_predict_boi(model, batch):
  part = {"t2i": batch["t2i"]}
  prompt = np.full((4, vg.PROMPT), PAD, np.int32)
  prompt[:, -2:] = BOS, BOI

  @jax.jit
  def rows(prompt, drop):
    made = model.system.drawn(
      model.params, model.frozen, prompt, part["t2i"]["image"], drop[:, None]
    )
    return made.packed, made.targets

  given, no = part["t2i"]["prompt"], np.zeros(4, bool)
  some, targets = rows(given, np.array([True, False, True, False]))
  null, full = rows(prompt, no)[0], rows(given, no)[0]
  for got, a, b in zip(some, null, full, strict=True):
    np.testing.assert_array_equal(got[::2], a[::2])
    np.testing.assert_array_equal(got[1::2], b[1::2])
  assert targets.tolist() == [[PAD, EOI, EOS], [BOI, EOI, EOS]] * 2


def test_mesh_and_accumulation_change_no_objective():
  config = vg.tiny(
    model__decoder__depth=1, model__visual_decoder__depth=1,
    batch=dict(t2i=8, i2t=0, text=0, dialogue=0),
  )  # fmt: skip
  system = systems.build(config)
  model = SimpleNamespace(
    params=vg.filled(systems.init_shapes(system)),
    frozen=vg.filled(systems.frozen_shapes(system), seed=1),
  )
  whole = {"t2i": vg.examples(system)["t2i"]}
  assert_one_objective(system, model, whole, [(2, (2, 2, 2))])


# ------------------------------------------------------------------- decode


@pytest.mark.parametrize("slots, null, task", [
  ("block_causal", "prompt", "dialogue"),
  ("causal", "noise", "t2i"),
])  # fmt: skip
def test_drawing_with_caches_is_full_recomputation(
  model, batch, reference, slots, null, task
):
  """Every scale is the argmax of guided logits of whole rows."""
  system = changed(model, slots=slots, null=null)
  keys, cfg = jax.vmap(jax.random.key)(jnp.arange(2)), 2.0
  how = dataclasses.replace(model.config.sampling, cfg=cfg, image_top_k=1)
  fields = {"prompt": batch["t2i"]["prompt"][:2]}
  if task == "dialogue":
    fields = vg.dialogue_rows(system, [0, 2], prompt=True, cut=1)
    fields = jax.tree.map(jnp.asarray, fields)
  draw = system.draw
  system.draw = lambda *given: SimpleNamespace(latent=draw(*given).codes)
  system.codec = SimpleNamespace(  # an image shows its codes
    image=lambda _, x: jnp.float32(x).reshape(-1, N, 1, 1).repeat(3, axis=-1)
  )
  images = jax.jit(lambda: system.generate(
    model.params, model.frozen, {task: fields}, keys, how))()  # fmt: skip
  codes = jnp.int32(images[:, :, 0, 0])
  for i in range(2):
    row, views = [("id", int(t)) for t in fields.get("prompt", [[]] * 2)[i]
                  if t != PAD], ()  # fmt: skip
    if task == "dialogue":
      row = [item for item, _ in item_rows({task: fields}, task, i)]
      row, views = [*row, ("id", BOI)], fields["row.views"][i]
    m = len({k for kind, k, *_ in row if kind == "slot"})
    before = [fields["row.codes"][i, k] for k in range(m)]
    image = [("slot", m, j) for j in range(N)]
    states, _ = reference.run(
      [*row, *image], jnp.stack([*before, codes[i]]), views, slots
    )
    given = np.asarray(reference.codes(states[len(row) : len(row) + N]))
    if null == "prompt":
      alone = [("id", BOS), ("id", BOI), *(("slot", 0, j) for j in range(N))]
      states = reference.run(alone, codes[i : i + 1], (), slots)[0][2 : 2 + N]
    else:
      states = jnp.concatenate([
        jax.random.normal(jax.random.fold_in(keys[i], 3 + k), (n, 32))
        for k, n in enumerate((1, 4, 9))
      ])  # fmt: skip
    t = cfg * LEVEL[:, None] / 2
    guided = (1 + t) * given - t * np.asarray(reference.codes(states))
    np.testing.assert_array_equal(codes[i], guided.argmax(axis=1))
    assert len(set(codes[i].tolist())) > 3
  assert (codes[0] != codes[1]).any()


@pytest.fixture(scope="module")
def shallow():
  """One whose codes the text model alone decides."""
  system = systems.build(
    vg.tiny(model__visual_decoder__depth=0, model__decoder__depth=1)
  )
  return SimpleNamespace(
    system=system, params=vg.filled(systems.init_shapes(system)),
    frozen=vg.filled(systems.frozen_shapes(system), seed=1),
    prompt=jnp.asarray(vg.examples(system, rows=2)["t2i"]["prompt"]),
  )  # fmt: skip


def asked(model, **how):
  """What two images are drawn of."""
  sampling = dataclasses.replace(model.system.config.sampling, cfg=0.0, **how)
  keys = jax.vmap(jax.random.key)(jnp.arange(2))
  prompts = {"t2i": {"prompt": model.prompt}}
  return model.params, model.frozen, prompts, keys, sampling


def test_stages_are_images_of_the_sums_of_the_first_scales(shallow):
  s, frozen = shallow.system, shallow.frozen["codec"]
  given = asked(shallow)
  run = jax.jit(lambda: (s.stages(*given, 9), s.draw(*given).codes))
  stages, codes = run()
  assert stages.shape == (2, 3, 24, 24, 3)
  image, f_hat = jax.jit(s.codec.image), s.codec.empty(2)
  for k, part in enumerate(np.split(codes, [1, 5], axis=1)):
    f_hat = s.codec.add(frozen, f_hat, k, jnp.asarray(part))
    want = image(frozen, f_hat)
    np.testing.assert_allclose(stages[:, k], want, atol=1e-5)


def test_the_last_stage_is_generation_bit_by_bit(shallow):
  """In programs of their own; codes are smoothed, and one stage left out."""
  given = asked(shallow, smooth=True)
  stages = jax.jit(lambda: shallow.system.stages(*given, 2))()
  whole = jax.jit(lambda: shallow.system.generate(*given))()
  assert stages.shape == (2, 2, 24, 24, 3)
  np.testing.assert_array_equal(stages[:, -1], whole)


def test_without_layers_of_its_own_the_decoder_leaves_codes_to_the_text_model(
  shallow,
):
  """Greedy drawing is the argmax of whole rows; no code knows its own scale."""
  system, params, frozen = shallow.system, shallow.params, shallow.frozen
  assert "layers" not in params["visual_decoder"]

  @jax.jit
  def logits(codes):
    drop = jnp.zeros((2, 1), bool)
    rows = system.drawn(params, frozen, shallow.prompt, codes, drop)
    (states,) = packing.hidden_states(system.decoder, params, [rows.packed])
    states = states[:, vg.PROMPT : vg.PROMPT + N]
    return system.drawing.logits(params, states)[0]

  given = asked(shallow, image_top_k=1)
  codes = jax.jit(lambda: system.draw(*given).codes)()
  whole = logits(codes)
  np.testing.assert_array_equal(codes, whole.argmax(axis=-1))
  moved = logits(codes.at[:, 2].set((codes[:, 2] + 1) % vg.CODES)) - whole
  moved = np.abs(moved).max(axis=(0, 2))
  assert (moved[LEVEL <= 1] == 0).all() and (moved[LEVEL > 1] > 1e-7).all()


@pytest.mark.parametrize("slots", ["block_causal", "causal"])
def test_slots_see_the_prompt_their_scale_and_those_before(model, slots):
  """In a cache, whose later slots hold nothing yet."""
  drawing = changed(model, slots=slots).drawing
  prompt = jnp.asarray([[False, True], [True, True]])
  for k in range(3):
    where = np.flatnonzero(LEVEL == k)
    got = drawing._mask(prompt, slice(where[0], where[-1] + 1))
    for row, valid in zip(got, prompt, strict=True):
      for i, seen in zip(where, row, strict=True):
        last = where[-1] if slots == "block_causal" else i
        assert seen.tolist() == [*valid.tolist(), *(np.arange(N) <= last)]


def test_an_answer_ends_where_an_image_begins(model):
  """Greedy, against whole rows; BOI takes the place of a frequent answer."""
  reference = Reference(model)
  arrays = vg.dialogue_rows(model.system, range(4), prompt=True, cut=1)
  arrays = jax.tree.map(jnp.asarray, arrays)
  keys = jax.vmap(jax.random.key)(jnp.arange(4))
  said = np.asarray(jax.jit(lambda: model.system.answer(
    model.params, model.frozen, {"dialogue": arrays}, keys,
    model.config.sampling))())  # fmt: skip
  for i in range(4):
    row = [item for item, _ in item_rows({"dialogue": arrays}, "dialogue", i)]
    want = []
    while len(want) < vg.SUFFIX and not {EOS, BOI} & set(want):
      items = [*row, *(("id", t) for t in want)]
      _, logits = reference.run(
        items, arrays["row.codes"][i], arrays["row.views"][i]
      )
      want.append(int(logits[len(items) - 1].argmax()))
    assert said[i].tolist() == want + [PAD] * (vg.SUFFIX - len(want))


# ------------------------------------------------------------- configuration


@pytest.mark.parametrize("changes, message", [
  (dict(model__visual_decoder__codes=12), "visual_decoder.codes=12 must be"),
  (dict(model__visual_decoder__classes=3), "classes=3: an image has one"),
  (dict(text__special=dict(boi=24, newline=4)), "text.special.eoi is missing"),
  (dict(text__special=dict(boi=24, eoi=24, newline=4)),
   "text.special.eoi=24 has another role too"),
  (dict(text__special=dict(boi=24, eoi=26, newline=4)), "an id below"),
  (dict(model__null="noise", loss__prompt_dropout=0.1), "never uses"),
  (dict(sampling__cfg=2.0), "needs a null condition"),
  (dict(text__prompt=1), "no room for the null prompt, BOS and BOI"),
  (dict(text__dialogue=17), r"text.dialogue=17 has no room .* use >= 18"),
  (dict(data__images=2), "looks at one image"),
])  # fmt: skip
def test_what_cannot_work_is_refused_with_the_fix(changes, message):
  with pytest.raises(ConfigError, match=message):
    vg.tiny(**changes)


def test_guidance_needs_a_null_condition_that_was_trained():
  for null, refused in (("prompt", True), ("noise", False)):
    config = vg.tiny(model__null=null)
    how = dataclasses.replace(config.sampling, cfg=2.0)
    if refused:
      with pytest.raises(ValueError, match="use cfg=0"):
        vargpt_config.check_guidance(config, how, "t2i")
    else:
      vargpt_config.check_guidance(config, how, "t2i")


def test_runs_on_texts_alone_need_no_codec():
  alone = vg.tiny(batch=dict(t2i=0, i2t=0, text=8, dialogue=0))
  assert systems.build(alone).frozen == {}
  assert systems.build(vg.tiny()).frozen["codec"].exact
  assert vargpt_config.text_rows(alone) == 24


def test_a_step_costs_what_its_rows_cost():
  """Tokens by hand: fed tokens of each task, pads of other tasks left out."""
  cost = systems.build(vg.tiny()).cost()
  t2i, i2t = vg.PROMPT + N + 1, 1 + vg.SEEN + vg.PREFIX + vg.SUFFIX - 1
  text, turns = vg.PREFIX + vg.SUFFIX - 1, vg.TURNS - 1
  assert cost.tokens == 8 * (t2i + i2t + text + turns)
