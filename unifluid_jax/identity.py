"""What a run is made of: system, model, tokenizer, codec, data.

Every checkpoint carries it. A run is resumed with the same or not at all;
everything else of the configuration may change, and is printed.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from unifluid_jax.codecs import cache as latents
from unifluid_jax.codecs import kl_vae as frozen_vae
from unifluid_jax.core import checkpoint, files, freeze, workdirs
from unifluid_jax.core.config import (
  Config,
  ConfigError,
  ModelConfig,
  resolve_model,
)
from unifluid_jax.data import identity as data_identity

TOKENIZER = "tokenizer.model"  # the run's copy, in its workdir

# Settings of the model that change neither parameters nor latents: how they
# are computed, and where the VAE lies, whose weights are compared.
_FREE = (
  "dtype", "remat", "scan", "attention", "vae_path", "decoder.dropout",
  "vae.latent_mean", "vae.latent_scale",
)  # fmt: skip
_SHOWN = 5  # differences that an error names


def of_run(
  config: Config, frozen: Mapping[str, Any], tokenizer: bytes | None
) -> dict[str, Any]:
  """The identity that a run's checkpoints carry.

  Args:
    config: of the run.
    frozen: what `load_frozen` gave; its VAE is digested.
    tokenizer: the model file, of systems with text.

  Raises:
    FileNotFoundError, ValueError: a source is missing or of another format.
  """
  return {
    "system": config.system,
    "tokenizer": files.digest(tokenizer) if tokenizer is not None else None,
    "codec": frozen_vae.identity(config.model, frozen),
    "data": data_identity.of_data(config.data),
  }


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
  """Tokenizer and VAE from the run's own copies where the originals are gone.

  So a run that was moved is resumed where only its data are.
  """
  if config.system == "vae":
    return config
  copy = epath.Path(workdir) / TOKENIZER
  model, words = config.model, config.text
  if not (model.vae_path and checkpoint.steps(model.vae_path)):
    model = frozen_vae.located(model, workdir)
  if not epath.Path(words.tokenizer).exists() and copy.exists():
    words = dataclasses.replace(words, tokenizer=str(copy))
  return dataclasses.replace(config, model=model, text=words)


def describe(
  config: Config,
  system: Any,
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
  # The autoencoder's own run has none; what else it loads is no part of it.
  frozen = {} if config.system == "vae" else system.load_frozen()
  tokenizer = None
  if config.system != "vae":
    tokenizer = epath.Path(config.text.tokenizer).read_bytes()
  ours = of_run(config, frozen, tokenizer)
  before = newest_meta(workdir)
  if before is not None:
    rows = compare(before, tree, config, ours, workdir)
    if rows:
      say("\n".join(["-- differs from this run so far --", *rows]))
  elif ours["codec"]:
    latents.check_stats(config, ours["data"])
  latents.check_moments(config, ours)
  meta = {"config": tree, "jax": jax.__version__}
  if ours["tokenizer"]:
    meta["tokenizer_sha256"] = ours["tokenizer"]
  return meta | {"identity": merged(before, ours)}


def keeper(
  config: Config, meta: dict[str, Any], workdir: str
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
    if "vae" in frozen:
      codec = meta["identity"]["codec"]
      frozen_vae.copy(config.model, frozen["vae"], codec, workdir)

  return lambda frozen: workdirs.on_first(lambda: write(frozen))


# ----------------------------------------------------- Resuming the same run


def compare(
  meta: Mapping[str, Any],
  tree: Mapping[str, Any],
  config: Config,
  identity: Mapping[str, Any],
  workdir: str,
) -> list[str]:
  """Refuses to resume another run's checkpoint; says what else has changed.

  What a checkpoint does not say, an older version wrote it: is not compared.

  Args:
    meta: JSON of the run's newest checkpoint.
    tree: the configuration, as JSON gives it back.
    config: the same, resolved.
    identity: `of_run` of it.
    workdir: of the run.

  Returns:
    "key: old → new" of every setting that changed, none of them refused.

  Raises:
    ConfigError: other system, model, tokenizer, codec or data.
  """
  old, was = meta.get("identity") or {}, meta.get("config") or {}
  system = old.get("system") or was.get("system")
  if system not in (None, config.system):
    raise ConfigError(
      f"{workdir} holds a run of config.system={system!r}, this configuration "
      f"has {config.system!r}: choose another --workdir"
    )
  _check_model(was, config, workdir)
  _check_tokenizer(meta, config, identity, workdir)
  check_codec(meta, identity["codec"], config.model.vae_path, workdir)
  _check_data(old.get("data") or {}, identity["data"], workdir)
  return _differences(was, tree)


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


def _check_model(was: Mapping[str, Any], config: Config, workdir: str) -> None:
  try:
    before = resolve_model(was.get("model"))
  except ConfigError:
    return  # of a version with other keys: only shapes can be compared
  a, b = (_structure(m, config.system) for m in (before, config.model))
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


def _structure(model: ModelConfig, system: str) -> dict[str, Any]:
  """Settings of the model that parameters and latents depend on."""
  leaves = freeze.leaves(dataclasses.asdict(model))
  only = "vae." if system == "vae" else ""
  return {
    k: v for k, v in leaves.items() if k.startswith(only) and k not in _FREE
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


def check_codec(
  meta: Mapping[str, Any],
  codec: Mapping[str, Any],
  vae_path: str,
  workdir: str,
) -> None:
  """Whether a VAE is the one that a checkpoint was trained with.

  Args:
    meta: JSON of the checkpoint.
    codec: `frozen_vae.identity` of the VAE; empty of runs without images.
    vae_path: where it lies.
    workdir: of the run.

  Raises:
    ConfigError: other weights or other statistics of the latents.
  """
  old = (meta.get("identity") or {}).get("codec") or {}
  if not old or not codec:
    return
  if old["weights"] != codec["weights"]:
    what = f"weights {old['weights'][:8]}", f"{codec['weights'][:8]}"
  elif (old["mean"], old["scale"]) != (codec["mean"], codec["scale"]):
    what = (
      f"latents of mean {old['mean']:.6g} and scale {old['scale']:.6g}",
      f"mean {codec['mean']:.6g} and scale {codec['scale']:.6g}",
    )
  else:
    return
  own = epath.Path(workdir) / frozen_vae.COPY
  fix = "name that VAE by config.model.vae_path"
  if (own / frozen_vae.STATS).exists():
    fix = f"go on with --config.model.vae_path={own}, the run's own"
  raise ConfigError(
    f"{workdir} was trained on a VAE with {what[0]}, config.model.vae_path="
    f"{vae_path} has {what[1]}: {fix}, or choose another --workdir with "
    f"--config.init.all={workdir}"
  )


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
