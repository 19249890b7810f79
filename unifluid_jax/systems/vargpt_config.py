"""VARGPT's part of the configuration tree, and what follows from it alone."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from unifluid_jax.codecs.multiscale_vq import check_shape
from unifluid_jax.core import parallel, presets, ranges
from unifluid_jax.core.config import option
from unifluid_jax.core.freeze import need
from unifluid_jax.core.parameter_rows import Parts
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
from unifluid_jax.data.dialogue import Dialogue, Features
from unifluid_jax.data.fields import Cached, Field, Pixels, Text
from unifluid_jax.models import (
  adapter,
  clip_vit,
  decoder,
  scale_decoder,
  vit,
)
from unifluid_jax.systems.common import cost, interleaved, networks

# Tokens around images that are drawn, whose ids config.text.special gives.
CONTROL = ("boi", "eoi")
# Rows of the scale decoder's table of classes: what stands in slot 0, and what
# modulates the layers, the table's last.
START, CONDITION = 0, 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The networks, and how rows are laid out."""

  decoder: presets.DecoderConfig
  vit: presets.VitConfig
  visual_decoder: presets.ScaleDecoderConfig
  vq: presets.MultiscaleVqConfig
  vq_path: str  # workdir of the tokenizer's run, or an imported tokenizer
  image_size: int  # of images that are drawn
  encoder: Literal["clip", "siglip"]  # what `vit` is the shape of
  dtype: Literal["float32", "bfloat16"]
  remat: Literal["none", "dots", "full"]
  scan: bool
  # The decoder's attention in training; see ops/attention.attend.
  attention: Literal["plain", "splash", "triton"] = "plain"
  # What a slot of an image sees in the decoder besides all that stands before:
  # all of its own scale, or those of it before itself (the released weights).
  slots: Literal["block_causal", "causal"] = "block_causal"
  # What guidance leads away from: an image of no prompt, or one whose hidden
  # states are noise (VARGPT §3.2; the released weights).
  null: Literal["prompt", "noise"] = "prompt"
  # Special tokens around questions, by name: after BOS, between image and
  # question, between question and answer. A chat template's stand here.
  user: tuple[str, ...] = ()
  ask: tuple[str, ...] = ()
  reply: tuple[str, ...] = ()
  # Sentences after a prompt: training draws one, generation takes the first.
  endings: tuple[str, ...] = ()
  text_suffix: int = 0  # slot of "text" rows' targets; 0: text.suffix
  # Images in a dialogue at most: given, and drawn. All rows cost that many.
  dialogue_seen: int = 1
  dialogue_drawn: int = 1

  @property
  def image_tokens(self) -> int:
    """N."""
    return self.vq.tokens

  @property
  def features(self) -> int:
    """Features of an image that is seen."""
    return (self.vit.image_size // self.vit.patch) ** 2


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The objective."""

  prompt_dropout: float  # the share of prompts replaced by the null prompt
  vocab_chunk: int  # positions whose logits exist at once
  image_weight: float = 1.0  # of a code's mean loss; that of texts has 1
  # How codes weigh: alike, or in inverse proportion to their scale's side.
  scale_weights: Literal["equal", "inverse_side"] = "equal"
  word_dropout: float = 0.0  # of answers' words, as input


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How images and text are drawn from the model."""

  cfg: float = option("images")  # of the last scale, the first has 0; 0: none
  temperature: float = option("images")
  image_top_k: int = option("images")  # 0: off
  image_top_p: float = option("images")  # 1: off
  text: Literal["greedy", "sample", "beam"] = option("text")
  text_temperature: float = option("text")
  top_k: int = option("text")  # 0: off
  top_p: float = option("text")  # 1: off
  beams: int = option("text")
  seed: int
  # Means of codes instead of codes: smoother images, not for scores.
  smooth: bool = option("images", default=False)


RANGES = (
  *ranges.DECODER,
  *ranges.VIT,
  *ranges.MULTISCALE_VQ,
  *ranges.ANSWERS,
  # Without layers the language model alone predicts codes.
  *ranges.scale_decoder("model.visual_decoder", depth=AMOUNT),
  Row(below("text", "prompt prefix suffix"), COUNT),
  Row("model.image_size model.dialogue_seen model.dialogue_drawn", COUNT),
  Row("model.text_suffix", AMOUNT),
  Row("loss.vocab_chunk", COUNT),
  Row("loss.prompt_dropout loss.word_dropout", DECAY),
  Row("loss.image_weight", POSITIVE),
  Row("sampling.cfg sampling.image_top_k", AMOUNT),
  Row("sampling.temperature", POSITIVE),
  Row("sampling.image_top_p", Range(0, 1, opens_low=True)),
)


def parts(m: ModelConfig) -> Parts:
  """Path prefix of each network → its rows."""
  return {
    "decoder": decoder.ROWS,
    "encoder": {"clip": clip_vit.ROWS, "siglip": vit.ROWS}[m.encoder],
    "projector": adapter.ROWS,
    "in_projector": adapter.ROWS,
    "out_projector": adapter.ROWS,
    "visual_decoder": scale_decoder.ROWS,
  }


def encoder(m: ModelConfig) -> Any:
  """The network that images are seen by."""
  kinds = {"clip": clip_vit.ClipVit, "siglip": vit.Vit}
  return kinds[m.encoder](m.vit, jnp.dtype(m.dtype), m.remat, m.scan)


def before_in_block(m: ModelConfig) -> Int32[np.ndarray, "N"]:
  """How many slots of an image stand before each in its block of the decoder.

  A slot's block is where its first slot stands, see `block_causal_mask`.
  """
  if m.slots == "causal":
    return np.zeros(m.image_tokens, np.int32)
  counts = [np.arange(side**2, dtype=np.int32) for side in m.vq.scales]
  return np.concatenate(counts)


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
  networks.check_vit(m.vit)
  check_shape(m.vq, m.image_size)
  key = "model.visual_decoder"
  networks.check_scale_decoder(m.visual_decoder, m.vq, key)
  need(
    m.visual_decoder.classes == CONDITION,
    f"{key}.classes={m.visual_decoder.classes}: an image has one condition; "
    f"use {CONDITION}, which with the null class makes the rows it reads",
  )
  networks.check_control(config.text.special, m.decoder.vocab, CONTROL, m.user)
  networks.check_dialogue(config)
  need(
    config.data.images == 1,
    f"data.images={config.data.images}: this system looks at one image",
  )
  need(
    config.text.prompt >= 2,
    f"text.prompt={config.text.prompt} has no room for the null prompt, BOS "
    "and BOI: use >= 2",
  )
  need(
    m.null == "prompt" or not loss.prompt_dropout,
    f"loss.prompt_dropout={loss.prompt_dropout} trains a null prompt that "
    "model.null='noise' never uses: set it to 0, or model.null='prompt'",
  )
  need(
    config.sampling.cfg == 0
    or m.null == "noise"
    or loss.prompt_dropout > 0
    or not config.batch.get("t2i"),
    "sampling.cfg != 0 needs a null condition: set loss.prompt_dropout > 0, "
    "model.null='noise' or sampling.cfg=0",
  )


def check_guidance(config: Any, sampling: SamplingConfig, task: str) -> None:
  """Refuses guidance by a null prompt that the run never saw.

  Raises:
    ValueError: names the option and the fix.
  """
  del task
  unseen = config.model.null == "prompt" and not config.loss.prompt_dropout
  if sampling.cfg and unseen:
    raise ValueError(
      f"cfg={sampling.cfg} guides away from images without a prompt, which "
      "this run never saw (config.loss.prompt_dropout=0): use cfg=0"
    )


def text_rows(config: Any) -> int:
  """Rows before the control tokens, where these are the last."""
  rows = config.model.decoder.vocab
  ids = networks.special_ids(config.text.special, rows)
  while rows - 1 in (ids[name] for name in CONTROL):
    rows -= 1
  return rows


def summary(config: Any) -> dict[str, str]:
  """Label → value of a run's configuration, for its report."""
  d, m, v = config.model.decoder, config.model, config.model.visual_decoder
  batch = ", ".join(f"{k} {n}" for k, n in config.batch.items() if n)
  frozen = [k for k, rate in config.optim.rates.items() if not rate]
  return {
    "decoder": f"{d.depth} layers x {d.width}",
    "visual decoder": f"{v.depth} layers x {v.width}, {len(v.scales)} scales",
    "image tokens": f"{m.image_tokens} of {m.vq.codes} codes; sees "
    f"{m.features} features",
    "frozen": ", ".join(frozen) or "nothing",
    "batch": batch,
    "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}",
    "sampling": f"cfg {config.sampling.cfg:g}",
  }


def inputs(config: Any, codec: ImageCodec) -> dict[str, dict[str, Field]]:
  """The fields of each task that VARGPT can do.

  Texts before a target are aligned to the right: what predicts the target
  then stands in the same slots in every row.
  """
  m, text = config.model, config.text
  drawn = Cached(
    "drawn", codec.cache.shape, codec.cache.dtype, codec.size, codec.fit,
    file=config.data.has_cache("t2i"), target=True,
  )  # fmt: skip
  seen = Pixels("seen", m.vit.image_size, "crop")
  prompt = Text(
    "prompt", text.prompt, ("bos",), (*m.reply, "boi"), endings=m.endings,
    opening=m.user,
  )  # fmt: skip
  about = Text("prefix", text.prefix, m.ask, m.reply)
  plain = Text("prefix", text.prefix, ("bos",), m.reply, opening=m.user)
  suffix = Text(
    "suffix", text.suffix, after=("eos",), align="left", target=True
  )
  longer = dataclasses.replace(suffix, length=m.text_suffix or text.suffix)
  turns = {}
  if text.dialogue:
    given = Features(m.features, m.dialogue_seen, seen.size, seen.fit)
    row = Dialogue(
      text.dialogue, m.image_tokens, codec.size, codec.fit, seen=given,
      most=m.dialogue_drawn, file=config.data.has_cache("dialogue"),
    )  # fmt: skip
    turns = {"dialogue": {interleaved.FIELD: row}}
  return {
    "t2i": {"prompt": prompt, "image": drawn},
    "i2t": {"seen": seen, "prefix": about, "suffix": suffix},
    "text": {"prefix": plain, "suffix": longer},
    **turns,
  }


def step_cost(config: Any) -> cost.StepCost:
  """The cost of one step over all tasks, without the frozen tokenizer."""
  m, text, rows = config.model, config.text, config.batch
  n, said = m.image_tokens, text.prefix - 1
  d, longer = m.decoder.width, m.text_suffix or text.suffix
  seen = 2.0 * m.features * d * (m.vit.width + d)  # the projector
  image, long = _image_flops(m), max(text.dialogue - 1, 0)
  several = min(long // (n + 2), m.dialogue_drawn)

  def of(task: str, length: int, images: int, words: int, others: float) -> Any:
    count = rows.get(task, 0)
    alone = task == "dialogue"  # see `interleaved.hidden_states`
    return cost.Sequences(count, length, images, words, others, alone)

  shown = 1 + len(m.user) + m.features
  tasks = {
    "t2i": of("t2i", text.prompt + n + 1, 0, 3, image),
    "i2t": of("i2t", shown + said + text.suffix, 1, text.suffix, seen),
    "text": of("text", said + longer, 0, longer, 0.0),
    "dialogue": of(
      "dialogue", long, m.dialogue_seen, long,
      m.dialogue_seen * seen + several * image,
    ),
  }  # fmt: skip
  return cost.step_cost(
    m.decoder, m.vit, tasks, m.attention, m.remat, config.accumulate
  )


def _image_flops(m: ModelConfig) -> float:
  """Forward FLOPs of an image: the scale decoder and both projectors."""
  width, d = m.visual_decoder.width, m.decoder.width
  projectors = 2.0 * m.image_tokens * (width + d) ** 2
  return cost.scale_decoder_flops(m.visual_decoder) + projectors
