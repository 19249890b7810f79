import dataclasses

import pytest

from configs.base import base
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
  m = config.resolve(c).model
  expected = dataclasses.replace(presets.GEMMA["gemma2_2b"], width=128)
  assert m.decoder == expected
  assert (m.image_tokens, m.token_channels) == (256, 16)


def test_resolve_widens_ints_to_floats():
  assert config.resolve(tree(loss__text_weight=1)).loss.text_weight == 1.0


def test_resolved_config_is_frozen():
  c = config.resolve(tree())
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
    ({"model__dtype": "float16"}, "choose one of"),
    ({"optim__lr": "fast"}, "expected float, got str"),
    (
      dict(optim__decay="paligemma", optim__parts={"head": {"name": "muon"}}),
      "optim.decay='paligemma' needs optim.parts.head.name='adamw'",
    ),
    ({"order__random_until": 700_000}, "lies after"),
    ({"loss__prompt_dropout": 0.0}, "null condition"),
    ({"system": "vae", "vae_loss__perceptual": 1.0}, "LPIPS"),
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
    config.resolve(plain)


def test_unknown_key_names_its_neighbour():
  plain = tree().to_dict()
  plain["optim"]["weigth_decay"] = 0.1
  with pytest.raises(config.ConfigError, match="did you mean 'weight_decay'"):
    config.resolve(plain)


def test_missing_key_is_named():
  plain = tree().to_dict()
  del plain["loss"]["draws"]
  with pytest.raises(config.ConfigError, match="missing key config.loss.draws"):
    config.resolve(plain)


def test_every_dataclass_key_stands_in_base():
  """A key missing in base.py could not be set on the command line."""

  def check(cls, node, path):
    for f in dataclasses.fields(cls):
      if f.name in ("train", "eval", "world") and path == "config.data":
        continue
      if cls in (presets.GemmaConfig,):
        continue
      assert f.name in node, f"{path}.{f.name}"
      if dataclasses.is_dataclass(f.type):
        check(f.type, node[f.name], f"{path}.{f.name}")

  check(config.Config, tree().to_dict(), "config")
