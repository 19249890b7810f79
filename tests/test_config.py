import dataclasses
import json

import pytest

from configs import debug, liquid_7b, tokenizer, unitoken_7b, var, vargpt_7b
from configs.base import base, image_tokenizer
from unifluid_jax import systems
from unifluid_jax.core import config, presets


def tree(**changes):
  c = base()
  c.data.train = dict(a=dict(format="jsonl", path="a.jsonl"))
  for key, value in changes.items():
    c.update_from_flattened_dict({key.replace("__", "."): value})
  return c


def test_resolve_fills_presets_and_overrides():
  c = tree()
  c.model.decoder.width = 128
  m = systems.resolve(c).model
  expected = dataclasses.replace(presets.GEMMA["gemma2_2b"], width=128)
  assert m.decoder == expected
  assert (m.image_tokens, m.token_channels) == (256, 16)


def test_resolve_widens_ints_to_floats():
  assert systems.resolve(tree(loss__text_weight=1)).loss.text_weight == 1.0


def test_images_need_not_be_whole_patches():
  plain = tree().to_dict()
  plain["model"]["vit"]["image_size"] = 384
  assert systems.resolve(plain).model.vit.image_size == 384  # 27 of 14 pixels


def test_resolved_config_is_frozen():
  c = systems.resolve(tree())
  with pytest.raises(dataclasses.FrozenInstanceError):
    c.steps = 3
  with pytest.raises(TypeError):
    c.batch["t2i"] = 3


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"batch": {"t2j": 4}}, "tasks are"),
    ({"batch": {"t2i": 0}}, "nothing to train on"),
    ({"batch": {"edit": 4}}, "no data.train source lists task 'edit'"),
    ({"accumulate": 3}, "not divisible by accumulate=3"),
    ({"model__image_size": 250}, "multiple of 16"),
    ({"model__latent_std": 0.0}, "latent_std=0.0 must be positive"),
    ({"model__decoder__kv_heads": 3}, "multiple of model.decoder.kv_heads"),
    ({"model__decoder__preset": "gemma9"}, "gemma2_2b"),
    ({"model__decoder__activation": "relu"}, "choose one of"),
    ({"model__decoder__norm_epsilon": 0.0}, "epsilon=0.0 must be positive"),
    (
      {
        "model__decoder__pre_norms": False,
        "model__decoder__post_norms": False,
      },
      "has no norms",
    ),
    ({"model__vit__image_size": 13}, "must hold a patch at least"),
    ({"model__dtype": "float16"}, "choose one of"),
    ({"optim__lr": "fast"}, "expected float, got str"),
    (
      dict(optim__decay="paligemma", optim__parts={"head": {"name": "muon"}}),
      "optim.decay='paligemma' needs optim.parts.head.name='adamw'",
    ),
    ({"loss__random_until": 700_000}, "lies after"),
    ({"text__special": {"eos": 1 << 30}}, "eos=.* must be an id below"),
    ({"text__special": {"bos": "<bos>"}}, "bos='<bos>': .* reads its id"),
    ({"loss__prompt_dropout": 0.0}, "null condition"),
    (
      {
        "loss__prompt_dropout": 0.0,
        "batch": {"t2i": 0, "edit": 4},
        "data__train__a__tasks": ("edit",),
      },
      "null condition",
    ),
    ({"mesh__data": -1}, "only one axis may be -1"),
    ({"sampling__steps": 2000}, r"in \[1, 1000\]"),
    (dict(data__max_pixels=0), r"data\.max_pixels=0 must be in \[1, 178956970"),
    (dict(data__max_pixels=1 << 28), r"data\.max_pixels=268435456 must be"),
  ],
)
def test_impossible_values_are_refused_with_the_fix(changes, words):
  plain = tree().to_dict()
  for path, value in changes.items():
    node = plain
    *parents, last = path.split("__")
    for p in parents:
      node = node[p]
    node[last] = value
  with pytest.raises(config.ConfigError, match=words):
    systems.resolve(plain)


def test_a_perceptual_loss_needs_its_weights():
  c = tree()
  image_tokenizer(c)
  c.batch.image = 4
  systems.resolve(c)
  c.loss.perceptual = 1.0
  with pytest.raises(config.ConfigError, match="LPIPS"):
    systems.resolve(c)


