"""What all layers share: shape legend, batches, the contracts.

Shape legend, the same letters in every signature, docstring and einsum:

  B batch          T sequence        N image tokens     P text prefix slot
  A answer slot    D decoder width   H head dimension   K key/value heads
  C latent channels per image token  V vocabulary       L layers
  h, w latent rows and columns       S attended positions

Images are float32 in [-1, 1], channels last. Token ids are int32, padded with
-1; eos is 1, bos 2, unk 3 (SentencePiece as Gemma trains it).

This file imports no accelerator library: data workers load it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from unifluid_jax.core.parameter_rows import Parts

Params = Mapping[str, Any]
Metrics = Mapping[str, Any]

PAD = -1  # no id of any vocabulary
EOS, BOS, UNK = 1, 2, 3

# A field of rows to draw: f[B], what each row's loss is multiplied by, see
# `packing.weigh`. Counts are of rows, whatever their weights.
WEIGHT = "weight"
# task → field → array [B, ...]; a field of several arrays is "field.part"
Batch = Mapping[str, Mapping[str, Any]]


class TrainState(NamedTuple):
  """All that a training step reads and writes; donated to it."""

  step: Any  # i32[]
  params: Any  # fp32 masters
  opt_state: Any
  ema: Any = None  # like params, or None when averaging is off


@dataclasses.dataclass(frozen=True)
class SystemSpec:
  """What a system's module declares; `systems.SYSTEMS` names them.

  The package itself reads `image_size` (pixels) of the model, and `seed` of
  the sampling options of what answers.
  """

  model: type  # dataclasses of the system's part of the configuration tree
  loss: type
  sampling: type
  ranges: tuple[Any, ...]  # `ranges.Row`s of their numbers
  tasks: tuple[str, ...]  # that it can train on
  check: Callable[..., None]  # (config, mesh or None): ConfigError
  migrate: Callable[[Mapping[str, Any]], dict[str, Any]]  # of older trees
  summary: Callable[[Any], dict[str, str]]  # config → rows of the report
  build: Callable[[Any], Any]  # config → System
  # Key in metrics.jsonl → title of its curve in reports.
  losses: Mapping[str, str] = dataclasses.field(default_factory=dict)
  # (config, sampling, task): ValueError where a run cannot be sampled so.
  check_sampling: Callable[..., None] = lambda config, sampling, task: None
  # Paths of parameters whose first axis is the vocabulary: files with fewer or
  # more rows fit, see weights/warm_start.
  tables: tuple[str, ...] = ("decoder/embedder/table", "decoder/lm_head/table")
  # (config, sampling, bool[rows, columns]): ValueError where a `Redrawer`
  # cannot draw these cells again.
  check_redraw: Callable[..., None] = lambda config, sampling, again: None
  codec_path: str = ""  # field of `model` that is its codec's path
  # (config, sampling) → (height, width) that prompts are to name, or None.
  drawn_size: Callable[..., Any] = lambda config, sampling: None
  # config → sentences that its fields add to texts, for trained tokenizers.
  sentences: Callable[[Any], tuple[str, ...]] = lambda config: ()
  # config → rows of the vocabulary that the tokenizer may use.
  text_rows: Callable[[Any], int] = lambda config: config.model.decoder.vocab

  @property
  def nodes(self) -> dict[str, type]:
    """Key of the configuration tree → the system's dataclass of it."""
    return {"model": self.model, "loss": self.loss, "sampling": self.sampling}


class Part(NamedTuple):
  """Frozen weights of a system, outside params and never seen by optax."""

  shapes: Callable[[], Params]  # ShapeDtypeStructs; reads no file
  load: Callable[[], Params]
  exact: bool = False  # float32 in evaluation too, not bfloat16


@runtime_checkable
class ImageCodec(Protocol):
  """A tokenizer of images, frozen while a system trains.

  Attributes:
    cache: one encoded image, the largest there is, as batches hold it.
    file_dtype: of cached images in files: float16 moments, uint16 codes.
    size: of the images, in pixels.
    sizes: (height, width) that images may have, the square one among them;
      (): squares alone. A codec that has some encodes and decodes each, and
      has `grid(size)`, the rows and columns of its codes.
    fit: how an image becomes a square of that size, see `data/transforms`.
    path: of its weights.
    path_key: the key of the configuration that names it, for messages.
    measured: whether it has statistics that `measure` computes of cached
      images (name → number, and "values", how many there were).
  """

  cache: Any  # ShapeDtypeStruct
  file_dtype: Any
  size: int
  sizes: tuple[tuple[int, int], ...]
  fit: str
  path: str
  path_key: str
  measured: bool

  def shapes(self) -> Params:
    """Weights and statistics as ShapeDtypeStructs; reads no file."""

  def load(self) -> Params:
    """The same from `path`."""

  def weights(self) -> Params:
    """Without statistics: what encoding needs."""

  def digest(self, frozen: Params) -> str:
    """Of the weights; caches and statistics remember it."""

  def identity(self, frozen: Params) -> dict[str, Any]:
    """JSON that tells codecs apart: "weights", the digest, and statistics."""

  def saved(self, frozen: Params) -> tuple[Params, dict[str, Any]]:
    """Parameters and settings, for a copy that `load` can read."""

  def encode(self, frozen: Params, images: Any) -> Any:
    """f32[B, H, W, 3] in [-1, 1] → [B, *cache]: what files keep."""

  def tokens(self, frozen: Params, cached: Any, key: Any) -> Any:
    """[B, *cache] → image tokens [B, N, ...]; without a key the mode."""

  def decode(self, frozen: Params, tokens: Any) -> Any:
    """Image tokens → f32[B, H, W, 3] in [-1, 1]."""

  def reconstruct(self, frozen: Params, images: Any) -> Any:
    """Images through the codec and back: an upper bound for generation."""


