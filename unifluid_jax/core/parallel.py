"""The device mesh, shardings of parameters and activations, start-up.

Parameters are sharded by the rows of their networks (`parameter_rows`), and
optimizer moments like the parameter whose path theirs ends with.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unifluid_jax.core.config import ConfigError, MeshConfig
from unifluid_jax.core.parameter_rows import Parts, row_of

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# Outermost, where there are several: no parameter is split over it.
SLICES = "slices"

# Arrays below this many elements may stay whole on every device.
SMALL = 2**18


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
  """Devices as a (data, fsdp, tensor) grid, in automatic sharding mode.

  With several slices, such a grid per slice: (slices, data, fsdp, tensor).

  Raises:
    ConfigError: when the sizes do not multiply to the number of devices, or
      a TPU has another number of slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [getattr(config, axis) for axis in AXES]
  known = config.slices * int(np.prod([s for s in sizes if s != -1]))
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if config.slices * int(np.prod(sizes)) != len(devices):
    wanted = {SLICES: config.slices} if config.slices > 1 else {}
    wanted |= dict(zip(AXES, sizes, strict=True))
    raise ConfigError(
      f"config.mesh {wanted} does not fit "
      f"{len(devices)} devices: the sizes must multiply to that number "
      "(set one axis to -1 to let it fill up)"
    )
  # As jax.make_mesh, which splits an axis of a TPU's torus on v5e only: 128 of
  # a 16 x 16 slice then is 16 x 8 of it.
  grids = [
    mesh_utils.create_device_mesh(sizes, part, allow_split_physical_axes=True)
    for part in _slices(devices, config.slices)
  ]
  axes, grid = AXES, grids[0]
  if config.slices > 1:
    axes, grid = (SLICES, *AXES), np.stack(grids)
  return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def _slices(devices: Sequence[Any], count: int) -> list[list[Any]]:
  """The devices of each slice.

  A TPU knows its slices. Other devices are ordered by host, so that equal runs
  of them are groups of hosts.

  Raises:
    ConfigError: a TPU has another number of slices.
  """
  if devices[0].platform != "tpu":
    return np.reshape(np.array(devices), (count, -1)).tolist()
  there: dict[int, list[Any]] = {}
  for device in devices:
    there.setdefault(getattr(device, "slice_index", 0), []).append(device)
  if len(there) != count:
    raise ConfigError(
      f"config.mesh.slices={count}, but these devices are of {len(there)} "
      f"slices: set config.mesh.slices={len(there)}"
    )
  return [there[index] for index in sorted(there)]


def path_str(path: Sequence[Any]) -> str:
  """A pytree path as "a/b/c"."""
  return "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)


def spec_of(parts: Parts, path: str, shape: Sequence[int], mesh: Mesh) -> P:
  """PartitionSpec of a parameter.

  Args:
    parts: rows of the system's networks.
    path: "/"-joined path of the parameter.
    shape: of the array.
    mesh: sizes decide whether a dimension can be split.

  Raises:
    ValueError: no or several rows match, the row has another rank, or a
      large array cannot be split as the row says.
  """
  axes = row_of(parts, path).axes
  if len(axes) != len(shape):
    raise ValueError(
      f"parameter {path} {tuple(shape)}: its row {axes} has another rank"
    )
  bad = [
    f"{size} by {axis}={mesh.shape[axis]}"
    for size, axis in zip(shape, axes, strict=True)
    if axis and size % mesh.shape[axis]
  ]
  if not bad:
    return P(*axes)
  if int(np.prod(shape)) <= SMALL:
    return P()
  raise ValueError(
    f"parameter {path} {tuple(shape)} is too large to replicate and cannot "
    f"be split: {', '.join(bad)}; choose other config.mesh sizes"
  )


def shardings(state: Any, params: Any, parts: Parts, mesh: Mesh) -> Any:
  """NamedShardings of a training state.

  Args:
    state: parameters, or any state around them: a leaf whose path ends like
      a parameter's, with its shape, is laid out like that parameter (both
      Adam moments, momentum, moving average).
    params: the parameters (arrays or shapes).
    parts: rows of the system's networks.
    mesh: the device mesh.

  Raises:
    ValueError: a leaf that belongs to no parameter is too large to replicate.
  """
  specs = {}
  for key, x in jax.tree_util.tree_leaves_with_path(params):
    name = path_str(key)
    specs[name] = x.shape, spec_of(parts, name, x.shape, mesh)

  def place(path, x):
    names = path_str(path).split("/")
    for start in range(len(names)):
      shape, spec = specs.get("/".join(names[start:]), (None, None))
      if shape == x.shape:
        return NamedSharding(mesh, spec)
    if int(np.prod(x.shape)) > SMALL:
      raise ValueError(
        f"state {'/'.join(names)} {x.shape} mirrors no parameter and is too "
        "large to replicate"
      )
    return NamedSharding(mesh, P())

  return jax.tree_util.tree_map_with_path(place, state)


