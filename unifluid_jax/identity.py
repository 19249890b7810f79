"""What a run is made of: system, model, tokenizer, codec, data.

Every checkpoint carries it. A run is resumed with the same or not at all;
everything else of the configuration may change, and is printed.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from etils import epath

from unifluid_jax import systems
from unifluid_jax.codecs import cache, copies
from unifluid_jax.core import checkpoint, files, freeze, provenance, workdirs
from unifluid_jax.core.config import Config
from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import ImageCodec, System
from unifluid_jax.data import identity as data_identity
from unifluid_jax.data.pipeline import needs_text

TOKENIZER = "tokenizer.model"  # the run's copy, in its workdir

# Settings of networks that change neither parameters nor tokens: how they are
# computed. Where a codec lies is free too: its weights are compared.
_FREE = (
  "dtype", "remat", "scan", "attention", "fused", "dropout", "latent_mean",
  "latent_scale",
)  # fmt: skip
_SHOWN = 5  # differences that an error names


def of_run(
  config: Config,
  system: System,
  frozen: Mapping[str, Any],
  tokenizer: bytes | None,
) -> dict[str, Any]:
  """The identity that a run's checkpoints carry.

  Args:
    config: of the run.
    system: of the run.
    frozen: its frozen weights; those of a codec are digested.
    tokenizer: the model file, of systems with text.

  Raises:
    FileNotFoundError, ValueError: a source is missing or of another format.
  """
  return {
    "system": config.system,
    "tokenizer": files.digest(tokenizer) if tokenizer is not None else None,
    "codec": codec_identity(system, frozen),
    "data": data_identity.of_data(config.data),
  }


def codec_identity(system: System, frozen: Mapping[str, Any]) -> dict[str, Any]:
  """What a system's codec is told apart by; empty of runs without images."""
  if "codec" not in frozen:
    return {}
  return system.codec.identity(frozen["codec"])


def merged(
  meta: Mapping[str, Any] | None, identity: Mapping[str, Any]
) -> dict[str, Any]:
  """`identity`, and what of the run so far it does not speak of.

  A source that is left out for a while, or the codec while only text is
  trained, are still what the run was made with.
  """
  old = (meta or {}).get("identity") or {}
  return dict(
    identity,
    codec=identity["codec"] or old.get("codec") or {},
    data=(old.get("data") or {}) | identity["data"],
  )


def newest_meta(workdir: str) -> dict[str, Any] | None:
  """The JSON of the newest checkpoint that has a readable one."""
  for step in reversed(checkpoint.steps(workdir)):
    try:
      return checkpoint.read_meta(workdir, step)
    except checkpoint.CheckpointError:
      continue  # restoring falls back to an older step as well, and says so
  return None


# ------------------------------------------------------------- At the start


def at_hand(config: Config, workdir: str) -> Config:
  """Tokenizer and codec from the run's own copies where the originals are gone.

  So a run that was moved is resumed where only its data are.
  """
  path = systems.codec_path(config)
  if path is not None and not (path and checkpoint.steps(path)):
    config = systems.with_codec(config, copies.located(path, workdir))
  copy, words = epath.Path(workdir) / TOKENIZER, config.text
  if not epath.Path(words.tokenizer).exists() and copy.exists():
    words = dataclasses.replace(words, tokenizer=str(copy))
  return dataclasses.replace(config, text=words)


def with_own_codec(config: Config, workdir: str) -> Config:
  """The configuration of a run, with the path of the codec that lies in it."""
  path = systems.codec_path(config)
  if path is None:
    return config
  return systems.with_codec(config, copies.located(path, workdir))


