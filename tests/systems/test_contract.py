"""What every system can rely on and must do, shown with a fifth one.

`toy.py` is a module and an entry of `SYSTEMS`: whatever else it needed would
be a fault of the contract. What stands here once for all systems is tested of
UniFluid in detail elsewhere (test_decode, test_accumulate, test_compile).
"""

import dataclasses
import functools
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import liquid_2b
from configs.base import base, image_tokenizer, source
from tests.systems import (
  test_liquid,
  test_multiscale_vq,
  test_vae,
  test_var,
  test_vq,
  unitoken_tiny,
  vargpt_tiny,
)
from tests.systems.conftest import (
  examples,
  right_aligned,
  suffixes,
  tiny,
  whole_loss,
)
from tests.systems.test_accumulate import assert_one_objective, lopsided
from unifluid_jax import (
  api,
  evaluation,
  identity,
  requests,
  systems,
  train,
)
from unifluid_jax.aot import compiled, lower, topology
from unifluid_jax.codecs import cache
from unifluid_jax.codecs.inputs import encode_pixels
from unifluid_jax.core import checkpoint, parallel, telemetry, types
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.parameter_rows import longest_prefix
from unifluid_jax.data import corpus, fields, pipeline, records, text
from unifluid_jax.data import identity as data_identity
from unifluid_jax.data.dialogue import Dialogue
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.worlds import in_context, shapes, shapes_builder
from unifluid_jax.drawings import Drawings
from unifluid_jax.models import decoder
from unifluid_jax.ops.attention import block_causal_mask
from unifluid_jax.systems.common import embed, packing

TEXT, COLOURS, N = 199, 8, 16  # rows of the vocabulary; cells of an image
EOI, BOI = 0, TEXT + COLOURS  # a piece that no text has; the last row
T = 42  # two images with a word each
WORLD = dict(train=24, validation=8, held_out=2)
SYSTEMS = ("unifluid", "liquid", "unitoken", "vargpt", "var", "vae", "vq",
           "multiscale_vq", "toy")  # fmt: skip
TOKENIZERS = {
  "vae": test_vae,
  "vq": test_vq,
  "multiscale_vq": test_multiscale_vq,
}
SCORERS = ("unifluid", "liquid", "unitoken", "vargpt", "toy")
WEIGHERS = ("unifluid", "liquid", "unitoken", "vargpt", "toy")
STAGERS = ("unifluid", "liquid", "unitoken", "vargpt", "var")
REDRAWERS = ("unifluid", "liquid", "unitoken")


