"""UniToken's part of the configuration tree, and what follows from it alone."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from unifluid_jax.codecs.vq import check_shape
from unifluid_jax.core import parallel, presets, ranges
from unifluid_jax.core.config import option
from unifluid_jax.core.freeze import need
from unifluid_jax.core.ranges import (
  AMOUNT,
  COUNT,
  DECAY,
  POSITIVE,
  Row,
  below,
)
from unifluid_jax.core.types import PAD, ImageCodec
from unifluid_jax.data.fields import Cached, Crops, Field, Text
from unifluid_jax.models import adapter, decoder, vit
from unifluid_jax.systems.common import cost, networks

# Tokens around images and turns, whose ids config.text.special gives.
CONTROL = ("soi", "eoi", "sep", "line", "turn")
_UNIT = 32  # pixels that sizes are counted in


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The networks, and how images are written as tokens."""

  decoder: presets.DecoderConfig
  vit: presets.VitConfig
  vq: presets.VqConfig
  vq_path: str  # workdir of the tokenizer's run, or an imported tokenizer
  image_size: int  # of discrete tokens
  # Code k is row code_offset + k of the decoder's table, a side of n pixels
  # row size_offset + n / 32.
  code_offset: int
  size_offset: int
  text_rows: int  # of the table, which the text tokenizer may use
  # Sizes (width, height) of the grid of views; none: one view of the whole.
  pinpoints: tuple[tuple[int, ...], ...]
  lead: str  # text before every prompt of an image
  dtype: Literal["float32", "bfloat16"]
  remat: Literal["none", "dots", "full"]
  scan: bool
  # False: images are seen as discrete tokens alone, as Chameleon sees them.
  continuous: bool = True
  # The decoder's attention in training; see ops/attention.attend.
  attention: Literal["plain", "splash", "triton"] = "plain"

  @property
  def grid(self) -> int:
    """Image tokens per side."""
    return self.image_size // self.vq.factor

  @property
  def image_tokens(self) -> int:
    """N."""
    return self.grid**2

  @property
  def side(self) -> int:
    """Features of a view per side; pixels beyond them are not seen."""
    return self.vit.image_size // self.vit.patch


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The objective."""

  z_loss: float  # of the squared log-normaliser
  prompt_dropout: float  # share of images that are drawn of nothing
  vocab_chunk: int  # positions whose logits exist at once
  supervise_sep: bool = True
  # Of a token of an answer, where one of an image has weight 1.
  text_weight: float = 1.0
  word_dropout: float = 0.0  # of answers' words, as input


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How images and text are drawn from the model."""

  cfg: float = option("images")  # 1: no guidance
  temperature: float = option("images")
  image_top_k: int = option("images")  # 0: off
  text: Literal["greedy", "sample", "beam"] = option("text")
  text_temperature: float = option("text")
  top_k: int = option("text")  # 0: off
  top_p: float = option("text")  # 1: off
  beams: int = option("text")
  seed: int


PARTS = {
  "decoder": decoder.ROWS,
  "vit": vit.ROWS,
  "projector": adapter.ROWS,
}

RANGES = (
  *ranges.DECODER,
  *ranges.VIT,
  *ranges.VQ,
  *ranges.ANSWERS,
  Row(below("text", "prompt prefix suffix"), COUNT),
  Row("model.image_size model.text_rows model.pinpoints", COUNT),
  Row("model.code_offset model.size_offset", AMOUNT),
  Row("loss.z_loss", AMOUNT),
  Row("loss.text_weight", POSITIVE),
  Row("loss.vocab_chunk", COUNT),
  Row("loss.prompt_dropout loss.word_dropout", DECAY),
  Row("sampling.cfg sampling.image_top_k", AMOUNT),
  Row("sampling.temperature", POSITIVE),
)


def check(config: Any, mesh: Any = None) -> None:
  """Refuses combinations that cannot work, with the fix.

  Args:
    config: a `config.Config` whose numbers are in their ranges.
    mesh: the devices, once they are known.

  Raises:
    ConfigError: names the keys.
  """
  m = config.model
  if mesh is not None:
    parallel.check_attention(m.attention, mesh)
    return
  networks.check_decoder(m.decoder)
  networks.check_vit(m.vit)
  check_shape(m.vq, m.image_size)
  need(
    m.image_size % _UNIT == 0,
    f"model.image_size={m.image_size} must be a multiple of {_UNIT}, the unit "
    "in which sizes are told",
  )
  view = m.vit.image_size
  for pinpoint in m.pinpoints:
    need(
      len(pinpoint) == 2 and not any(side % view for side in pinpoint),
      f"model.pinpoints has {pinpoint}: each must be (width, height), both "
      f"multiples of model.vit.image_size={view}",
    )
  need(
    config.data.images == 1,
    f"data.images={config.data.images}: this system looks at one image",
  )
  _check_vocabulary(config)