def describe(
  config: Config,
  system: System,
  tree: dict[str, Any],
  workdir: str,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """What is saved beside every state: configuration and identity of the run.

  Compared with that of the workdir's run, if it holds one; changes nothing.

  Raises:
    ConfigError: another run lies in the workdir, or a cache is stale.
  """
  tree = json.loads(json.dumps(tree))
  # Of what is frozen only the codec belongs to a run's identity.
  codec = {k: p.load() for k, p in system.frozen.items() if k == "codec"}
  tokenizer = None
  if needs_text(system.inputs):
    tokenizer = epath.Path(config.text.tokenizer).read_bytes()
  ours = of_run(config, system, codec, tokenizer)
  before = newest_meta(workdir)
  if before is not None:
    rows = compare(before, tree, config, system, ours, workdir)
    if rows:
      say("\n".join(["-- differs from this run so far --", *rows]))
  elif ours["codec"]:
    cache.check_stats(system.codec, ours["data"])
  cache.check_cached(config, system.codec, system.inputs, ours)
  meta = {"config": tree, "jax": jax.__version__}
  if ours["tokenizer"]:
    meta["tokenizer_sha256"] = ours["tokenizer"]
  return meta | {"identity": merged(before, ours)}


def keeper(
  config: Config, system: System, meta: dict[str, Any], workdir: str
) -> Callable[[Any], None]:
  """Writes what the run carries with it, so that it can be used anywhere.

  `train.run` calls it with the frozen weights when nothing can refuse the
  start any more.
  """

  def write(frozen: Any) -> None:
    if "tokenizer_sha256" in meta:
      data = epath.Path(config.text.tokenizer).read_bytes()
      copy = epath.Path(workdir) / TOKENIZER
      if not copy.exists() or copy.read_bytes() != data:
        files.write(copy, data)
    if "codec" in frozen:
      codec = meta["identity"]["codec"]
      copies.copy(system.codec, frozen["codec"], codec, workdir)
    step = max(checkpoint.steps(workdir), default=0)
    provenance.record(workdir, step, provenance.TRAINING)

  return lambda frozen: workdirs.on_first(lambda: write(frozen))


# ----------------------------------------------------- Resuming the same run


def compare(
  meta: Mapping[str, Any],
  tree: Mapping[str, Any],
  config: Config,
  system: System,
  identity: Mapping[str, Any],
  workdir: str,
) -> list[str]:
  """Refuses to resume another run's checkpoint; says what else has changed.

  What a checkpoint does not say, an older version wrote it: is not compared.

  Args:
    meta: JSON of the run's newest checkpoint.
    tree: the configuration, as JSON gives it back.
    config: the same, resolved.
    system: of the configuration.
    identity: `of_run` of it.
    workdir: of the run.

  Returns:
    "key: old → new" of every setting that changed, none of them refused.

  Raises:
    ConfigError: other system, model, tokenizer, codec or data.
  """
  old, was = meta.get("identity") or {}, meta.get("config") or {}
  name = old.get("system") or was.get("system")
  if name not in (None, config.system):
    raise ConfigError(
      f"{workdir} holds a run of config.system={name!r}, this configuration "
      f"has {config.system!r}: choose another --workdir"
    )
  _check_model(was, config, workdir)
  _check_tokenizer(meta, config, identity, workdir)
  _check_special((was.get("text") or {}).get("special"), config, workdir)
  check_codec(meta, identity["codec"], system.codec, workdir)
  _check_data(old.get("data") or {}, identity["data"], workdir)
  return _differences(systems.migrated(was), tree)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  if not old:
    return []
  a, b = freeze.leaves(old), freeze.leaves(new)

  def show(leaves, key):
    return repr(leaves[key]) if key in leaves else "not set"

  return [
    f"config.{key}: {show(a, key)} → {show(b, key)}"
    for key in sorted(a.keys() | b.keys())
    if show(a, key) != show(b, key)
  ]


def check_model(config: Config, workdir: str, step: int) -> None:
  """Refuses a configuration of another model than a checkpoint's.

  Where parameters have the same shapes they would be read without a word and
  used otherwise, e.g. those of a run that saw no grid of an image with one.

  Raises:
    CheckpointError: no such checkpoint.
    ConfigError: another system, model or special ids.
  """
  was = checkpoint.read_meta(workdir, step).get("config") or {}
  if was.get("system") not in (None, config.system):
    raise ConfigError(
      f"{workdir} holds a run of config.system={was['system']!r}, this "
      f"configuration has {config.system!r}: use that run's"
    )
  if was:
    _check_model(was, config, workdir)
    _check_special((was.get("text") or {}).get("special"), config, workdir)


def _check_model(was: Mapping[str, Any], config: Config, workdir: str) -> None:
  try:
    before = systems.resolve_model(config.system, was)
  except ConfigError:
    return  # of a version with other keys: only shapes can be compared
  free = _free(config)
  a, b = (_structure(m, free) for m in (before, config.model))
  wrong = [
    f"config.model.{key}={a.get(key)!r}, not {b.get(key)!r}"
    for key in sorted(a.keys() | b.keys())
    if a.get(key) != b.get(key)
  ]
  if wrong:
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    raise ConfigError(
      f"{workdir} holds a run with {', '.join(wrong[:_SHOWN])}{more}: use that "
      "run's configuration, or another --workdir"
    )


def _free(config: Config) -> tuple[str, ...]:
  """Settings that are compared otherwise, or need not be."""
  return (*_FREE, systems.spec(config.system).codec_path)


def _structure(model: Any, free: Collection[str]) -> dict[str, Any]:
  """Settings of the model that parameters and tokens depend on."""
  leaves = freeze.leaves(dataclasses.asdict(model))
  last = {k: k.rpartition(".")[2] for k in leaves}
  return {
    k: v for k, v in leaves.items() if k not in free and last[k] not in _FREE
  }


def _check_tokenizer(
  meta: Mapping[str, Any],
  config: Config,
  identity: Mapping[str, Any],
  workdir: str,
) -> None:
  old, new = meta.get("tokenizer_sha256"), identity["tokenizer"]
  if old and new and old != new:
    raise ConfigError(
      f"{workdir} was trained with tokenizer {old[:8]}, "
      f"config.text.tokenizer={config.text.tokenizer} is {new[:8]}: go on with "
      f"--config.text.tokenizer={epath.Path(workdir) / TOKENIZER}, or "
      "choose another --workdir"
    )


def _check_special(
  old: Mapping[str, Any] | None, config: Config, workdir: str
) -> None:
  new = dict(config.text.special)
  if dict(old or {}) != new:
    raise ConfigError(
      f"{workdir} holds a run with config.text.special={dict(old or {})}, not "
      f"{new}: use that run's, or another --workdir"
    )


def check_codec(
  meta: Mapping[str, Any],
  identity: Mapping[str, Any],
  codec: ImageCodec | None,
  workdir: str,
) -> None:
  """Whether a codec is the one that a checkpoint was trained with.

  Args:
    meta: JSON of the checkpoint.
    identity: of the codec; empty of runs without images.
    codec: says where it lies.
    workdir: of the run.

  Raises:
    ConfigError: other weights or other statistics.
  """
  old = (meta.get("identity") or {}).get("codec") or {}
  wrong = [k for k in identity if old and old.get(k) != identity[k]]
  if not wrong:
    return
  there, here = (", ".join(_said(k, x[k]) for k in wrong if k in x)
                 for x in (old, identity))  # fmt: skip
  own = epath.Path(workdir) / copies.COPY
  fix = f"name that codec by {codec.path_key}"
  if (own / copies.STATS).exists():
    fix = f"go on with --{codec.path_key}={own}, the run's own"
  raise ConfigError(
    f"{workdir} was trained on a codec with {there}, {codec.path_key}="
    f"{codec.path} has {here}: {fix}, or choose another --workdir with "
    f"--config.init.all={workdir}"
  )


def _said(key: str, value: Any) -> str:
  """A digest by its beginning, a number by its first digits."""
  if isinstance(value, str):
    return f"{key} {value[:8]}"
  return f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"


def _check_data(
  old: Mapping[str, Any], new: Mapping[str, Any], workdir: str
) -> None:
  """Refuses other records under a name; sources may come and go."""
  for name in sorted(old.keys() & new.keys()):
    a, b = old[name], new[name]
    if a["digest"] != b["digest"]:
      raise ConfigError(
        f"{workdir} was trained on other records of data.train.{name}: "
        f"{a['digest'][:8]} ({a['path']}, {a['files']} files), now "
        f"{b['digest'][:8]} ({b['path']}, {b['files']} files): put the old "
        "data back, name the new source differently, or choose another "
        f"--workdir, which --config.init.all={workdir} starts from this run"
      )