@pytest.fixture(scope="module", autouse=True)
def registered():
  """The one entry that a system adds to the package."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(systems.SYSTEMS, "toy", "tests.systems.toy:SPEC")
    yield


def toy_tree(root="nowhere", **changes):
  c = base()
  c.name, c.system, c.steps = "toy run", "toy", 4
  c.batch = dict(t2i=8, i2t=8)
  c.data.root, c.data.workers, c.data.threads = f"{root}/data", 0, 1
  c.data.world = dict(**WORLD, seed=0)
  c.data.train = dict(shapes=source("shapes", moments="codes"))
  c.data.eval = dict(validation=source("shapes", split="validation"))
  c.text = dict(
    tokenizer=f"{root}/data/tokenizer.model", train_vocab=TEXT, prompt=14,
    prefix=8, suffix=9, dialogue=T, special=dict(boi=BOI, eoi=EOI),
  )  # fmt: skip
  c.model = dict(
    decoder=dict(vocab=TEXT + COLOURS + 1, width=32, depth=1, mlp=64, heads=2,
                 kv_heads=1, head_dim=16),
    codec_path=f"{root}/codec", image_size=32, cell=8, colours=COLOURS,
  )  # fmt: skip
  c.loss = dict(prompt_dropout=0.1, vocab_chunk=16)
  c.optim.update(lr=5e-3, warmup=1, ema=0.9)
  c.checkpoint = dict(every=2, keep=3, keep_every=0)
  c.log.update(every=2, tensorboard=False)
  c.sampling = dict(cfg=2.0, temperature=1.0, text="greedy")
  c.eval.update(metrics=("tokenizer", "captions", "samples"), examples=8,
                split="validation", batch=1, use_ema=True)  # fmt: skip
  c.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return c


def config_of(name, **changes):
  """A tiny configuration of a system that trains on eight devices."""
  if name == "unifluid":
    return tiny(optim__name="adamw", **changes)
  if name == "liquid":
    return test_liquid.tiny(optim__name="adamw", **changes)
  if name == "unitoken":
    return unitoken_tiny.tiny(**changes)
  if name == "vargpt":
    return vargpt_tiny.tiny(**changes)
  if name == "var":
    return test_var.tiny(**changes)
  if name in TOKENIZERS:
    c = TOKENIZERS[name].make()
    mesh = {k.removeprefix("mesh__"): v for k, v in changes.items()}
    return dataclasses.replace(
      c, mesh=dataclasses.replace(c.mesh, **mesh), batch={"image": 8}
    )
  return systems.resolve(toy_tree(**changes))


class Space:
  """A prepared world, a frozen codec, its cache and a run of four steps."""

  def __init__(self, root):
    self.root, self.run = root, root / "run"
    self.tree = toy_tree(root)
    self.config = systems.resolve(self.tree)
    shapes_builder.build(root / "data" / "shapes", shapes.World(), WORLD)
    corpus.make_tokenizer(self.config, systems.text_rows(self.config))
    self.tokenizer = text.Tokenizer.load(
      self.config.text.tokenizer, self.config.text.special
    )
    self.colours = np.random.default_rng(0).uniform(-1, 1, (COLOURS, 3))
    self.frozen = {"codec": {"colours": jnp.float32(self.colours)}}
    state = {"params": {"codec": {"colours": np.float32(self.colours)}}}
    checkpoint.write_once(str(root / "codec"), state, {})
    self.system = systems.build(self.config)
    self.encode_images()
    self.job = train.make_job(self.config, self.system, jax.devices()[:1])
    self.said = []
    self.state = self.train(self.run)

  def encode_images(self):
    """What `python -m unifluid_jax.encode` writes."""
    codec, c = self.system.codec, self.config
    weights = codec.weights()
    given = c.data.train["shapes"]
    data = data_identity.of_data(c.data)["shapes"]["digest"]
    note = cache.note_of(codec, given, codec.digest(weights), data)
    encode = jax.jit(lambda image: codec.encode(weights, image[None])[0])
    records = sources.open_source(given, c.data.root, "")
    field = fields.Pixels("drawn", codec.size, codec.fit)

    def pixels(i):
      drawn = fields.Picture((records[i].image,))
      return field.rows(fields.Example({}, {"drawn": drawn}), None)[""]

    codes = (np.asarray(encode(pixels(i))) for i in range(len(records)))
    path = cache.path_of(c, given)
    done = cache.write(
      path, note, len(records), lambda _: codes, codec.file_dtype
    )
    assert done == "written"

  def train(self, workdir):
    """As `python -m unifluid_jax.main` does."""
    c, say = self.config, self.said.append
    meta = identity.describe(
      c, self.system, self.tree.to_dict(), str(workdir), say
    )

    def loader(start):
      return pipeline.make_loader(
        c, self.system.inputs, self.tokenizer, start_step=start
      )

    keep = identity.keeper(c, self.system, meta, str(workdir))
    return train.run(self.job, str(workdir), loader, meta, say, keep)


@pytest.fixture(scope="module")
def space(registered, tmp_path_factory):
  return Space(tmp_path_factory.mktemp("toy"))


class Numbers:
  """A tokenizer whose words are ids."""

  special = {"bos": types.BOS, "eos": types.EOS, "newline": 4, "boi": BOI,
             "eoi": EOI}  # fmt: skip

  def encode(self, text):
    return [int(word) for word in text.split()]


def dialogue(codes, turns=4, prompt=False):
  """Rows of an image, one or two words, an image, a word: the first `turns`.

  Only the first image is given.
  """
  field = Dialogue(T, N, 32, "crop", prompt)
  blank = np.zeros((32, 32, 3), np.uint8)
  rows = []
  for i in range(len(codes)):
    said = [records.Turn(image=blank, target=False), records.Turn(
      f"{i + 20} 9" if i % 2 else f"{i + 20}"), records.Turn(image=blank),
      records.Turn(f"{i + 40}")]  # fmt: skip
    example = fields.Example({}, {}, Numbers(), turns=tuple(said[:turns]))
    rows.append(fields.arrays({"row": field}, example))
  arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  del arrays["row.codes.pixels"]
  return arrays | {"row.codes": codes}


def hand_made(rows=8, seed=0):
  """Examples whose prompts, and whose images, are all different."""
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, COLOURS, (4, rows, N), np.int32)
  prompt = np.full((rows, 14), types.PAD, np.int32)
  prompt[:, -2], prompt[:, -1] = types.BOS, np.arange(rows) + 8
  return jax.tree.map(jnp.asarray, {
    "t2i": {"prompt": prompt, "image": codes[0]},
    "i2t": {"codes": codes[1], "prefix": right_aligned(rng, rows, 8, 3),
            "suffix": suffixes(rng, rows, 9)},
    "dialogue": dialogue(codes[2:].swapaxes(0, 1)),
  })  # fmt: skip


def keys(count):
  return jax.vmap(jax.random.key)(jnp.arange(count))


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


# ------------------------------------------------------------ all the systems


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_says_all_that_the_package_asks(name):
  system, spec = systems.build(config_of(name)), systems.spec(name)
  assert isinstance(system, types.System)
  assert isinstance(system, types.Generator) == (name not in TOKENIZERS)
  answers = name not in (*TOKENIZERS, "var")
  assert isinstance(system, types.Answerer) == answers
  assert isinstance(system, types.Stager) == (name in STAGERS)
  assert isinstance(system, types.Redrawer) == (name in REDRAWERS)
  # A tokenizer reads captions where its objective does, and images alone else.
  captioned = {"t2i"} if name in ("vq", "multiscale_vq") else set()
  assert set(system.inputs) == set(spec.tasks) - captioned
  for declared in (f for task in system.inputs.values() for f in task.values()):
    assert isinstance(declared, fields.Field)
  if spec.codec_path:
    assert isinstance(system.codec, types.ImageCodec)
    assert systems.codec_path(config_of(name)) == system.codec.path
  assert all(systems.summary(config_of(name)).values())


@pytest.mark.parametrize("name", SYSTEMS)
def test_parameters_and_moments_are_split_over_eight_devices(name):
  config = config_of(name, mesh__data=1, mesh__fsdp=8)
  system = systems.build(config)
  shapes_of = train.make_job(config, system).shapes
  places = jax.tree.map(lambda x: x.sharding, shapes_of)
  total = 4 * telemetry.count(shapes_of.params)
  part = telemetry.bytes_per_device(shapes_of.params, places.params)
  assert part < total / 3
  moments = {
    parallel.path_str(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes_of.opt_state)
  }
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes_of.params):
    name = parallel.path_str(path)
    found = [m for k, m in moments.items() if k.endswith(f"/{name}")]
    assert len(found) == (0 if longest_prefix(system.held, name) else 2), name
    assert {m.sharding.spec for m in found} <= {leaf.sharding.spec}


@pytest.mark.parametrize("name, key", [
  ("toy", "model.vit"), ("toy", "loss.draws"), ("toy", "sampling.steps"),
  ("unifluid", "model.cell"), ("unifluid", "loss.adversarial"),
  ("vae", "model.decoder"), ("vae", "sampling.cfg"),
  ("liquid", "model.vit"), ("liquid", "loss.draws"),
  ("liquid", "sampling.steps"), ("liquid", "sampling.order"),
  ("unitoken", "model.head"), ("unitoken", "loss.draws"),
])  # fmt: skip
def test_keys_of_another_system_are_refused_by_name(name, key):
  tree = toy_tree().to_dict() if name == "toy" else base().to_dict()
  if name == "unitoken":
    tree = unitoken_tiny.tiny_tree().to_dict()
  if name in ("vae", "liquid"):
    tree = base()
    {"vae": image_tokenizer, "liquid": liquid_2b.liquid}[name](tree)
    tree = tree.to_dict()
  node, _, last = key.partition(".")
  tree[node] = {**tree[node], last: 1}
  with pytest.raises(ConfigError, match=f"unknown key config.{key}"):
    systems.resolve(tree)


def prompts_of(name, system, rows):
  """Fields of "t2i" without targets."""
  made = {
    "unifluid": examples, "liquid": test_liquid.examples,
    "unitoken": unitoken_tiny.examples, "var": test_var.examples,
    "vargpt": lambda rows: vargpt_tiny.examples(system, rows),
  }  # fmt: skip
  return given(made[name](rows=rows), "t2i")


@pytest.mark.parametrize("name", STAGERS)
def test_stages_and_parts_have_the_shapes_of_images(name):
  """Traced only: what they show is tested of each system."""
  system = systems.build(config_of(name))
  size, sampling = system.config.model.image_size, system.config.sampling
  asked = (
    systems.init_shapes(system), systems.frozen_shapes(system),
    prompts_of(name, system, 2), keys(2),
  )  # fmt: skip
  run = functools.partial(system.stages, sampling=sampling, most=2)
  assert jax.eval_shape(run, *asked).shape == (2, 2, size, size, 3)
  if name not in REDRAWERS:
    return
  rows, columns = system.grid
  assert size % rows == 0 == size % columns
  run = functools.partial(system.redraw, sampling=sampling)
  images = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
  cells = jax.ShapeDtypeStruct((2, rows * columns), bool)
  out = jax.eval_shape(
    lambda *a: run(*a[:4], given=a[4], again=a[5]), *asked, images, cells
  )
  assert out.shape == images.shape


@pytest.mark.parametrize("name", WEIGHERS)
def test_each_row_to_draw_counts_as_its_weight_says(name):
  """The loss is linear in the weights, and a weight is of its row alone.

  As long as no loss of a negative weight is far from the others.
  """
  # What keeps logits small counts all rows.
  off = {"liquid": {"loss__max_z": 0.0}, "unitoken": {"loss__z_loss": 0.0}}
  system = systems.build(config_of(name, **off.get(name, {})))
  made = {
    "unifluid": examples, "liquid": test_liquid.examples,
    "unitoken": unitoken_tiny.examples, "toy": hand_made,
    "vargpt": lambda rows: vargpt_tiny.examples(system, rows),
  }  # fmt: skip
  batch = made[name](rows=4)
  rng = np.random.default_rng(0)
  params, frozen = jax.tree.map(
    lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)),
    (systems.init_shapes(system), systems.frozen_shapes(system)),
  )

  @jax.jit
  def loss(rows):
    whole = whole_loss(system)
    return whole(params, frozen, batch | {"t2i": rows}, jax.random.key(0), 0)

  def weighed(w, rows=batch["t2i"]):
    return np.float64(loss(rows | {types.WEIGHT: jnp.float32(w)})[0])

  plain = loss(batch["t2i"])[0]
  np.testing.assert_allclose(weighed([1, 1, 1, 1]), plain, rtol=1e-6)
  a, b = np.array([0.5, -2, 0, 1]), np.array([1, 3, -1, 0])
  none = weighed(0 * a)
  assert abs(weighed(a) - none) > 1e-3
  np.testing.assert_allclose(
    weighed(a) + weighed(b), weighed(a + b) + none, rtol=1e-5
  )
  # The third row has no weight: another image in it changes nothing.
  other = jax.tree.map(lambda x: x.at[2].set(x[3]), batch["t2i"])
  np.testing.assert_allclose(weighed(a, other), weighed(a), rtol=1e-6)
  assert abs(weighed(b, other) - weighed(b)) > 1e-3


@pytest.mark.parametrize("name", REDRAWERS)
@pytest.mark.parametrize("cells, fits", [
  ([3], False), ([13, 15], False), ([15], True), ([14, 15], True),
  (range(16), True), (range(15), False),
])  # fmt: skip
def test_raster_order_draws_a_cell_again_with_all_cells_after_it(
  name, cells, fits
):
  config, again = config_of(name), np.zeros(16, bool)
  again[list(cells)] = True
  check = functools.partial(
    systems.spec(name).check_redraw, config, config.sampling,
    again.reshape(4, 4),
  )  # fmt: skip
  if fits:
    return check()
  with pytest.raises(ValueError, match="raster order: choose a cell and all"):
    check()


@pytest.mark.parametrize("name", ["vargpt", "var", "toy"])
def test_others_say_that_they_draw_no_cells_again(name):
  config = config_of(name)
  system = systems.build(config)
  drawings = Drawings(config, system, lambda *_: {}, lambda function: function)
  assert drawings.grid is None
  image, again = np.zeros((8, 8, 3), np.uint8), np.ones((4, 4), bool)
  with pytest.raises(ValueError, match=f"'{name}' has no cells that it can dr"):
    drawings.redraw(["a"], 0, image, again, config.sampling)


@pytest.mark.parametrize("name", SCORERS)
def test_likelihoods_are_those_of_a_distribution(name):
  """They add up to one over first words, and over what follows a word."""
  system = systems.build(config_of(name))
  assert isinstance(system, types.Scorer)
  rng, v = np.random.default_rng(0), system.config.model.decoder.vocab
  params = jax.tree.map(
    lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)),
    systems.init_shapes(system),
  )
  made = {
    "unifluid": examples, "liquid": test_liquid.examples,
    "unitoken": unitoken_tiny.examples, "toy": hand_made,
    "vargpt": lambda rows: vargpt_tiny.examples(system, rows),
  }  # fmt: skip
  batch = made[name](rows=1)["i2t"]
  rows = {k: jnp.repeat(x, v, axis=0) for k, x in batch.items()}
  score = jax.jit(lambda suffix: system.score(
    params, {}, {"i2t": rows | {"suffix": suffix}}))  # fmt: skip
  empty = np.full(rows["suffix"].shape, types.PAD, np.int32)
  one, two = empty.copy(), empty.copy()
  one[:, 0] = two[:, 1] = np.arange(v)
  two[:, 0] = word = v // 2
  firsts = np.exp(np.asarray(score(one), np.float64))
  np.testing.assert_allclose(firsts.sum(), 1.0, rtol=1e-5)
  seconds = np.exp(np.asarray(score(two), np.float64))
  np.testing.assert_allclose(seconds.sum(), firsts[word], rtol=1e-4)
  np.testing.assert_array_equal(score(empty), 0.0)
  said = jax.jit(lambda: system.answer(
    params, {}, given({"i2t": rows}, "i2t"), keys(v), system.config.sampling
  ))()  # fmt: skip
  assert set(np.asarray(said)[:, 0]) == {firsts.argmax()}


def test_eight_images_are_reconstructed_better_and_better():
  """The autoencoder's own training; generators follow below."""
  system = systems.build(test_vae.make(kl=1e-6))
  params = test_vae.filled(jax.eval_shape(system.init, jax.random.key(0)))
  flat = np.random.default_rng(0).uniform(-1, 1, (8, 2, 2, 3))
  images = jnp.float32(np.kron(flat, np.ones((1, 8, 8, 1))))
  batch, loss = {"image": {"image": images}}, whole_loss(system)
  optimizer = optax.adam(1e-2)

  @jax.jit
  def update(params, state, key):
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
      params, {}, batch, key, 0
    )
    change, state = optimizer.update(grads, state)
    return optax.apply_updates(params, change), state, metrics["psnr"]

  state, psnr = optimizer.init(params), []
  for i in range(40):
    params, state, found = update(params, state, jax.random.key(i))
    psnr.append(float(found))
  assert psnr[-1] > psnr[0] + 6, psnr[::10]


