"""Stacked layers: one parameter tree, run as a scan or unrolled."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, PRNGKeyArray

_KEPT = "kept"
_policies = jax.checkpoint_policies
_SAVEABLE = {
  "dots": _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable,
    _policies.save_only_these_names(_KEPT),
  ),
  "full": _policies.nothing_saveable,
}


def keep(x: Array) -> Array:
  """Marks what remat "dots" keeps beside the results of products.

  For what is small, or dear to compute again.
  """
  return checkpoint_name(x, _KEPT)


def once(tree: Any) -> Any:
  """What all layers share, computed before the loop over them.

  Left to itself, XLA computes what is cheap, as masks and angles, again in
  every layer.
  """
  return lax.optimization_barrier(tree)


def init_tree(key: PRNGKeyArray, specs: Mapping[str, Any]) -> dict[str, Any]:
  """A nested dict of float32 arrays from one of (initializer, shape)."""
  leaves, tree = jax.tree.flatten(
    specs, is_leaf=lambda leaf: isinstance(leaf, tuple)
  )
  keys = jax.random.split(key, len(leaves))
  return tree.unflatten(
    init(k, shape, jnp.float32)
    for k, (init, shape) in zip(keys, leaves, strict=True)
  )


def narrow(stacked: Any, dtype: Any) -> Any:
  """Weights of products in the products' dtype, before the loop over layers.

  Their gradients then leave the loop in that dtype too: half the bytes, and
  the same numbers, for nothing is added up in it. Vectors, as norms' scales,
  stay as they are.

  Args:
    stacked: pytree of arrays with a leading axis, the layers.
    dtype: of the products.
  """
  return jax.tree.map(
    lambda leaf: leaf.astype(dtype) if leaf.ndim > 2 else leaf, stacked
  )


def unstacked(stacked: Any) -> tuple[Any, ...]:
  """Each layer's own arrays; a loop that reads them copies none."""
  count = len(jax.tree.leaves(stacked)[0])
  return tuple(
    jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)
  )


def fold_layers(
  layer: Callable[[Any, Any], Any],
  carry: Any,
  stacked: Any,
  *,
  remat: str,
  scan: bool,
) -> Any:
  """carry = layer(carry, inputs) over slices of `stacked` along axis 0.

  Args:
    layer: one layer.
    carry: what goes through all layers.
    stacked: pytree of arrays with a leading axis of one length.
    remat: "none", "dots" or "full".
    scan: False unrolls the loop in Python.

  Raises:
    ValueError: unknown `remat`.
  """
  if remat not in ("none", *_SAVEABLE):
    raise ValueError(
      f"remat={remat!r} is unknown; choose one of none, {', '.join(_SAVEABLE)}"
    )
  if remat != "none":
    # Inside a scan nothing can be merged across the forward and the backward
    # loop; unrolled, the barrier keeps XLA from undoing the rematerialization.
    layer = jax.checkpoint(layer, policy=_SAVEABLE[remat], prevent_cse=not scan)
  if scan:
    return lax.scan(lambda c, xs: (layer(c, xs), None), carry, stacked)[0]
  for own in unstacked(stacked):
    carry = layer(carry, own)
  return carry
