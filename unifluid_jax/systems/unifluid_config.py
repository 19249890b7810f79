"""UniFluid's part of the configuration tree, and what follows from it alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from unifluid_jax.codecs.kl_vae import check_shape
from unifluid_jax.core import parallel, presets, ranges
from unifluid_jax.core.config import option
from unifluid_jax.core.freeze import need
from unifluid_jax.core.parameter_rows import KERNEL, MATRIX
from unifluid_jax.core.parameter_rows import Row as ParameterRow
from unifluid_jax.core.ranges import (
  AMOUNT,
  COUNT,
  DECAY,
  POSITIVE,
  SHARE,
  Range,
  Row,
  below,
)
from unifluid_jax.core.types import ImageCodec
from unifluid_jax.data.fields import Cached, Field, Pixels, Text
from unifluid_jax.models import decoder, diffusion_head, token_head, vit
from unifluid_jax.ops import fused_head
from unifluid_jax.systems.common import cost, drawn_cells, networks


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The networks."""

  decoder: presets.DecoderConfig
  vit: presets.VitConfig
  head: presets.HeadConfig
  vae: presets.VaeConfig
  vae_path: str  # workdir of the VAE's run, or an imported VAE
  image_size: int
  patch: int  # latent cells per side of an image token
  dtype: Literal["float32", "bfloat16"]
  remat: Literal["none", "dots", "full"]
  scan: bool
  edit_latents: bool  # edit prefix carries the source's VAE tokens too
  # Image tokens are latents of about this standard deviation. Below 1, what
  # to draw is decided at less noisy diffusion steps, where the noise's
  # prediction shows it (input scaling, arXiv 2301.10972).
  latent_std: float = 1.0
  # The decoder's attention in training; see ops/attention.attend.
  attention: Literal["plain", "mosaic", "splash", "triton"] = "plain"

  @property
  def grid(self) -> int:
    """Image tokens per side."""
    return self.image_size // self.vae.factor // self.patch

  @property
  def image_tokens(self) -> int:
    """N."""
    return self.grid**2

  @property
  def token_channels(self) -> int:
    """C."""
    return self.vae.latent * self.patch**2


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The objective."""

  text_weight: float  # lambda
  draws: int  # noise draws per image token
  prompt_dropout: float
  vocab_chunk: int  # answer positions whose logits exist at once
  # Random token order: probability 1, linear to 0 between the two steps.
  random_until: int
  raster_from: int
  # Never below this: such a run draws any cells last, several in one pass.
  random_share: float = 0.0
  label_smoothing: float = 0.0  # of answers
  word_dropout: float = 0.0  # of answers' words, as input
  # Mean over all answer tokens, or per answer first (PaliGemma).
  text_mean: Literal["tokens", "answers"] = "tokens"
  image_dropout: float = 0.0  # share of edits whose source is hidden
  # Of a distilled head's teacher: steps and guidance.
  teacher_steps: int = 10
  teacher_cfg: float = 1.0


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How images and text are drawn from the model."""

  steps: int = option("images")  # of the diffusion head
  cfg: float = option("images")  # 1: no guidance
  temperature: float = option("images")
  # spread: groups of far cells near known ones; see ops/order.spread.
  order: Literal["raster", "random", "spread"] = option("images")
  text: Literal["greedy", "sample", "beam"] = option("text")
  text_temperature: float = option("text")
  top_k: int = option("text")  # 0: off
  top_p: float = option("text")  # 1: off
  beams: int = option("text")
  seed: int
  cfg_schedule: Literal["constant", "linear"] = option(
    "images", default="constant"
  )
  # Bound of predicted clean tokens, in latent units; 0: off, as MAR.
  clip: float = option("images", default=0.0)
  # Of flow heads; Heun's takes two evaluations a step, but one for the last.
  solver: Literal["euler", "heun"] = option("images", default="euler")
  # Steps of the token drawn last, with fewer and fewer from the first to it
  # (DiSA); 0: all tokens have `steps`.
  last_steps: int = option("images", default=0)
  # Passes of the decoder for an image, several tokens in each; 0: one a token.
  passes: int = option("images", default=0)
  # Guidance of edits towards their source; 1: no separate one.
  image_cfg: float = option("edits", default=1.0)


# Path prefix of each network in the parameters, and its rows.
_PROJECTOR = (
  ParameterRow(r"kernel", ("fsdp", None), ((0,), (1,)), KERNEL),
  ParameterRow(r"bias", (None,)),
)
_IMAGE = (
  ParameterRow(r"in/kernel", (None, "fsdp"), ((0,), (1,)), KERNEL),  # CD
  ParameterRow(r"(position|next_position)", (None, "fsdp"), decay=MATRIX),  # ND
  ParameterRow(r"in/bias|boi", (None,)),  # D
)

PARTS = {
  "decoder": decoder.ROWS,
  "vit": vit.ROWS,
  "projector": _PROJECTOR,
  "image": _IMAGE,
  "head": diffusion_head.ROWS,
  "teacher": diffusion_head.ROWS,  # of a distilled head
}

