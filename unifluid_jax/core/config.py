"""Experiments as frozen dataclasses, made once from an ml_collections tree.

`configs/base.py` spells the same tree with its default values. What stands
under model, loss and sampling belongs to the system (`systems.resolve`, the
only reader of a ConfigDict: a misspelt key can never read as a default).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from unifluid_jax.core import freeze, presets
from unifluid_jax.core.freeze import ConfigError as ConfigError

MAX_PIXELS = 48_000_000


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One data set on disk."""

  format: Literal[
    "array_record", "jsonl", "coco", "transfer",
    "hq_edit", "ultra_edit", "parquet", "big_vision",
    "sharegpt", "llava",
    "auto", "imagefolder", "captions_txt", "class_folders", "table",
    "webdataset", "arrow",
  ]  # fmt: skip
  path: str  # joined with data.root; of "transfer" the task's name
  split: str = "train"
  tasks: tuple[str, ...] = ("t2i", "i2t")
  weight: float = 1.0
  limit: int = 0  # first records only; 0: all
  moments: str = ""  # array_record of cached VAE moments, joined with root
  # Columns or keys of parquet, table, arrow, webdataset, big_vision:
  image: str = "image"  # of images
  text: str = "text"  # of captions, or of answers where `question` is set
  score: str = ""  # parquet, jsonl: column or key that records are kept by
  min_score: float = 0.0  # the least score that is kept
  question: str = ""  # column or key of questions that `text` answers


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """How images of i2t vary in training; see `data.transforms.augmented`."""

  shift: float = 0.0  # at most, in sides of the image
  scale: float = 0.0  # 0.2: what is seen is 0.8 to 1.2 times as large
  colour: float = 0.0  # 0.2: brightness, contrast, saturation times 0.8 to 1.2
  mirror: bool = False  # half of them; wrong where texts say left and right

  @property
  def changes(self) -> bool:
    """Whether anything varies at all."""
    return self != AugmentConfig()


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
  augment: AugmentConfig = AugmentConfig()

  def has_cache(self, task: str) -> bool:
    """Whether encoded images of a task's training sources come from files."""
    sources = [s for s in self.train.values() if s.weight and task in s.tasks]
    return any(s.moments for s in sources)


@dataclasses.dataclass(frozen=True)
class ChatConfig:
  """What stands around the messages of a conversation, as texts.

  `data/dialogue.py` lays it out, for training and for prompts alike; all of it
  is given, none learned.
  """

  system: str = ""  # before the first message, unless it is the system's own
  user: str = ""  # begins a message of the user
  assistant: str = ""  # begins a message of the model

  def begins(self, role: str) -> str:
    """What begins a message of a role."""
    return {"user": self.user, "assistant": self.assistant}.get(role, "")


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """The tokenizer and the static slots of text."""

  tokenizer: str  # SentencePiece .model, or tokenizer.json
  train_vocab: int  # pieces to train it with where it is missing; 0: never
  prompt: int  # P of t2i and edit
  prefix: int  # P of i2t and text
  suffix: int  # A
  dialogue: int = 0  # T of rows of texts and images; 0: none
  # Name (bos, eos, unk, newline, boi, ...) → a piece of the tokenizer, or an
  # id; what is not named is as core/types.py has it.
  special: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  chat: ChatConfig = ChatConfig()  # of conversations in rows of dialogues


@dataclasses.dataclass(frozen=True)
class OptimPartConfig:
  """An optimizer of its own for some parameters; None: as in OptimConfig."""

  name: Literal["adamw", "muon"] | None = None
  lr: float | None = None
  b1: float | None = None
  b2: float | None = None
  weight_decay: float | None = None
  clip: float | None = None  # norm of these parameters' gradient alone
  start: int = 0  # first step that updates them; their schedule begins there


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
  # Path prefix → what differs there, e.g. of a discriminator.
  parts: Mapping[str, OptimPartConfig] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one may be -1: all that remain.

  `slices` are those of a TPU, or groups of hosts, with a slower network
  between them: only gradients and metrics are summed over it.
  """

  data: int
  fsdp: int
  tensor: int
  slices: int = 1


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
class PolicyConfig:
  """Policy gradients on what the run draws; see unifluid_jax/policy.py."""

  prompts: int = 0  # drawn in every step, all devices together; 0: none
  draws: int = 8  # images of each
  weight: float = 1.0  # of these rows, where the run's own to draw have 1
  worse: float = 1.0  # of this, those of images worse than their prompt's mean
  # Option → value, where drawing differs from config.sampling.
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def option(of: str, **default: Any) -> Any:
  """A sampling option of "images", "edits" or "text".

  Results name those that entered them, unless they have their default.
  """
  return dataclasses.field(metadata={"of": of}, **default)


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
  seed: int = 0  # of what metrics draw; their prompts stay the same


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  name: str
  system: str  # a key of systems.SYSTEMS
  seed: int
  steps: int
  batch: Mapping[str, int]  # task → examples a step, all devices together
  accumulate: int
  data: DataConfig
  text: TextConfig
  # Dataclasses of the system, see `types.SystemSpec`.
  model: Any
  loss: Any
  # Path prefix → converted weights or another run's workdir, or "new"; a run
  # that loads anything must name everything. "all": what has no other.
  init: Mapping[str, str]
  optim: OptimConfig
  mesh: MeshConfig
  checkpoint: CheckpointConfig
  log: LogConfig
  sampling: Any  # the system's
  eval: EvalConfig
  # How rows of the vocabulary start that what `init` names has not; see
  # weights/new_rows.py.
  new_rows: Literal["random", "mean"] = "random"
  policy: PolicyConfig = PolicyConfig()


PRESETS = {
  presets.DecoderConfig: presets.DECODER,
  presets.VitConfig: presets.VIT | presets.CLIP_VIT,
  presets.HeadConfig: presets.HEAD,
  presets.VaeConfig: presets.VAE,
  presets.VqConfig: presets.VQ,
  presets.MultiscaleVqConfig: presets.MULTISCALE_VQ,
  presets.ScaleDecoderConfig: presets.SCALE_DECODER,
}


def build(tree: Mapping[str, Any], spec: Any) -> Config:
  """Freezes a tree of this version; `systems.resolve` is the way to it.

  Args:
    tree: plain nested dicts.
    spec: the system's `types.SystemSpec`.

  Raises:
    ConfigError: unknown or missing keys, wrong types.
  """
  own = {
    name: freeze.build(kind, tree[name], f"config.{name}", PRESETS)
    for name, kind in spec.nodes.items()
    if name in tree
  }
  return freeze.build(Config, {**tree, **own}, "config", PRESETS)
