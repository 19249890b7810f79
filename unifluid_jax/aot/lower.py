"""The programs a configuration runs, lowered from shapes alone.

The train step is the one of train.py; generating and answering are the
functions that the Python API and the evaluation loop compile.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from unifluid_jax import api, systems, train
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config, ConfigError
from unifluid_jax.core.types import (
  Batch,
  Edit,
  ImageToText,
  TextOnly,
  TextToImage,
)
from unifluid_jax.models import kl_vae, lpips

WHAT = ("train", "generate", "answer", "eval")
_MOST_ROWS = 32  # of api.load


class Program(NamedTuple):
  """A lowered function, and what its arguments are."""

  name: str
  lowered: Any  # jax.stages.Lowered
  mesh: Mesh | None  # None: one device
  held: dict[str, Any]  # part → tree of ShapeDtypeStructs with shardings
  rows: int  # examples a call


def programs(
  config: Config, what: str, devices: Sequence[Any], rows: int = 0
) -> list[Program]:
  """Lowers what `--what` names.

  Args:
    config: the experiment.
    what: "train": one step; "generate", "answer": a call of `api.Model` in
      float32 on one device; "eval": all that the evaluation loop maps, in
      bfloat16, as each of its devices runs it.
    devices: that the train step's mesh is made of; the others take one.
    rows: images a call; 0: as the API and config.eval.batch say.

  Raises:
    ConfigError: the mesh or batch does not fit the devices, or a VAE is asked
      to do more than train.
  """
  system = systems.build(config)
  if what == "train":
    return [train_step(config, system, devices)]
  if config.system == "vae":
    raise ConfigError(
      f"--what={what}: an autoencoder (config.system='vae') only trains"
    )
  names = ["generate", "answer", "reconstruct"] if what == "eval" else [what]
  dtype = jnp.bfloat16 if what == "eval" else jnp.float32
  rows = rows or (config.eval.batch if what == "eval" else _MOST_ROWS)
  if not config.batch.get("t2i", 0) + config.batch.get("edit", 0):
    names = [n for n in names if n == "answer"]
  place = SingleDeviceSharding(devices[0])
  weights = {
    "parameters": jax.eval_shape(system.init, jax.random.key(0)),
    "frozen": frozen_shapes(config, system),
  }
  weights = jax.tree.map(lambda x: _spec(x, place, dtype), weights)
  return [
    _call(config, system, name, weights, place, rows, what == "eval")
    for name in names
  ]


def train_step(
  config: Config, system: Any, devices: Sequence[Any] | None = None
) -> Program:
  """The jitted step of `train.make_job`, on a mesh of the devices."""
  job = train.make_job(config, system, devices)
  place = functools.partial(NamedSharding, job.mesh)
  batch = _placed(batch_shapes(config), place(P(parallel.BATCH_AXES)))
  frozen = _placed(frozen_shapes(config, system), place(P()))
  with jax.set_mesh(job.mesh):
    lowered = job.step.lower(job.shapes, frozen, batch)
  held = {
    "parameters": job.shapes.params,
    "optimizer": job.shapes.opt_state,
    "average": job.shapes.ema,
    "frozen": frozen,
    "batch": batch,
  }
  rows = sum(config.batch.values())
  return Program("train step", lowered, job.mesh, held, rows)


def _call(config, system, name, weights, place, rows, mapped) -> Program:
  """One function of `api.Model`, with the arrays it would be called with."""
  seen = []

  def record(function):
    def call(*arrays):
      seen.append((function, arrays))
      return np.zeros((rows, 1), np.int32)

    return call

  model = api.Model(config, system, _Blank(), record)
  sampling, blank = config.sampling, np.zeros((2, 2, 3), np.uint8)
  if name == "generate":
    model.images([""] * rows, range(rows), sampling)
  elif name == "answer":
    seen_by_one = np.zeros((*_frames(config), 2, 2, 3), np.uint8)
    model.answers([seen_by_one] * rows, [""] * rows, sampling)
  else:
    model.reconstruct([blank] * rows)
  ((function, arrays),) = seen
  inputs = _placed(arrays, place)
  lowered = jax.jit(function).lower(
    weights["parameters"], weights["frozen"], *inputs
  )
  title = f"{name}, as evaluated" if mapped else name
  return Program(title, lowered, None, {**weights, "batch": inputs}, rows)


class _Blank:
  """Stands for a tokenizer where only the rows' lengths count."""

  def prompt_row(self, text: str, length: int) -> np.ndarray:
    """A row of pads."""
    del text
    return np.zeros(length, np.int32)

  prefix_row = prompt_row

  def decode(self, ids: Sequence[int]) -> str:
    """Nothing."""
    del ids
    return ""


