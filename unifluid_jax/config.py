"""Experiments as frozen dataclasses, made once from an ml_collections tree.

`configs/base.py` spells the same tree with its default values; `resolve` is
the only reader of a ConfigDict, so a misspelt key can never read as a default.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from unifluid_jax import freeze, presets
from unifluid_jax.freeze import ConfigError
from unifluid_jax.types import TASKS

MAX_PIXELS = 48_000_000
_PILLOW_LIMIT = 178_956_970  # pixels that Pillow opens at most


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One data set on disk."""

  format: Literal[
    "array_record", "jsonl", "coco", "transfer",
    "hq_edit", "ultra_edit", "parquet", "big_vision",
  ]  # fmt: skip
  path: str  # joined with data.root; of "transfer" the task's name
  split: str = "train"
  tasks: tuple[str, ...] = ("t2i", "i2t")
  weight: float = 1.0
  limit: int = 0  # first records only; 0: all
  moments: str = ""  # array_record of cached VAE moments, joined with root
  image: str = "image"  # parquet, big_vision: column or key of images
  text: str = "text"  # parquet, big_vision: column or key of captions
  score: str = ""  # parquet, jsonl: column or key that records are kept by
  min_score: float = 0.0  # the least score that is kept


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read, and how."""

  root: str
  train: Mapping[str, SourceConfig]
  eval: Mapping[str, SourceConfig]
  flip: bool  # horizontal flips; wrong where captions say left and right
  workers: int  # processes that decode; 0: threads of this one
  threads: int
  max_bad_share: float  # unreadable records tolerated before the run stops
  caption_prefix: str  # question that stands for "describe the image"
  world: Mapping[str, Any]  # procedural data set to write; empty: none
  images: int = 1  # that an i2t example has; of every record alike
  max_pixels: int = MAX_PIXELS  # of an image file; larger ones are bad records


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """The tokenizer and the static slots of text."""

  tokenizer: str  # SentencePiece .model
  train_vocab: int  # pieces to train it with where it is missing; 0: never
  prompt: int  # P of t2i and edit
  prefix: int  # P of i2t and text
  suffix: int  # A


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Networks of a system."""

  decoder: presets.GemmaConfig
  vit: presets.VitConfig
  head: presets.HeadConfig
  vae: presets.VaeConfig
  vae_path: str  # workdir of the VAE's run, or an imported VAE
  image_size: int
  patch: int  # latent cells a side merged into one image token
  dtype: Literal["float32", "bfloat16"]
  remat: Literal["none", "dots", "full"]
  scan: bool
  edit_latents: bool  # edit prefix carries the source's VAE tokens too
  # Image tokens are latents of about this standard deviation. Below 1, what
  # to draw is decided at less noisy diffusion steps, where the noise's
  # prediction shows it (input scaling, arXiv 2301.10972).
  latent_std: float = 1.0
  # Of the decoder in training; see ops/attention.attend.
  attention: Literal["plain", "mosaic", "splash", "triton"] = "plain"

  @property
  def grid(self) -> int:
    """Image tokens a side."""
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
  """UniFluid's objective."""

  text_weight: float  # lambda
  draws: int  # noise draws per image token
  prompt_dropout: float
  vocab_chunk: int  # answer positions whose logits exist at once
  label_smoothing: float = 0.0  # of answers
  word_dropout: float = 0.0  # of answers' words, as input for the next ones
  # Answers of a batch weigh by their tokens, or alike (PaliGemma).
  text_mean: Literal["tokens", "answers"] = "tokens"
  image_dropout: float = 0.0  # of edits: the source goes unseen


@dataclasses.dataclass(frozen=True)
class OrderConfig:
  """Random token order: probability 1, linear to 0 between the two steps."""

  random_until: int
  raster_from: int


@dataclasses.dataclass(frozen=True)
class VaeLossConfig:
  """The tokenizer's objective."""

  l1: float
  l2: float
  kl: float
  perceptual: float
  perceptual_weights: str  # npz of LPIPS VGG; needed when perceptual > 0
  adversarial: float
  adversarial_start: int
  discriminator_width: int
  discriminator_layers: int


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """The optimizer."""

  name: Literal["adamw", "muon"]
  lr: float
  warmup: int
  schedule: Literal["constant", "cosine"]
  adam_lr: float  # muon only: parameters that are no matrices
  b1: float
  b2: float
  eps: float
  weight_decay: float
  clip: float  # global gradient norm; 0: off
  ema: float  # decay; 0: off
  mu_dtype: Literal["float32", "bfloat16"]
  rates: Mapping[str, float]  # path prefix → factor of the rate; 0 freezes
  # What decays by how much: matrices, times rate and schedule (adamw), or the
  # encoder's and projector's kernels, times the schedule alone (paligemma).
  decay: Literal["adamw", "paligemma"] = "adamw"


