"""Liquid on rows of texts and images, against plain computations."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems import test_liquid as liquid
from tests.systems.test_liquid import BOI, EOI, EOS, FIRST, NEWLINE, N
from unifluid_jax import systems
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import PAD
from unifluid_jax.data import fields
from unifluid_jax.data.records import Turn
from unifluid_jax.models import decoder
from unifluid_jax.systems.common import embed

T = 42
MEAN = dict(weighting="tokens", text_weight=1.0)
CODEC = {"codec": {}}  # no pixels here: codes are what they are
BLANK = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
  config = liquid.tiny(text__dialogue=T)
  system = systems.build(config)
  params = liquid.random_params(system)
  return SimpleNamespace(
    config=config, system=system, params=params, frozen=CODEC
  )


def turns(i):
  """Five dialogues: (text, or None for an image; whether it is learned)."""
  return [
    [(None, False), ("7", True), (None, False), ("8 9", True)],
    [("7", False), (None, True), ("8", False), (None, True)],
    [("7 8", True), ("9", True), (None, True)],
    [(None, True), ("7 8", False)],
    [("7", False), ("8", True)],
  ][i % 5]


def rows(system, chosen, prompt=False, cut=0):
  """The arrays of dialogues, and their rows spelt with codes 100 + cell."""
  field = system.inputs["dialogue"]["row"]
  field = field.as_prompt() if prompt else field
  made = []
  for i in chosen:
    said = [Turn(text or "", BLANK if text is None else None, learned)
            for text, learned in turns(i)]  # fmt: skip
    said = tuple(said[: len(said) - cut])
    example = fields.Example({}, {}, liquid.Words(), turns=said)
    made.append(fields.arrays({"row": field}, example))
  arrays = {name: np.stack([m[name] for m in made]) for name in made[0]}
  del arrays["row.codes.pixels"]
  codes = np.random.default_rng(1).integers(0, liquid.K, (len(made), 2, N))
  arrays["row.codes"] = np.int32(codes)
  return jax.tree.map(jnp.asarray, arrays)


def written_out(arrays, i):
  """Row i as ids, and which of them count, position by position."""
  of = {k: np.asarray(x[i]) for k, x in arrays.items()}
  flat = of["row.codes"].ravel()
  row, counted = [], []
  for id_, cell, target in zip(
    of["row.ids"], of["row.cell"], of["row.target"], strict=True
  ):
    if cell >= 0 or id_ != PAD:
      row.append(int(FIRST + flat[cell] if cell >= 0 else id_))
      counted.append(bool(target))
  return row, counted


def logits_of(model, row, params=None):
  """Of a row: lower triangle, positions 0, 1, ..."""

  @jax.jit
  def run(params, ids):
    x = embed.text(model.system.decoder, params, ids[None])
    mask = jnp.tril(jnp.ones((1, T, T), bool))
    hidden, _ = model.system.decoder.apply(
      {"params": params["decoder"]}, x, jnp.arange(T)[None], mask
    )
    table = decoder.output_table(params["decoder"])
    return decoder.logits(model.config.model.decoder, table, hidden[0])

  if not hasattr(model, "run"):
    model.run = run
  ids = np.zeros(T, np.int32)
  ids[: len(row)] = row
  return np.float64(model.run(params or model.params, ids))[: len(row)]


def test_rows_hold_texts_and_images_in_their_order(model):
  arrays = rows(model.system, range(5))
  fed, targets = model.system.interleaved(arrays)
  codes = FIRST + np.asarray(arrays["row.codes"])
  want = [2, BOI, *codes[0, 0], EOI, 7, BOI, *codes[0, 1], EOI, 8, 9, EOS]
  whole = [*np.asarray(fed[0]), targets[0, -1]]
  assert [t for t in whole if t != PAD] == want
  predicted = np.asarray(targets)
  assert predicted[0][predicted[0] != PAD].tolist() == [7, BOI, 8, 9, EOS]
  want = [BOI, *codes[1, 0], EOI, BOI, *codes[1, 1], EOI, EOS]
  assert predicted[1][predicted[1] != PAD].tolist() == want
  want = [7, 8, NEWLINE, 9, BOI, *codes[2, 0], EOI, EOS]
  assert predicted[2][predicted[2] != PAD].tolist() == want
  for i in range(5):
    row, counted = written_out(arrays, i)
    at = np.flatnonzero(predicted[i] != PAD) + 1
    assert at.tolist() == np.flatnonzero(counted).tolist()


@pytest.mark.parametrize("loss", [
  dict(max_z=0.01, vocab_chunk=5, **MEAN),
  dict(max_z=0.0, weighting="apart", text_weight=0.3),
])  # fmt: skip
def test_the_loss_is_the_plain_cross_entropy_of_what_counts(model, loss):
  """Beside pairs, one mean over the codes, the ends and the words of both."""
  arrays = rows(model.system, range(5))
  pairs = {"t2i": liquid.examples(rows=2)["t2i"]}
  terms = []
  for i in range(5):
    row, counted = written_out(arrays, i)
    z = logits_of(model, row)
    for j in np.flatnonzero(counted):
      log_sum = np.log(np.exp(z[j - 1] - z[j - 1].max()).sum())
      nll = log_sum + z[j - 1].max() - z[j - 1][row[j]]
      kind = "image" if row[j] >= FIRST else "text"
      kind = "end" if row[j] in (BOI, EOI) else kind
      terms.append((kind, nll, z[j - 1].max()))
  for i in range(2):
    row = list(liquid.written_out(liquid.examples(rows=2), i))[0][1]
    z = logits_of(model, row)
    for j in range(len(row) - N - 2, len(row)):
      log_sum = np.log(np.exp(z[j - 1] - z[j - 1].max()).sum())
      nll = log_sum + z[j - 1].max() - z[j - 1][row[j]]
      kind = "image" if row[j] >= FIRST else "end"
      terms.append((kind, nll, z[j - 1].max()))
  kinds, nll, largest = map(np.array, zip(*terms, strict=True))
  text = kinds == "text"
  want = nll.mean()
  if loss["weighting"] == "apart":
    want = nll[~text].mean() + 0.3 * nll[text].mean()
  image = kinds == "image"
  want += loss["max_z"] * (largest[image] ** 2).mean()
  system = liquid.changed(model, **loss)
  batch = pairs | {"dialogue": arrays}
  counts = system.counts(batch)
  assert [int(counts[f"{k}_tokens"]) for k in ("image", "end", "text")] == [
    image.sum(), (kinds == "end").sum(), text.sum()
  ]  # fmt: skip
  run = jax.jit(lambda p: system.loss(
    p, CODEC, batch, counts, jax.random.key(0), 0)[:2])  # fmt: skip
  got, metrics = run(model.params)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss_image"], nll[image].mean(), 1e-5)
  np.testing.assert_allclose(metrics["loss_text"], nll[text].mean(), 1e-5)


def test_dialogues_without_images_to_learn_have_a_finite_loss(model):
  arrays = rows(model.system, [4, 4])
  batch, system = {"dialogue": arrays}, liquid.changed(model, **MEAN)
  counts = system.counts(batch)
  assert int(counts["image_tokens"]) == int(counts["end_tokens"]) == 0
  run = jax.jit(lambda p: system.loss(
    p, CODEC, batch, counts, jax.random.key(0), 0)[:2])  # fmt: skip
  got, metrics = run(model.params)
  assert np.isfinite(got) and metrics["loss_image"] == 0
  np.testing.assert_allclose(got, metrics["loss_text"], rtol=1e-6)


def test_parts_of_a_batch_add_up_to_the_whole(model):
  """However unequal what they have to teach."""
  arrays = rows(model.system, [0, 4, 4, 2, 4, 1])
  counts = model.system.counts({"dialogue": arrays})

  @jax.jit
  def loss(part):
    return model.system.loss(
      model.params, CODEC, {"dialogue": part}, counts, jax.random.key(0), 0
    )[:2]

  whole = loss(arrays)
  parts = [
    loss(jax.tree.map(lambda x, k=k: x[k : k + 3], arrays)) for k in (0, 3)
  ]
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-5),
    *parts, whole,
  )  # fmt: skip


def test_an_image_is_drawn_after_boi(model):
  """With guidance away from the null prompt; as pick does of whole rows."""
  how = dataclasses.replace(
    model.config.sampling, cfg=2.0, temperature=0.5, image_top_k=0
  )
  arrays = rows(model.system, [1, 2, 4], prompt=True, cut=1)
  keys = jax.vmap(jax.random.key)(jnp.arange(3))
  system = systems.build(model.config)
  system.codec = SimpleNamespace(  # an image shows its codes
    grid=lambda size: (size[0] // 8, size[1] // 8),
    decode=lambda _, x, grid: (
      jnp.float32(x).reshape(-1, *grid, 1).repeat(3, axis=-1)
    ),
  )
  images = jax.jit(lambda p: system.generate(
    p, CODEC, {"dialogue": arrays}, keys, how))(model.params)  # fmt: skip
  codes = np.int32(images[..., 0]).reshape(3, N)
  for i in range(3):
    row, null = [*written_out(arrays, i)[0], BOI], [2, liquid.NULL, BOI]
    for j in (0, 1, N - 1):
      drawn = [FIRST + int(code) for code in codes[i, :j]]
      given, nothing = (
        logits_of(model, [*r, *drawn])[-1][FIRST : FIRST + liquid.K]
        for r in (row, null)
      )
      guided = nothing + 2.0 * (given - nothing)
      key = jax.random.fold_in(keys[i], j)
      want = jax.random.categorical(key, jnp.float32(guided / 0.5))
      assert codes[i, j] == int(want), (i, j)


def test_an_answer_ends_where_an_image_begins(model):
  """Greedy, against whole rows; BOI takes the place of a frequent answer."""
  arrays = rows(model.system, range(5), prompt=True, cut=1)
  keys = jax.vmap(jax.random.key)(jnp.arange(5))
  run = jax.jit(lambda p: model.system.answer(
    p, CODEC, {"dialogue": arrays}, keys, model.config.sampling))  # fmt: skip
  said = np.asarray(run(model.params))
  assert said.shape == (5, 4)
  often = np.bincount(said[said >= 0]).argmax()
  table = model.params["decoder"]["embedder"]["table"]
  table = table.at[jnp.array([BOI, often])].set(table[jnp.array([often, BOI])])
  decoder_ = model.params["decoder"] | {"embedder": {"table": table}}
  params = {"decoder": decoder_}
  answers = np.asarray(run(params))
  for i in range(5):
    row, _ = written_out(arrays, i)
    want = []
    while len(want) < 4 and not {EOS, BOI} & set(want):
      want.append(int(logits_of(model, row + want, params)[-1].argmax()))
    assert answers[i].tolist() == want + [PAD] * (4 - len(want))
  assert (answers[:, :3] == BOI).any()


def test_rows_need_room_for_an_image():
  tasks = ("t2i", "i2t", "text", "dialogue")
  for changes in (dict(text__dialogue=19),
                  dict(text__dialogue=0, batch__dialogue=8)):  # fmt: skip
    with pytest.raises(ConfigError, match=r"text.dialogue=\d+ .* use >= 20"):
      liquid.tiny(data__train__shapes__tasks=tasks, **changes)
  assert "dialogue" not in systems.build(liquid.tiny(text__dialogue=0)).inputs