# ---------------------------------------------------------------------- shapes


def batch_shapes(config: Config) -> Batch:
  """Shapes of one global batch, as the input pipeline makes them."""
  m, t, rows = config.model, config.text, config.batch
  f32, i32 = np.float32, np.int32

  def array(task, dtype, *shape):
    return jax.ShapeDtypeStruct((rows[task], *shape), dtype)

  def pixels(task):
    return array(task, f32, m.image_size, m.image_size, 3)

  def seen(task, *frames):
    return array(task, f32, *frames, m.vit.image_size, m.vit.image_size, 3)

  out = {}
  if rows.get("t2i") and config.system == "vae":
    out["t2i"] = TextToImage(array("t2i", i32, 0), pixels("t2i"))
  elif rows.get("t2i"):
    side = m.image_size // m.vae.factor
    cached = any(s.moments for s in config.data.train.values() if s.weight)
    image, moments = pixels("t2i"), None
    if cached:
      image = None
      moments = array("t2i", f32, side, side, 2 * m.vae.latent)
    out["t2i"] = TextToImage(array("t2i", i32, t.prompt), image, moments)
  if rows.get("i2t"):
    out["i2t"] = ImageToText(
      seen("i2t", *_frames(config)),
      array("i2t", i32, t.prefix),
      array("i2t", i32, t.suffix),
    )
  if rows.get("edit"):
    source = pixels("edit") if m.edit_latents else None
    out["edit"] = Edit(
      seen("edit"), array("edit", i32, t.prompt), pixels("edit"), source
    )
  if rows.get("text"):
    out["text"] = TextOnly(
      array("text", i32, t.prefix), array("text", i32, t.suffix)
    )
  return Batch(**out)


def _frames(config: Config) -> tuple[int, ...]:
  """The axis of images that a question has several of; else none."""
  return (config.data.images,) if config.data.images > 1 else ()


def frozen_shapes(config: Config, system: Any) -> Any:
  """Shapes of `system.load_frozen()`, which reads files."""
  scalar = jax.ShapeDtypeStruct((), np.float32)
  if config.system == "vae":
    if not config.vae_loss.perceptual:
      return {}
    tree: dict[str, Any] = {}
    for name, shape in lpips.shapes().items():
      module, leaf = name.split("/")
      array = jax.ShapeDtypeStruct(shape, np.float32)
      tree.setdefault(module, {})[leaf] = array
    return {"lpips": tree}
  if not config.batch.get("t2i", 0) + config.batch.get("edit", 0):
    return {}
  size = config.model.vae.factor
  vae = kl_vae.KlVae(config.model.vae)
  shapes = jax.eval_shape(
    lambda: vae.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  )
  return {
    "vae": shapes["params"],
    "latent_mean": scalar,
    "latent_scale": scalar,
  }


def _spec(x: Any, sharding: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
  # Scalars are constants and keep their dtype, as in evaluation.Replicas.
  weights = x.ndim > 0 and jnp.issubdtype(x.dtype, jnp.floating)
  dtype = dtype if dtype is not None and weights else x.dtype
  return jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)


def _placed(tree: Any, sharding: Any) -> Any:
  return jax.tree.map(lambda x: _spec(x, sharding), tree)
