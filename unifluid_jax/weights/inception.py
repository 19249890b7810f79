"""The network of the Inception distance, from pytorch-fid's state dict.

Source: pytorch-fid's inception.py, whose names are torchvision's: a unit is
`<block>.<branch>.conv.weight` and `<block>.<branch>.bn.*`.
"""

import jax
import jax.numpy as jnp

from unifluid_jax.models import inception
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  parameter_shapes,
  shape_of,
  wrong_kind,
)

_LAST = "Mixed_7c.branch_pool.conv.weight"
_LEAVES = {
  "kernel": "conv.weight",
  "scale": "bn.weight",
  "bias": "bn.bias",
  "mean": "bn.running_mean",
  "var": "bn.running_var",
}
_DROPS = (
  Drop("*.num_batches_tracked", "counts training batches, not read"),
  Drop("num_batches_tracked", "counts training batches, not read"),
)


def recipe(source: Source) -> Recipe:
  """How to read the weights; there is one size.

  Raises:
    WeightsError: another network, torchvision's 1000 classes among them.
  """
  if _LAST not in source.names():
    raise wrong_kind(
      source, "Inception of pytorch-fid", f"tensors such as {_LAST}"
    )
  classes, _ = shape_of(source, "fc.weight", 2)
  if classes != inception.CLASSES:
    raise WeightsError(
      f"{source.path}: fc.weight: expected {inception.CLASSES} classes, found "
      f"{classes}: distances need the network of 2015 "
      "(pt_inception-2015-12-05), not torchvision's"
    )
  like = _like()
  return Recipe(
    kind="inception",
    found="Inception-v3 of 2015-12-05, pytorch-fid names",
    rows=[_row(path) for path in like],
    like=like,
    drops=_DROPS,
  )


def _like() -> dict[str, tuple[int, ...]]:
  side = inception.SIZE
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return parameter_shapes(inception.Inception(), "inception", images)


def _row(path: str) -> Row:
  *modules, leaf = path.split("/")[1:]
  if modules == ["fc"]:
    theirs, kernel = {"kernel": "weight", "bias": "bias"}, "o i -> i o"
  else:
    theirs, kernel = _LEAVES, "o i h w -> h w i o"
  axes = kernel if leaf == "kernel" else "o"
  return Row(".".join([*modules, theirs[leaf]]), path, axes)
