"""Experiments as frozen dataclasses, made once from an ml_collections tree.

`configs/base.py` spells the same tree with its default values; `resolve` is
the only reader of a ConfigDict, so a misspelt key can never read as a default.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from unifluid_jax.core import combinations, freeze, presets, ranges
from unifluid_jax.core.freeze import ConfigError as ConfigError

MAX_PIXELS = 48_000_000


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

  decoder: presets.DecoderConfig
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
  wandb: str = ""  # project; empty: off


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
  presets.DecoderConfig: presets.DECODER,
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
    ConfigError: unknown or missing keys, wrong types, numbers outside their
      range (`ranges`), values that exclude one another. The message names the
      key and the fix.
  """
  to_dict = getattr(tree, "to_dict", None)
  node = to_dict() if to_dict else dict(tree)
  config = freeze.build(Config, node, "config", _PRESETS)
  ranges.check(config)
  combinations.check(config)
  return config


def resolve_model(node: Any) -> ModelConfig:
  """The subtree `model` alone, of any version that had these keys.

  Raises:
    ConfigError: unknown or missing keys, wrong types.
  """
  return freeze.build(ModelConfig, node, "config.model", _PRESETS)
