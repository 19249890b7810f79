"""VAR's part of the configuration tree, and what follows from it alone."""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from unifluid_jax.codecs.multiscale_vq import check_shape
from unifluid_jax.core import presets, ranges
from unifluid_jax.core.config import option
from unifluid_jax.core.freeze import need
from unifluid_jax.core.ranges import (
  AMOUNT,
  COUNT,
  DECAY,
  POSITIVE,
  SHARE,
  Range,
  Row,
)
from unifluid_jax.core.types import ImageCodec
from unifluid_jax.data.fields import Cached, Field
from unifluid_jax.data.labels import Label
from unifluid_jax.models import scale_decoder
from unifluid_jax.systems.common import cost, networks

PARTS = {"decoder": scale_decoder.ROWS}

LEAST = 0.01  # weight of a scale that has just joined


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The networks, and what the classes are called."""

  decoder: presets.ScaleDecoderConfig
  vq: presets.MultiscaleVqConfig
  vq_path: str  # workdir of the tokenizer's run, or an imported tokenizer
  image_size: int
  classes: tuple[str, ...]  # names; none: the numbers from 0
  label: Literal["name", "mention"]  # what prompts are; see data/labels.Label
  dtype: Literal["float32", "bfloat16"]
  remat: Literal["none", "dots", "full"]
  scan: bool

  @property
  def image_tokens(self) -> int:
    """N."""
    return self.decoder.tokens

  @property
  def names(self) -> tuple[str, ...]:
    """Of the classes, in their order."""
    return self.classes or tuple(map(str, range(self.decoder.classes)))


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The objective."""

  class_dropout: float  # the share of classes replaced by the null class
  label_smoothing: float  # the share spread over all codes
  # Weights of a scale's slots: all alike, or 1 / P_k, of which coarse scales
  # have more (Infinity, arXiv 2412.04431). Their mean is 1.
  scale_weights: Literal["equal", "inverse_side"]
  vocab_chunk: int  # slots whose logits exist at once
  # Progressive training: the share of the steps after which all scales train;
  # 0: from the start. Before it they join one by one after the first ones.
  progressive: float = 0.0
  progressive_first: int = 5  # scales that train from the start
  progressive_ramp: int = 1  # steps in which a new scale's weight grows to 1


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How images are drawn."""

  cfg: float = option("images")  # at the last scale, 0 at the first; 0: none
  temperature: float = option("images")
  image_top_k: int = option("images")  # 0: off
  image_top_p: float = option("images")  # 1: off
  # Means of codes instead of codes: smoother images, not for scores.
  smooth: bool = option("images", default=False)


RANGES = (
  Row("model.decoder.classes", COUNT),
  *ranges.scale_decoder("model.decoder"),
  *ranges.MULTISCALE_VQ,
  Row("model.image_size loss.vocab_chunk", COUNT),
  Row("loss.class_dropout loss.label_smoothing", DECAY),
  Row("loss.progressive", SHARE),
  Row("loss.progressive_first loss.progressive_ramp", COUNT),
  Row("sampling.cfg sampling.image_top_k", AMOUNT),
  Row("sampling.temperature", POSITIVE),
  Row("sampling.image_top_p", Range(0, 1, opens_low=True)),
)


def check(config: Any, mesh: Any = None) -> None:
  """Refuses combinations that cannot work, with the fix.

  Args:
    config: a `config.Config` whose numbers are in their ranges.
    mesh: the devices, once they are known.

  Raises:
    ConfigError: names the keys.
  """
  if mesh is not None:
    return
  m, loss = config.model, config.loss
  check_shape(m.vq, m.image_size)
  networks.check_scale_decoder(m.decoder, m.vq, "model.decoder")
  need(
    len(m.names) == m.decoder.classes,
    f"model.decoder.classes={m.decoder.classes}, but model.classes names "
    f"{len(m.classes)}: make them agree",
  )
  twice = sorted({n for n in m.names if m.names.count(n) > 1 or not n.strip()})
  need(
    not twice,
    f"model.classes: {''.join(twice[:1])!r} is empty or there twice: give each "
    "class a name of its own",
  )
  need(
    not loss.progressive or loss.progressive_first < len(m.decoder.scales),
    f"loss.progressive_first={loss.progressive_first} of "
    f"{len(m.decoder.scales)} scales leaves none to join: lower it, or set "
    "loss.progressive=0",
  )
  need(
    not loss.progressive
    or config.optim.warmup < loss.progressive * config.steps,
    f"loss.progressive={loss.progressive} of steps={config.steps} ends before "
    f"optim.warmup={config.optim.warmup}: raise it, or set it to 0",
  )
  need(
    config.sampling.cfg == 0 or loss.class_dropout > 0,
    "sampling.cfg != 0 needs a null condition: set loss.class_dropout > 0 or "
    "sampling.cfg=0",
  )


def check_guidance(config: Any, sampling: SamplingConfig, task: str) -> None:
  """Refuses guidance by a null class that the run never saw.

  Raises:
    ValueError: names the option and the fix.
  """
  del task
  if sampling.cfg and not config.loss.class_dropout:
    raise ValueError(
      f"cfg={sampling.cfg} guides away from images without a class, which "
      "this run never saw (config.loss.class_dropout=0): use cfg=0"
    )


def summary(config: Any) -> dict[str, str]:
  """Label → value of a run's configuration, for its report."""
  d = config.model.decoder
  return {
    "decoder": f"{d.depth} layers x {d.width}, {d.classes} classes",
    "image tokens": f"{d.tokens} of {d.codes} codes in {len(d.scales)} scales",
    "batch": f"{config.batch.get('t2i', 0)} images",
    "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}",
    "sampling": f"cfg {config.sampling.cfg:g}",
  }


def inputs(config: Any, codec: ImageCodec) -> dict[str, dict[str, Field]]:
  """The fields of the one task: the class that a prompt tells, an image."""
  m = config.model
  image = Cached(
    "drawn", codec.cache.shape, codec.cache.dtype, codec.size, codec.fit,
    file=config.data.has_cache("t2i"), target=True,
  )  # fmt: skip
  return {"t2i": {"class": Label("prompt", m.names, m.label), "image": image}}


def joins(config: Any) -> Float[np.ndarray, " K"]:
  """The first step that trains each scale, in progressive training.

  Source: VAR train.py and trainer.py. Between the end of the warm-up and the
  share `loss.progressive` of the steps the newest scale rises linearly, rounded
  to the nearest.
  """
  loss, k = config.loss, len(config.model.decoder.scales)
  begin, end = config.optim.warmup, loss.progressive * config.steps
  later = np.arange(1, k - loss.progressive_first + 1)
  steps = begin + (later - 0.5) / len(later) * (end - begin)
  return np.concatenate([np.zeros(loss.progressive_first), np.ceil(steps)])


def step_cost(config: Any) -> cost.StepCost:
  """The cost of one step, without the frozen tokenizer."""
  d, rows = config.model.decoder, config.batch.get("t2i", 0)
  flops = rows * cost.scale_decoder_flops(d)
  kept = 6 * d.width + d.mlp  # per token: q, k, v, attended, both results
  saved = 2.0 * d.depth * rows / config.accumulate * d.tokens * kept
  remat = config.model.remat
  return cost.StepCost(
    rows * d.tokens,
    3 * flops,
    remat=remat,
    saved_by_dots=saved if remat != "full" else 0.0,
  )
