"""Settings that exclude one another (`ranges` knows each on its own)."""

from typing import Any

from unifluid_jax.core.freeze import ConfigError
from unifluid_jax.core.types import TASKS


def check(c: Any) -> None:
  """Refuses combinations that cannot work, with the fix.

  Args:
    c: a `config.Config` whose numbers are in their ranges.

  Raises:
    ConfigError: names the keys.
  """
  _check_data(c)
  _check_autoencoder(c)
  _check_training(c)
  if c.system == "vae":
    _check_vae_loss(c.vae_loss)
    return
  _check_model(c.model)
  _check_order(c.order)
  _check_sampling(c)


def _need(ok: bool, message: str) -> None:
  """Raises ConfigError(message) unless `ok`."""
  if not ok:
    raise ConfigError(message)


def _check_data(c: Any) -> None:
  unknown = sorted(set(c.batch) - set(TASKS))
  _need(not unknown, f"batch.{''.join(unknown[:1])}: tasks are {TASKS}")
  for name, source in (*c.data.train.items(), *c.data.eval.items()):
    unknown = sorted(set(source.tasks) - set(TASKS))
    _need(
      not unknown,
      f"data source {name!r}: tasks={source.tasks}: tasks are {TASKS}",
    )
    _need(
      not source.score or source.format in ("parquet", "jsonl"),
      f"data source {name!r}: score={source.score!r} needs format='parquet' "
      f"or 'jsonl', {source.format!r} knows no scores",
    )
  _need(sum(c.batch.values()) > 0, "every batch.* is 0: nothing to train on")
  for task, size in c.batch.items():
    _need(
      size % c.accumulate == 0,
      f"batch.{task}={size} is not divisible by accumulate={c.accumulate}",
    )
    has = any(task in s.tasks for s in c.data.train.values())
    _need(
      not size or has or c.system == "vae",
      f"batch.{task}={size}, but no data.train source lists task {task!r}",
    )
  _need(
    not c.data.eval or c.eval.split in c.data.eval,
    f"eval.split={c.eval.split!r} is no key of data.eval: "
    f"{', '.join(c.data.eval)}",
  )


def _check_autoencoder(c: Any) -> None:
  m, vae = c.model, c.model.vae
  patch = 1 if c.system == "vae" else m.patch
  cell = vae.factor * patch
  _need(
    m.image_size % cell == 0,
    f"model.image_size={m.image_size} must be a multiple of {cell} "
    f"(VAE factor {vae.factor} x patch {patch})",
  )
  for channels in (vae.base * n for n in (1, *vae.multipliers)):
    _need(
      channels % vae.groups == 0,
      f"model.vae.groups={vae.groups} does not divide {channels} channels: "
      f"choose model.vae.base={vae.base} as a multiple of it, or fewer groups",
    )


def _check_model(m: Any) -> None:
  _need(
    m.vit.image_size >= m.vit.patch,
    f"model.vit.image_size={m.vit.image_size} must hold a patch at least: "
    f"model.vit.patch={m.vit.patch}",
  )
  _need(
    m.vit.width % m.vit.heads == 0,
    f"model.vit.width={m.vit.width} must be a multiple of "
    f"model.vit.heads={m.vit.heads}",
  )
  _need(
    m.decoder.heads % m.decoder.kv_heads == 0,
    f"model.decoder.heads={m.decoder.heads} must be a multiple of "
    f"model.decoder.kv_heads={m.decoder.kv_heads}",
  )
  _need(m.decoder.head_dim % 2 == 0, "model.decoder.head_dim must be even")
  _need(
    m.decoder.pre_norms or m.decoder.post_norms,
    "model.decoder has no norms: set pre_norms=True or post_norms=True",
  )


def _check_training(c: Any) -> None:
  _need(
    c.optim.decay == "adamw" or c.optim.name == "adamw",
    f"optim.decay={c.optim.decay!r} needs optim.name='adamw'",
  )
  sizes = (c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
  _need(sizes.count(-1) <= 1, f"mesh {sizes}: only one axis may be -1")


def _check_vae_loss(loss: Any) -> None:
  _need(
    not loss.perceptual or bool(loss.perceptual_weights),
    "vae_loss.perceptual > 0 needs vae_loss.perceptual_weights: the path of "
    "an npz with LPIPS VGG weights; or set vae_loss.perceptual=0",
  )


def _check_order(order: Any) -> None:
  _need(
    order.random_until <= order.raster_from,
    f"order.random_until={order.random_until} lies after "
    f"order.raster_from={order.raster_from}",
  )


def _check_sampling(c: Any) -> None:
  _need(
    c.sampling.cfg == 1 or c.loss.prompt_dropout > 0 or not c.batch.get("t2i"),
    "sampling.cfg != 1 needs a null condition: set loss.prompt_dropout > 0 "
    "or sampling.cfg=1",
  )
  _need(
    c.sampling.image_cfg == 1
    or c.loss.image_dropout
    or not c.batch.get("edit"),
    "sampling.image_cfg != 1 needs edits without their source: set "
    "loss.image_dropout > 0 or sampling.image_cfg=1",
  )