@dataclasses.dataclass(frozen=True)
class InitConfig:
  """Weights a run starts from: a converted directory or another run each.

  A run that loads anything must load or list as `new` everything.
  """

  all: str = ""  # parts without a path of their own
  decoder: str = ""
  vit: str = ""
  projector: str = ""
  image: str = ""
  head: str = ""
  new: tuple[str, ...] = ()  # path prefixes that start fresh

  @property
  def paths(self) -> dict[str, str]:
    """Part → path, where one is given."""
    named = dataclasses.asdict(self)
    return {k: v for k, v in named.items() if k != "new" and v}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one may be -1: all that remain."""

  data: int
  fsdp: int
  tensor: int


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When states are saved and which are kept."""

  every: int
  keep: int
  keep_every: int  # steps never deleted; 0: none


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """Metrics and profiles."""

  every: int
  tensorboard: bool
  profile_start: int
  profile_steps: int  # 0: no profile


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How images and text are drawn from the model."""

  steps: int  # of the diffusion head
  cfg: float  # 1: no guidance
  cfg_schedule: Literal["constant", "linear"]
  temperature: float
  clip: float  # of predicted clean tokens, in latent units; 0: off, as MAR
  order: Literal["raster", "random"]
  text: Literal["greedy", "sample", "beam"]
  text_temperature: float
  top_k: int  # 0: off
  top_p: float  # 1: off
  beams: int
  seed: int
  image_cfg: float = 1.0  # of edits, towards their source; 1: none of its own


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """The separate evaluation job."""

  metrics: tuple[str, ...]
  split: str  # key of data.eval that metrics are named for
  examples: int  # images captioned, questions asked, images for FID
  prompts_per_task: int  # GenEval
  batch: int  # per device
  poll_seconds: float
  use_ema: bool


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  name: str
  system: Literal["unifluid", "vae"]
  seed: int
  steps: int
  batch: Mapping[str, int]  # task → examples a step, all devices together
  accumulate: int
  data: DataConfig
  text: TextConfig
  model: ModelConfig
  loss: LossConfig
  order: OrderConfig
  vae_loss: VaeLossConfig
  init: InitConfig | None  # None: every weight from scratch
  optim: OptimConfig
  mesh: MeshConfig
  checkpoint: CheckpointConfig
  log: LogConfig
  sampling: SamplingConfig
  eval: EvalConfig


_PRESETS = {
  presets.GemmaConfig: presets.GEMMA,
  presets.VitConfig: presets.VIT,
  presets.HeadConfig: presets.HEAD,
  presets.VaeConfig: presets.VAE,
}


def resolve(tree: Any) -> Config:
  """Checks a ConfigDict (or plain dict) and freezes it.

  Args:
    tree: the configuration, as `configs/*.py` return it.

  Returns:
    The same values as frozen dataclasses, presets filled in.

  Raises:
    ConfigError: unknown or missing keys, wrong types, values that exclude
      one another. The message names the key and the fix.
  """
  to_dict = getattr(tree, "to_dict", None)
  node = to_dict() if to_dict else dict(tree)
  config = freeze.build(Config, node, "config", _PRESETS)
  _check(config)
  return config


def _check(c: Config) -> None:
  """Refuses combinations that cannot work, with the fix."""
  _check_data(c)
  _check_model(c.model)
  _check_training(c)
  _check_sampling(c)


def _need(ok: bool, message: str) -> None:
  """Raises ConfigError(message) unless `ok`."""
  if not ok:
    raise ConfigError(message)


def _check_data(c: Config) -> None:
  _need(
    0 < c.data.max_pixels <= _PILLOW_LIMIT,
    f"data.max_pixels={c.data.max_pixels}: use 1 to {_PILLOW_LIMIT}",
  )
  unknown = sorted(set(c.batch) - set(TASKS))
  _need(not unknown, f"batch.{''.join(unknown[:1])}: tasks are {TASKS}")
  _need(min(c.batch.values()) >= 0, "batch sizes cannot be negative")
  _need(sum(c.batch.values()) > 0, "every batch.* is 0: nothing to train on")
  for task, size in c.batch.items():
    _need(
      size % c.accumulate == 0,
      f"batch.{task}={size} is not divisible by accumulate={c.accumulate}",
    )
    has = any(task in s.tasks for s in c.data.train.values())
    _need(
      not size or has or c.system == "vae",
      f"batch.{task}={size}, but no data.train source lists task {task!r}",
    )
  for name, source in (*c.data.train.items(), *c.data.eval.items()):
    _need(
      not source.score or source.format in ("parquet", "jsonl"),
      f"data source {name!r}: score={source.score!r} needs format='parquet' "
      f"or 'jsonl', {source.format!r} knows no scores",
    )
  _need(
    not c.data.eval or c.eval.split in c.data.eval,
    f"eval.split={c.eval.split!r} is no key of data.eval: "
    f"{', '.join(c.data.eval)}",
  )


def _check_model(m: ModelConfig) -> None:
  cell = m.vae.factor * m.patch
  _need(
    m.image_size % cell == 0,
    f"model.image_size={m.image_size} must be a multiple of {cell} "
    f"(VAE factor {m.vae.factor} x patch {m.patch})",
  )
  _need(
    m.vit.image_size % m.vit.patch == 0,
    f"model.vit.image_size={m.vit.image_size} must be a multiple of "
    f"model.vit.patch={m.vit.patch}",
  )
  _need(
    m.vit.width % m.vit.heads == 0,
    f"model.vit.width={m.vit.width} must be a multiple of "
    f"model.vit.heads={m.vit.heads}",
  )
  _need(
    m.decoder.heads % m.decoder.kv_heads == 0,
    f"model.decoder.heads={m.decoder.heads} must be a multiple of "
    f"model.decoder.kv_heads={m.decoder.kv_heads}",
  )
  _need(m.decoder.head_dim % 2 == 0, "model.decoder.head_dim must be even")
  _need(m.latent_std > 0, f"model.latent_std={m.latent_std} must be positive")


def _check_training(c: Config) -> None:
  _need(
    c.order.random_until <= c.order.raster_from,
    f"order.random_until={c.order.random_until} lies after "
    f"order.raster_from={c.order.raster_from}",
  )
  _need(c.loss.text_weight >= 0, "loss.text_weight (lambda) is negative")
  _need(0 <= c.loss.prompt_dropout < 1, "loss.prompt_dropout must be in [0, 1)")
  _need(
    0 <= c.loss.image_dropout <= 0.5, "loss.image_dropout must be in [0, 0.5]"
  )
  for name in ("label_smoothing", "word_dropout"):
    value = getattr(c.loss, name)
    _need(0 <= value < 1, f"loss.{name}={value}: in [0, 1)")
  _need(
    c.optim.decay == "adamw" or c.optim.name == "adamw",
    f"optim.decay={c.optim.decay!r} needs optim.name='adamw'",
  )
  _need(c.loss.draws >= 1, "loss.draws must be at least 1")
  sizes = (c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
  _need(sizes.count(-1) <= 1, f"mesh {sizes}: only one axis may be -1")
  _need(
    all(s == -1 or s >= 1 for s in sizes), f"mesh {sizes}: sizes are >= 1 or -1"
  )
  _need(
    not c.vae_loss.perceptual or bool(c.vae_loss.perceptual_weights),
    "vae_loss.perceptual > 0 needs vae_loss.perceptual_weights: the path of "
    "an npz with LPIPS VGG weights; or set vae_loss.perceptual=0",
  )


def _check_sampling(c: Config) -> None:
  _need(1 <= c.sampling.steps <= 1000, "sampling.steps must be in 1..1000")
  _need(
    c.sampling.cfg == 1 or c.loss.prompt_dropout > 0 or not c.batch.get("t2i"),
    "sampling.cfg != 1 needs a null condition: set loss.prompt_dropout > 0 "
    "or sampling.cfg=1",
  )
  _need(
    c.sampling.image_cfg == 1
    or c.loss.image_dropout
    or not c.batch.get("edit"),
    "sampling.image_cfg != 1 needs edits without their source: set "
    "loss.image_dropout > 0 or sampling.image_cfg=1",
  )
