"""Multi-scale VQ autoencoders under VAR's names.

Source: FoundationVision/VAR models/vqvae.py, quant.py and basic_vae.py
(vae_ch160v4096z32.pth). Encoder and decoder have the names of `autoencoder`'s
CompVis, but one tensor for an attention's queries, keys and values: `Separate`
and `Merged` are views of a file and of our parameters that differ in this.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from unifluid_jax.core import presets
from unifluid_jax.models.multiscale_vq import MultiscaleVqVae
from unifluid_jax.weights import autoencoder, vq
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  count_layers,
  parameter_shapes,
  shape_of,
  wrong_kind,
)

_ROOT = "vq"  # of our parameters
_CODEBOOK = "quantize.embedding.weight"
_PHI = "quantize.quant_resi.qresi_ls."
_GROUPS = 32
_NAMES = "multi-scale VQ autoencoder, VAR's names"
_DROPS = (Drop("quantize.ema_vocab_hit_SV", "uses of codes, a statistic"),)
_THEIRS = re.compile(r"(.*\.)qkv(\.(?:weight|bias))")
_OURS = re.compile(r"(.*/attention(?:_\d+)?/)q(/(?:kernel|bias))")
_PARTS = ("q", "k", "v")


class Separate(Source):
  """A file's tensors `x.qkv.weight` as `x.q.weight`, `x.k.weight`, ..."""

  def __init__(self, inner: Source):
    """Reads names alone."""
    self.path, self._inner = inner.path, inner
    self._parts = {}  # name of ours → name of theirs, which third
    for name in inner.names():
      if found := _THEIRS.fullmatch(name):
        for i, part in enumerate(_PARTS):
          self._parts[f"{found[1]}{part}{found[2]}"] = (name, i)

  def names(self) -> list[str]:
    """Three for each merged one."""
    merged = {name for name, _ in self._parts.values()}
    kept = [name for name in self._inner.names() if name not in merged]
    return kept + list(self._parts)

  def shape(self, name: str) -> tuple[int, ...]:
    """A third of the leading axis."""
    if name not in self._parts:
      return self._inner.shape(name)
    whole, _ = self._parts[name]
    first, *rest = self._inner.shape(whole)
    if first % 3:
      raise WeightsError(
        f"{self.path}: {whole}: expected three times as many rows as the "
        f"layer has channels, found {first}; download it again"
      )
    return (first // 3, *rest)

  def dtype(self, name: str) -> np.dtype:
    """As in the file."""
    return self._inner.dtype(self._parts.get(name, (name, 0))[0])

  def read(self, name: str) -> np.ndarray:
    """Queries come first, then keys, then values."""
    if name not in self._parts:
      return self._inner.read(name)
    whole, i = self._parts[name]
    return np.split(self._inner.read(whole), 3)[i]


class Merged(Source):
  """Our parameters `x/q/kernel`, `x/k/kernel`, ... as one `x/qkv/kernel`."""

  def __init__(self, inner: Source):
    """Reads names alone."""
    self.path, self._inner = inner.path, inner
    self._parts = {}  # merged name → names
    for name in inner.names():
      if found := _OURS.fullmatch(name):
        self._parts[f"{found[1]}qkv{found[2]}"] = [
          f"{found[1]}{part}{found[2]}" for part in _PARTS
        ]

  def names(self) -> list[str]:
    """One for each three."""
    separate = {name for parts in self._parts.values() for name in parts}
    kept = [name for name in self._inner.names() if name not in separate]
    return kept + list(self._parts)

  def shape(self, name: str) -> tuple[int, ...]:
    """Three times the last axis, the output's."""
    if name not in self._parts:
      return self._inner.shape(name)
    *rest, last = self._inner.shape(self._parts[name][0])
    return (*rest, 3 * last)

  def dtype(self, name: str) -> np.dtype:
    """Of the queries."""
    return self._inner.dtype(self._parts.get(name, (name,))[0])

  def read(self, name: str) -> np.ndarray:
    """All three, along the last axis."""
    if name not in self._parts:
      return self._inner.read(name)
    return np.concatenate([self._inner.read(n) for n in self._parts[name]], -1)


def recipe(source: Source) -> Recipe:
  """How to read VAR's tokenizer; sizes come from the tensors.

  One file serves all schedules of scales and names none of them: the one for
  256 x 256 images is noted, the ratio of phi likewise.

  Args:
    source: a `Separate` view of the file.

  Raises:
    WeightsError: other names, or tensors are missing.
  """
  if autoencoder.format_of(source, "") != autoencoder.COMPVIS or (
    f"{_PHI}0.weight" not in source.names()
  ):
    raise wrong_kind(
      source,
      "multi-scale VQ autoencoder",
      f"encoder.conv_in.weight with encoder.mid.block_1, and {_PHI}0.weight",
    )
  codes, channels = shape_of(source, _CODEBOOK, 2)
  probes = autoencoder.PROBES[autoencoder.COMPVIS]
  config = presets.MultiscaleVqConfig(
    **autoencoder.sizes(source, probes, _GROUPS),
    codes=codes,
    code_channels=channels,
    scales=presets.MULTISCALE_VQ["var_f16"].scales,
    phi=count_layers(source, _PHI, ".weight"),
  )
  preset = next(
    (k for k, v in presets.MULTISCALE_VQ.items() if v == config), ""
  )
  return Recipe(
    kind="var_vq",
    found=f"multi-scale VQ autoencoder ({preset or 'no preset'}: {codes} codes "
    f"of {channels} channels, factor {config.factor}), VAR's names",
    rows=rows(config),
    like=_like(config),
    drops=_DROPS,
    meta={"preset": preset, "vq": dataclasses.asdict(config)},
  )


def hf_recipe(source: Source) -> Recipe:
  """The way back to VAR's names.

  Args:
    source: a `Merged` view of our parameters, named by their paths.

  Raises:
    WeightsError: no multi-scale VQ autoencoder, or one of another form.
  """
  config = vq.saved_config(source.path, presets.MultiscaleVqConfig)
  if config is None or f"{_ROOT}/phi/kernels" not in source.names():
    raise WeightsError(
      f"{source.path} holds no multi-scale VQ autoencoder: expected "
      f"params/{_ROOT}/phi/kernels and its settings; correct --from"
    )
  if config.stem != 1 or config.groups != _GROUPS or config.phi < 2:
    raise WeightsError(
      f"{source.path}: stem={config.stem}, groups={config.groups} and "
      f"phi={config.phi}; VAR's names hold stem=1, groups={_GROUPS} and phi of "
      "at least 2: only such can be written"
    )
  like = {
    name: source.shape(name)
    for name in source.names()
    if name.startswith(f"{_ROOT}/")
  }
  return Recipe(
    kind="var_vq", found=_NAMES, rows=_merged(rows(config)), like=like
  )


def rows(
  config: presets.MultiscaleVqConfig, root: str = _ROOT, prefix: str = ""
) -> list[Row]:
  """All names of the network, as `Separate` shows them.

  Args:
    config: of the network.
    root: of our paths.
    prefix: before their names: "vae_local." in a file of VARGPT.
  """
  return [
    *autoencoder.rows(
      autoencoder.COMPVIS, root, len(config.multipliers), autoencoder.POINT,
      prefix,
    ),
    Row(f"{prefix}{_CODEBOOK}", f"{root}/codebook/table", "k e"),
    Row(f"{prefix}{_PHI}{{i}}.weight", f"{root}/phi/kernels",
        "o i h w -> h w i o"),
    Row(f"{prefix}{_PHI}{{i}}.bias", f"{root}/phi/biases", "c"),
  ]  # fmt: skip


def _merged(separate: Sequence[Row]) -> list[Row]:
  """Rows with one name for queries, keys and values."""
  out = []
  for row in separate:
    part = row.source.rsplit(".", 2)[-2]
    if part in _PARTS[1:]:
      continue
    if part == "q":
      row = dataclasses.replace(
        row,
        source=row.source.replace(".q.", ".qkv."),
        target=row.target.replace("/q/", "/qkv/"),
      )
    out.append(row)
  return out


def _like(config: presets.MultiscaleVqConfig) -> dict[str, tuple[int, ...]]:
  """Path → shape of all our parameters, which no schedule changes."""
  config = dataclasses.replace(config, scales=(1,))
  images = jax.ShapeDtypeStruct((1, config.factor, config.factor, 3),
                                jnp.float32)  # fmt: skip
  return parameter_shapes(MultiscaleVqVae(config), _ROOT, images)
