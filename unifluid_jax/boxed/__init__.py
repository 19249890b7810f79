r"""Models that ship with the package: an exported folder each, in this one.

  python -m unifluid_jax.export RUN --dtype=bfloat16 \
      --to=unifluid_jax/boxed/NAME

makes one; `unifluid_jax.load("NAME")` loads it from any directory.
"""

from pathlib import Path

from unifluid_jax import exported
from unifluid_jax.core import files

FOLDER = Path(__file__).parent


def names() -> list[str]:
  """The models that are shipped, sorted; the first is the default."""
  found = (p for p in FOLDER.iterdir() if exported.is_exported(str(p)))
  return sorted(p.name for p in found)


def located(name: str) -> str:
  """The folder of a shipped model; other names are paths and stay as they are.

  A folder of the same name in the current directory comes first.
  """
  if name in names() and not files.path(name).exists():
    return str(FOLDER / name)
  return name


def default() -> str:
  """The folder of the first shipped model, for commands that name none.

  Raises:
    ValueError: none is shipped.
  """
  shipped = names()
  if not shipped:
    raise ValueError(
      "--workdir is missing: name a run or an exported model (this "
      "installation ships none); --help shows examples"
    )
  return str(FOLDER / shipped[0])


def hint() -> str:
  """The end of a message about a model that was not found."""
  shipped = names()
  if not shipped:
    return ""
  return f"; models that ship with the package: {', '.join(shipped)}"
