"""What config.json beside foreign weights says of them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unifluid_jax.weights.rows import WeightsError
from unifluid_jax.weights.untrusted import read_json


def differences(config: Any, wanted: Mapping[str, Any]) -> str:
  """Where a dataclass is not as wanted, for messages; "" if it is."""
  return ", ".join(
    f"{key} {getattr(config, key)} (there {value})"
    for key, value in wanted.items()
    if getattr(config, key) != value
  )


def config_file(path: str) -> Path:
  """Where the config.json of a model's directory, or of a file's, would be."""
  place = Path(path)
  return (place if place.is_dir() else place.parent) / "config.json"


def config_beside(path: str, part: str = "") -> dict[str, Any]:
  """The config.json of a model's directory, or of a file's; {} if none.

  Args:
    path: of the weights.
    part: key of the settings wanted, which some models lack: all, then.

  Raises:
    WeightsError: it is no JSON object.
  """
  file = config_file(path)
  if not file.is_file():
    return {}
  try:
    settings = read_json(file)
  except WeightsError:
    raise
  except (OSError, ValueError):
    settings = None
  if not isinstance(settings, dict):
    raise WeightsError(
      f"{file}: expected the model's settings, found no JSON object; download "
      "it again or remove it"
    )
  below = settings.get(part)
  return below if isinstance(below, dict) and below else settings


def number_beside(path: str, key: str, part: str = "") -> int:
  """A whole number of `config_beside`; 0 if it is not there.

  Raises:
    WeightsError: something else is there.
  """
  number = config_beside(path, part).get(key)
  if number is None:
    return 0
  if type(number) is not int or number < 1:
    raise WeightsError(
      f"{config_file(path)}: {key}: expected a whole number above 0, found "
      f"{number!r}; download it again or remove it"
    )
  return number


def check_depth(path: str, found: int, part: str, silent: int = 0) -> None:
  """The last layers of a network are not missing unseen.

  Args:
    path: of the weights.
    found: layers that they hold.
    part: of config.json that may say how many there should be.
    silent: how many there are if it does not; 0: unknown.

  Raises:
    WeightsError: another number.
  """
  wanted = number_beside(path, "num_hidden_layers", part) or silent or found
  if found != wanted:
    raise WeightsError(
      f"{path}: expected {wanted} layers, as {config_file(path)} says, found "
      f"{found}; copy or download the weights again"
    )


class Settings(NamedTuple):
  """What a file says of a decoder: config.json, or a part of it.

  Attributes:
    file: where it is, for messages.
    tree: key to value, as they came.
  """

  file: str
  tree: Mapping[str, Any]

  def error(self, key: str, expected: str) -> WeightsError:
    """What is wrong below `key`, in one line."""
    found = str(self.tree.get(key, "nothing"))[:80]
    return WeightsError(
      f"{self.file}: {key}: expected {expected}, found {found}; "
      "correct it, or choose weights that this decoder can compute"
    )

  def number(self, key: str, silent: float, least: float = 0.0) -> float:
    """A finite number, at least `least`, or `silent` if there is none."""
    found = self.tree.get(key)
    if found is None:
      return silent
    return self.real(key, found, least)

  def real(self, key: str, found: Any, least: float = 0.0) -> float:
    """`found`, below `key`, as a float."""
    if isinstance(found, bool) or not isinstance(found, (int, float)):
      raise self.error(key, "a number")
    # An int may be too large for a float.
    if not least <= found <= 1e30 or not math.isfinite(found):
      raise self.error(key, f"a finite number of {least:g} or more")
    return float(found)

  def whole(self, key: str, silent: int | None = None) -> int:
    """A whole number above 0, or `silent` if there is none.

    Raises:
      WeightsError: something else, or nothing and `silent` is None.
    """
    found = self.tree.get(key)
    if found is None and silent is not None:
      return silent
    if type(found) is not int or not 1 <= found < 2**31:
      raise self.error(key, "a whole number above 0")
    return found

  def cap(self, key: str, silent: float) -> float:
    """Of logits; null is none."""
    return self.number(key, 0.0) if key in self.tree else silent
