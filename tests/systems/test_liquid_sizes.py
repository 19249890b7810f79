"""Liquid on images of several sizes: rows, loss, drawing, caches."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems import test_liquid as square
from tests.systems.test_liquid import (
  BOI,
  BOS,
  CODEC,
  EOI,
  EOS,
  FIRST,
  NEWLINE,
  NULL,
  K,
  full_logits,
)
from unifluid_jax import api, arguments, systems
from unifluid_jax.codecs import cache
from unifluid_jax.codecs.inputs import encode_pixels
from unifluid_jax.codecs.vq import VqCodec
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import PAD
from unifluid_jax.data import fields, pipeline, text, transforms
from unifluid_jax.data.images import encode_image
from unifluid_jax.data.sized_prompt import sentence
from unifluid_jax.data.sources import cached
from unifluid_jax.systems import liquid_config

SIZES = (32, 32), (24, 48), (40, 16)  # 4 x 4, 3 x 6 and 5 x 2 codes
MOST = 18


def tiny(**changes):
  given = dict(model__sizes=SIZES, text__dialogue=0, text__prompt=12)
  return square.tiny(**given | changes)


class Words(square.Words):
  """Numbers are ids, and the words of the sentence have some."""

  special = square.Words.special | {"unconditional": NULL}
  _IDS = {"Image": 10, "Size:": 11, "Width": 12, "is": 13, "Height": 14,
          "16": 15, "24": 16, "32": 17, "40": 18, "48": 19}  # fmt: skip

  def encode(self, text):
    words = [word.removesuffix(".") for word in text.split()]
    return [self._IDS.get(w) or int(w) for w in words]


def said(size):
  """Ids of the sentence, by hand."""
  ids = {16: 15, 24: 16, 32: 17, 40: 18, 48: 19}
  return [10, 11, 12, 13, ids[size[1]], 14, 13, ids[size[0]]]


@pytest.fixture(scope="module")
def model():
  config = tiny()
  system = systems.build(config)
  return SimpleNamespace(
    config=config, system=system, params=square.random_params(system),
    frozen=CODEC,
  )  # fmt: skip


@pytest.fixture(scope="module")
def given():
  """(size, grid of codes) of four images."""
  rng = np.random.default_rng(0)
  sizes = [SIZES[i] for i in (1, 2, 0, 2)]
  return [(s, rng.integers(0, K, (s[0] // 8, s[1] // 8))) for s in sizes]


@pytest.fixture(scope="module")
def batch(model, given):
  """As cached codes make it."""
  rows: dict = {"t2i": [], "i2t": []}
  for i, (_, codes) in enumerate(given):
    picture = fields.Picture((b"",), cached=np.uint16(codes))
    texts = {"prompt": f"{5 + i}", "prefix": "7", "suffix": f"8 {5 + i}"}
    images = {"drawn": picture, "seen": picture}
    example = fields.Example(texts, images, Words())
    for task, found in rows.items():
      declared = {
        k: dataclasses.replace(f, file=True)
        if isinstance(f, fields.Cached) else f
        for k, f in model.system.inputs[task].items()
      }  # fmt: skip
      found.append(fields.arrays(declared, example))
  return {
    task: {k: jnp.asarray(np.stack([r[k] for r in found])) for k in found[0]}
    for task, found in rows.items()
  }


def written_out(given, null=False):
  """(kind, whole row, how many of its last tokens count), as lists."""
  for i, (size, codes) in enumerate(given):
    ids = [FIRST + int(k) for k in codes.ravel()]
    start = [BOS, *said(size), NULL] if null else [BOS, 5 + i, *said(size)]
    yield "t2i", [*start, BOI, *ids, EOI, EOS], len(ids) + 2
    row = [BOS, BOI, *ids, EOI, 7, NEWLINE, 8, 5 + i, EOS]
    yield "i2t", row, 3


def test_rows_have_the_codes_of_their_own_grid(model, given, batch):
  got = model.system.drawn(batch["t2i"]["prompt"], batch["t2i"]["image"])
  seen = np.asarray(model.system.asked(batch["i2t"]))
  rows = list(written_out(given))
  for i, (_, row, labels) in enumerate(rows[::2]):
    fed, targets = np.asarray(got.fed[i]), np.asarray(got.targets[i])
    np.testing.assert_array_equal(
      targets, [*row[-labels:], *[PAD] * (MOST + 2 - labels)]
    )
    np.testing.assert_array_equal(fed[fed != PAD][: len(row) - 1], row[:-1])
    # The slots of what predicts them: the last of the prompt, then the codes.
    np.testing.assert_array_equal(fed[12:], targets[:-1])
    assert fed[11] == BOI
  for i, (_, row, labels) in enumerate(rows[1::2]):
    np.testing.assert_array_equal(seen[i][seen[i] != PAD], row[:-labels])


def plain_terms(model, rows):
  """Nll of every predicted token by its kind, each row alone, without pads."""
  terms: dict = {"image": [], "end": [], "text": []}
  for task, row, labels in rows:
    logits = np.float64(full_logits(model, row))
    for j in range(len(row) - labels, len(row)):
      z = logits[j - 1]
      kind = "end" if task == "t2i" else "text"
      kind = "image" if row[j] >= FIRST else kind
      nll = np.log(np.exp(z - z.max()).sum()) + z.max() - z[row[j]]
      terms[kind].append(nll)
  return terms


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_the_loss_is_that_of_each_image_alone(model, given, batch, dropout):
  """Also summed over parts of the batch, which have other codes each."""
  terms = plain_terms(model, written_out(given, null=dropout == 1))
  system = square.changed(model, prompt_dropout=dropout, max_z=0.0)
  counts = system.counts(batch)
  assert {k: int(n) for k, n in counts.items()} == {
    "image_tokens": 18 + 10 + 16 + 10, "end_tokens": 8, "text_tokens": 12,
  }  # fmt: skip
  run = jax.jit(lambda part: system.loss(
    model.params, CODEC, part, counts, jax.random.key(0), 0)[:2])  # fmt: skip
  halves = [jax.tree.map(lambda x, s=s: x[s], batch)
            for s in (slice(0, 2), slice(2, 4))]  # fmt: skip
  loss, metrics = jax.tree.map(jnp.add, *map(run, halves))
  every = np.concatenate([*terms.values()])
  np.testing.assert_allclose(loss, every.mean(), rtol=1e-5)
  for kind in ("image", "text"):
    mean = np.mean(terms[kind])
    np.testing.assert_allclose(metrics[f"loss_{kind}"], mean, rtol=1e-5)


def test_a_size_is_drawn_code_by_code(model, given, batch):
  """Guided away from the null prompt of that size; neither is padded."""
  size, _ = given[1]
  options = dataclasses.replace(model.config.sampling, cfg=2.0, size=size)
  prompt = {k: x[jnp.array([1, 3])] for k, x in batch["t2i"].items()}
  keys = jax.vmap(jax.random.key)(jnp.arange(2))
  codes = np.asarray(jax.jit(lambda p: model.system.draw(
    p, prompt["prompt"], model.system.null_of(prompt), keys, options,
  ))(model.params))  # fmt: skip
  assert codes.shape == (2, 10)
  for row, word in enumerate((6, 8)):
    starts = [BOS, word, *said(size), BOI], [BOS, *said(size), NULL, BOI]
    c, u = (
      full_logits(model, [*s, *(FIRST + codes[row, :-1])])[len(s) - 1 :]
      for s in starts
    )
    scores = (u + 2.0 * (c - u))[:, FIRST : FIRST + K]
    scores = scores / options.temperature
    for i in range(10):
      key = jax.random.fold_in(jax.random.key(row), i)
      assert codes[row, i] == jax.random.categorical(key, scores[i])


@pytest.mark.parametrize("size", [(), *SIZES])
def test_images_are_drawn_in_the_size_that_prompts_name(model, size):
  """From the Python API down to the tokenizer's decoder, by shapes."""
  seen = []

  def mapper(function):
    def call(*arrays):
      shapes = jax.eval_shape(function, model.params, frozen, *arrays)
      seen.append(arrays)
      return np.zeros(shapes.shape, np.float32)

    return call

  frozen = {"codec": model.system.codec.shapes()}
  painter = api.Model(model.config, model.system, Words(), mapper)
  given = {"size": size} if size else {}
  made = painter.generate(["5", "6"], **given)
  height, width = size or (32, 32)
  assert [x.size for x in made] == [(width, height)] * 2
  names = dict(zip(("", "null"), seen[0][1:], strict=True))
  want = [BOS, 5, *said((height, width)), BOI]
  np.testing.assert_array_equal(names[""][0], [PAD] * (12 - len(want)) + want)


