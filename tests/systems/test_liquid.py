"""Liquid: rows, objective and drawing against plain computations."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import liquid_shapes
from tests.systems.conftest import right_aligned, suffixes
from tests.systems.test_accumulate import assert_one_objective, lopsided
from unifluid_jax import systems
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import PAD
from unifluid_jax.data import fields
from unifluid_jax.models import decoder
from unifluid_jax.systems import liquid_config
from unifluid_jax.systems.common import embed, packing

BOS, EOS, UNK, BOI, EOI, NULL, NEWLINE = 2, 1, 3, 24, 25, 26, 4
FIRST, K, N, V = 27, 13, 16, 43  # codes; the vocabulary has rows after them
LONG = 33  # tokens, more than any row has
CODEC = {"codec": {}}  # no pixels here: codes are what they are


def tiny(**changes):
  c = liquid_shapes.get_config()
  c.batch = dict(t2i=8, i2t=8, text=8)
  m = c.model
  m.decoder.update(
    vocab=V, width=32, depth=2, mlp=48, heads=2, kv_heads=1, head_dim=16,
    final_softcap=3.0,
  )  # fmt: skip
  m.vq.update(base=8, groups=4, stem=8, codes=K)
  m.code_offset = FIRST
  c.text.update(prompt=6, prefix=5, suffix=4)
  c.text.special = dict(boi=BOI, eoi=EOI, unconditional=NULL)
  c.loss.update(prompt_dropout=0.0, max_z=0.01, weighting="tokens")
  c.loss.update(text_weight=1.0, word_dropout=0.0)
  c.sampling.cfg = 1.0
  c.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return systems.resolve(c)


def random_params(system, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)),
    systems.init_shapes(system),
  )


def examples(rows=8, seed=0):
  """Rows as the fields make them, lengths all different."""
  rng = np.random.default_rng(seed)
  prompt = np.full((rows, 6), PAD, np.int32)
  prompt[:, 1:] = np.concatenate(
    [right_aligned(rng, rows, 4, 4), np.full((rows, 1), BOI)], axis=1
  )
  about = right_aligned(rng, rows, 5, 5)
  about[about == BOS] = EOI
  codes = rng.integers(0, K, (2, rows, N), np.int32)
  batch = {
    "t2i": {"prompt": prompt, "image": codes[0]},
    "i2t": {"codes": codes[1], "prefix": about,
            "suffix": suffixes(rng, rows, 4)},
    "text": {"prefix": right_aligned(rng, rows, 5, 3),
             "suffix": suffixes(rng, rows, 4)},
  }  # fmt: skip
  return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module")
def model():
  config = tiny()
  system = systems.build(config)
  return SimpleNamespace(
    config=config, system=system, params=random_params(system), frozen=CODEC
  )


def changed(model, **loss):
  """The same system with another objective."""
  loss = dataclasses.replace(model.config.loss, **loss)
  return systems.build(dataclasses.replace(model.config, loss=loss))


# --------------------------------------------------------------------- rows


class Words:
  """A tokenizer whose words are numbers; as data/text.Tokenizer."""

  special = {"bos": BOS, "eos": EOS, "boi": BOI, "eoi": EOI,
             "newline": NEWLINE, "user": 5, "model": 6}  # fmt: skip

  def encode(self, text):
    return [int(word) for word in text.split()]

  def fit(self, ids, room):
    return ids[:room]


CHAT = dict(model__user=("user", "newline"), model__ask=("newline",),
            model__reply=("newline", "model"))  # fmt: skip
NAMED = dict(boi=BOI, eoi=EOI, unconditional=NULL, newline=NEWLINE, user=5,
             model=6)  # fmt: skip


def rows_of(config, task, texts, codes):
  """A row of a task from its texts, through its fields and its layout."""
  system = systems.build(config)
  drawn = fields.Picture((None,), cached=codes)
  example = fields.Example(texts, {"drawn": drawn, "seen": drawn}, Words())
  declared = {
    name: dataclasses.replace(f, file=True) if hasattr(f, "file") else f
    for name, f in system.inputs[task].items()
  }
  arrays = fields.arrays(declared, example)
  arrays = {k: jnp.asarray(x)[None] for k, x in arrays.items()}
  if task == "t2i":
    return system.drawn(arrays["prompt"], arrays["image"])
  return system.said(arrays, jax.random.key(0))


CODES = [3, 0, 12, *range(13)]
IDS = [FIRST + k for k in CODES]


@pytest.mark.parametrize("task, changes, texts, row, labels", [
  ("t2i", {}, {"prompt": "7 8"}, [BOS, 7, 8, BOI, *IDS, EOI, EOS], N + 2),
  # Too long: words are lost, and neither boi nor a code.
  ("t2i", {}, {"prompt": "7 8 9 10 11"},
   [BOS, 7, 8, 9, 10, BOI, *IDS, EOI, EOS], N + 2),
  ("t2i", dict(model__endings=("9 10", "11")), {"prompt": "7 8 7"},
   [BOS, 7, 8, 9, 10, BOI, *IDS, EOI, EOS], N + 2),
  ("i2t", {}, {"prefix": "7 8", "suffix": "9 10"},
   [BOS, BOI, *IDS, EOI, 7, 8, NEWLINE, 9, 10, EOS], 3),
  ("i2t", {}, {"prefix": "7 8", "suffix": "9 10 11 12 13"},
   [BOS, BOI, *IDS, EOI, 7, 8, NEWLINE, 9, 10, 11, EOS], 4),
  ("i2t", CHAT, {"prefix": "7", "suffix": "9"},
   [BOS, 5, NEWLINE, BOI, *IDS, EOI, NEWLINE, 7, NEWLINE, 6, 9, EOS], 2),
  ("text", {}, {"prefix": "7 8", "suffix": "9"},
   [BOS, 7, 8, NEWLINE, 9, EOS], 2),
  ("text", {}, {"prefix": None, "suffix": "9 10"}, [BOS, 9, 10, EOS], 3),
  ("text", CHAT | dict(text__prefix=6), {"prefix": "7", "suffix": "9"},
   [BOS, 5, NEWLINE, 7, NEWLINE, 6, 9, EOS], 2),
  ("text", CHAT | dict(model__text_suffix=7),
   {"prefix": None, "suffix": "9 10 11 12 13 14 15"},
   [BOS, 9, 10, 11, 12, 13, 14, EOS], 7),
])  # fmt: skip
def test_rows_are_laid_out_and_labelled(task, changes, texts, row, labels):
  """`labels` last tokens of the row are predicted, each by the one before."""
  config = tiny(**changes, text__special=NAMED)
  fed, targets = rows_of(config, task, texts, np.int32(CODES))
  fed, targets = np.asarray(fed[0]), np.asarray(targets[0])
  predicted, before = targets[targets != PAD], fed[: 1 - len(targets)]
  assert [*before[before != PAD], *predicted] == row
  np.testing.assert_array_equal(predicted, row[-labels:])
  # The last tokens that are fed predict the targets, slot by slot.
  last = fed[len(fed) - len(targets) :]
  np.testing.assert_array_equal(last[1:], targets[:-1])
  assert last[0] != PAD


def test_the_null_prompt_is_a_token_of_its_own(model):
  prompt = examples()["t2i"]["prompt"]
  want = np.full((8, 6), PAD)
  want[:, -3:] = BOS, NULL, BOI
  np.testing.assert_array_equal(model.system.null(prompt), want)


# --------------------------------------------------------------------- loss


@functools.cache
def forward(system):
  """Logits of one sequence: positions 0, 1, ...; lower triangle."""

  @jax.jit
  def logits(params, ids):
    x = embed.text(system.decoder, params, ids[None])
    mask = jnp.tril(jnp.ones((1, len(ids), len(ids)), bool))
    hidden, _ = system.decoder.apply(
      {"params": params["decoder"]}, x, jnp.arange(len(ids))[None], mask
    )
    table = decoder.output_table(params["decoder"])
    return decoder.logits(system.config.model.decoder, table, hidden[0])

  return logits


def full_logits(model, row):
  """Of a whole row without pads; what is behind it changes nothing."""
  ids = np.zeros(LONG, np.int32)
  ids[: len(row)] = row
  return forward(model.system)(model.params, ids)[: len(row)]


def written_out(batch, i):
  """Row i of each task as a list, and how many of its last tokens count."""

  def words(x):
    return [int(t) for t in x[i] if t != PAD]

  t2i, i2t, text = batch["t2i"], batch["i2t"], batch["text"]
  drawn, seen = (FIRST + np.asarray(x[i])
                 for x in (t2i["image"], i2t["codes"]))  # fmt: skip
  yield "t2i", [*words(t2i["prompt"]), *drawn, EOI, EOS], N + 2
  yield (
    "i2t",
    [BOS, BOI, *seen, *words(i2t["prefix"]), *words(i2t["suffix"])],
    (len(words(i2t["suffix"]))),
  )
  yield (
    "text",
    [*words(text["prefix"]), *words(text["suffix"])],
    (len(words(text["suffix"]))),
  )


def plain_terms(model, batch):
  """(kind, nll, hit, max logit) of every predicted token, row by row."""
  for i in range(len(batch["t2i"]["prompt"])):
    for task, row, labels in written_out(batch, i):
      logits = np.float64(full_logits(model, row))
      for j in range(len(row) - labels, len(row)):
        z = logits[j - 1]
        nll = np.log(np.exp(z - z.max()).sum()) + z.max() - z[row[j]]
        kind = "image" if row[j] >= FIRST else task
        yield kind, nll, z.argmax() == row[j], z.max()


def test_the_loss_is_a_plain_cross_entropy_over_the_whole_vocabulary(model):
  batch = examples(rows=3)
  kinds, nll, hits, largest = map(
    np.array, zip(*plain_terms(model, batch), strict=True)
  )
  image, text = kinds == "image", np.isin(kinds, ("i2t", "text"))
  assert image.sum() == 3 * N and (kinds == "t2i").sum() == 6
  run = jax.jit(lambda s, p: s.loss(p, CODEC, batch, s.counts(batch),
                jax.random.key(0), 0)[:2], static_argnums=0)  # fmt: skip
  max_z = (largest[image] ** 2).mean()
  chunked = dict(vocab_chunk=5)
  for loss, want in (
    (dict(max_z=0.0), nll.mean()),
    (chunked, nll.mean() + 0.01 * max_z),
    (dict(max_z=0.0, weighting="apart", text_weight=0.3),
     nll[~text].mean() + 0.3 * nll[text].mean()),
  ):  # fmt: skip
    got, metrics = run(changed(model, **loss), model.params)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for name, value in {
      "loss_image": nll[image].mean(), "image_accuracy": hits[image].mean(),
      "loss_text": nll[text].mean(), "text_accuracy": hits[text].mean(),
      **({"max_z": max_z} if loss == chunked else {}),
    }.items():  # fmt: skip
      np.testing.assert_allclose(metrics.pop(name), value, rtol=1e-5)
    assert not metrics


def test_texts_are_scored_by_the_sum_of_their_tokens(model):
  """Nothing is dropped, whatever training drops."""
  batch = examples(rows=2)
  system = changed(model, word_dropout=0.9)
  sums = {("i2t", 0): 0, ("i2t", 1): 0, ("text", 0): 0, ("text", 1): 0}
  for i in range(2):
    for task, row, labels in written_out(batch, i):
      if task != "t2i":
        z = jax.nn.log_softmax(full_logits(model, row))
        sums[task, i] = sum(z[j - 1, row[j]] for j in range(-labels, 0))
  for task in ("i2t", "text"):
    got = system.score(model.params, CODEC, {task: batch[task]})
    np.testing.assert_allclose(got, [sums[task, 0], sums[task, 1]], rtol=1e-5)


def test_the_largest_logit_is_pulled_down_by_its_own_gradient(model):
  """d/dz of mean max(z)^2 is 2 max(z) / count at the largest logit alone."""
  batch = {"t2i": examples(rows=2)["t2i"]}

  def value(params, max_z):
    system = changed(model, max_z=max_z)
    return system.loss(params, CODEC, batch, system.counts(batch),
                       jax.random.key(0), 0)[0]  # fmt: skip

  got = jax.jit(jax.grad(lambda p: value(p, 1.0) - value(p, 0.0)))
  got = got(model.params)

  rows = []
  given = map(np.asarray, (batch["t2i"]["prompt"], batch["t2i"]["image"]))
  for prompt, codes in zip(*given, strict=True):
    start = prompt[prompt != PAD]
    rows.append((len(start), [*start, *(FIRST + codes[:-1])]))

  def plain(params):
    total = 0.0
    for start, row in rows:
      z = forward(model.system)(params, np.int32(row))[start - 1 :]
      top = jax.lax.stop_gradient(jnp.argmax(z, axis=-1))
      total += jnp.square(jnp.take_along_axis(z, top[:, None], -1)).sum()
    return total / (2 * N)

  want = jax.jit(jax.grad(plain))(model.params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
    got, want,
  )  # fmt: skip


def test_dropped_prompts_train_the_null_prompt(model):
  """A share of the rows, each whole; with a rate of 1 all of them."""
  batch = {"t2i": examples(rows=8)["t2i"]}
  null = {"t2i": batch["t2i"] | {"prompt": model.system.null(
    batch["t2i"]["prompt"])}}  # fmt: skip

  def of(dropout, batch):
    system = changed(model, prompt_dropout=dropout)
    return jax.jit(lambda key: system.loss(
      model.params, CODEC, batch, system.counts(batch), key, 0)[0])  # fmt: skip

  key = jax.random.key(0)
  none, all_null = of(0.0, batch)(key), of(0.0, null)(key)
  np.testing.assert_allclose(of(1.0, batch)(key), all_null, rtol=1e-6)
  assert abs(all_null - none) > 1e-3
  some = jax.vmap(of(0.4, batch))(jax.random.split(key, 200))
  assert min(none, all_null) < some.mean() < max(none, all_null)
  share = (some.mean() - none) / (all_null - none)
  assert abs(share - 0.4) < 0.1


def test_lost_words_of_answers_are_unknown_but_still_predicted(model):
  system = changed(model, word_dropout=0.5)
  given = examples(rows=8)["i2t"]
  fed, targets = system.said(given, jax.random.key(0))
  plain, _ = model.system.said(given, jax.random.key(0))
  np.testing.assert_array_equal(targets, given["suffix"])
  words = given["suffix"][:, :-1] != PAD
  lost = fed != plain
  assert (fed[lost] == UNK).all() and not lost[:, : -words.shape[1]].any()
  assert 0.2 < lost.sum() / words.sum() < 0.8


def test_nothing_sees_what_comes_after_it(model):
  """Another code changes what predicts the codes behind it, and no other."""
  given = examples(rows=1)["t2i"]
  other = given["image"].at[0, 7].set((given["image"][0, 7] + 1) % K)

  @jax.jit
  def states(codes):
    fed = model.system.drawn(given["prompt"], codes).fed
    packed = model.system._sequence(model.params, fed)
    return packing.hidden_states(
      model.system.decoder, model.params, [packed])[0][0, -N - 2 :]  # fmt: skip

  moved = np.abs(states(given["image"]) - states(other)).max(axis=1)
  # State i predicts code i: it has seen the codes before it.
  assert (moved[:8] == 0).all() and (moved[8:] > 0).all()


def test_mesh_and_accumulation_change_no_objective(model):
  assert_one_objective(
    model.system, model, lopsided(examples()), [(2, (2, 2, 2))]
  )


def test_means_apart_add_up_over_parts_of_a_batch(model):
  system = changed(model, weighting="apart", text_weight=0.5)
  batch = lopsided(examples())
  counts = system.counts(batch)
  run = jax.jit(lambda part: system.loss(
    model.params, CODEC, part, counts, jax.random.key(0), 0)[:2])  # fmt: skip
  first, rest = (
    jax.tree.map(lambda x, s=part: x[s], batch)
    for part in (slice(0, 3), slice(3, 8))
  )
  total = jax.tree.map(jnp.add, run(first), run(rest))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), total, run(batch)
  )


def test_runs_without_images_or_texts_have_no_terms_of_them(model):
  batch = examples(rows=2)
  for tasks, names in (
    (("t2i",), {"loss_image", "image_accuracy", "max_z"}),
    (("i2t", "text"), {"loss_text", "text_accuracy"}),
  ):
    part = {task: batch[task] for task in tasks}
    system = changed(model)
    loss, metrics, _ = jax.eval_shape(lambda s=system, b=part: s.loss(
      model.params, CODEC, b, s.counts(b), jax.random.key(0), 0))  # fmt: skip
    assert set(metrics) == names and loss.shape == ()
  alone = tiny(batch=dict(t2i=0, i2t=0, text=8))
  assert systems.build(alone).frozen == {}
  assert systems.build(tiny()).frozen["codec"].exact


# ------------------------------------------------------------- configuration


@pytest.mark.parametrize("changes, message", [
  (dict(model__decoder__vocab=39), "vocab=39 has no room for 13 codes after "
   "model.code_offset=27: set it to 40"),
  (dict(text__special=dict(boi=24, eoi=25)), "text.special.unconditional is "
   "missing"),
  (dict(text__special=dict(bos="<s>", boi=24, eoi=25, unconditional=26)),
   "text.special.bos='<s>'.*reads its id"),
  (dict(text__special=dict(boi=24, eoi=24, unconditional=26)),
   "text.special.eoi=24 has another role too"),
  (dict(text__special=dict(boi=27, eoi=25, unconditional=26)),
   "text.special.boi=27 is an image code's id"),
  (dict(model__user=("start",)), "text.special.start is missing"),
  (dict(loss__text_weight=0.5), "needs loss.weighting='apart'"),
  (dict(sampling__cfg=2.0), "set loss.prompt_dropout > 0"),
  (dict(model__image_size=36), "must be a multiple of 8"),
  (dict(text__prompt=2), "no room for the null prompt, BOS, UNCONDITIONAL and"),
  (dict(data__images=2), "data.images=2: this system looks at one image"),
])  # fmt: skip
def test_what_cannot_work_is_refused_with_the_fix(changes, message):
  with pytest.raises(ConfigError, match=message):
    tiny(**changes)


def test_tokenizers_have_the_rows_before_the_control_tokens():
  assert liquid_config.text_rows(tiny()) == 24
  # Within the tokenizer's own rows they are pieces that no text uses.
  inside = dict(boi=7, eoi=8, unconditional=9)
  assert liquid_config.text_rows(tiny(text__special=inside)) == FIRST


def test_guidance_needs_a_null_prompt_that_was_trained():
  config = tiny()
  with pytest.raises(ValueError, match="use cfg=1"):
    liquid_config.check_sampling(
      config, dataclasses.replace(config.sampling, cfg=2.0), "t2i"
    )


def test_a_step_costs_what_its_rows_cost():
  """Tokens by hand: fed tokens of each task, pads of other tasks left out."""
  cost = systems.build(tiny(model__text_suffix=9)).cost()
  t2i, i2t, text = 6 + N + 1, 2 + N + 5 + 3, 5 + 8
  assert cost.tokens == 8 * (t2i + i2t + text)
  body = 2 * (32 * 16 * (2 * 2 + 2) + 3 * 32 * 48)
  attention = 2 * 2 * 2 * 16
  flops = sum(n * 2 * (body + attention * n) for n in (t2i, i2t, text))
  flops += 2 * (N + 2 + 4 + 9) * 32 * V
  np.testing.assert_allclose(cost.flops, 3 * 8 * flops)
