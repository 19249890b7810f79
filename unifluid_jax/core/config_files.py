"""Configuration files: which file --config means, and its configuration.

`shapes` and `configs/shapes.py` are the shipped file in any directory; every
other name is a path. The shipped files lie beside this package, in a checkout
as in an installation, and are found there: `from configs.base import base`
works for a user's file wherever it lies.
"""

import difflib
import errno
import importlib.util
import sys
import traceback
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unifluid_jax.core import freeze


class ConfigFileError(ValueError):
  """A --config that cannot be used; the message says why and what can."""


SHIPPED = Path(__file__).resolve().parents[2] / "configs"


def shipped_names() -> list[str]:
  """What --config=NAME knows."""
  hidden = ("__init__", "base")
  return sorted(p.stem for p in SHIPPED.glob("*.py") if p.stem not in hidden)


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
  """A hint for a misspelt word: the closest known one, or nothing."""
  found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
  return f"did you mean {prefix}{found[0]}? " if found else ""


def find(name: str) -> Path:
  """The file of a bare name or of a path.

  Raises:
    ConfigFileError: there is none; with the nearest name and all shipped ones.
    OSError: it is a directory.
  """
  path = Path(name)
  if path.is_file():
    return path
  if path.is_dir() and path.suffix == ".py":
    raise IsADirectoryError(errno.EISDIR, "Is a directory", name)
  bare = len(path.parts) == 1 and not path.suffix
  ours = path.parts[:-1] == ("configs",) and path.suffix == ".py"
  shipped = SHIPPED / f"{path.stem}.py"
  if (bare or ours) and shipped.is_file():
    return shipped
  names = shipped_names()
  raise ConfigFileError(
    f"no configuration {name!r}: {nearest(path.stem, names)}"
    f"Shipped: {', '.join(names)}; any other is the path of a .py file"
  )


def load(value: str) -> ConfigDict:
  """The configuration of a flag's value, FILE or FILE:ARGUMENT.

  Raises:
    ConfigFileError: no such file, or it failed: its name, line and message.
    OSError: the file cannot be read.
  """
  name, colon, argument = value.partition(":")
  path = find(name)
  provide_shipped()
  try:
    module = _execute(path)
    tree = module.get_config(*([argument] if colon else []))
  except OSError:
    raise
  except Exception as error:
    raise ConfigFileError(_failure(value, path, error)) from error
  if not isinstance(tree, ConfigDict):
    raise ConfigFileError(
      f"{name}: get_config() returned {type(tree).__name__}, not a ConfigDict"
    )
  tree.lock()
  return tree


def targets(value: str) -> dict[str, tuple[str, float]]:
  """The scores that a configuration file says its runs should reach.

  Args:
    value: of the flag; an argument makes another run, which has no targets.

  Returns:
    Its TARGETS: metric → (">=" or "<=", bound); empty where it has none.
  """
  return dict(_constant(value, "TARGETS", {}))


def stages(value: str) -> tuple[tuple[str, str], ...]:
  """The runs that a configuration file's own run starts from.

  Args:
    value: of the flag; an argument makes another run, which has none.

  Returns:
    Its STAGES in their order: a configuration, as for --config, and the
    workdir where the next one looks for it; empty where it has none.
  """
  return tuple(_constant(value, "STAGES", ()))


def step_seconds(value: str) -> tuple[float, float] | None:
  """How long steps take on two CPU cores, where a configuration file says it.

  Args:
    value: of the flag; an argument makes another run, of which it says nothing.

  Returns:
    Its STEP_SECONDS: of a step of its image tokenizer, and of its own.
  """
  return _constant(value, "STEP_SECONDS", None)


def examples(value: str) -> tuple[str, str]:
  """What a configuration's runs can be asked, whatever its argument.

  Returns:
    Its EXAMPLES: a prompt to draw and a question about an image.
  """
  ours = ("two green squares", "how many squares are there")
  return _constant(value.partition(":")[0], "EXAMPLES", ours)


def _constant(value: str, name: str, default: Any) -> Any:
  """What a file without an argument sets beside its configuration."""
  path, _, argument = value.partition(":")
  if argument:
    return default
  provide_shipped()
  return getattr(_execute(find(path)), name, default)


def provide_shipped() -> None:
  """Makes `import configs` find the shipped files, whatever lies elsewhere."""
  there = getattr(sys.modules.get("configs"), "__file__", None)
  init = SHIPPED / "__init__.py"
  if there and Path(there).resolve() == init:
    return
  for name in [n for n in sys.modules if n.split(".")[0] == "configs"]:
    del sys.modules[name]
  spec = importlib.util.spec_from_file_location(
    "configs", init, submodule_search_locations=[str(SHIPPED)]
  )
  sys.modules["configs"] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(sys.modules["configs"])


def _execute(path: Path) -> types.ModuleType:
  """Runs a file as a module of its own."""
  spec = importlib.util.spec_from_file_location("experiment_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _failure(value: str, path: Path, error: Exception) -> str:
  """One line for what a configuration file raised: file, line, message."""
  if isinstance(error, SyntaxError) and error.filename:
    return f"{error.filename}, line {error.lineno}: {error.msg}"
  frames = traceback.extract_tb(error.__traceback__)
  # An argument that a shipped file refuses is no fault in the file.
  if isinstance(error, ValueError) and path.parent == SHIPPED:
    return f"--config={value}: {error}"
  own = [f.lineno for f in frames if Path(f.filename) == path.absolute()]
  where = f"{path}, line {own[-1]}" if own else str(path)
  return f"{where}: {type(error).__name__}: {error}"


def check_overrides(tree: ConfigDict, keys: Iterable[str]) -> None:
  """Refuses --config.KEY flags that the configuration has not.

  Raises:
    ConfigFileError: with the nearest key.
  """
  whole = tree.to_dict()
  leaves = list(freeze.leaves(whole))
  known = set(leaves)
  for leaf in leaves:  # subtrees can be set as well
    parts = leaf.split(".")
    known |= {".".join(parts[:i]) for i in range(1, len(parts))}
  for key in keys:
    if key not in known:
      close = nearest(key, sorted(known), "--config.")
      hint = close or f"known: {', '.join(tree)}"
      raise ConfigFileError(f"no key --config.{key}: {hint.strip()}")


def differences(tree: Mapping[str, Any]) -> list[str]:
  """What a configuration sets otherwise than the shipped base.py.

  Args:
    tree: the configuration as a plain mapping.

  Returns:
    A line per group of keys; of a data source what is not its default.
  """
  provide_shipped()
  module = _execute(SHIPPED / "base.py")
  base = module.base().to_dict()
  for part in ("train", "eval"):
    base["data"][part] = {n: module.source("") for n in tree["data"][part]}
  old, new = freeze.leaves(base), freeze.leaves(tree)
  groups: dict[str, list[str]] = {}
  for key, value in new.items():
    if key not in old or old[key] != value:
      group, _, name = key.rpartition(".")
      groups.setdefault(group, []).append(f"{name} {value!r}")
  return [
    f"{group}: {', '.join(pairs)}" if group else ", ".join(pairs)
    for group, pairs in sorted(groups.items())
  ]
