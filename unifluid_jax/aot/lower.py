"""The programs a configuration runs, lowered from shapes alone.

The train step is the one of train.py; generating and answering are the
functions that the Python API and the evaluation loop compile.
"""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from unifluid_jax import api, systems, train
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config, ConfigError
from unifluid_jax.core.types import Answerer, Generator, System
from unifluid_jax.data import fields

WHAT = ("train", "generate", "answer", "eval")
_MOST_ROWS = 32  # of api.load


class Program(NamedTuple):
  """A lowered function, and what its arguments are."""

  name: str
  lowered: Any  # jax.stages.Lowered
  mesh: Mesh | None  # None: one device
  held: dict[str, Any]  # part → tree of ShapeDtypeStructs with shardings
  rows: int  # examples a call
  cost: Any = None  # StepCost of a train step, where the system counts it


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
    ConfigError: the mesh or batch does not fit the devices, or a system that
      only trains is asked for more.
  """
  system = systems.build(config)
  if what == "train":
    if config.policy.prompts:
      raise ConfigError(
        "--what=train: rows that policy gradients draw are not in the step "
        "that is compiled here, which would seem smaller than it is; for all "
        "but them set config.policy.prompts=0"
      )
    return [train_step(config, system, devices)]
  if not isinstance(system, Generator):
    raise ConfigError(
      f"--what={what}: config.system={config.system!r} only trains"
    )
  if what == "answer" and not isinstance(system, Answerer):
    raise ConfigError(
      f"--what=answer: config.system={config.system!r} draws images only"
    )
  names = ["generate", "answer", "reconstruct"] if what == "eval" else [what]
  if not isinstance(system, Answerer):
    names = [n for n in names if n != "answer"]
  dtype = jnp.bfloat16 if what == "eval" else jnp.float32
  rows = rows or (config.eval.batch if what == "eval" else _MOST_ROWS)
  if not system.frozen:  # nothing is drawn
    names = [n for n in names if n == "answer"]
  place = SingleDeviceSharding(devices[0])
  weights = {
    "parameters": systems.init_shapes(system),
    "frozen": systems.frozen_shapes(system),
  }
  exact = {n: p for n, p in weights["frozen"].items() if system.frozen[n].exact}
  weights = jax.tree.map(lambda x: _spec(x, place, dtype), weights)
  weights["frozen"] |= _placed(exact, place)
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
  rows = place(P(parallel.batch_axes(job.mesh)))
  batch = _placed(batch_shapes(config, system), rows)
  frozen = _placed(systems.frozen_shapes(system), place(P()))
  with jax.set_mesh(job.mesh):
    lowered = job.step.lower(job.shapes, frozen, batch)
  held = {
    "parameters": job.shapes.params,
    "optimizer": job.shapes.opt_state,
    "average": job.shapes.ema,
    "frozen": frozen,
    "batch": batch,
  }
  size = sum(config.batch.values())
  return Program("train step", lowered, job.mesh, held, size, system.cost())


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
    several = (config.data.images,) if config.data.images > 1 else ()
    seen_by_one = np.zeros((*several, 2, 2, 3), np.uint8)
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

  special: Mapping[str, int] = collections.defaultdict(int)

  def encode(self, text: str) -> list[int]:
    """Nothing."""
    del text
    return []

  def fit(self, ids: Sequence[int], room: int) -> Sequence[int]:
    """All of nothing."""
    del room
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Nothing."""
    del ids
    return ""


# ---------------------------------------------------------------------- shapes


def batch_shapes(
  config: Config, system: System
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
  """Shapes of one global batch, as the input pipeline makes them."""
  return {
    task: {
      name: jax.ShapeDtypeStruct((config.batch[task], *row.shape), row.dtype)
      for name, row in fields.shapes(inputs).items()
    }
    for task, inputs in system.inputs.items()
    if config.batch.get(task)
  }


def _spec(x: Any, sharding: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
  # Scalars are constants and keep their dtype, as in evaluation.Replicas.
  weights = x.ndim > 0 and jnp.issubdtype(x.dtype, jnp.floating)
  dtype = dtype if dtype is not None and weights else x.dtype
  return jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)


def _placed(tree: Any, sharding: Any) -> Any:
  return jax.tree.map(lambda x: _spec(x, sharding), tree)