# ----------------------------------------------------------- the fifth system


def test_eight_examples_are_learned_by_heart(space):
  """The trainer's own step; then exact codes and exact answers are drawn."""
  batch, steps = hand_made(), 200
  state = jax.tree.map(jnp.copy, space.state)
  before = state.params["counts"]["codes"] + 0
  assert before.sum() == space.config.steps * 2 * 8 * N
  with jax.set_mesh(space.job.mesh):
    for _ in range(steps):
      state, metrics = space.job.step(state, space.frozen, batch)
  assert metrics["text_accuracy"] == metrics["dialogue_accuracy"] == 1
  turns = batch["dialogue"]["row.codes"]
  uses = [batch["t2i"]["image"], batch["i2t"]["codes"], *turns.swapaxes(0, 1)]
  uses = np.bincount(np.ravel(uses), minlength=COLOURS)
  counted = state.params["counts"]["codes"]
  np.testing.assert_array_equal(counted, before + steps * uses)
  same(state.ema["counts"], state.params["counts"])
  how = dataclasses.replace(space.config.sampling, cfg=1.0, temperature=1e-3)
  system, frozen = space.system, space.frozen
  shown = [{"dialogue": dialogue(turns, n, True)} for n in (1, 2, 3)]
  *images, answers, said, last = jax.jit(lambda p: (
    system.generate(p, frozen, given(batch, "t2i"), keys(8), how),
    system.generate(p, frozen, shown[1], keys(8), how),
    system.answer(p, frozen, given(batch, "i2t"), keys(8), how),
    system.answer(p, frozen, shown[0], keys(8), how),
    system.answer(p, frozen, shown[2], keys(8), how),
  ))(state.ema)  # fmt: skip
  codes = [system.codec.encode(frozen["codec"], x) for x in images]
  np.testing.assert_array_equal(codes[0], batch["t2i"]["image"])
  np.testing.assert_array_equal(codes[1], turns[:, 1])
  np.testing.assert_array_equal(answers, batch["i2t"]["suffix"])
  # A text ends where an image begins, or where the row does.
  for i in range(8):
    words = [i + 20, 9, BOI] if i % 2 else [i + 20, BOI]
    assert said[i].tolist() == words + [types.PAD] * (9 - len(words))
    assert last[i].tolist() == [i + 40, types.EOS] + [types.PAD] * 7


