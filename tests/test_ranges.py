"""Impossible settings are refused by `resolve`, by the name of their key."""

import dataclasses
import math

import pytest

from configs import debug, shapes
from configs.base import base, image_tokenizer, source
from unifluid_jax import systems
from unifluid_jax.core import config, ranges

NAN, INF = math.nan, math.inf

# Key → values that cannot be; both systems read these, each its own below.
IMPOSSIBLE = {
  "seed": (-1, 2**32),
  "steps": (0, -1, 2**31),
  "accumulate": (0, -1),
  "data.threads": (0,),
  "data.workers": (-1,),
  "data.images": (0,),
  "data.max_bad_share": (-0.1, 1.5, NAN),
  "data.train.shapes.weight": (-1.0, NAN, INF),
  "data.train.shapes.limit": (-1,),
  "data.train.shapes.min_score": (NAN, INF),
  "data.eval.validation.limit": (-5,),
  "data.eval.validation.min_score": (NAN,),
  "data.world.train": (0, -1),
  "data.world.seed": (-1,),
  "text.train_vocab": (-1,),
  "model.image_size": (0, -32),
  "model.vae.base": (0, -64),
  "model.vae.multipliers": ((), (0,), (1, -2)),
  "model.vae.blocks": (0,),
  "model.vae.latent": (0, 2**31),
  "model.vae.groups": (0, -32, 48),
  "model.vae.stem": (0,),
  "model.vae.latent_scale": (0.0, -1.0, NAN),
  "model.vae.latent_mean": (NAN, INF),
  "optim.lr": (-1e-3, NAN, INF, 1e39),
  "optim.adam_lr": (-1e-3, NAN),
  "optim.warmup": (-1,),
  "optim.b1": (1.0, -0.1, NAN),
  "optim.b2": (1.0, -0.1),
  "optim.eps": (0.0, -1e-8, NAN),
  "optim.weight_decay": (-0.1, INF),
  "optim.clip": (-1.0, NAN),
  "optim.ema": (1.0, -0.5, NAN),
  "optim.rates.decoder": (-1.0, NAN),
  "optim.parts": (
    {"head": {"lr": -1.0}},
    {"head": {"b2": 1.0}},
    {"head": {"start": -1}},
  ),
  "mesh.data": (0, -2),
  "mesh.fsdp": (0,),
  "mesh.tensor": (0, -1),
  "checkpoint.every": (0, -1),
  "checkpoint.keep": (0, -1),
  "checkpoint.keep_every": (-1,),
  "log.every": (0, -5),
  "log.profile_start": (-1,),
  "log.profile_steps": (-1,),
  "eval.examples": (0, -1),
  "eval.batch": (0, -1),
  "eval.prompts_per_task": (0,),
  "eval.seed": (-1, 4001),
  "eval.poll_seconds": (0.0, -1.0, NAN, INF),
}
UNIFLUID = {
  "batch.t2i": (-32, 2**40),
  "text.prompt": (0, -1),
  "text.prefix": (0,),
  "text.suffix": (0,),
  "model.patch": (0, -1),
  "model.latent_std": (0.0, NAN),
  **{
    f"model.decoder.{key}": (0, -1)
    for key in "vocab width depth mlp heads kv_heads head_dim".split()
  },
  "model.decoder.rope_base": (0.0, NAN, INF),
  "model.decoder.rope_base_global": (-1.0,),
  "model.decoder.dropout": (1.0, -0.1, NAN),
  **{
    f"model.vit.{key}": (0,)
    for key in "width depth mlp heads patch image_size".split()
  },
  "model.head.width": (0,),
  "model.head.depth": (0, -3),
  "loss.text_weight": (-1.0, NAN),
  "loss.draws": (0,),
  "loss.vocab_chunk": (0, -1),
  "loss.prompt_dropout": (1.0, -0.1, NAN),
  "loss.label_smoothing": (1.0,),
  "loss.word_dropout": (1.0, NAN),
  "loss.image_dropout": (0.6,),
  "loss.random_until": (-1,),
  "loss.raster_from": (-1,),
  "sampling.steps": (0, 1001),
  "sampling.cfg": (NAN, INF, -1.0),
  "sampling.image_cfg": (NAN,),
  "sampling.temperature": (-1.0, NAN),
  "sampling.clip": (-1.0, NAN),
  "sampling.text_temperature": (0.0, NAN),
  "sampling.top_k": (-1,),
  "sampling.top_p": (0.0, 1.1, NAN),
  "sampling.beams": (0,),
  "sampling.seed": (-1, 2**32),
}
VAE = {
  "batch.image": (-32, 2**40),
  "loss.l1": (-1.0,),
  "loss.kl": (-1.0, NAN),
  "loss.adversarial": (-0.5,),
  "loss.adversarial_start": (-1,),
  "loss.discriminator_width": (0,),
  "loss.discriminator_layers": (0, -1),
}
TREES = {
  "unifluid": shapes.get_config().to_dict(),
  "vae": debug.get_config("vae").to_dict(),
}


def changed(tree, key, value):
  """A copy of a nested dict with one value replaced, or added."""
  first, _, rest = key.partition(".")
  new = changed(tree.get(first, {}), rest, value) if rest else value
  return {**tree, first: new}


def cases(system, *tables):
  return [
    pytest.param(system, key, value, id=f"{system}-{key}={value}")
    for table in tables
    for key, values in table.items()
    for value in values
  ]


@pytest.mark.parametrize(
  "system, key, value",
  cases("unifluid", IMPOSSIBLE, UNIFLUID) + cases("vae", IMPOSSIBLE, VAE),
)
def test_impossible_values_are_refused_by_key(system, key, value):
  with pytest.raises(config.ConfigError) as error:
    systems.resolve(changed(TREES[system], key, value))
  text = str(error.value)
  # Two of -1 and a size that others divide are told with their neighbours.
  name = {"mesh.tensor": "mesh"}.get(key, key)
  assert name in text and "\n" not in text and len(text) < 200


