"""Liquid and UniToken: cells while they appear, and cells drawn again."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems import test_liquid as liquid
from tests.systems import test_liquid_sizes as sized
from tests.systems import unitoken_tiny as unitoken
from unifluid_jax import systems
from unifluid_jax.codecs.vq import VqCodec
from unifluid_jax.core.types import PAD
from unifluid_jax.models import decoder
from unifluid_jax.systems.common import token_decode

ROWS, LONG, MOST = 4, 48, 5
WIDE = 24, 48  # height and width of 3 x 6 codes
KNOWN = {16: [3, 6, 9, 12, 16], 18: [3, 7, 10, 14, 18]}  # in five stages


class Legible(VqCodec):
  """A code is the grey level of its cell, and of no pixel beside it."""

  def encode(self, frozen, images):
    cell = self.config.factor
    return jnp.int32(images[:, ::cell, ::cell, 0] * 32).reshape(
      len(images), -1
    ) - 1  # fmt: skip

  def decode(self, frozen, tokens, grid=None):
    grid, cell = grid or (self._side, self._side), self.config.factor
    x = (tokens.reshape(-1, *grid) + 1) / 32
    x = x.repeat(cell, axis=1).repeat(cell, axis=2)
    return jnp.repeat(x[..., None], 3, axis=3)


def made(name):
  """A system with random weights, prompts, and how its rows are laid out."""
  one = dict(model__decoder__depth=1)
  if name == "unitoken":
    config = unitoken.tiny(**one)
    prompt = unitoken.examples(rows=ROWS)["t2i"]["prompt"]
    template = [unitoken.SIZE] * 2 + ([PAD] * 4 + [unitoken.LINE]) * 4
    soi = [unitoken.SOI]
    layout = dict(template=template[:-1], first=unitoken.CODE, end=soi,
                  null=soi)  # fmt: skip
    fields = {"prompt": prompt}
  elif name == "liquid":
    config, n = liquid.tiny(**one), liquid.N
    fields = {"prompt": liquid.examples(rows=ROWS)["t2i"]["prompt"]}
    null = [liquid.BOS, liquid.NULL, liquid.BOI]
    layout = dict(template=[PAD] * n, first=liquid.FIRST, end=[], null=null)
  else:
    config = sized.tiny(**one)
    null = [liquid.BOS, *sized.said(WIDE), liquid.NULL, liquid.BOI]
    asked = [
      [liquid.BOS, 5 + i, *sized.said(WIDE), liquid.BOI] for i in range(ROWS)
    ]
    fields = {
      "prompt": jnp.asarray([[PAD] * (12 - len(x)) + x for x in asked]),
      "prompt.null": jnp.asarray([[PAD] * (12 - len(null)) + null] * ROWS),
    }
    layout = dict(template=[PAD] * 18, first=liquid.FIRST, end=[], null=null)
  system = systems.build(config)
  how = dict(cfg=2.0, temperature=0.7, image_top_k=0)
  if name == "wide":
    how["size"] = WIDE
  grid = (3, 6) if name == "wide" else (4, 4)
  return SimpleNamespace(
    system=system, params=liquid.random_params(system),
    prompts={"t2i": fields}, grid=grid, layout=SimpleNamespace(**layout),
    sampling=dataclasses.replace(config.sampling, **how),
    legible=Legible(config.model.vq, "", config.model.image_size),
  )  # fmt: skip


@pytest.fixture(scope="module", params=["liquid", "wide", "unitoken"])
def model(request):
  return made(request.param)


def keys(*seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


SEEDS = keys(3, 4, 5, 6)


def with_codec(model, codec, run, *given):
  """Compiles what the system does with another codec."""
  own, model.system.codec = model.system.codec, codec
  try:
    return jax.jit(run).lower(*given).compile()
  finally:
    model.system.codec = own


@pytest.fixture(scope="module")
def drawn(model):
  """Stages, and images whose grey levels are codes."""

  def run():
    asked = model.params, {"codec": {}}, model.prompts, SEEDS, model.sampling
    return model.system.stages(*asked, MOST), model.system.generate(*asked)

  stages, whole = map(np.asarray, with_codec(model, model.legible, run)())
  codes = np.asarray(model.legible.encode({}, whole))
  return SimpleNamespace(stages=stages, whole=whole, codes=codes)


def enlarged(mask, grid):
  """Cells as pixels."""
  return np.kron(mask.reshape(grid), np.ones((8, 8))) > 0


def test_stages_show_the_first_codes_and_grey_elsewhere(model, drawn):
  n = drawn.codes.shape[1]
  assert len(np.unique(drawn.codes, axis=0)) == ROWS
  assert drawn.stages.shape[:2] == (ROWS, MOST) and (drawn.whole > 0).all()
  for i, count in enumerate(KNOWN[n]):
    shown = enlarged(np.arange(n) < count, model.grid)
    want = np.where(shown[..., None], drawn.whole, 0)
    np.testing.assert_array_equal(drawn.stages[:, i], want)


@pytest.fixture(scope="module")
def redraw(model):
  """Codes of images of which some cells are drawn again, by row numbers."""
  n, rng = int(np.prod(model.grid)), np.random.default_rng(7)
  given = rng.integers(0, 13, (ROWS, n))

  def run(rows, again):
    fields = {k: x[rows] for k, x in model.prompts["t2i"].items()}
    pixels = model.legible.decode({}, jnp.asarray(given)[rows], model.grid)
    return model.system.redraw(
      model.params, {"codec": {}}, {"t2i": fields}, SEEDS[rows],
      model.sampling, pixels, again[rows],
    )  # fmt: skip

  again = np.arange(n) >= np.asarray([n - 5, 6, 0, n])[:, None]
  order, again = jnp.arange(ROWS), jnp.asarray(again)
  call = with_codec(model, model.legible, run, order, again)

  def codes(rows):
    images = call(jnp.asarray(rows), again)
    return np.asarray(model.legible.encode({}, images))

  return SimpleNamespace(codes=codes, given=given, again=np.asarray(again))


@pytest.fixture(scope="module")
def redrawn(redraw):
  """Rows of random codes: of two a tail is drawn again, of one all, none."""
  return SimpleNamespace(
    given=redraw.given, again=redraw.again, codes=redraw.codes(range(ROWS))
  )


def test_codes_of_known_cells_stay_and_all_again_is_generation(drawn, redrawn):
  stay = ~redrawn.again
  np.testing.assert_array_equal(redrawn.codes[stay], redrawn.given[stay])
  np.testing.assert_array_equal(redrawn.codes[2], drawn.codes[2])
  # What is known changes what is drawn.
  for row in (0, 1):
    tail = redrawn.again[row]
    assert (redrawn.codes[row, tail] != drawn.codes[row, tail]).any()
    assert (redrawn.codes[row, tail] != redrawn.given[row, tail]).any()


def logits_of(model):
  """Logits of the codes at all places of rows, each a list, without cache."""
  s, m = model.system, model.system.config.model
  table = decoder.output_table(model.params["decoder"])[model.layout.first :]

  @jax.jit
  def run(ids):
    net = {"params": model.params["decoder"]}
    hidden, _ = s.decoder.apply(
      net, s.decoder.apply(net, ids, method="embed"),
      jnp.broadcast_to(jnp.arange(LONG), ids.shape),
      jnp.tril(jnp.ones((1, LONG, LONG), bool)).repeat(len(ids), axis=0),
    )  # fmt: skip
    return decoder.logits(m.decoder, table[: m.vq.codes], hidden)

  def of(*rows):
    ids = np.zeros((len(rows), LONG), np.int32)
    for place, row in zip(ids, rows, strict=True):
      place[: len(row)] = row
    return np.asarray(run(ids))

  return of


def test_cells_are_drawn_again_as_whole_rows_predict_them(model, redrawn):
  """Each code from all before it, known or drawn, of both conditions."""
  logits, layout = logits_of(model), model.layout
  for row, codes in enumerate(redrawn.codes):
    left = iter(codes)
    tail = [layout.first + int(next(left)) if t == PAD else t
            for t in layout.template]  # fmt: skip
    prompt = model.prompts["t2i"]["prompt"][row]
    starts = [int(t) for t in prompt if t != PAD] + layout.end, layout.null
    c, u = (
      scores[len(start) - 1 :][: len(tail)]
      for start, scores in zip(
        starts, logits(*([*x, *tail] for x in starts)), strict=True
      )
    )
    places = np.flatnonzero(np.asarray(layout.template) == PAD)
    for cell in np.flatnonzero(redrawn.again[row]):
      i = places[cell]
      key = jax.random.fold_in(SEEDS[row], i)
      want = jax.random.categorical(key, (u + 2.0 * (c - u))[i] / 0.7)
      assert codes[cell] == want, (row, cell)


# ------------------------------------------------ with the tokenizer's decoder


def random_tree(shapes):
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)), shapes
  )


def test_stages_are_decoded_from_the_known_codes_alone(model, drawn):
  """Which stand over and over; of all of them this is the codec's image."""
  frozen = random_tree(systems.frozen_shapes(model.system))["codec"]
  codec, n = model.system.codec, drawn.codes.shape[1]
  stages = np.asarray(jax.jit(lambda codes: token_decode.images_of_stages(
    codec, frozen, codes, model.grid, MOST))(drawn.codes))  # fmt: skip
  decode = jax.jit(lambda codes: codec.decode(frozen, codes, model.grid))
  np.testing.assert_array_equal(stages[:, -1], decode(drawn.codes))
  for i, count in enumerate(KNOWN[n]):
    known = np.stack([np.resize(row[:count], n) for row in drawn.codes])
    shown = enlarged(np.arange(n) < count, model.grid)
    want = np.where(shown[..., None], decode(known), 0)
    np.testing.assert_allclose(stages[:, i], want, atol=1e-5)
    assert stages[:, i][:, shown].std() > 0.05


def test_the_last_stage_is_generation_bit_by_bit():
  """In another program, with the tokenizer's own decoder."""
  model = made("unitoken")
  frozen = random_tree(systems.frozen_shapes(model.system))
  asked = model.params, frozen, model.prompts, SEEDS, model.sampling
  stages = jax.jit(lambda: model.system.stages(*asked, 2))()
  whole = jax.jit(lambda: model.system.generate(*asked))()
  np.testing.assert_array_equal(stages[:, -1], whole)


def test_a_row_depends_on_its_own_key_and_cells_alone(redraw, redrawn):
  rows = [1, 0, 3, 1]
  np.testing.assert_array_equal(redraw.codes(rows), redrawn.codes[rows])