def given(batch, task):
  """A batch of one task without its targets."""
  return {task: {k: x for k, x in batch[task].items()
                 if k not in ("image", "suffix")}}  # fmt: skip


@pytest.fixture(scope="module")
def model(space):
  """Random parameters, none at its initial value; nothing dropped."""
  loss = dataclasses.replace(space.config.loss, prompt_dropout=0.0)
  config = dataclasses.replace(space.config, loss=loss)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)),
    systems.init_shapes(space.system),
  )
  return SimpleNamespace(
    system=systems.build(config), params=params, frozen=space.frozen
  )


def test_mesh_and_accumulation_change_no_objective(model):
  assert_one_objective(
    model.system, model, lopsided(hand_made()), [(2, (2, 2, 2))]
  )


@pytest.fixture(scope="module")
def draw(space, model):
  prompt = hand_made()["t2i"]["prompt"]
  how = dataclasses.replace(space.config.sampling, temperature=0.5)

  @functools.cache
  def of(cfg):
    sampling = dataclasses.replace(how, cfg=cfg)
    return jax.jit(lambda fields: model.system.draw(
      model.params, fields, keys(8), sampling))  # fmt: skip

  return SimpleNamespace(
    run=lambda cfg, prompt=prompt: of(cfg)({"prompt": prompt}),
    prompt=prompt, how=dataclasses.replace(how, cfg=2.0),
  )  # fmt: skip


