"""The parts of a trained model: from a run, an exported folder or the package.

`api.load` makes a model of them, `export` writes them.
"""

from typing import Any, NamedTuple

import jax
from etils import epath

from unifluid_jax import boxed, exported, identity, systems
from unifluid_jax.core import checkpoint
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import Generator, Params, SystemSpec
from unifluid_jax.data import text


class Loaded(NamedTuple):
  """A trained model in its parts."""

  config: Config
  system: Generator
  tokenizer: text.Tokenizer | None  # None: its system reads no text
  params: Params
  frozen: dict[str, Params]


def read(
  name: str,
  step: int | None = None,
  ema: bool | None = None,
  codec_path: str | None = None,
) -> Loaded:
  """Everything that a trained model consists of.

  Args:
    name: a run's workdir, an exported folder, or a model of the package.
    step: checkpoint of a run; default the newest.
    ema: averaged weights of a run; default as config.eval.use_ema says.
    codec_path: where a run's image tokenizer lies, if it was moved.

  Raises:
    CheckpointError: nothing usable there; says why.
    ConfigError: no image tokenizer, or not the one the run was trained on.
  """
  workdir = boxed.located(name)
  if exported.is_exported(workdir):
    given = {"step": step, "ema": ema, "codec_path": codec_path}
    return _exported(workdir, [k for k, v in given.items() if v is not None])
  step = _step(workdir, step)
  config = systems.resolve(checkpoint.read_config(workdir, step))
  if codec_path is None:
    config = identity.with_own_codec(config, workdir)
  else:
    config = systems.with_codec(config, codec_path)
  system = generator(config, workdir)
  params = read_params(config, system, workdir, step, ema)
  tokenizer = read_tokenizer(config, workdir)
  frozen = systems.load_frozen(system)
  check_frozen(system, workdir, step, frozen)
  return Loaded(config, system, tokenizer, params, frozen)


def _exported(folder: str, given: list[str]) -> Loaded:
  """The parts of an exported folder.

  Raises:
    CheckpointError: a damaged one, or options that only runs have.
  """
  if given:
    raise checkpoint.CheckpointError(
      f"{folder} is an exported model, which holds one checkpoint and its "
      f"image tokenizer: leave out {' and '.join(given)}"
    )
  config = systems.resolve(exported.read_settings(folder)["config"])
  system = generator(config, folder)
  params, frozen = exported.read_weights(folder, system)
  return Loaded(config, system, read_tokenizer(config, folder), params, frozen)


def spec_of(name: str, step: int | None = None) -> SystemSpec:
  """What system a model is of, without loading it.

  Raises:
    CheckpointError: nothing usable there; says why.
  """
  workdir = boxed.located(name)
  if exported.is_exported(workdir):
    return systems.spec(exported.read_settings(workdir)["config"].get("system"))
  config = checkpoint.read_config(workdir, _step(workdir, step))
  return systems.spec(config.get("system"))


def _step(workdir: str, step: int | None) -> int:
  """The given step of a run, or its newest."""
  if step is not None:
    return step
  try:
    return checkpoint.latest_step(workdir)
  except checkpoint.CheckpointError as error:
    raise checkpoint.CheckpointError(f"{error}{boxed.hint()}") from error


def generator(config: Config, workdir: str) -> Generator:
  """The system of a run that can be asked for something.

  Raises:
    CheckpointError: it only trains.
  """
  system = systems.build(config)
  if not isinstance(system, Generator):
    raise checkpoint.CheckpointError(
      f"{workdir} holds an image tokenizer (system {config.system!r}); load "
      "the run that was trained on it"
    )
  return system


def check_frozen(system: Any, workdir: str, step: int, frozen: Any) -> None:
  """Whether a checkpoint was trained with these frozen weights.

  Raises:
    ConfigError: with another codec.
  """
  found = identity.codec_identity(system, frozen)
  if found:
    meta = checkpoint.read_meta(workdir, step)
    identity.check_codec(meta, found, system.codec, workdir)


def read_params(
  config: Config, system: Any, workdir: str, step: int, ema: bool | None
) -> Any:
  """Parameters of a checkpoint, averaged ones where wanted."""
  like = jax.eval_shape(system.init, jax.random.key(0))
  name = "ema" if averaged(config, ema) else "params"
  return checkpoint.restore_part(workdir, step, name, like)


def averaged(config: Config, ema: bool | None) -> bool:
  """Whether averaged weights are meant; None: as config.eval.use_ema says."""
  ema = config.eval.use_ema if ema is None else ema
  return bool(ema and config.optim.ema)


def read_tokenizer(config: Config, workdir: str) -> text.Tokenizer | None:
  """The run's own copy of its tokenizer; None: its system reads no text.

  Raises:
    ValueError: missing or unusable.
  """
  if not identity.needs_text(systems.build(config).inputs):
    return None
  copy = epath.Path(workdir) / identity.TOKENIZER
  return text.Tokenizer.load(str(copy), config.text.special)