def test_tasks_of_another_system_are_refused():
  c = tree(batch__t2i=0, batch__i2t=0).to_dict()
  c["batch"]["image"] = 4
  with pytest.raises(config.ConfigError, match="'unifluid' trains on t2i, i2t"):
    systems.resolve(c)


def test_unknown_key_names_its_neighbour():
  plain = tree().to_dict()
  plain["optim"]["weigth_decay"] = 0.1
  with pytest.raises(config.ConfigError, match="did you mean 'weight_decay'"):
    systems.resolve(plain)


def test_missing_key_is_named():
  plain = tree().to_dict()
  del plain["loss"]["draws"]
  with pytest.raises(config.ConfigError, match="missing key config.loss.draws"):
    systems.resolve(plain)


def test_every_dataclass_key_stands_in_base():
  """A key missing in base.py could not be set on the command line."""

  def check(cls, node, path):
    for f in dataclasses.fields(cls):
      if f.name in ("train", "eval", "world") and path == "config.data":
        continue
      assert f.name in node, f"{path}.{f.name}"
      if dataclasses.is_dataclass(f.type):
        check(f.type, node[f.name], f"{path}.{f.name}")

  check(config.Config, tree().to_dict(), "config")
  full = {
    "unifluid": tree(), "vae": debug.get_config("vae"),
    "vq": tokenizer.get_config("vq16"),
    "multiscale_vq": tokenizer.get_config("var16"),
    "liquid": liquid_7b.get_config(),
    "unitoken": unitoken_7b.get_config("stage2"), "var": var.get_config(),
    "vargpt": vargpt_7b.get_config(),
  }  # fmt: skip
  assert set(full) == set(systems.SYSTEMS)
  for name, whole in full.items():
    for node, cls in systems.spec(name).nodes.items():
      check(cls, whole.to_dict()[node], f"config.{node}")


# -------------------------------------------------------------- older versions


def older(c, new=()):
  """A tree of UniFluid as it was spelt before systems had their own nodes."""
  c = c.to_dict()
  names = ("random_until", "raster_from")
  c["order"] = {name: c["loss"].pop(name) for name in names}
  c["vae_loss"] = debug.get_config("vae").loss.to_dict()
  c["init"] = {k: "" if v == "new" else v for k, v in c["init"].items()}
  c["init"]["new"] = tuple(new)
  return c


def older_vae():
  """Its autoencoder's, which carried all of UniFluid's settings."""
  today, whole = debug.get_config("vae").to_dict(), older(debug.get_config())
  batch = dict(t2i=today["batch"]["image"], i2t=0, edit=0, text=0)
  kept = {k: whole[k] for k in ("model", "loss", "order", "sampling", "init")}
  return {**today, **kept, "vae_loss": today["loss"], "batch": batch}


def resaved(c):
  """As a checkpoint's JSON gives it back."""
  return json.loads(json.dumps(c))


def test_trees_of_older_versions_resolve_as_before():
  c = debug.get_config()
  assert systems.resolve(resaved(older(c))) == systems.resolve(c)
  c.init.update(all="runs/a", vit="runs/b", head="new", image="new")
  old = resaved(older(c, new=("head", "image")))
  assert systems.resolve(old) == systems.resolve(c)
  assert systems.resolve(resaved(older(c)) | {"init": None}).init == {}
  vae = debug.get_config("vae")
  vae.init = debug.get_config().init  # the parts that were offered then
  assert systems.resolve(resaved(older_vae())) == systems.resolve(vae)


@pytest.mark.parametrize("name", ["", "vae"])
def test_a_tree_of_this_version_is_left_as_it_is(name):
  c = resaved(debug.get_config(name).to_dict())
  before = resaved(c)
  assert systems.migrated(c) == before == c


def test_a_misspelt_key_of_an_older_tree_is_refused():
  old = older(debug.get_config())
  old["order"]["raster_form"] = 3
  with pytest.raises(config.ConfigError, match="did you mean 'raster_from'"):
    systems.resolve(old)