def test_drawing_with_a_cache_is_full_recomputation(model, draw):
  s, params = model.system, model.params
  null = packing.null_prompt(draw.prompt)
  prompts = {"prompt": jnp.concatenate([draw.prompt, null])}

  @jax.jit
  def code(codes, i):
    ids = s.config.model.first_code + jnp.concatenate([codes, codes])
    packed = s._drawn(params, prompts, ids)
    hidden, _ = s.decoder.apply(
      {"params": params["decoder"]}, packed.x,
      packing.positions(packed.valid),
      block_causal_mask(packed.block, packed.valid),
    )  # fmt: skip
    row_keys = jax.vmap(lambda k: jax.random.fold_in(k, i))(keys(8))
    return s.pick(params, hidden[:, i - N], row_keys, draw.how)

  codes = jnp.zeros((8, N), jnp.int32)
  for i in range(N):
    codes = codes.at[:, i].set(code(codes, jnp.int32(i)))
  np.testing.assert_array_equal(draw.run(2.0), codes)
  assert len(np.unique(codes, axis=0)) == 8


def test_guidance_leads_away_from_the_empty_prompt_and_1_is_none(
  space, model, draw
):
  one = draw.run(1.0)
  same(one, draw.run(1.0 + 1e-7))
  assert (one != draw.run(2.0)).any(1).sum() > 4
  # Nothing leads away from itself; and people who ask for nothing get it.
  null = packing.null_prompt(draw.prompt)
  same(draw.run(1.0, null), draw.run(2.0, null))
  prompt = space.system.inputs["t2i"]["prompt"]
  same(prompt.row(space.tokenizer, ""), null[0])


