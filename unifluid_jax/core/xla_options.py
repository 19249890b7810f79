"""Compiler options of the train step, a row a kind of device.

Each row was found by compiling (docs/log.md) and is compiled again by the
tests where libtpu is installed: names of options come and go with versions.
"""

from jax.sharding import Mesh

# Collectives on the sparse cores, beside the products instead of between
# them; the fusion that would otherwise hide some of them excludes that.
_SPARSE_CORES = {
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
  "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
  "xla_tpu_enable_sparse_core_collective_aggregator": "true",
  "xla_tpu_enable_all_gather_offload_tracing": "true",
  "xla_tpu_use_tc_device_shape_on_sc": "true",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",
}

# Few images a device are otherwise cut into strips that count as more images:
# the VAE's encoder then spends 3 times as long, moving strips. For v6e this
# takes much of the host's memory to compile: one convolution of 4 images 9 GB,
# and the compiler works on as many as the host has cores.
_WHOLE_IMAGES = {
  "xla_tpu_run_space_to_batch": "false",
  "xla_tpu_run_space_to_batch_on_new_platforms": "false",
}


def _memory(kib: int) -> dict[str, str]:
  """Of a core's fast memory, for one fusion: larger tiles of the products,
  read fewer times. By default it is 16 MiB, of 64 (v5p) or 128."""
  return {"xla_tpu_scoped_vmem_limit_kib": str(kib)}


# By jax.Device.device_kind. v5e has no sparse cores; what was tried for its
# reduce-scatters changed nothing or made it slower.
OPTIONS: dict[str, dict[str, str]] = {
  "TPU v5 lite": _WHOLE_IMAGES | _memory(32768),  # v5e
  "TPU v5": _WHOLE_IMAGES | _SPARSE_CORES | _memory(32768),  # v5p
  "TPU v6 lite": _WHOLE_IMAGES | _SPARSE_CORES | _memory(65536),  # v6e
}


def of(mesh: Mesh) -> dict[str, str]:
  """Options for the mesh's devices; none for kinds without a row."""
  return OPTIONS.get(mesh.devices.flat[0].device_kind, {})