def mesh_in_use() -> Any:
  """The mesh of AXES that is set, or None; pmap sets one of its own."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if set(AXES) <= set(mesh.shape) else None


def batch_axes(mesh: Any) -> tuple[str, ...]:
  """Axes over which the rows of a batch are split, the outermost first."""
  return tuple(a for a in (SLICES, *BATCH_AXES) if a in mesh.shape)


def replica_axes(mesh: Any) -> tuple[str, ...]:
  """Axes along which parameters are copies: those of a batch without fsdp."""
  return tuple(a for a in batch_axes(mesh) if a != "fsdp")


def batch_groups(mesh: Mesh | None = None) -> int:
  """Shards of a global batch; 1 without a mesh."""
  mesh = mesh or mesh_in_use()
  if mesh is None:
    return 1
  return int(np.prod([mesh.shape[axis] for axis in batch_axes(mesh)]))


_ACTIVATION = {"V": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor"}


def layout(shape: Sequence[int], letters: str) -> P | None:
  """PartitionSpec of an activation: B over data, fsdp; N, K, F over tensor.

  G are rows that all devices along fsdp share, while V, the vocabulary, is
  split over them. B and G are split over slices too.

  Args:
    shape: of the array.
    letters: of its dimensions, shape legend of types.py, e.g. "BTD".

  Returns:
    A mesh axis per dimension, none where the size does not divide; None
    where no mesh is set.
  """
  mesh = mesh_in_use()
  if mesh is None:
    return None
  rows = {"B": batch_axes(mesh), "G": replica_axes(mesh)}
  axes = [(_ACTIVATION | rows).get(letter) for letter in letters]
  for i, axis in enumerate(axes):
    names = (axis,) if isinstance(axis, str) else axis or ()
    if shape[i] % int(np.prod([mesh.shape[n] for n in names])):
      axes[i] = None
  return P(*axes)


def split_rows(rows: int) -> int:
  """Shards of `rows` rows that are laid out as G."""
  mesh = mesh_in_use()
  axes = () if mesh is None else replica_axes(mesh)
  parts = int(np.prod([mesh.shape[axis] for axis in axes], dtype=int))
  return 1 if rows % parts else parts


def constrain(x: Any, letters: str) -> Any:
  """Constrains an activation to its `layout`; no-op where no mesh is set."""
  spec = layout(x.shape, letters)
  return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def by_rows_and_heads(
  attend: Callable[..., Any], q: Any, k: Any, v: Any, *rows: Any
) -> Any:
  """Attention that the compiler cannot partition, on each device's shard.

  Args:
    attend: of queries, keys, values and `rows`.
    q: [B, T, N, H].
    k: [B, S, K, H].
    v: [B, S, K, H].
    *rows: arrays whose first axis is B, e.g. the mask; or None.

  Returns:
    Attended values, [B, T, N, H], laid out like `q`; without a mesh
    there is one shard.
  """
  specs = [
    layout(x.shape, letters)
    for x, letters in ((q, "BTNH"), (k, "BSKH"), (v, "BSKH"))
  ]
  if specs[0] is None:
    return attend(q, k, v, *rows)
  if specs[0] != specs[1]:
    # Fewer key heads than shards of the query heads: a copy for each.
    repeats = q.shape[2] // k.shape[2]
    k, v = (jax.numpy.repeat(x, repeats, axis=2) for x in (k, v))
    specs[1] = specs[2] = specs[0]
  specs += [None if x is None else layout(x.shape[:1], "B") for x in rows]
  return jax.shard_map(
    attend, in_specs=tuple(specs), out_specs=specs[0], check_vma=False
  )(q, k, v, *rows)


def gather(x: Any, *axes: str | None) -> Any:
  """All-gathers a sharded array, once, before loops.

  Args:
    x: the array.
    *axes: mesh axis of each of its dimensions; the gradient is summed into
      that layout (a reduce-scatter), not into a whole copy (an all-reduce).

  Returns:
    `x`, replicated; unchanged where no mesh is set.
  """
  mesh = mesh_in_use()
  if mesh is None:
    return x
  split = all(
    not axis or size % mesh.shape[axis] == 0
    for size, axis in zip(x.shape, axes, strict=False)
  )
  return _gather(x, P(*axes) if split else P())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x, spec):
  del spec
  return jax.lax.with_sharding_constraint(x, P())


_gather.defvjp(
  lambda x, spec: (_gather(x, spec), None),
  lambda spec, _, g: (jax.lax.with_sharding_constraint(g, spec),),
)


def batch_share(mesh: Mesh) -> tuple[int, int]:
  """Which part of a global batch this process holds, and of how many.

  Processes along tensor hold the same rows, so they have to read the same.

  Raises:
    ConfigError: parts of some processes differ in size, or overlap.
  """
  rows = NamedSharding(mesh, P(batch_axes(mesh)))
  held: dict[int, set[int]] = {}
  for device, (part,) in rows.devices_indices_map((mesh.size,)).items():
    held.setdefault(device.process_index, set()).add(part.start or 0)
  mine = {process: tuple(sorted(parts)) for process, parts in held.items()}
  found = sorted(set(mine.values()))
  even = len(set(map(len, found))) == 1
  if not even or sum(map(len, found)) != batch_groups(mesh):
    raise ConfigError(
      f"config.mesh: {batch_groups(mesh)} batch shards do not split over "
      f"{len(held)} processes: a process needs whole ones, or the tensor axis "
      "whole processes; choose other sizes"
    )
  return found.index(mine[jax.process_index()]), len(found)


def to_global(batch: Any, mesh: Mesh) -> Any:
  """Process-local numpy batches as global arrays split over the batch axes.

  What a process gives is its `batch_share`.
  """
  sharding = NamedSharding(mesh, P(batch_axes(mesh)))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def micro_batches(batch: Any, count: int) -> Any:
  """[B, ...] → [count, B / count, ...]; rows stay on their device."""
  groups = batch_groups()

  def cut(x):
    rows, rest = x.shape[0] // groups // count, x.shape[1:]
    grouped = x.reshape(groups, count, rows, *rest).swapaxes(0, 1)
    return grouped.reshape(count, groups * rows, *rest)

  return jax.tree.map(cut, batch)


def check_batch(batch: Mapping[str, int], accumulate: int, mesh: Mesh) -> None:
  """Refuses batch sizes that do not split over devices and micro-batches.

  Raises:
    ConfigError: names the size, the divisor and where each factor is set.
  """
  groups, axes = batch_groups(mesh), " x ".join(batch_axes(mesh))
  for task, size in batch.items():
    if size % (groups * accumulate):
      raise ConfigError(
        f"config.batch.{task}={size} must be a multiple of {groups} batch "
        f"shards (mesh {axes}) x {accumulate} (config.accumulate)"
      )


def check_attention(kernel: str, mesh: Mesh) -> None:
  """Refuses a kernel that the mesh's devices cannot run.

  Raises:
    ConfigError: names the devices and the kernel for them.
  """
  platform = mesh.devices.flat[0].platform
  fused = {"tpu": ("mosaic", "splash"), "gpu": ("triton",)}
  runs = (*fused.get(platform, ()), "plain")
  if kernel not in runs:
    raise ConfigError(
      f"config.model.attention={kernel!r} does not run here, these devices "
      f"are {platform}: set config.model.attention={runs[0]!r}"
    )


def start_processes(
  coordinator: str | None, count: int | None, index: int | None
) -> None:
  """Joins a multi-process run; a single process needs no call to succeed.

  Args:
    coordinator: "host:port" of process 0; default JAX_COORDINATOR_ADDRESS.
      "auto" asks the cluster environment (TPU pods, Slurm, GKE).
    count: processes; default JAX_NUM_PROCESSES.
    index: of this process; default JAX_PROCESS_ID.

  Raises:
    ConfigError: an address without count and index.
  """
  env = os.environ
  coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
  if not coordinator:
    return
  if coordinator == "auto":
    jax.distributed.initialize()
    _compile_alike()
    return
  count = count if count is not None else _int(env.get("JAX_NUM_PROCESSES"))
  index = index if index is not None else _int(env.get("JAX_PROCESS_ID"))
  if count is None or index is None:
    raise ConfigError(
      f"coordinator {coordinator} needs --num_processes and --process_id "
      "(or JAX_NUM_PROCESSES and JAX_PROCESS_ID)"
    )
  jax.distributed.initialize(coordinator, count, index)
  _compile_alike()


def _compile_alike() -> None:
  """Disables our compilation cache for several processes on CPUs.

  A process that finds its program there would wait in the first collective
  for those that compile it, and Gloo gives up after 30 seconds.
  """
  named = "JAX_COMPILATION_CACHE_DIR" in os.environ  # the user's own choice
  if jax.default_backend() == "cpu" and not named:
    jax.config.update("jax_enable_compilation_cache", False)


def _int(text: str | None) -> int | None:
  return int(text) if text else None
