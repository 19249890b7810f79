"""The vocabulary every layer speaks: shape legend, batches, the contracts.

Shape legend, the same letters in every signature, docstring and einsum:

  B batch          T sequence        N image tokens     P text prefix slot
  A answer slot    D decoder width   H head dimension   K key/value heads
  C latent channels per image token  V vocabulary       L layers
  h, w latent rows and columns       S attended positions

Images are float32 in [-1, 1], channels last. Token ids are int32 with pad 0,
eos 1, bos 2, unk 3 (SentencePiece as Gemma trains it).

This file imports no accelerator library: data workers load it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from unifluid_jax.core.parameter_rows import Parts

Params = Mapping[str, Any]
Metrics = Mapping[str, Any]

PAD, EOS, BOS, UNK = 0, 1, 2, 3

TASKS = ("t2i", "i2t", "edit", "text")


class TextToImage(NamedTuple):
  """Generation examples: prompt in, image tokens out.

  Exactly one of `image` and `moments` is set: pixels to be encoded by the
  frozen VAE, or the moments of its posterior, computed once beforehand.
  """

  prompt: Any  # i32[B, P] BOS + prompt, right-aligned: pads stand on the left
  image: Any = None  # f32[B, H, W, 3]
  moments: Any = None  # f32[B, h, w, 2c] mean and log-variance


class ImageToText(NamedTuple):
  """Understanding examples: image and question in, answer out."""

  # At the vision encoder's size; F images that a question is about, if several
  image: Any  # f32[B, H, W, 3] or f32[B, F, H, W, 3]
  prefix: Any  # i32[B, P] BOS + question + "\n", right-aligned
  suffix: Any  # i32[B, A] answer + EOS, left-aligned, then pads


class Edit(NamedTuple):
  """Editing examples: source image and instruction in, target image out."""

  source: Any  # f32[B, H, W, 3] at the vision encoder's size
  prompt: Any  # i32[B, P] BOS + instruction, right-aligned
  image: Any = None  # f32[B, H, W, 3] target at the VAE's size
  source_image: Any = None  # f32[B, H, W, 3] source at the VAE's size


class TextOnly(NamedTuple):
  """Language-model examples: no image at all."""

  prefix: Any  # i32[B, P] right-aligned, at least BOS
  suffix: Any  # i32[B, A] left-aligned, EOS included


class Batch(NamedTuple):
  """One training step's examples; a task that takes no part is None."""

  t2i: TextToImage | None = None
  i2t: ImageToText | None = None
  edit: Edit | None = None
  text: TextOnly | None = None


class Prompts(NamedTuple):
  """What an image is generated from."""

  text: Any  # i32[B, P] BOS + prompt, right-aligned
  source: Any = None  # f32[B, H, W, 3] to edit, at the encoder's size
  source_image: Any = None  # f32[B, H, W, 3] the same at the VAE's size


class TrainState(NamedTuple):
  """All that a training step reads and writes; donated to it."""

  step: Any  # i32[]
  params: Any  # fp32 masters
  opt_state: Any
  ema: Any = None  # like params, or None when averaging is off


@runtime_checkable
class Trainable(Protocol):
  """What `train.py` knows of a model: this and nothing else."""

  parts: Parts  # where networks stand in `init`'s tree, and their rows
  # Path prefixes without gradient, moments, clipping or averaging: what
  # `revise` alone replaces, as counts and means of a codebook's rows.
  held: Sequence[str]

  def init(self, key: Any) -> Params:
    """Fresh parameters as a plain nested dict of float32 arrays."""

  def counts(self, batch: Any) -> Mapping[str, Any]:
    """How many items each term of the loss has in a whole global batch.

    A Python int where shapes fix it, else an integer array.
    """

  def loss(
    self,
    params: Params,
    frozen: Any,
    batch: Any,
    counts: Mapping[str, Any],
    key: Any,
    step: Any,
  ) -> tuple[Any, Metrics, Any]:
    """Loss, metrics, and what was seen, of a part of a batch.

    Each is a sum over the part's items divided by `counts`, which are those
    of the whole batch: losses, gradients and metrics of its parts add up to
    those of the batch, however it was cut.

    Returns:
      f32[] to minimise; a flat dict of f32[]; a pytree of arrays for `revise`
      (e.g. i32[V] uses and f32[V, C] sums of a codebook's rows), or {}. These
      are sums that no count divides; they add up over parts likewise.
    """

  def revise(
    self, params: Params, seen: Any, key: Any, step: Any
  ) -> Params | None:
    """Parameters as replaced after an update; None: they stay.

    Args:
      params: updated, as `init` returns them; averages are taken afterwards.
      seen: of `loss`, summed over the whole batch.
      key: unlike those of the step's losses.
      step: i32[] of the training step, from 0.
    """

  def load_frozen(self) -> Any:
    """Weights the optimizer never sees; read from disk, or an empty dict."""


@runtime_checkable
class System(Trainable, Protocol):
  """A trainable that also generates images and answers questions."""

  def generate(
    self, params: Params, frozen: Any, prompts: Prompts, key: Any, sampling: Any
  ) -> Any:
    """Images in [-1, 1], f32[B, H, W, 3]; row i depends on seed i only."""

  def answer(
    self, params: Params, frozen: Any, images: Any, prefix: Any, sampling: Any
  ) -> Any:
    """Token ids i32[B, A], padded after EOS."""
