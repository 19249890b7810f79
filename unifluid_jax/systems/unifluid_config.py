"""UniFluid's part of the configuration tree, and what follows from it alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from unifluid_jax.codecs.kl_vae import check_shape
from unifluid_jax.core import parallel, presets, ranges
from unifluid_jax.core.freeze import need
from unifluid_jax.core.optim import rate_of
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
from unifluid_jax.systems import unifluid_sampling
from unifluid_jax.systems.common import cost, networks


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
  # What the other rows' order becomes; of "farthest" in so many passes, 0 as
  # many as tokens. See `sampling.order`, `sampling.passes`.
  order: Literal["raster", "farthest"] = "raster"
  passes: int = 0
  label_smoothing: float = 0.0  # of answers
  word_dropout: float = 0.0  # of answers' words, as input
  # Mean over all answer tokens, or per answer first (PaliGemma).
  text_mean: Literal["tokens", "answers"] = "tokens"
  image_dropout: float = 0.0  # share of edits whose source is hidden
  # Of a distilled head's teacher: steps and guidance.
  teacher_steps: int = 10
  teacher_cfg: float = 1.0


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
  Row("loss.passes sampling.passes", AMOUNT),
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
  need(
    config.loss.passes <= m.image_tokens,
    f"loss.passes={config.loss.passes}: an image has {m.image_tokens} tokens",
  )
  need(
    config.loss.order == "farthest" or not config.loss.passes,
    f"loss.passes={config.loss.passes} is of loss.order='farthest': use 0",
  )
  _check_head(m.head, config.loss.draws)
  if token_head.KINDS[m.head.kind].taught:
    _check_taught(config)
  unifluid_sampling.check(config)


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
  teacher = c.init.get("teacher", "")
  run = c.init.get("decoder") or c.init.get("all")
  need(
    "#" in teacher,
    f"{kind} learns from a trained flow head: set config.init.teacher to its "
    "run, as 'RUN#head', and config.init.all to RUN",
  )
  # Of another decoder's states a head draws anything.
  need(
    teacher.partition("#")[0] == run,
    f"config.init.teacher={teacher!r} reads the states of its own run's "
    f"decoder, and this one is of {run!r}: set both to one run",
  )
  moving = [k for k in ("decoder", "image") if rate_of(c.optim.rates, k) != 0]
  need(
    not moving,
    f"{kind}: its teacher reads states of parts that stand still: set "
    + " and ".join(f"optim.rates.{k}=0" for k in moving),
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