@pytest.mark.parametrize("options, box, cells", [
  (dict(size=(24, 48)), (8, 9, 40, 16), np.s_[1, 1:5]),
  (dict(size=(40, 16)), (0, 33, 16, 40), np.s_[4, :]),
  ({}, (0, 24, 9, 32), np.s_[3, :2]),
])  # fmt: skip
def test_cells_of_a_size_are_drawn_again(model, options, box, cells):
  """All cells after them too; the others come back as they were."""
  height, width = options.get("size", (32, 32))
  again = np.zeros((height // 8, width // 8), bool)
  again[cells] = True
  first = again.reshape(-1).argmax()
  tail = (np.arange(again.size) >= first).reshape(again.shape)
  asked = []

  def redraw(params, frozen, prompts, keys, sampling, given, again):
    asked.append((given.shape, again.shape))
    return 1 - 2 * jnp.ones_like(given) * again.any()

  system = systems.build(model.config)
  system.redraw = redraw
  painter = api.Model(model.config, system, Words(), api.jitted({}, {}, 4))
  sampling = painter._sampling(options)
  found = painter.drawings.cells_of(box, sampling)
  np.testing.assert_array_equal(found, again)
  assert painter.drawings.grid == (4, 4)
  assert painter.drawings.grid_of(sampling) == again.shape
  image = np.full((64, 128, 3), 200, np.uint8)
  made = painter.generate("5", given=image, redraw=tail, **options)
  assert made.size == (width, height)
  want = np.where(np.kron(tail, np.ones((8, 8))), 0, 200)
  np.testing.assert_array_equal(np.asarray(made)[..., 1], want)
  assert asked == [((1, height, width, 3), (1, again.size))]
  with pytest.raises(ValueError, match=rf"give bool\[{height // 8}, "):
    painter.generate("5", given=image, redraw=tail[:-1], **options)
  with pytest.raises(ValueError, match=f"width {width} and height {height}"):
    painter.generate("5", given=image, redraw=(0, 0, 49, 8), **options)


# -------------------------------------------------------------------- images


class Means(VqCodec):
  """Codes are the brightness of 8 x 8 pixels, without any weights."""

  def encode(self, frozen, images):
    b, h, w, _ = images.shape
    means = images.reshape(b, h // 8, 8, w // 8, 8, 3).mean((2, 4, 5))
    return jnp.int32((means.reshape(b, -1) + 1) * 6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Eight photos of four shapes with captions; (folder, pixels)."""
  root = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  shapes = [(40, 90), (64, 64), (90, 40), (64, 64), (30, 61), (80, 31)]
  pixels = [
    np.kron(rng.integers(0, 256, (*s, 3)), np.ones((2, 2, 1))).astype(np.uint8)
    for s in (*shapes, (45, 44), (44, 90))
  ]
  lines = []
  for i, image in enumerate(pixels):
    (root / f"{i}.png").write_bytes(encode_image(image))
    line = {"image": f"{i}.png", "prefix": "caption en", "suffix": f"photo {i}"}
    lines.append(json.dumps(line))
  (root / "photos.jsonl").write_text("\n".join(lines))
  return root, pixels


def photos_config(root, moments=""):
  source = SourceConfig("jsonl", "photos.jsonl", moments=moments)
  config = tiny(text__prompt=24, batch=dict(t2i=8, i2t=8, text=0))
  data = dataclasses.replace(config.data, root=str(root), max_bad_share=0.0,
                             train={"photos": source})  # fmt: skip
  return dataclasses.replace(config, data=data)


def test_files_and_pixels_give_the_same_codes(photos):
  """What `encode` writes is what the step makes of the same images."""
  root, pixels = photos
  codec = Means(tiny().model.vq, "", 32, sizes=SIZES)
  sizes = [transforms.nearest_size(x.shape, SIZES) for x in pixels]
  assert set(sizes) == set(SIZES)
  fitted = [transforms.to_float(transforms.crop_resize(x, s))
            for x, s in zip(pixels, sizes, strict=True)]  # fmt: skip
  encoder = jax.jit(lambda images: codec.encode({}, images))
  made = cache.encoded(codec, encoder, [None, *fitted], 2)
  assert made[0] is None
  for got, image in zip(made[1:], fitted, strict=True):
    alone = np.asarray(encoder(image[None]))[0]
    np.testing.assert_array_equal(
      got, alone.reshape(codec.grid(image.shape[:2]))
    )
  cached.write_cached(root / "m", made[1:], codec.file_dtype)

  sentences = [sentence(s) for s in SIZES]
  captions = [f"photo {i}" for i in range(8)] + ["caption en"]
  special = {"boi": BOI, "eoi": EOI, "unconditional": NULL}
  tokenizer = text.train([*sentences * 9, *captions], root / "t.model", 90)
  tokenizer = text.Tokenizer.load(str(root / "t.model"), special)
  batches = []
  for moments in ("", "m"):
    config = photos_config(root, moments)
    system = systems.build(config)
    loader = pipeline.make_loader(config, system.inputs, tokenizer)
    read = next(loader)
    loader.close()
    assert ("image" in read["t2i"]) == bool(moments)
    stand_in = SimpleNamespace(codec=codec)
    step = jax.jit(lambda x, s=stand_in: encode_pixels(s, CODEC, x))
    batches.append(jax.device_get(step(read)))
  one, two = batches
  assert one["t2i"].keys() == two["t2i"].keys()
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert ((one["t2i"]["image"] == PAD).sum(axis=1) > 0).sum() >= 2


def test_caches_of_other_sizes_are_refused(photos):
  root, _ = photos
  cached.write_cached(root / "flat", [np.zeros(16)] * 8, np.uint16)
  config = photos_config(root, "flat")
  system = systems.build(config)
  with pytest.raises(ValueError, match=r"needs \(4, 4\) or \(3, 6\) or \(5, 2"):
    pipeline.make_loader(config, system.inputs, Words())
  short = systems.build(tiny(text__prompt=10)).inputs["t2i"]["prompt"]
  with pytest.raises(ValueError, match="text.prompt=10 has no room"):
    pipeline.make_loader(config, {"t2i": {"prompt": short}, "i2t": {}}, Words())
  source, digests = config.data.train["photos"], {"photos": {"digest": "d"}}
  path, codec = cache.path_of(config, source), system.codec
  note = cache.note_of(codec, source, "w", "d")
  assert note["sizes"] == [list(size) for size in SIZES]
  flat = systems.build(square.tiny()).codec
  old = cache.note_of(flat, source, "w", "d")
  assert "sizes" not in old
  made = {"codec": {"weights": "w"}, "data": digests}

  def write(note):
    codes = [np.zeros((4, 4))] * 8
    return cache.write(path, note, 8, lambda _: codes, np.uint16)

  write(note)
  cache.check_cached(config, codec, {}, made)
  with pytest.raises(ConfigError, match="from other sizes than"):
    cache.check_cached(config, flat, {}, made)
  changed = "made anew, as sizes changed"
  assert write(old) == changed
  assert write(note) == changed


# ------------------------------------------------------------- configuration


@pytest.mark.parametrize("changes, message", [
  (dict(model__sizes=((32, 32), (24, 44))), r"has \(24, 44\): .*s of 8"),
  (dict(model__sizes=((32, 32), (24,))), r"has \(24,\): each must be \(height"),
  (dict(model__sizes=((24, 48),)), r"lacks \(32, 32\): add it"),
  (dict(model__sizes=((32, 32), (48, 48))), "of one aspect ratio"),
  (dict(text__dialogue=99), "dialogues name no sizes; set text.dialogue=0"),
  (dict(sampling__size=(32, 48)), r"sampling.size=\(32, 48\) is none of"),
  (dict(sampling__size=(24, 48)), "eval.metrics compare squares"),
])  # fmt: skip
def test_what_cannot_work_is_refused_with_the_fix(changes, message):
  with pytest.raises(ConfigError, match=message):
    tiny(**changes)


def test_sizes_that_a_run_does_not_know_are_refused():
  for config, size, known in (
    (tiny(), (16, 40), r"knows \(32, 32\), \(24, 48\), \(40, 16\)"),
    (square.tiny(), (24, 48), r"knows \(32, 32\) "),
  ):
    sampling = dataclasses.replace(config.sampling, size=size)
    with pytest.raises(ValueError, match=f"size=.*{known}"):
      liquid_config.check_sampling(config, sampling, "t2i")
  for size in ((24,), [24, 48], (24, 48.0), (0, 48), "24"):
    spec = systems.spec("liquid")
    with pytest.raises(ValueError, match=r"\(height, width\) in pixels"):
      arguments.check_sampling({"size": size}, spec.sampling, spec.ranges)


def test_steps_cost_what_the_largest_image_costs():
  config = tiny()
  assert config.model.image_tokens == MOST
  tokens = systems.build(config).cost().tokens
  assert tokens == 8 * (12 + MOST + 1 + 2 + MOST + 5 + 3 + 5 + 3)