OWN = ("model", "loss", "sampling")  # nodes that a system brings


@pytest.mark.parametrize(
  "system, key",
  [
    ("vae" if table is UNIFLUID else "unifluid", key)
    for table in (UNIFLUID, VAE)
    for key in table
    if key.startswith(OWN)
  ],
)
def test_settings_of_another_system_are_refused_by_name(system, key):
  with pytest.raises(config.ConfigError) as error:
    systems.resolve(changed(TREES[system], key, 1))
  node, *names = key.split(".")
  odd = names[0] if names[0] not in TREES[system][node] else ".".join(names)
  assert f"unknown key config.{node}.{odd}" in str(error.value)


def test_only_the_system_that_reads_a_text_slot_checks_it():
  for name in ("prompt", "prefix", "suffix"):
    systems.resolve(changed(TREES["vae"], f"text.{name}", 0))


def test_a_number_that_no_row_names_must_be_finite():
  resolved = systems.resolve(TREES["unifluid"])
  for value in (NAN, INF):
    sampling = dataclasses.replace(resolved.sampling, cfg=value)
    odd = dataclasses.replace(resolved, sampling=sampling)
    words = f"sampling.cfg={value} must be a finite number"
    with pytest.raises(config.ConfigError, match=words):
      ranges.check(odd)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"sampling.cfg": 3.0, "loss.prompt_dropout": 0.0}, "a null condition"),
    ({"model.vit.heads": 5}, "a multiple of model.vit.heads=5"),
    ({"model.patch": 5}, "model.image_size=32 must be a multiple of"),
    ({"loss.random_until": 9000}, "lies after loss.raster_from"),
    ({"model.decoder.head_dim": 7}, "head_dim must be even"),
    ({"data.train.shapes.min_score": -2.0}, "min_score=-2.0 needs score"),
  ],
)
def test_settings_that_exclude_one_another_are_refused(changes, words):
  tree = TREES["unifluid"]
  for key, value in changes.items():
    tree = changed(tree, key, value)
  with pytest.raises(config.ConfigError, match=words):
    systems.resolve(tree)


@pytest.mark.parametrize(
  "key, value",
  [
    ("optim.clip", 0.0), ("optim.ema", 0.0), ("optim.lr", 0.0),
    ("optim.warmup", 10**6), ("optim.rates.decoder", 0.0), ("mesh.data", 8),
    ("checkpoint.keep_every", 0), ("data.workers", 0), ("seed", 2**32 - 1),
    ("data.train.shapes.weight", 0.0),
    ("data.max_bad_share", 0.0), ("data.max_bad_share", 1.0),
    ("sampling.cfg", 0.0), ("sampling.temperature", 0.0),
    ("sampling.top_p", 1.0), ("sampling.steps", 1), ("sampling.steps", 1000),
    ("model.vae.latent_mean", -0.5), ("loss.text_weight", 0.0),
    ("loss.image_dropout", 0.5), ("loss.random_until", 0),
  ],
)  # fmt: skip
def test_the_ends_of_the_ranges_are_allowed(key, value):
  resolved = systems.resolve(changed(TREES["unifluid"], key, value))
  assert dict(ranges.numbers(resolved))[key] == value


@pytest.mark.parametrize("system", TREES)
def test_every_number_has_one_row(system):
  """A number that is added states its range, and no row is dead."""
  tree = base()
  if system == "vae":
    image_tokenizer(tree)
    tree.batch.image = 1
  tree.data.train = {"a": source("a")}
  tree.data.eval = {"b": source("b")}
  tree.data.world = dict(TREES["unifluid"]["data"]["world"], cells=2)
  tree.eval.split = "b"
  tree.optim.parts = {"head": dict(start=2, b1=0.5, lr=1e-3)}
  tree.policy.sampling = dict(cfg=1.0)
  resolved = systems.resolve(tree)
  if system == "unifluid":
    decoder = dataclasses.replace(resolved.model.decoder, query_scale=0.1)
    model = dataclasses.replace(resolved.model, decoder=decoder)
    resolved = dataclasses.replace(resolved, model=model)
  rows = systems.spec(system).ranges
  used = {key: ranges.row_of(key, rows) for key, _ in ranges.numbers(resolved)}
  without = [key for key, row in used.items() if row is None]
  slots = ["text.prompt", "text.prefix", "text.suffix"]  # the vae reads none
  assert without == (slots if system == "vae" else [])
  every = (*ranges.ROWS, *rows)
  assert [row.keys for row in every if row not in used.values()] == []


def test_messages_state_the_range():
  def message(key, value):
    with pytest.raises(config.ConfigError) as error:
      systems.resolve(changed(TREES["unifluid"], key, value))
    return str(error.value)

  assert message("accumulate", 0) == "config.accumulate=0 must be at least 1"
  assert message("optim.lr", NAN) == "config.optim.lr=nan must be at least 0"
  assert message("mesh.fsdp", 0) == (
    "config.mesh.fsdp=0 must be at least 1, or -1 (all devices that remain)"
  )
  assert "seed=-1 must be in [0, 4294967295]" in message("seed", -1)
  assert "must be in [1, 2147483647]" in message("steps", 2**31)
  assert "[1, 2147483647]" in message("steps", 10**400)
  assert "no float" in message("optim.lr", 10**400)
  assert "preset=['a'] is unknown" in message("model.decoder.preset", ["a"])
  assert "tasks are" in message("data.train.shapes.tasks", ("t2j",))
  assert "nothing to train on" in message("batch", {})