RANGES = (
  *ranges.DECODER,
  *ranges.VIT,
  *ranges.VAE,
  *ranges.ANSWERS,
  Row(below("text", "prompt prefix suffix"), COUNT),
  Row(below("model.head", "width depth"), COUNT),
  Row(below("model", "patch image_size"), COUNT),
  Row("model.latent_std", POSITIVE),
  Row("loss.text_weight", AMOUNT),
  Row("loss.draws loss.vocab_chunk", COUNT),
  Row(below("loss", "prompt_dropout label_smoothing word_dropout"), DECAY),
  Row("loss.image_dropout", Range(0, 0.5)),
  Row("loss.teacher_steps", Range(1, 1000)),
  Row("loss.teacher_cfg", AMOUNT),
  Row("loss.random_share", SHARE),
  Row("loss.random_until loss.raster_from", AMOUNT),
  Row("sampling.steps", Range(1, 1000)),
  Row("sampling.last_steps", Range(0, 1000)),
  Row("sampling.passes", AMOUNT),
  Row("sampling.cfg sampling.image_cfg", AMOUNT),
  Row("sampling.temperature sampling.clip", AMOUNT),
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
  check_shape(m.vae, m.image_size, m.patch)
  networks.check_special(config.text.special, m.decoder.vocab)
  networks.check_decoder(m.decoder)
  networks.check_vit(m.vit)
  need(
    config.loss.random_until <= config.loss.raster_from,
    f"loss.random_until={config.loss.random_until} lies after "
    f"loss.raster_from={config.loss.raster_from}",
  )
  _check_head(m.head, config.loss.draws)
  if token_head.KINDS[m.head.kind].taught:
    _check_taught(config)
  _check_sampling(config)


def special_ids(config: Any) -> dict[str, int]:
  """Name → id of the special tokens that the system reads."""
  vocab = config.model.decoder.vocab
  return networks.special_ids(config.text.special, vocab)


def _check_head(head: presets.HeadConfig, draws: int) -> None:
  kind = head.kind
  fewest = token_head.KINDS[kind].fewest_draws
  need(
    draws >= fewest,
    f"loss.draws={draws}: heads of kind {kind!r} compare draws of a token: "
    f"set loss.draws to {fewest} or more",
  )
  need(
    not head.fused or (kind != "energy" and head.width % fused_head.LANES == 0),
    "model.head.fused: its kernels are for many steps of a width that is a "
    f"multiple of {fused_head.LANES}, and this is a head of kind {kind!r} and "
    f"width {head.width}: set model.head.fused=False",
  )


def _check_taught(c: Any) -> None:
  kind = f"model.head.kind={c.model.head.kind!r}"
  need(
    bool(c.init.get("teacher")),
    f"{kind} learns from a trained flow head: set config.init.teacher to its "
    "run, as 'RUN#head', and config.init.all to RUN",
  )
  need(
    not c.batch.get("edit"),
    f"{kind} is taught prompts alone: set batch.edit=0",
  )
  need(
    not c.policy.prompts,
    f"{kind} learns what its teacher draws, not its own drawings: set "
    "policy.prompts=0",
  )


def _check_sampling(c: Any) -> None:
  draws = c.batch.get("t2i") or c.batch.get("edit")
  need(
    c.sampling.cfg == 1 or c.loss.prompt_dropout > 0 or not draws,
    "sampling.cfg != 1 needs a null condition: set loss.prompt_dropout > 0 "
    "or sampling.cfg=1",
  )
  unguided = c.sampling.image_cfg == 1 or not c.batch.get("edit")
  need(
    unguided or c.loss.image_dropout > 0,
    "sampling.image_cfg != 1 needs edits without their source: set "
    "loss.image_dropout > 0 or sampling.image_cfg=1",
  )
  need(
    unguided or c.loss.prompt_dropout > 0,
    "sampling.image_cfg != 1 needs edits without their instruction, too: set "
    "loss.prompt_dropout > 0 or sampling.image_cfg=1",
  )
  wrong = _refusal(c, c.sampling)
  need(not wrong, f"sampling.{wrong}")


def check_sampling(config: Any, sampling: SamplingConfig, task: str) -> None:
  """Refuses conditions, groups of tokens and steps that the run never saw.

  Args:
    config: of the run.
    sampling: how images are to be drawn.
    task: "t2i" or "edit".

  Raises:
    ValueError: names the options and the fix.
  """
  if task == "edit" and sampling.image_cfg != 1:
    if not config.loss.image_dropout:
      raise ValueError(
        f"image_cfg={sampling.image_cfg} guides away from edits without a "
        "source, which this run never saw (config.loss.image_dropout=0): "
        "use image_cfg=1"
      )
    # Both null conditions of such an edit lack its instruction.
    if not config.loss.prompt_dropout:
      raise ValueError(
        f"image_cfg={sampling.image_cfg} guides away from edits without an "
        "instruction, which this run never saw (config.loss.prompt_dropout=0): "
        "use image_cfg=1"
      )
  if sampling.cfg != 1 and not config.loss.prompt_dropout:
    raise ValueError(
      f"cfg={sampling.cfg} guides away from images without a prompt, which "
      "this run never saw (config.loss.prompt_dropout=0): use cfg=1"
    )
  if wrong := _refusal(config, sampling):
    raise ValueError(wrong)


def _refusal(config: Any, sampling: SamplingConfig) -> str:
  """Why a run cannot draw tokens as asked for; "" if it can."""
  n = config.model.image_tokens
  if sampling.passes > n:
    return f"passes={sampling.passes}: an image has {n} tokens"
  if 0 < sampling.passes < n and not draws_any_cell(config):
    return (
      f"passes={sampling.passes} draws several tokens at once, and this run "
      "ends in raster order alone (loss.raster_from is less than steps and "
      "loss.random_share is 0): use passes=0"
    )
  return token_head.refusal(config.model.head.kind, sampling)


def draws_any_cell(config: Any) -> bool:
  """Whether training ends with some orders still random."""
  loss = config.loss
  return loss.random_share > 0 or loss.raster_from >= config.steps > 0


def check_redraw(config: Any, sampling: SamplingConfig, again: Any) -> None:
  """Refuses cells that the run's order cannot draw last.

  Args:
    config: of the run.
    sampling: how images are to be drawn.
    again: bool[rows, columns].

  Raises:
    ValueError: says which cells can be drawn again.
  """
  if sampling.order == "raster" and not draws_any_cell(config):
    drawn_cells.check_redraw(config, sampling, again)


def migrate(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A tree of an older version, with the keys of this one.

  Args:
    tree: plain nested dicts; those of this version pass unchanged.
  """
  tree = dict(tree)
  tree.pop("vae_loss", None)
  if "order" in tree:
    tree["loss"] = {**tree["loss"], **tree.pop("order")}
  return tree


def summary(config: Any) -> dict[str, str]:
  """Label → value of a run's configuration, for its report."""
  d, m = config.model.decoder, config.model
  batch = ", ".join(f"{k} {v}" for k, v in config.batch.items() if v)
  return {
    "decoder": f"{d.depth} layers x {d.width}",
    "head": f"{m.head.kind}, {m.head.depth} layers x {m.head.width}",
    "image tokens": f"{m.image_tokens} x {m.token_channels}",
    "batch": batch,
    "lambda": f"{config.loss.text_weight:g}",
    "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}",
    "sampling": f"{config.sampling.steps} steps, cfg {config.sampling.cfg:g}",
  }


def inputs(config: Any, codec: ImageCodec) -> dict[str, dict[str, Field]]:
  """The fields of each task that UniFluid can do."""
  m, text = config.model, config.text
  prompt = Text("prompt", text.prompt, before=("bos",))
  answer = {
    "prefix": Text("prefix", text.prefix, ("bos",), ("newline",)),
    "suffix": Text(
      "suffix", text.suffix, after=("eos",), align="left", target=True
    ),
  }
  seen = Pixels("seen", m.vit.image_size, "squash")
  several = dataclasses.replace(seen, frames=config.data.images)
  image = Cached(
    "drawn", codec.cache.shape, codec.cache.dtype, codec.size, codec.fit,
    target=True,
  )  # fmt: skip
  from_file = dataclasses.replace(image, file=config.data.has_cache("t2i"))
  source = dataclasses.replace(image, role="seen", target=False)
  edit = {"seen": seen, "prompt": prompt, "image": image}
  return {
    "t2i": {"prompt": prompt, "image": from_file},
    "i2t": {"seen": several, **answer},
    "edit": edit | ({"source": source} if m.edit_latents else {}),
    "text": answer,
  }


def step_cost(config: Any) -> cost.StepCost:
  """The cost of one step over all tasks, without the frozen VAE."""
  m, text, rows = config.model, config.text, config.batch
  n, v = m.image_tokens, cost.vit_tokens(m.vit)
  drawn, source = text.prompt + n, v + (n if m.edit_latents else 0)
  seen, answer = config.data.images, text.prefix + text.suffix - 1
  loss, taught = config.loss, token_head.KINDS[m.head.kind].taught
  head = n * cost.head_evaluations(m.head, loss.draws, loss.teacher_steps)
  head *= cost.head_flops(m.head, m.decoder.width, m.token_channels)
  of, asked = cost.Sequences, rows.get("t2i", 0)
  # A teacher's null conditions are sequences too.
  asked, each = (2 * asked, head / 2) if taught else (asked, head)
  tasks = {
    "t2i": of(asked, drawn, others=each),
    "i2t": of(rows.get("i2t", 0), seen * v + answer, seen, text.suffix),
    "edit": of(rows.get("edit", 0), source + drawn, 1, others=head),
    "text": of(rows.get("text", 0), answer, 0, text.suffix),
  }
  return cost.step_cost(
    m.decoder, m.vit, tasks, m.attention, m.remat, config.accumulate
  )
