"""Systems: what is trained, behind the contract of `core/types.py`.

A new system is one entry here and the module it names.
"""

import copy
import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import jax

from unifluid_jax.core import combinations, config, freeze, ranges
from unifluid_jax.core.config import Config
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import Params, System, SystemSpec
from unifluid_jax.data.tasks import EVERY_SOURCE, TASKS

SYSTEMS = {
  "unifluid": "unifluid_jax.systems.unifluid:SPEC",
  "liquid": "unifluid_jax.systems.liquid:SPEC",
  "unitoken": "unifluid_jax.systems.unitoken:SPEC",
  "vargpt": "unifluid_jax.systems.vargpt:SPEC",
  "var": "unifluid_jax.systems.var:SPEC",
  "vae": "unifluid_jax.systems.tokenizer_training:SPEC",
  "vq": "unifluid_jax.systems.vq_training:SPEC",
  "multiscale_vq": "unifluid_jax.systems.vq_training:MULTISCALE_SPEC",
}


def spec(name: Any) -> SystemSpec:
  """What a system brings; imports its module only.

  Raises:
    ConfigError: unknown.
  """
  if not isinstance(name, str) or name not in SYSTEMS:
    raise ConfigError(f"config.system={name!r}: choose one of {list(SYSTEMS)}")
  module, _, attribute = SYSTEMS[name].partition(":")
  return getattr(importlib.import_module(module), attribute)


def resolve(tree: Any) -> Config:
  """Checks a configuration tree and freezes it: the only way to a Config.

  Args:
    tree: as `configs/*.py` return it, or as a checkpoint of an older version
      holds it; a ConfigDict or plain dicts.

  Returns:
    The same values as frozen dataclasses, presets filled in.

  Raises:
    ConfigError: unknown or missing keys, wrong types, numbers outside their
      range, values that exclude one another. The message names the key and
      the fix.
  """
  to_dict = getattr(tree, "to_dict", None)
  node = to_dict() if to_dict else copy.deepcopy(dict(tree))
  if "system" not in node:
    raise ConfigError("missing key config.system")
  found = spec(node["system"])
  resolved = config.build(migrated(node), found)
  ranges.check(resolved, found.ranges)
  combinations.check(resolved, found.tasks, tuple(TASKS), EVERY_SOURCE)
  found.check(resolved, None)
  return resolved


def resolve_model(name: str, tree: Mapping[str, Any]) -> Any:
  """The subtree `model` alone, of any version that had these keys.

  Raises:
    ConfigError: unknown or missing keys, wrong types.
  """
  found, node = spec(name), migrated({**tree, "system": name})
  return freeze.build(
    found.model, node.get("model"), "config.model", config.PRESETS
  )


def migrated(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A configuration of any version, with the keys of this one.

  Args:
    tree: plain nested dicts; an empty one stays so.

  Raises:
    ConfigError: unknown system.
  """
  if not tree:
    return {}
  node = _migrate(copy.deepcopy(dict(tree)))
  return spec(node.get("system")).migrate(node)


def _migrate(tree: dict[str, Any]) -> dict[str, Any]:
  """Renames keys of older versions that all systems share."""
  init = tree.get("init")
  if init is None:
    return tree | {"init": {}}
  if isinstance(init, Mapping) and not isinstance(init.get("new", ""), str):
    new = {prefix: "new" for prefix in init["new"]}
    init = {k: v for k, v in init.items() if k != "new"} | new
    return tree | {"init": init}
  return tree


def sampling_options() -> frozenset[str]:
  """Names of all systems' sampling options."""
  kinds = (spec(name).sampling for name in SYSTEMS)
  return frozenset(f.name for k in kinds for f in dataclasses.fields(k))


def losses() -> dict[str, str]:
  """Key in metrics.jsonl → title of its curve, of all systems."""
  return {k: v for name in SYSTEMS for k, v in spec(name).losses.items()}


def build(config: Config) -> System:
  """The system that `config.system` names."""
  return spec(config.system).build(config)


def check_devices(config: Config, mesh: Any) -> None:
  """Whether the system runs on these devices.

  Raises:
    ConfigError: names the key and the fix.
  """
  spec(config.system).check(config, mesh)


def with_codec(config: Config, path: str) -> Config:
  """The configuration with another path of its codec."""
  key = spec(config.system).codec_path
  model = dataclasses.replace(config.model, **{key: path})
  return dataclasses.replace(config, model=model)


def codec_path(config: Config) -> str | None:
  """Path of the configuration's codec; None for systems without one."""
  key = spec(config.system).codec_path
  return getattr(config.model, key) if key else None


def load_frozen(system: System) -> dict[str, Params]:
  """Frozen weights of a system, read from disk: name → tree."""
  return {name: part.load() for name, part in system.frozen.items()}


def frozen_shapes(system: System) -> dict[str, Params]:
  """The same as ShapeDtypeStructs; reads no file."""
  return {name: part.shapes() for name, part in system.frozen.items()}


def init_shapes(system: System) -> Params:
  """Parameters as ShapeDtypeStructs."""
  return jax.eval_shape(system.init, jax.random.key(0))


def summary(config: Config) -> dict[str, str]:
  """Label → value of a run's configuration, for its report."""
  return spec(config.system).summary(config)


def text_rows(config: Config) -> int:
  """Rows of the vocabulary that the tokenizer may use."""
  return spec(config.system).text_rows(config)


def sentences(config: Config) -> tuple[str, ...]:
  """What the system's fields add to texts."""
  return spec(config.system).sentences(config)


def drawn_size(config: Config, sampling: Any) -> tuple[int, int] | None:
  """Height and width that prompts are to name; None where they name none."""
  return spec(config.system).drawn_size(config, sampling)
