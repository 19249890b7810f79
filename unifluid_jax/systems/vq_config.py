"""The configuration tree of VQ tokenizers' training, and what it refuses."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from unifluid_jax.codecs import multiscale_vq as multiscale_codec
from unifluid_jax.codecs import vq as codec
from unifluid_jax.core import presets, ranges
from unifluid_jax.core.config import Config
from unifluid_jax.core.freeze import need
from unifluid_jax.core.ranges import AMOUNT, COUNT, DECAY, SHARE, Row, below
from unifluid_jax.systems.common import alignment, reconstruction


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The tokenizer."""

  vq: presets.VqConfig
  image_size: int
  dtype: Literal["float32", "bfloat16"]
  # Of captions, where loss.align compares images with them.
  alignment: presets.AlignmentConfig = presets.AlignmentConfig()


@dataclasses.dataclass(frozen=True)
class MultiscaleModelConfig:
  """The multi-scale tokenizer."""

  vq: presets.MultiscaleVqConfig
  image_size: int
  dtype: Literal["float32", "bfloat16"]
  alignment: presets.AlignmentConfig = presets.AlignmentConfig()


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The tokenizer's objective, and how its codebook is kept in use."""

  l1: float
  l2: float
  # codebook * (1 * codebook's error + commitment * encoder's error); "legacy",
  # the default of taming, has the two factors the other way round.
  codebook: float
  commitment: float
  order: Literal["standard", "legacy"]
  entropy: float
  average: float  # decay of an averaged codebook; 0: gradients train it
  data_init: bool  # codes begin as encoder outputs of the first batch
  revive_every: int  # steps; 0: never
  revive_below: float  # codes used less than this share of the mean
  usage_decay: float  # of the average counts that this is measured by
  perceptual: float
  perceptual_weights: str  # npz of LPIPS VGG; needed when perceptual > 0
  adversarial: float
  adversarial_start: int
  adaptive: bool  # weight by the ratio of gradient norms, as VQGAN
  discriminator_width: int
  discriminator_layers: int
  align: float = 0.0  # images against their captions; 0: captions unread


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Nothing is sampled."""


def check_multiscale(config: Config, mesh: Any) -> None:
  """The same of a multi-scale tokenizer; see `types.SystemSpec`."""
  if mesh is not None:
    return
  multiscale_codec.check_shape(config.model.vq, config.model.image_size)
  for key in ("average", "entropy"):
    value = getattr(config.loss, key)
    need(
      not value,
      f"loss.{key}={value} is of one vector per cell, a multi-scale tokenizer "
      f"has sums: set loss.{key}=0",
    )
  check(config, mesh)


def check(config: Config, mesh: Any) -> None:
  """Refuses combinations that cannot work; see `types.SystemSpec`."""
  if mesh is not None:
    return
  loss, cut = config.loss, config.accumulate > 1
  codec.check_shape(config.model.vq, config.model.image_size)
  reconstruction.check(config)
  alignment.check(config)
  for key, off in (("entropy", 0), ("data_init", False), ("revive_every", 0)):
    value = getattr(loss, key)
    need(
      not (cut and value),
      f"loss.{key}={value} looks at a whole batch, "
      f"accumulate={config.accumulate} cuts it: set accumulate=1 or "
      f"loss.{key}={off}",
    )
  started = [p for p in ("all", "vq", "vq/codebook") if config.init.get(p)]
  need(
    not (loss.data_init and [p for p in started if config.init[p] != "new"]),
    "loss.data_init=True would replace the codebook that config.init loads: "
    "set loss.data_init=False",
  )
  need(
    not loss.average or loss.order == "standard",
    f"loss.order={loss.order!r} weighs the codebook's gradient, of which an "
    "averaged one has none: set loss.order='standard' or loss.average=0",
  )
  # Which the first step makes the codebook of, whatever was loaded there.
  table, sums = (_origin(config.init, *p) for p in (_TABLE, _AVERAGES))
  need(
    not loss.average or table == sums,
    f"loss.average={loss.average} makes the codebook of 'averages', and "
    f"config.init takes these from {sums or 'nowhere'}, the codebook from "
    f"{table or 'nowhere'}: take both from one run, or set loss.average=0",
  )


# Prefixes of config.init, the longest first.
_TABLE = ("vq/codebook/table", "vq/codebook", "vq", "all")
_AVERAGES = ("averages", "all")


def _origin(init: Mapping[str, str], *prefixes: str) -> str:
  """The run that a part starts from; "" if it starts fresh."""
  path = next((init[p] for p in prefixes if init.get(p)), "")
  return "" if path == "new" else path.partition("#")[0]


def summary(config: Config) -> dict[str, str]:
  """Rows of a run's report."""
  m = config.model
  scales = getattr(m.vq, "scales", (m.image_size // m.vq.factor,))
  n = sum(side**2 for side in scales)
  return {"image": f"{m.image_size} pixels: {n} tokens of {m.vq.codes} codes"}


_SHARED = (
  Row("model.image_size", COUNT),
  Row(below("loss", "l1 l2 codebook commitment entropy perceptual"), AMOUNT),
  Row(below("loss", "adversarial adversarial_start revive_every"), AMOUNT),
  Row(below("loss", "average usage_decay"), DECAY),
  Row("loss.revive_below", SHARE),
  Row(below("loss", "discriminator_width discriminator_layers"), COUNT),
  Row("loss.align", AMOUNT),
  Row(below("model.alignment", "vocab width image_depth text_depth heads"),
      COUNT),
)  # fmt: skip
RANGES = (*ranges.VQ, *_SHARED)
MULTISCALE_RANGES = (*ranges.MULTISCALE_VQ, *_SHARED)
