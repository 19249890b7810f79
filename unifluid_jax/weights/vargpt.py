"""VARGPT: LLaVA-1.5, VAR, its tokenizer and two projectors of one file.

Source: github.com/VARGPT-family/VARGPT, modeling_vargpt_llava.py.
"""

import dataclasses
import glob
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unifluid_jax.core import presets
from unifluid_jax.models.adapter import Adapter
from unifluid_jax.weights import llava, multiscale_vq, scale_decoder
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

_SCALES, _VAE = "vargpt_gen.", "vae_local."
_CLASSES = f"{_SCALES}class_emb.weight"
# Name of theirs, part of ours.
_PROJECTORS = (
  ("image_gen_projector", "in_projector"),
  ("image_gen_projector_out", "out_projector"),
)
_READ = 2  # rows of the table of classes


class View(Source):
  """A file with what VARGPT reads of its tables apart from what it does not.

  VAR's table of classes has a row per token of the language model, of which
  the last two are read: the token's that begins an image, and the null row,
  which modulates the layers in inference. The others come as a tensor of their
  own. Attentions of the tokenizer are those of `multiscale_vq.Separate`.
  """

  def __init__(self, inner: Source):
    """Reads names and one shape."""
    self.path, self._inner = inner.path, multiscale_vq.Separate(inner)
    self._unread, self._first = "", 0
    if _CLASSES in inner.names():
      self._first = max(shape_of(inner, _CLASSES, 2)[0] - _READ, 0)
    if self._first:
      self._unread = f"{_CLASSES}[:{self._first}]"

  @property
  def drops(self) -> list[Drop]:
    """The rows that are not read, if there are any."""
    reason = "rows of tokens that begin no image"
    name = glob.escape(self._unread)
    return [Drop(name, reason)] if self._unread else []

  def names(self) -> list[str]:
    """One more for a table in two parts."""
    return self._inner.names() + ([self._unread] if self._unread else [])

  def shape(self, name: str) -> tuple[int, ...]:
    """Of a part where the file has a whole table."""
    rows, *rest = self._inner.shape(self._whole(name)) or (0,)
    if name == self._unread:
      return (self._first, *rest)
    if name == _CLASSES:
      return (rows - self._first, *rest)
    return self._inner.shape(name)

  def dtype(self, name: str) -> np.dtype:
    """As in the file."""
    return self._inner.dtype(self._whole(name))

  def read(self, name: str) -> np.ndarray:
    """The last rows of the table come second."""
    x = self._inner.read(self._whole(name))
    if name == self._unread:
      return x[: self._first]
    return x[self._first :] if name == _CLASSES else x

  def _whole(self, name):
    return _CLASSES if self._unread and name == self._unread else name


class _Below(Source):
  """The tensors below a prefix, without it."""

  def __init__(self, inner: Source, prefix: str):
    self.path, self._inner, self._prefix = inner.path, inner, prefix

  def names(self) -> list[str]:
    found = self._inner.names()
    return [
      name.removeprefix(self._prefix)
      for name in found
      if name.startswith(self._prefix)
    ]

  def shape(self, name: str) -> tuple[int, ...]:
    return self._inner.shape(self._prefix + name)

  def dtype(self, name: str) -> np.dtype:
    return self._inner.dtype(self._prefix + name)

  def read(self, name: str) -> np.ndarray:
    return self._inner.read(self._prefix + name)


def recipe(source: View, image_size: int | None = None) -> Recipe:
  """How to read a whole VARGPT.

  What it makes is what a run of the system starts from, and its tokenizer.

  Args:
    source: of the file.
    image_size: pixels a side the encoder will see; None: as it was trained.

  Raises:
    WeightsError: not a VARGPT, or one that these networks do not compute.
  """
  if _CLASSES not in source.names():
    raise wrong_kind(source, "VARGPT", _CLASSES)
  base = llava.networks(source, image_size)
  scales = scale_decoder.config_of(source, _SCALES)
  if scales.classes + 1 != _READ:
    raise WeightsError(
      f"{source.path}: {_CLASSES}: expected {_READ} rows or more, found "
      f"{scales.classes + 1}; download it again"
    )
  tokenizer = multiscale_vq.recipe(_Below(source, _VAE))
  width, hidden = base.config.width, scales.width
  return Recipe(
    "vargpt",
    f"VARGPT ({base.shown}; VAR {_preset(scales) or 'of no preset'}, its "
    f"tokenizer {tokenizer.meta['preset'] or 'of no preset'})",
    [
      *base.rows,
      *scale_decoder.rows(scales, "visual_decoder", _SCALES),
      *(
        dataclasses.replace(row, source=f"{_VAE}{row.source}")
        for row in tokenizer.rows
      ),
      *_projector_rows(),
    ],
    {
      **base.like,
      **scale_decoder.like(scales, "visual_decoder"),
      **tokenizer.like,
      **_projector("in_projector", hidden, width),
      **_projector("out_projector", width, hidden),
    },
    sizes=base.sizes,
    drops=[
      *base.drops,
      *source.drops,
      *scale_decoder.drops(_SCALES),
      *(Drop(f"{_VAE}{d.pattern}", d.reason) for d in tokenizer.drops),
      *(
        Drop(f"{name}.ln_q.*", "a norm that is never applied")
        for name, _ in _PROJECTORS
      ),
    ],
    meta={
      **base.meta,
      "scale_decoder": dataclasses.asdict(scales),
      "vq": tokenizer.meta["vq"],
    },
  )


def _projector_rows() -> list[Row]:
  """Two layers each; axes: w from, d to."""
  rows = []
  for theirs, ours in _PROJECTORS:
    for number, layer in ((0, "in"), (2, "out")):
      name, to = f"{theirs}.mlp.{number}", f"{ours}/{layer}"
      rows.append(Row(f"{name}.weight", f"{to}/kernel", "d w -> w d"))
      rows.append(Row(f"{name}.bias", f"{to}/bias", "d"))
  return rows


def _projector(name: str, inputs: int, outputs: int) -> dict[str, Any]:
  """Path → shape; between its layers it is as wide as its inputs."""
  adapter = Adapter(outputs, jnp.float32, hidden=inputs)
  x = jax.ShapeDtypeStruct((1, 1, inputs), jnp.float32)
  return parameter_shapes(adapter, name, x)


def _preset(config: presets.ScaleDecoderConfig) -> str:
  """Key of presets.SCALE_DECODER that is the same but for the classes."""
  free = ("classes", "drop_path", "gate_init")
  for name, preset in presets.SCALE_DECODER.items():
    same = {key: getattr(preset, key) for key in free}
    if dataclasses.replace(config, **same) == preset:
      return name
  return ""