def test_files_and_pixels_give_the_same_batch(space):
  def first(moments):
    tree = toy_tree(space.root)
    tree.data.train.shapes.moments = moments
    config = systems.resolve(tree)
    system = systems.build(config)
    loader = pipeline.make_loader(config, system.inputs, space.tokenizer)
    batch = next(loader)
    loader.close()
    return batch, encode_pixels(system, space.frozen, batch)

  (files, a), (pixels, b) = first("codes"), first("")
  assert files["i2t"]["codes"].dtype == np.int32
  assert pixels["i2t"]["codes.pixels"].shape == (8, 32, 32, 3)
  same(a, b)


def test_dialogues_of_the_world_are_loaded_and_encoded(space):
  data = space.root / "data"
  in_context.build(data / "shapes_in_context", shapes.World(), 12)
  tree = toy_tree(space.root, text__dialogue=62, batch__dialogue=12)
  tree.batch.update(t2i=0, i2t=0)
  tree.data.train.dialogues = source("shapes_in_context", tasks=("dialogue",))
  config = systems.resolve(tree)
  system = systems.build(config)
  loader = pipeline.make_loader(config, system.inputs, space.tokenizer)
  batch = next(loader)
  loader.close()
  pixels = batch["dialogue"]["row.codes.pixels"]
  assert pixels.shape == (12, 3, 32, 32, 3)
  row = encode_pixels(system, space.frozen, batch)["dialogue"]
  assert row["row.codes"].shape == (12, 3, N)
  for k in range(3):
    codes = system.codec.encode(space.frozen["codec"], pixels[:, k])
    np.testing.assert_array_equal(row["row.codes"][:, k], codes)
  # BOS, three images of 18 tokens, three words, EOS.
  ids = row["row.ids"]
  assert ((ids != types.PAD).sum(1) == 11).all()
  assert ((row["row.cell"] >= 0).sum(1) == 3 * N).all()
  assert (ids[:, :2] == [types.BOS, BOI]).all(1).sum() == 6  # half of them
  assert (ids[:, 58] == types.EOS).all() and (ids[:, 59:] == types.PAD).all()


