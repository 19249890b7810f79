"""Liquid's part of the configuration tree, and what follows from it alone."""

import dataclasses
from typing import Any, Literal

from unifluid_jax.codecs.vq import check_shape
from unifluid_jax.core import parallel, presets, ranges
from unifluid_jax.core.config import option
from unifluid_jax.core.freeze import need
from unifluid_jax.core.ranges import (
  AMOUNT,
  COUNT,
  DECAY,
  POSITIVE,
  Range,
  Row,
  below,
)
from unifluid_jax.core.types import ImageCodec
from unifluid_jax.data import sized_prompt
from unifluid_jax.data.dialogue import Dialogue
from unifluid_jax.data.fields import Cached, Field, Text
from unifluid_jax.models import decoder
from unifluid_jax.systems.common import cost, interleaved, networks

PARTS = {"decoder": decoder.ROWS}
# Control tokens that every run has an id for, in config.text.special.
CONTROL = ("boi", "eoi", "unconditional")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The networks, and how rows are laid out."""

  decoder: presets.DecoderConfig
  vq: presets.VqConfig
  vq_path: str  # workdir of the tokenizer's run, or an imported tokenizer
  image_size: int
  # Code k is row code_offset + k of the decoder's table.
  code_offset: int
  dtype: Literal["float32", "bfloat16"]
  remat: Literal["none", "dots", "full"]
  scan: bool
  # The decoder's attention in training; see ops/attention.attend.
  attention: Literal["plain", "mosaic", "splash", "triton"] = "plain"
  # Special tokens around questions, by name: after BOS, between image and
  # question, between question and answer. A chat template's stand here.
  user: tuple[str, ...] = ()
  ask: tuple[str, ...] = ()
  reply: tuple[str, ...] = ()
  # Sentences after a prompt: training draws one, generation takes the first.
  endings: tuple[str, ...] = ()
  text_suffix: int = 0  # slot of "text" rows' targets; 0: text.suffix
  # (height, width) of images, image_size squared among them: each is cropped
  # to the nearest aspect ratio, and prompts name it. Empty: squares alone.
  sizes: tuple[tuple[int, ...], ...] = ()

  @property
  def image_tokens(self) -> int:
    """N, of the largest image."""
    square = self.image_size, self.image_size
    cell = self.vq.factor
    return max((h // cell) * (w // cell) for h, w in (*self.sizes, square))


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The objective."""

  # The share of prompts replaced by the null prompt. (That of pairs shown
  # reversed, as captioning, is batch.i2t of batch.t2i + batch.i2t.)
  prompt_dropout: float
  vocab_chunk: int  # positions whose logits exist at once
  max_z: float = 0.0  # of the squared largest logit of image tokens
  # One mean over all predicted tokens, or images' + text_weight * texts'.
  weighting: Literal["tokens", "apart"] = "tokens"
  text_weight: float = 1.0
  word_dropout: float = 0.0  # of answers' words, as input


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How images and text are drawn from the model."""

  cfg: float = option("images")  # 1: no guidance
  temperature: float = option("images")
  image_top_k: int = option("images")  # 0: off
  image_top_p: float = option("images")  # 1: off
  text: Literal["greedy", "sample", "beam"] = option("text")
  text_temperature: float = option("text")
  top_k: int = option("text")  # 0: off
  top_p: float = option("text")  # 1: off
  beams: int = option("text")
  seed: int
  # (height, width), one of model.sizes; (): image_size squared.
  size: tuple[int, ...] = option("images", default=())


RANGES = (
  *ranges.DECODER,
  *ranges.VQ,
  *ranges.ANSWERS,
  Row(below("text", "prompt prefix suffix"), COUNT),
  Row("model.image_size model.code_offset model.sizes", COUNT),
  Row("model.text_suffix", AMOUNT),
  Row("loss.vocab_chunk", COUNT),
  Row("loss.prompt_dropout loss.word_dropout", DECAY),
  Row("loss.max_z loss.text_weight", AMOUNT),
  Row("sampling.cfg sampling.image_top_k", AMOUNT),
  Row("sampling.temperature", POSITIVE),
  Row("sampling.image_top_p", Range(0, 1, opens_low=True)),
  Row("sampling.size", COUNT),
)


def check(config: Any, mesh: Any = None) -> None:
  """Refuses combinations that cannot work, with the fix.

  Args:
    config: a `config.Config` whose numbers are in their ranges.
    mesh: the devices, once they are known.

  Raises:
    ConfigError: names the keys.
  """
  m, loss = config.model, config.loss
  if mesh is not None:
    parallel.check_attention(m.attention, mesh)
    return
  networks.check_decoder(m.decoder)
  check_shape(m.vq, m.image_size)
  _check_sizes(config)
  _check_vocabulary(config)
  networks.check_dialogue(config)
  need(
    config.data.images == 1,
    f"data.images={config.data.images}: this system looks at one image",
  )
  need(
    config.text.prompt >= 3,
    f"text.prompt={config.text.prompt} has no room for the null prompt, BOS, "
    "UNCONDITIONAL and BOI: use >= 3",
  )
  need(
    loss.weighting == "apart" or loss.text_weight == 1,
    f"loss.text_weight={loss.text_weight} needs loss.weighting='apart': "
    "'tokens' weights all tokens alike",
  )
  need(
    config.sampling.cfg == 1
    or loss.prompt_dropout > 0
    or not config.batch.get("t2i"),
    "sampling.cfg != 1 needs a null condition: set loss.prompt_dropout > 0 "
    "or sampling.cfg=1",
  )


def _check_sizes(config: Any) -> None:
  """Sizes of images that can be trained and drawn."""
  m, size = config.model, config.sampling.size
  square, cell = (m.image_size, m.image_size), m.vq.factor
  for each in m.sizes:
    need(
      len(each) == 2 and not any(side % cell for side in each),
      f"model.sizes has {each}: each must be (height, width), multiples of "
      f"{cell}, the factor of model.vq",
    )
  need(
    not m.sizes or square in m.sizes,
    f"model.sizes={m.sizes} lacks {square}: add it, the size of prompts that "
    "ask for none",
  )
  ratios = {}
  for h, w in m.sizes:
    first = ratios.setdefault(h / w, (h, w))
    need(
      first == (h, w) and m.sizes.count((h, w)) == 1,
      f"model.sizes has {first} and {h, w} of one aspect ratio, by which "
      "images are cropped: keep one",
    )
  need(
    not (m.sizes and config.text.dialogue),
    f"model.sizes and text.dialogue={config.text.dialogue}: dialogues name no "
    "sizes; set text.dialogue=0, or model.sizes=()",
  )
  known = m.sizes or (square,)
  need(
    not size or size in known,
    f"sampling.size={size} is none of model.sizes={known}: choose one of "
    "them, or () for the square",
  )
  need(
    size in ((), square) or not config.eval.metrics,
    f"sampling.size={size}, but eval.metrics compare squares: set "
    "sampling.size=() and name the size when you generate",
  )


def _check_vocabulary(config: Any) -> None:
  """Texts, control tokens and codes have rows, each its own."""
  m = config.model
  first, last = m.code_offset, m.code_offset + m.vq.codes - 1
  need(
    last < m.decoder.vocab,
    f"model.decoder.vocab={m.decoder.vocab} has no room for {m.vq.codes} codes "
    f"after model.code_offset={first}: set it to {last + 1} at least",
  )
  ids = networks.check_control(
    config.text.special, m.decoder.vocab, CONTROL, m.user
  )
  for name, i in ids.items():
    need(
      not first <= i <= last,
      f"text.special.{name}={i} is an image code's id ({first} to {last}): "
      "choose another, or move model.code_offset",
    )


def drawn_size(config: Any, sampling: SamplingConfig) -> tuple[int, int]:
  """Height and width of the images that are drawn."""
  square = config.model.image_size, config.model.image_size
  return sampling.size or square


def check_sampling(config: Any, sampling: SamplingConfig, task: str) -> None:
  """Refuses sizes, and guidance by a null condition, that no run saw.

  Raises:
    ValueError: names the option and the fix.
  """
  del task
  known = config.model.sizes or (drawn_size(config, config.sampling),)
  if sampling.size and sampling.size not in known:
    raise ValueError(
      f"size={sampling.size}: this run knows {', '.join(map(str, known))} "
      "(height, width; config.model.sizes)"
    )
  if sampling.cfg != 1 and not config.loss.prompt_dropout:
    raise ValueError(
      f"cfg={sampling.cfg} guides away from images without a prompt, which "
      "this run never saw (config.loss.prompt_dropout=0): use cfg=1"
    )


def text_rows(config: Any) -> int:
  """Rows before the codes, without the control tokens next to these."""
  rows = config.model.code_offset
  ids = networks.special_ids(config.text.special, config.model.decoder.vocab)
  while rows - 1 in (ids[name] for name in CONTROL):
    rows -= 1
  return rows


def summary(config: Any) -> dict[str, str]:
  """Label → value of a run's configuration, for its report."""
  d, m, loss = config.model.decoder, config.model, config.loss
  batch = ", ".join(f"{k} {v}" for k, v in config.batch.items() if v)
  most = "up to " if m.sizes else ""
  mean = {"tokens": "over all tokens", "apart": "images and texts apart"}
  return {
    "decoder": f"{d.depth} layers x {d.width}",
    "image tokens": f"{most}{m.image_tokens} of {m.vq.codes} codes",
    "batch": batch,
    "loss": f"mean {mean[loss.weighting]}",
    "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}",
    "sampling": f"cfg {config.sampling.cfg:g}",
  }