def _check_vocabulary(config: Any) -> None:
  """Every token of an image has a row of its own."""
  m = config.model
  networks.check_special(config.text.special, m.decoder.vocab)
  ids = networks.special_ids(config.text.special, m.decoder.vocab)
  missing = [name for name in CONTROL if name not in ids]
  need(
    not missing,
    f"text.special lacks {', '.join(missing)}: give the ids of these tokens, "
    "rows of the vocabulary",
  )
  taken = {m.code_offset + code: "an image code" for code in range(m.vq.codes)}
  named = [(ids[n], f"text.special.{n}") for n in ("bos", *CONTROL)]
  named.append((size_id(m, m.image_size), "the token of model.image_size"))
  for i, name in named:
    need(
      i not in taken,
      f"{name} is id {i}, which {taken.get(i)} has too: give each its own",
    )
    taken[i] = name
  need(
    max(taken) < m.decoder.vocab,
    f"model.decoder.vocab={m.decoder.vocab} has no row for id {max(taken)} "
    f"({taken[max(taken)]}): set it to {max(taken) + 1} at least",
  )


def size_id(m: ModelConfig, side: int) -> int:
  """Id of the token that tells a side of `side` pixels."""
  return m.size_offset + side // _UNIT


def template(
  m: ModelConfig, ids: Mapping[str, int], height: int, width: int
) -> Int32[np.ndarray, "n"]:
  """The discrete tokens of an image, PAD where its codes go.

  soi, height, width, rows of codes each with a new line, eoi (UniToken's
  released code; Lumina-mGPT, arXiv 2408.02657 §2.1).

  Args:
    m: says how many pixels a code covers, and ids of sizes.
    ids: of `CONTROL`.
    height: of the image, in pixels.
    width: of the image.
  """
  rows, columns = height // m.vq.factor, width // m.vq.factor
  row = [PAD] * columns + [ids["line"]]
  sizes = [size_id(m, height), size_id(m, width)]
  return np.array([ids["soi"], *sizes, *row * rows, ids["eoi"]], np.int32)


def summary(config: Any) -> dict[str, str]:
  """Label → value of a run's configuration, for its report."""
  d, m = config.model.decoder, config.model
  batch = ", ".join(f"{k} {v}" for k, v in config.batch.items() if v)
  seen = f"{crops(m).length} features" if m.continuous else "discrete alone"
  return {
    "decoder": f"{d.depth} layers x {d.width}",
    "image tokens": f"{m.image_tokens} of {m.vq.codes} codes; {seen}",
    "batch": batch,
    "weight of text tokens": f"{config.loss.text_weight:g}",
    "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}",
    "sampling": f"cfg {config.sampling.cfg:g}",
  }


def crops(m: ModelConfig) -> Crops:
  """The image as the vision encoder sees it."""
  return Crops("seen", m.vit.image_size, m.side, m.pinpoints)


def inputs(config: Any, codec: ImageCodec) -> dict[str, dict[str, Field]]:
  """The fields of each task that UniToken can do.

  Questions and prompts are aligned to the right: what predicts a target then
  stands in the same slots in every row.
  """
  m, text, data = config.model, config.text, config.data
  drawn = Cached(
    "drawn", codec.cache.shape, codec.cache.dtype, codec.size, codec.fit,
    file=data.has_cache("t2i"), target=True,
  )  # fmt: skip
  codes = dataclasses.replace(
    drawn, role="seen", file=data.has_cache("i2t"), target=False
  )
  turn = ("turn",)
  prompt = Text("prompt", text.prompt, ("bos",), turn, lead=m.lead)
  question = Text("prefix", text.prefix, after=turn)
  asked = dataclasses.replace(question, before=("bos",))
  answer = Text("suffix", text.suffix, after=turn, align="left", target=True)
  seen = {"seen": crops(m)} if m.continuous else {}
  return {
    "t2i": {"prompt": prompt, "image": drawn},
    "i2t": {**seen, "codes": codes, "prefix": question, "suffix": answer},
    "text": {"prefix": asked, "suffix": answer},
  }


def step_cost(config: Any) -> cost.StepCost:
  """The cost of one step over all tasks, without the frozen tokenizer."""
  m, text, rows = config.model, config.text, config.batch
  tokens = m.grid * (m.grid + 1) + 4
  answer = text.prefix + text.suffix - 1
  # Before the question: BOS and the image; SEP and the features.
  length, views, project = 1 + tokens + answer, 0, 0.0
  if m.continuous:
    field = crops(m)
    length, views = length + 1 + field.length, 1 + field.crops
    project = 2.0 * m.decoder.width * (m.vit.width + m.decoder.width)
    project *= views * m.side**2
  sep = int(m.continuous and config.loss.supervise_sep)
  of = functools.partial(cost.Sequences, alone=True)
  tasks = {
    "t2i": of(rows.get("t2i", 0), text.prompt + tokens, 0, tokens + 1),
    "i2t": of(rows.get("i2t", 0), length, views, text.suffix + sep, project),
    "text": of(rows.get("text", 0), answer, 0, text.suffix),
  }
  return cost.step_cost(
    m.decoder, m.vit, tasks, m.attention, m.remat, config.accumulate
  )
