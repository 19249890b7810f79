"""Model FLOPs and tokens of a step, by arithmetic.

Matrix products only, forward and backward (three times the forward), no
rematerialisation: the numerator of MFU as PaLM (arXiv 2204.02311, appendix B)
defines it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unifluid_jax.core.presets import (
  DecoderConfig,
  HeadConfig,
  ScaleDecoderConfig,
  VitConfig,
)
from unifluid_jax.models import energy_head
from unifluid_jax.ops import flow


class Sequences(NamedTuple):
  """The rows of one task in a step."""

  rows: int
  length: int  # of a sequence, without padding
  images: int = 0  # encoded by the vision encoder, per row
  logits: int = 0  # positions whose vocabulary logits are computed
  others: float = 0.0  # forward FLOPs of other networks, per row
  alone: bool = False  # a pass of their own, not padded to the longest task


class StepCost(NamedTuple):
  """What one optimizer step costs, over all tasks and devices."""

  tokens: int  # of the backbone
  flops: float  # model FLOPs, three times the forward
  kernel: str = "plain"  # of the attention
  fused: Mapping[str, float] = {}  # network → FLOPs inside fused kernels
  remat: str = "none"
  saved_by_dots: float = 0.0  # bytes that only remat "dots" saves


def step_cost(
  decoder: DecoderConfig,
  vit: VitConfig | None,
  sequences: Mapping[str, Sequences],
  kernel: str,
  remat: str,
  accumulate: int,
) -> StepCost:
  """The cost of a decoder that reads texts and encoded images.

  Padding is not counted, nor are frozen networks.

  Args:
    decoder: its shape.
    vit: of the vision encoder; None: images are tokens of the decoder.
    sequences: task → its rows.
    kernel: of the decoder's attention, see `ops/attention.attend`.
    remat: what the backward pass recomputes.
    accumulate: micro-batches per step.
  """
  used = [s for s in sequences.values() if s.rows]
  flops = sum(
    s.rows
    * (
      decoder_flops(decoder, s.length)
      + (s.images * vit_flops(vit) if vit else 0.0)
      + s.others
      + s.logits * 2.0 * decoder.width * decoder.vocab
    )
    for s in used
  )
  positions = sum(s.rows * n for s, n in zip(used, _padded(used), strict=True))
  kept = decoder.head_dim * (2 * decoder.heads + 2 * decoder.kv_heads)
  kept += 2 * decoder.width + 2 * decoder.mlp
  saved = 2.0 * decoder.depth * positions / accumulate * kept
  return StepCost(
    sum(s.rows * s.length for s in used),
    3 * flops,
    kernel,
    {} if kernel == "plain" else _fused(decoder, vit, used, kernel, remat),
    remat,
    saved if remat != "full" else 0.0,
  )


def _padded(used: Sequence[Sequences]) -> list[int]:
  """The length to which each task's rows are padded."""
  longest = max((s.length for s in used if not s.alone), default=0)
  return [s.length if s.alone else longest for s in used]


def _fused(
  decoder: DecoderConfig,
  vit: VitConfig | None,
  used: Sequence[Sequences],
  kernel: str,
  remat: str,
) -> dict[str, float]:
  """FLOPs inside a step's fused attention, masked positions included.

  Two products forward, again where the layers are rematerialised and do not
  save what the kernel's backward pass reads, and five backward, over rows
  as they are padded.
  """
  c, lengths = decoder, _padded(used)
  pairs = sum(s.rows * n**2 for s, n in zip(used, lengths, strict=True))
  products = {"decoder": 2.0 * c.depth * c.heads * c.head_dim * pairs}
  if kernel == "mosaic" and vit:
    images = sum(s.rows * s.images for s in used)
    c, length = vit, vit_tokens(vit)
    products["vit"] = images * 2.0 * c.depth * c.width * length**2
  # "dots" saves the kernel's inputs and result, all that mosaic reads.
  again = remat == "full" or (remat == "dots" and kernel != "mosaic")
  return {k: v * (9 if again else 7) for k, v in products.items()}


def decoder_flops(c: DecoderConfig, length: int) -> float:
  """Forward FLOPs of one sequence, without embedding and logits."""
  projections = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
  attention = 2 * c.heads * c.head_dim * length
  layer = projections + 3 * c.width * c.mlp + attention
  return 2.0 * c.depth * length * layer


def scale_decoder_flops(c: ScaleDecoderConfig) -> float:
  """Forward FLOPs of one image's N slots, embedding and logits included.

  Attention is counted over all pairs of slots.
  """
  n, w = c.tokens, c.width
  layer = 4 * w**2 + 2 * w * c.mlp + 2 * w * n
  shared = min(c.depth, 1)  # without layers there is nothing to modulate
  modulations = w**2 * (6 * (shared if c.shared_adaln else c.depth) + 2)
  ends = w * (c.code_channels + c.codes)
  return 2.0 * (n * (c.depth * layer + ends) + modulations)


def vit_tokens(c: VitConfig) -> int:
  """Features of one image."""
  return (c.image_size // c.patch) ** 2


def vit_flops(c: VitConfig) -> float:
  """Forward FLOPs of one image."""
  n = vit_tokens(c)
  layer = 4 * c.width**2 + 2 * c.width * c.mlp + 2 * c.width * n
  return 2.0 * n * (c.depth * layer + 3 * c.patch**2 * c.width)


def head_flops(c: HeadConfig, condition: int, channels: int) -> float:
  """Forward FLOPs of one evaluation for one token.

  Args:
    c: its shape and kind.
    condition: Z, width of the decoder's states.
    channels: C of a token.
  """
  blocks = c.depth * 5 * c.width**2 + 2 * c.width**2
  told = {"shortcut": 2, "energy": 0}.get(c.kind, 1)
  told *= c.width**2 + 256 * c.width
  read = energy_head.NOISE if c.kind == "energy" else channels
  ends = read + (2 if c.kind == "ddpm" else 1) * channels
  return 2.0 * (blocks + told + ends * c.width + condition * c.width)


def head_evaluations(c: HeadConfig, draws: int, steps: int = 0) -> float:
  """Evaluations of a token's draws in training, forward and backward.

  Two make a target of self-consistency, and two each step of a guided teacher:
  they have no backward pass, and each counts for a third.

  Args:
    c: its kind.
    draws: of a token.
    steps: of the teacher, if the kind has one.
  """
  pairs = draws * steps if c.kind == "distilled" else 0
  if c.kind == "shortcut":
    pairs = flow.consistency_draws(draws)
  return draws + 2 / 3 * pairs