def inputs(config: Any, codec: ImageCodec) -> dict[str, dict[str, Field]]:
  """The fields of each task that Liquid can do.

  Texts before a target are aligned to the right: what predicts the target
  then stands in the same slots in every row.
  """
  m, text, data = config.model, config.text, config.data
  drawn = Cached(
    "drawn", codec.cache.shape, codec.cache.dtype, codec.size, codec.fit,
    file=data.has_cache("t2i"), target=True, sizes=m.sizes, cell=m.vq.factor,
  )  # fmt: skip
  seen = dataclasses.replace(
    drawn, role="seen", file=data.has_cache("i2t"), target=False
  )
  prompt = Text(
    "prompt", text.prompt, ("bos",), ("boi",), endings=m.endings
  )  # fmt: skip
  if m.sizes:
    null = Text("prompt", text.prompt, ("bos",), ("unconditional", "boi"))
    prompt = sized_prompt.SizedPrompt(prompt, null, drawn.pixels, drawn.cell)
  about = Text("prefix", text.prefix, ("eoi", *m.ask), m.reply)
  plain = Text("prefix", text.prefix, ("bos",), m.reply, opening=m.user)
  suffix = Text(
    "suffix", text.suffix, after=("eos",), align="left", target=True
  )
  longer = dataclasses.replace(suffix, length=m.text_suffix or text.suffix)
  turns = {}
  if text.dialogue:
    row = Dialogue(
      text.dialogue, m.image_tokens, codec.size, codec.fit,
      file=data.has_cache("dialogue"),
    )  # fmt: skip
    turns = {"dialogue": {interleaved.FIELD: row}}
  return {
    "t2i": {"prompt": prompt, "image": drawn},
    "i2t": {"codes": seen, "prefix": about, "suffix": suffix},
    "text": {"prefix": plain, "suffix": longer},
    **turns,
  }


def sentences(config: Any) -> tuple[str, ...]:
  """What prompts say of the sizes of images."""
  return tuple(map(sized_prompt.sentence, config.model.sizes))


def step_cost(config: Any) -> cost.StepCost:
  """The cost of one step over all tasks, without the frozen tokenizer."""
  m, text, rows = config.model, config.text, config.batch
  n, of = m.image_tokens, cost.Sequences
  seen, said = 2 + len(m.user) + n, text.prefix - 1
  longer = m.text_suffix or text.suffix
  tasks = {
    "t2i": of(rows.get("t2i", 0), text.prompt + n + 1, logits=n + 2),
    "i2t": of(
      rows.get("i2t", 0), seen + said + text.suffix, logits=text.suffix
    ),
    "text": of(rows.get("text", 0), said + longer, logits=longer),
    "dialogue": of(
      rows.get("dialogue", 0),
      max(text.dialogue - 1, 0),
      logits=max(text.dialogue - 1, 0),
    ),
  }
  return cost.step_cost(
    m.decoder, None, tasks, m.attention, m.remat, config.accumulate
  )
