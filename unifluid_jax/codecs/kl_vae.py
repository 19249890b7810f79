"""The trained image tokenizer as other systems use it: frozen, read once.

A run keeps a copy of it, weights and statistics, in its own folder, so that
it can be used wherever it is moved.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from unifluid_jax.core import checkpoint, files
from unifluid_jax.core.config import ConfigError, ModelConfig
from unifluid_jax.core.parallel import path_str
from unifluid_jax.core.presets import VaeConfig
from unifluid_jax.models.kl_vae import KlVae

STATS = "latents.json"
_DIGEST = "weights_sha256"  # in the JSON beside the copy's weights
COPY = "codec"  # folder of a run that holds the VAE it was trained with


def load_vae(model: ModelConfig) -> dict[str, Any]:
  """Weights and latent statistics of `config.model.vae_path`.

  The scale is the VAE's, which gives latents of about unit variance, times
  `config.model.latent_std`.

  Returns:
    {"vae": params, "latent_mean": f32[], "latent_scale": f32[]}

  Raises:
    ConfigError: no path; statistics neither configured nor measured, or
      measured with other weights.
    checkpoint.CheckpointError: no or another checkpoint at the path.
  """
  params = vae_weights(model)
  mean, scale = latent_stats(model, params)
  return {
    "vae": params,
    "latent_mean": jnp.float32(mean),
    "latent_scale": jnp.float32(scale * model.latent_std),
  }


def vae_weights(model: ModelConfig) -> Any:
  """The newest parameters under `config.model.vae_path`.

  Raises:
    ConfigError: no path.
    checkpoint.CheckpointError: no, another or a damaged one at the path.
  """
  if not model.vae_path:
    raise ConfigError(
      "config.model.vae_path is empty: generating images needs a trained "
      "autoencoder (python -m unifluid_jax.main --config=configs/vae.py)"
    )
  path, step = model.vae_path, checkpoint.latest_step(model.vae_path)
  like = _shapes(model.vae)
  params = checkpoint.restore_part(path, step, "params/vae", like)
  wanted = checkpoint.read_meta(path, step).get(_DIGEST)
  if wanted is not None and wanted != digest(params):
    raise checkpoint.CheckpointError(
      f"{path} step {step} is damaged: its weights are not those that were "
      "copied there. Delete the folder and name their origin by "
      "config.model.vae_path"
    )
  return params


@functools.cache
def _shapes(config: VaeConfig) -> Any:
  """Parameters as ShapeDtypeStructs."""
  vae, size = KlVae(config), config.factor
  return jax.eval_shape(
    lambda: vae.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  )["params"]


def latent_stats(model: ModelConfig, params: Any) -> tuple[float, float]:
  """Mean and scale of the latents: configured, else measured.

  Args:
    model: names the VAE.
    params: its weights, which the measurement must be of.

  Raises:
    ConfigError: neither is available, or the weights have changed since.
  """
  mean, scale = model.vae.latent_mean, model.vae.latent_scale
  if mean is not None and scale is not None:
    return mean, scale
  stats = read_stats(model.vae_path)
  path = epath.Path(model.vae_path) / STATS
  if stats is None:
    raise ConfigError(
      f"{path} is missing: measure the latents once with "
      "python -m unifluid_jax.encode, or set config.model.vae.latent_mean "
      "and config.model.vae.latent_scale"
    )
  made, there = stats.get("weights"), digest(params)
  if made is not None and made != there:
    raise ConfigError(
      f"{path} was measured with weights {made[:8]}, {model.vae_path} now has "
      f"{there[:8]}: measure the latents again with "
      "python -m unifluid_jax.encode"
    )
  return float(stats["mean"]), float(stats["scale"])


def read_stats(vae_path: str) -> dict[str, Any] | None:
  """What was measured of a VAE's latents; None if nothing was.

  "mean" and "scale"; where `encode` wrote them, "weights", the digest of the
  weights, and "data", that of the data set.
  """
  path = epath.Path(vae_path) / STATS
  if not vae_path or not path.exists():
    return None
  try:
    stats = json.loads(path.read_text())
    return stats | {
      "mean": float(stats["mean"]),
      "scale": float(stats["scale"]),
    }
  except (ValueError, KeyError, TypeError) as error:
    raise ConfigError(
      f"{path} is damaged ({error!r}): delete it and measure the latents again "
      "with python -m unifluid_jax.encode"
    ) from error


# ------------------------------------------------- Which weights these are


def digest(params: Any) -> str:
  """SHA-256 of named float32 weights, the same on any device and storage."""
  leaves = {
    path_str(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  total = hashlib.sha256()
  for name in sorted(leaves):
    array = np.ascontiguousarray(np.asarray(leaves[name]), "<f4")
    total.update(f"{name} {array.shape}\n".encode())
    total.update(array.data)
  return total.hexdigest()


def identity(model: ModelConfig, frozen: Mapping[str, Any]) -> dict[str, Any]:
  """What a run's codec is told apart by: weights, latent mean and scale.

  Args:
    model: of the configuration.
    frozen: as `load_vae` returns it, or nothing, for systems without images.
  """
  if "vae" not in frozen:
    return {}
  mean, scale = latent_stats(model, frozen["vae"])
  return {"weights": digest(frozen["vae"]), "mean": mean, "scale": scale}


# ------------------------------------------------------------ A run's own copy


def located(model: ModelConfig, workdir: str) -> ModelConfig:
  """The same model with a `vae_path` at which the run's VAE lies.

  The run's own copy; else, of runs that have none, the configured path, as it
  stands or below one of the folders that the workdir lies in.
  """
  own = epath.Path(workdir) / COPY
  places = [own] if (own / STATS).exists() else []
  if model.vae_path:
    places.append(epath.Path(model.vae_path))
    if not files.is_remote(workdir):
      above = epath.Path(workdir).resolve().parents
      places += [folder / model.vae_path for folder in above]
  for place in places:
    if checkpoint.steps(str(place)):
      return dataclasses.replace(model, vae_path=str(place))
  return model


def copy(
  model: ModelConfig, params: Any, codec: Mapping[str, Any], workdir: str
) -> None:
  """Writes weights and statistics to the workdir, unless they are there.

  Called by one process. The statistics come last: with them the copy counts
  as whole.

  Args:
    model: says what the VAE is and where it was read from.
    params: its weights.
    codec: their `identity`.
    workdir: of the run.
  """
  place = epath.Path(workdir) / COPY
  mark = place / STATS
  if mark.exists() and read_stats(str(place)) == codec:
    return
  mark.unlink(missing_ok=True)
  if (place / "checkpoints").exists():
    (place / "checkpoints").rmtree()
  state = {"params": {"vae": jax.tree.map(np.asarray, params)}}
  meta = {
    _DIGEST: codec["weights"],
    "copy_of": model.vae_path,
    "weights": {"vae": dataclasses.asdict(model.vae)},  # as a converted one's
  }
  checkpoint.write_once(str(place), state, meta)
  files.write(mark, json.dumps(codec))
