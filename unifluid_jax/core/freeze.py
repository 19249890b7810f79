"""Nested mappings as frozen dataclasses, checked against their annotations."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


class ConfigError(ValueError):
  """A configuration that cannot run; the message says how to fix it."""


def need(ok: bool, message: str) -> None:
  """Raises ConfigError(message) unless `ok`."""
  if not ok:
    raise ConfigError(message)


def build(
  cls: type,
  node: Any,
  path: str,
  presets: Mapping[type, Mapping[str, Any]],
) -> Any:
  """A dataclass from a mapping, field by field.

  Args:
    cls: the dataclass; its annotations say what is allowed.
    node: keys are its fields.
    path: of the node, for messages.
    presets: dataclass → named instances; a key `preset` starts from one, and
      fields that are None keep its value.

  Raises:
    ConfigError: unknown or missing keys, wrong types.
  """
  if not isinstance(node, Mapping):
    raise ConfigError(f"{path} must hold {cls.__name__} keys, not {node!r}")
  node = dict(node)
  fields = {f.name: f for f in dataclasses.fields(cls)}
  base = None
  if cls in presets:
    base = _preset(presets[cls], node, path)
    node = {k: v for k, v in node.items() if v is not None}
  unknown = sorted(set(node) - set(fields))
  if unknown:
    near = difflib.get_close_matches(unknown[0], fields, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigError(
      f"unknown key {path}.{unknown[0]}{hint} Known: {', '.join(fields)}"
    )
  hints = typing.get_type_hints(cls)
  values = {
    k: _value(hints[k], v, f"{path}.{k}", presets) for k, v in node.items()
  }
  if base is not None:
    return dataclasses.replace(base, **values)
  required = [
    name for name, f in fields.items()
    if f.default is f.default_factory is dataclasses.MISSING
    and name not in values
  ]  # fmt: skip
  if required:
    raise ConfigError(f"missing key {path}.{required[0]}")
  return cls(**values)


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
  """Values of a nested mapping by dotted path; an empty mapping is one."""
  if not isinstance(tree, Mapping) or not tree:
    return {path: tree}
  out = {}
  for key, value in tree.items():
    out |= leaves(value, f"{path}.{key}" if path else key)
  return out


def _preset(table: Mapping[str, Any], node: dict, path: str) -> Any:
  """The preset a node names, removed from it; None without a name."""
  name = node.pop("preset", None)
  if not name:
    return None
  if not isinstance(name, str) or name not in table:
    raise ConfigError(
      f"{path}.preset={name!r} is unknown. Known: {', '.join(table)}"
    )
  return table[name]


def _value(hint: Any, value: Any, path: str, presets: Any) -> Any:
  """`value` as the annotated type; ints widen to floats, lists to tuples."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    return build(hint, value, path, presets)
  if origin is Literal:
    if value not in args:
      raise ConfigError(f"{path}={value!r}: choose one of {list(args)}")
    return value
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    (inner,) = [a for a in args if a is not type(None)]
    return _value(inner, value, path, presets)
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
      raise ConfigError(f"{path}={value!r}: expected a tuple")
    return tuple(_value(args[0], v, f"{path}[{i}]", presets)
                 for i, v in enumerate(value))  # fmt: skip
  if isinstance(origin, type) and issubclass(origin, Mapping):
    if not isinstance(value, Mapping):
      raise ConfigError(f"{path}={value!r}: expected a mapping")
    return types.MappingProxyType(
      {k: _value(args[1], v, f"{path}.{k}", presets) for k, v in value.items()}
    )
  if hint is Any:
    return value
  if hint is float and type(value) is int:
    try:
      return float(value)
    except OverflowError:
      raise ConfigError(f"{path}: a number of this size is no float") from None
  if type(value) is not hint:
    raise ConfigError(
      f"{path}={value!r}: expected {hint.__name__}, got {type(value).__name__}"
    )
  return value
