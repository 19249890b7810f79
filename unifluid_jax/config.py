"""Experiments as frozen dataclasses, made once from an ml_collections tree.

`configs/base.py` spells the same tree with its default values; `resolve` is
the only reader of a ConfigDict, so a misspelt key can never read as a default.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from unifluid_jax import presets
from unifluid_jax.types import TASKS


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One data set on disk."""

  format: Literal["array_record", "jsonl", "coco"]
  path: str  # joined with data.root
  split: str = "train"
  tasks: tuple[str, ...] = ("t2i", "i2t")
  weight: float = 1.0
  limit: int = 0  # first records only; 0: all
  moments: str = ""  # array_record of cached VAE moments, joined with root


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
  optim: OptimConfig
  mesh: MeshConfig
  checkpoint: CheckpointConfig
  log: LogConfig
  sampling: SamplingConfig
  eval: EvalConfig


class ConfigError(ValueError):
  """A configuration that cannot run; the message says how to fix it."""


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
  config = _build(Config, to_dict() if to_dict else dict(tree), "config")
  _check(config)
  return config


def _build(cls: type, node: Any, path: str) -> Any:
  """A dataclass from a mapping, field by field."""
  if not isinstance(node, Mapping):
    raise ConfigError(f"{path} must hold {cls.__name__} keys, not {node!r}")
  node = dict(node)
  fields = {f.name: f for f in dataclasses.fields(cls)}
  base = None
  if cls in _PRESETS:
    base = _preset(cls, node, path)
    node = {k: v for k, v in node.items() if v is not None}
  unknown = sorted(set(node) - set(fields))
  if unknown:
    near = difflib.get_close_matches(unknown[0], fields, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
      f"unknown key {path}.{unknown[0]}{hint} Known: {', '.join(fields)}"
    )
  hints = typing.get_type_hints(cls)
  values = {k: _value(hints[k], v, f"{path}.{k}") for k, v in node.items()}
  if base is not None:
    return dataclasses.replace(base, **values)
  required = [
    name for name, f in fields.items()
    if f.default is dataclasses.MISSING and name not in values
  ]  # fmt: skip
  if required:
    raise ConfigError(f"missing key {path}.{required[0]}")
  return cls(**values)


def _preset(cls: type, node: dict, path: str) -> Any:
  """The preset a node names, removed from it; None without a name."""
  name = node.pop("preset", None)
  if not name:
    return None
  table = _PRESETS[cls]
  if name not in table:
    raise ConfigError(
      f"{path}.preset={name!r} is unknown. Known: {', '.join(table)}"
    )
  return table[name]


def _value(hint: Any, value: Any, path: str) -> Any:
  """`value` as the annotated type; ints widen to floats, lists to tuples."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, path)
  if origin is Literal:
    if value not in args:
      raise ConfigError(f"{path}={value!r}: choose one of {list(args)}")
    return value
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    (inner,) = [a for a in args if a is not type(None)]
    return _value(inner, value, path)
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
      raise ConfigError(f"{path}={value!r}: expected a tuple")
    return tuple(_value(args[0], v, f"{path}[{i}]")
                 for i, v in enumerate(value))  # fmt: skip
  if isinstance(origin, type) and issubclass(origin, Mapping):
    if not isinstance(value, Mapping):
      raise ConfigError(f"{path}={value!r}: expected a mapping")
    return types.MappingProxyType(
      {k: _value(args[1], v, f"{path}.{k}") for k, v in value.items()}
    )
  if hint is Any:
    return value
  if hint is float and type(value) is int:
    return float(value)
  if type(value) is not hint:
    raise ConfigError(
      f"{path}={value!r}: expected {hint.__name__}, got {type(value).__name__}"
    )
  return value


def _check(c: Config) -> None:
  """Refuses combinations that cannot work."""
  m = c.model

  def need(ok: bool, message: str) -> None:
    if not ok:
      raise ConfigError(message)

  unknown = sorted(set(c.batch) - set(TASKS))
  need(not unknown, f"batch.{''.join(unknown[:1])}: tasks are {TASKS}")
  need(min(c.batch.values()) >= 0, "batch sizes cannot be negative")
  need(sum(c.batch.values()) > 0, "every batch.* is 0: nothing to train on")
  for task, size in c.batch.items():
    need(
      size % c.accumulate == 0,
      f"batch.{task}={size} is not divisible by accumulate={c.accumulate}",
    )
    has = any(task in s.tasks for s in c.data.train.values())
    need(
      not size or has or c.system == "vae",
      f"batch.{task}={size}, but no data.train source lists task {task!r}",
    )
  cell = m.vae.factor * m.patch
  need(
    m.image_size % cell == 0,
    f"model.image_size={m.image_size} must be a multiple of {cell} "
    f"(VAE factor {m.vae.factor} x patch {m.patch})",
  )
  need(
    m.vit.image_size % m.vit.patch == 0,
    f"model.vit.image_size={m.vit.image_size} must be a multiple of "
    f"model.vit.patch={m.vit.patch}",
  )
  need(
    m.vit.width % m.vit.heads == 0,
    f"model.vit.width={m.vit.width} must be a multiple of "
    f"model.vit.heads={m.vit.heads}",
  )
  need(
    m.decoder.heads % m.decoder.kv_heads == 0,
    f"model.decoder.heads={m.decoder.heads} must be a multiple of "
    f"model.decoder.kv_heads={m.decoder.kv_heads}",
  )
  need(m.decoder.head_dim % 2 == 0, "model.decoder.head_dim must be even")
  need(
    c.order.random_until <= c.order.raster_from,
    f"order.random_until={c.order.random_until} lies after "
    f"order.raster_from={c.order.raster_from}",
  )
  need(c.loss.text_weight >= 0, "loss.text_weight (lambda) is negative")
  need(0 <= c.loss.prompt_dropout < 1, "loss.prompt_dropout must be in [0, 1)")
  need(c.loss.draws >= 1, "loss.draws must be at least 1")
  need(1 <= c.sampling.steps <= 1000, "sampling.steps must be in 1..1000")
  need(
    c.sampling.cfg == 1 or c.loss.prompt_dropout > 0 or not c.batch.get("t2i"),
    "sampling.cfg != 1 needs a null condition: set loss.prompt_dropout > 0 "
    "or sampling.cfg=1",
  )
  need(
    not c.data.eval or c.eval.split in c.data.eval,
    f"eval.split={c.eval.split!r} is no key of data.eval: "
    f"{', '.join(c.data.eval)}",
  )
  sizes = (c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
  need(sizes.count(-1) <= 1, f"mesh {sizes}: only one axis may be -1")
  need(
    all(s == -1 or s >= 1 for s in sizes), f"mesh {sizes}: sizes are >= 1 or -1"
  )
  need(
    not c.vae_loss.perceptual or bool(c.vae_loss.perceptual_weights),
    "vae_loss.perceptual > 0 needs vae_loss.perceptual_weights: the path of "
    "an npz with LPIPS VGG weights; or set vae_loss.perceptual=0",
  )