@runtime_checkable
class System(Protocol):
  """What is trained: all that the loops, the API and compilation know of it.

  Attributes:
    inputs: task → name → field (data/fields.py), of every task it can do;
      config.batch says which train.
    frozen: name → Part; a codec stands under "codec".
    codec: the ImageCodec under "codec", or None.
    parts: path prefix of each network in `init`'s tree → its rows.
    held: path prefixes without gradient, moments, clipping or averaging: only
      `revise` replaces them, e.g. counts and means of a codebook's rows.
  """

  inputs: Mapping[str, Mapping[str, Any]]
  frozen: Mapping[str, Part]
  codec: Any
  parts: Parts
  held: Sequence[str]

  def init(self, key: Any) -> Params:
    """Fresh parameters as a plain nested dict of float32 arrays."""

  def counts(self, batch: Batch) -> Mapping[str, Any]:
    """How many items each term of the loss has in a whole global batch.

    A Python int where shapes fix it, else an integer array.
    """

  def loss(
    self,
    params: Params,
    frozen: Params,
    batch: Batch,
    counts: Mapping[str, Any],
    key: Any,
    step: Any,
  ) -> tuple[Any, Metrics, Any]:
    """Loss, metrics and statistics of a part of a batch.

    Loss and metrics are sums over the part's items divided by `counts` of the
    whole batch: losses, gradients and metrics of its parts add up to those of
    the batch, however it was cut.

    Returns:
      f32[] to minimise; a flat dict of f32[]; a pytree of arrays for `revise`
      (e.g. i32[V] uses and f32[V, C] sums of a codebook's rows), or {}. These
      are sums that no count divides; they add up over parts likewise.
    """

  def revise(
    self, params: Params, seen: Any, key: Any, step: Any
  ) -> Params | None:
    """Parameters that replace the updated ones; None: nothing changes.

    Args:
      params: updated, as `init` returns them; averages are taken afterwards.
      seen: of `loss`, summed over the whole batch.
      key: not one of the step's losses' keys.
      step: i32[] of the training step, from 0.
    """

  def cost(self) -> Any:
    """`systems/common/cost.StepCost` of a step; None: not counted."""


@runtime_checkable
class Generator(System, Protocol):
  """A system that also draws images.

  Prompts are batches without targets.
  """

  def generate(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any,
  ) -> Any:  # fmt: skip
    """Images in [-1, 1], f32[B, H, W, 3]; row i depends on keys[i] only."""

  def reconstruct(self, params: Params, frozen: Params, images: Any) -> Any:
    """Images [B, H, W, 3] through its tokens and back."""


@runtime_checkable
class Stager(Protocol):
  """A Generator that can show its images while they appear; most are one."""

  def stages(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, most: int,
  ) -> Any:  # fmt: skip
    """f32[B, S, H, W, 3] in [-1, 1], S of at most `most`.

    The last of each row is what `generate` draws. Systems that draw cell by
    cell show those that are not drawn yet grey (0); those that draw scale by
    scale show whole images, coarse at first.
    """


@runtime_checkable
class Redrawer(Protocol):
  """A Generator that can draw some cells of an image again.

  Only systems that draw cell by cell are one.

  Attributes:
    grid: rows and columns of cells of an image of `model.image_size` squared;
      images of other sizes have cells of the same size.
  """

  grid: tuple[int, int]

  def redraw(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, given: Any, again: Any,
  ) -> Any:  # fmt: skip
    """Images in [-1, 1], f32[B, H, W, 3].

    Cells that stay keep their tokens exactly. Their pixels may change: they
    are decoded again, and a decoder sees the tokens around each cell.

    Args:
      params: all parameters.
      frozen: frozen weights.
      prompts: B rows of "t2i".
      keys: one per row.
      sampling: the system's options.
      given: images in [-1, 1], f32[B, H, W, 3], of the size that is drawn. The
        tokens of cells that stay are theirs, and known to every cell that is
        drawn.
      again: bool[B, N], the cells in raster order that are drawn again.
    """


@runtime_checkable
class Answerer(Protocol):
  """A system that answers in text; most Generators are one."""

  def answer(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any,
  ) -> Any:  # fmt: skip
    """Token ids i32[B, A], padded after EOS; row i draws from keys[i].

    Of dialogues BOI, where an image is to follow, ends an answer as EOS does.
    """


@runtime_checkable
class Scorer(Protocol):
  """A system that says how likely a text is; Generators may be one."""

  def score(self, params: Params, frozen: Params, prompts: Batch) -> Any:
    """Log-likelihood of each target text given its prompt, f32[B], in nats.

    Args:
      params: all parameters.
      frozen: frozen weights.
      prompts: one task of texts, "i2t" or "text", with its targets: the sum
        runs over all tokens of the text and the one that ends it.
    """