def test_each_target_of_a_dialogue_counts_once(model):
  """Against a plain softmax over whole rows."""
  s, fields_ = model.system, hand_made()["dialogue"]
  counts = s.counts({"dialogue": fields_})
  _, metrics, _ = jax.jit(lambda: s.loss(
    model.params, {}, {"dialogue": fields_}, counts, jax.random.key(0), 0
  ))()  # fmt: skip
  ids = np.asarray(fields_["row.ids"]).copy()
  codes = np.asarray(fields_["row.codes"]).reshape(8, -1)
  nll, hits = [], []
  for b in range(8):
    cells = np.asarray(fields_["row.cell"][b])
    for t in np.flatnonzero(cells >= 0):
      ids[b, t] = TEXT + codes[b, cells[t]]
  steps = jnp.broadcast_to(jnp.arange(T), ids.shape)
  hidden, _ = jax.jit(lambda: s.decoder.apply(
    {"params": model.params["decoder"]},
    embed.text(s.decoder, model.params, jnp.asarray(ids)), steps,
    jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (8, T, T)),
  ))()  # fmt: skip
  table = decoder.output_table(model.params["decoder"])
  scores = decoder.logits(s.config.model.decoder, table, hidden)
  log_p = np.asarray(jax.nn.log_softmax(scores, axis=-1))
  for b, t in np.argwhere(np.asarray(fields_["row.target"])):
    nll.append(-log_p[b, t - 1, ids[b, t]])
    hits.append(log_p[b, t - 1].argmax() == ids[b, t])
  # Of 38 or 39 tokens: one or two words and what ends them, an image and what
  # ends it, a word, EOS.
  assert len(nll) == 4 * (2 + N + 1 + 2) + 4 * (3 + N + 1 + 2)
  assert metrics["loss_dialogue"] == pytest.approx(np.mean(nll), rel=1e-5)
  assert metrics["dialogue_accuracy"] == pytest.approx(np.mean(hits))


def test_a_run_goes_on_bit_by_bit(space, tmp_path):
  shutil.copytree(space.run, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
  again = space.train(tmp_path / "run")
  assert any("resumed from step 2" in line for line in space.said)
  same(jax.device_get(space.state), jax.device_get(again))


def test_a_run_is_loaded_from_another_directory(space, tmp_path, monkeypatch):
  shutil.copytree(space.run, tmp_path / "moved")
  hidden = space.root.rename(space.root.with_name("hidden"))
  monkeypatch.chdir(tmp_path)
  try:
    model = api.load("moved")
  finally:
    hidden.rename(space.root)
  image = np.asarray(model.generate("a red circle", seed=3))
  assert image.shape == (32, 32, 3)
  # Painted with the run's own codec, and nothing else.
  painted = {tuple(p) for p in image.reshape(-1, 3)}
  assert painted <= {tuple(c) for c in api.to_uint8(space.colours)}
  assert isinstance(model.caption(image), str)
  record = sources.open_source(
    space.config.data.train["shapes"], space.config.data.root, ""
  )[0]
  assert model.look(record).shape == (32, 32, 3)
  with pytest.raises(ValueError, match="unknown sampling option 'steps'"):
    model.generate("a red circle", steps=3)
  with pytest.raises(ValueError, match="beam"):
    model.caption(image, text="beam")


def test_programs_are_compiled_ahead_of_time(space):
  place = topology.get("cpu:8")
  tree = toy_tree(space.root, mesh__data=2, mesh__fsdp=-1)
  config = systems.resolve(tree)
  (step,) = lower.programs(config, "train", place.devices)
  assert compiled.compile_program(step.lowered, place).error is None
  assert step.cost.tokens == 8 * (14 + N) + 8 * (N + 8 + 9 - 1)
  made = lower.programs(config, "eval", place.devices, rows=2)
  assert [p.lowered.out_info.shape for p in made] == [
    (2, 32, 32, 3), (2, 9), (2, 32, 32, 3)
  ]  # fmt: skip
  held = made[0].held
  assert held["frozen"]["codec"]["colours"].dtype == np.float32
  assert held["parameters"]["decoder"]["embedder"]["table"].dtype == "bfloat16"


def test_a_checkpoint_is_scored_and_reported(space):
  said = []
  tree = checkpoint.read_meta(str(space.run), 4)["config"]
  config = systems.resolve(tree)
  job = evaluation.Evaluator(config, str(space.run), said.append)
  assert job.run(4) == []
  lines = (space.run / "metrics_eval.jsonl").read_text().splitlines()
  values = {r["metric"]: r.get("value") for r in map(json.loads, lines)}
  assert np.isfinite(values["tokenizer/psnr"])
  assert 0 <= values["captions/exact"] <= 1
  page = (space.run / evaluation.REPORT).read_text()
  for words in ("toy run", "16 cells of 8", "L_image (nats)", "data:image/png"):
    assert words in page, words


def test_commands_refuse_options_of_other_systems():
  asked = requests.Flags(
    prompts=["a red circle"], prompts_file=None, image=None, question=None,
    edit=None, out=None, seed=0, samples=1, step=None,
    sampling={"cfg": None, "temperature": None, "steps": 3, "order": None},
  )  # fmt: skip
  with pytest.raises(ValueError, match="steps"):
    requests.check(asked, lambda: systems.spec("toy"))
