"""What image tokenizers' parameters are called, and the sizes they show.

Sources: diffusers' AutoencoderKL, whose attention names changed once; CompVis
ldm/modules/diffusionmodules/model.py with VQGAN, Chameleon and MAR, which count
the decoder's levels from the highest resolution; LlamaGen vq_model.py, which
counts them from the lowest. All but diffusers attend by 1 x 1 convolutions.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from unifluid_jax.weights.rows import Row, Source, WeightsError

DIFFUSERS, OLD_DIFFUSERS, COMPVIS, LLAMAGEN = range(4)
NAMES = ("diffusers", "older diffusers", "CompVis", "LlamaGen")
_MODULES_OF = (1, 1, 2, 3)  # columns of the tables of modules
_LAYERS_OF = (1, 2, 3, 3)  # and of those of layers

# What modules of ours are called by diffusers, CompVis and LlamaGen. {s} is
# encoder or decoder, {i} and {j} are numbers, {r} counts levels from the other
# end.
_CONVS = (
  ("quant_conv", "quant_conv", "quant_conv", "quant_conv"),
  ("post_quant_conv", "post_quant_conv", "post_quant_conv", "post_quant_conv"),
  ("{s}/conv_in", "{s}.conv_in", "{s}.conv_in", "{s}.conv_in"),
  (
    "encoder/down_{i}/downsample",
    "encoder.down_blocks.{i}.downsamplers.0.conv",
    "encoder.down.{i}.downsample.conv",
    "encoder.conv_blocks.{i}.downsample.conv",
  ),
  (
    "decoder/up_{i}/upsample",
    "decoder.up_blocks.{i}.upsamplers.0.conv",
    "decoder.up.{r}.upsample.conv",
    "decoder.conv_blocks.{i}.upsample.conv",
  ),
  ("{s}/conv_out", "{s}.conv_out", "{s}.conv_out", "{s}.conv_out"),
)
_NORMS = (
  ("{s}/norm_out", "{s}.conv_norm_out", "{s}.norm_out", "{s}.norm_out"),
)
_RESNETS = (
  (
    "encoder/down_{i}/resnet_{j}",
    "encoder.down_blocks.{i}.resnets.{j}",
    "encoder.down.{i}.block.{j}",
    "encoder.conv_blocks.{i}.res.{j}",
  ),
  (
    "{s}/mid/resnet_0",
    "{s}.mid_block.resnets.0",
    "{s}.mid.block_1",
    "{s}.mid.0",
  ),
  (
    "{s}/mid/resnet_1",
    "{s}.mid_block.resnets.1",
    "{s}.mid.block_2",
    "{s}.mid.2",
  ),
  (
    "decoder/up_{i}/resnet_{j}",
    "decoder.up_blocks.{i}.resnets.{j}",
    "decoder.up.{r}.block.{j}",
    "decoder.conv_blocks.{i}.res.{j}",
  ),
)
_ATTENTIONS = (
  (
    "{s}/mid/attention",
    "{s}.mid_block.attentions.0",
    "{s}.mid.attn_1",
    "{s}.mid.1",
  ),
  (
    "encoder/down_{i}/attention_{j}",
    "encoder.down_blocks.{i}.attentions.{j}",
    "encoder.down.{i}.attn.{j}",
    "encoder.conv_blocks.{i}.attn.{j}",
  ),
  (
    "decoder/up_{i}/attention_{j}",
    "decoder.up_blocks.{i}.attentions.{j}",
    "decoder.up.{r}.attn.{j}",
    "decoder.conv_blocks.{i}.attn.{j}",
  ),
)

# Layers of a block: ours, diffusers', diffusers' until 0.17, CompVis'.
_OF_RESNET = (
  ("norm1", "norm1", "norm1", "norm1"),
  ("conv1", "conv1", "conv1", "conv1"),
  ("norm2", "norm2", "norm2", "norm2"),
  ("conv2", "conv2", "conv2", "conv2"),
  ("shortcut", "conv_shortcut", "conv_shortcut", "nin_shortcut"),
)
_OF_ATTENTION = (
  ("norm", "group_norm", "group_norm", "norm"),
  ("q", "to_q", "query", "q"),
  ("k", "to_k", "key", "k"),
  ("v", "to_v", "value", "v"),
  ("out", "to_out.0", "proj_attn", "proj_out"),
)

# The tensors that tell the sizes: blocks of a level of the encoder, attention
# in a level, in the middle, in the decoder's lowest level, the first layer, the
# latent's. By format.
_DIFFUSERS_PROBES = (
  "encoder.down_blocks.{}.resnets.{}.conv1.bias",
  "encoder.down_blocks.{}.attentions.0.group_norm.bias",
  "encoder.mid_block.attentions.0.group_norm.bias",
  "decoder.up_blocks.0.attentions.0.group_norm.bias",
  "encoder.conv_in.bias",
  "post_quant_conv.bias",
)
PROBES = (
  _DIFFUSERS_PROBES,
  _DIFFUSERS_PROBES,
  (
    "encoder.down.{}.block.{}.conv1.bias",
    "encoder.down.{}.attn.0.norm.bias",
    "encoder.mid.attn_1.norm.bias",
    "decoder.up.{}.attn.0.norm.bias",
    "encoder.conv_in.bias",
    "post_quant_conv.bias",
  ),
  (
    "encoder.conv_blocks.{}.res.{}.conv1.bias",
    "encoder.conv_blocks.{}.attn.0.norm.bias",
    "encoder.mid.1.norm.bias",
    "decoder.conv_blocks.0.attn.0.norm.bias",
    "encoder.conv_in.bias",
    "post_quant_conv.bias",
  ),
)
OUR_PROBES = (
  "encoder/down_{}/resnet_{}/conv1/bias",
  "encoder/down_{}/attention_0/norm/bias",
  "encoder/mid/attention/norm/bias",
  "decoder/up_0/attention_0/norm/bias",
  "encoder/conv_in/bias",
  "post_quant_conv/bias",
)

# Layouts of an attention's matrices.
DENSE, POINT = "o i -> i o", "o i 1 1 -> i o"
_CONV, _VECTOR = "o i h w -> h w i o", "c"


def format_of(source: Source, prefix: str) -> int | None:
  """Which of the formats the names behind `prefix` follow."""
  names = set(source.names())
  first = f"{prefix}encoder."
  if f"{first}conv_in.weight" not in names:
    return None
  if f"{first}mid.block_1.conv1.weight" in names:
    return COMPVIS
  if f"{first}mid.0.conv1.weight" in names:
    return LLAMAGEN
  if f"{first}mid_block.resnets.0.conv1.weight" not in names:
    return None
  old = any(name.endswith(".proj_attn.weight") for name in names)
  return OLD_DIFFUSERS if old else DIFFUSERS


def sizes(source: Source, probes: Sequence[str], groups: int) -> dict[str, Any]:
  """Fields of `presets.AutoencoderConfig` that the tensors' shapes tell.

  Args:
    source: the tensors.
    probes: one of `PROBES`, or ours, each behind its prefix.
    groups: of the norms, which no shape tells.

  Raises:
    WeightsError: tensors are missing, or sizes do not fit each other.
  """
  names = set(source.names())

  def width(name: str) -> int:
    return math.prod(source.shape(name)) if name in names else 0

  def count(width_of: Callable[[int], int]) -> list[int]:
    return list(itertools.takewhile(bool, map(width_of, itertools.count())))

  block, level_attention, attention, decoder_attention, first, latent = probes
  base, widths = width(first), count(lambda i: width(block.format(i, 0)))
  if not base or not widths or not width(latent):
    raise WeightsError(
      f"{source.path}: expected {first}, {block.format(0, 0)} and {latent}, "
      f"found widths {base}, {widths}, {width(latent)}: the file lacks "
      "tensors, download it again"
    )
  odd = [w for w in (base, *widths) if w % base or w % groups]
  if odd:
    raise WeightsError(
      f"{source.path}: {odd[0]} channels are no multiple of {base} (the first "
      f"layer's) and of {groups} groups; put diffusers' config.json with its "
      "norm_num_groups beside the file"
    )
  last = len(widths) - 1
  return dict(
    base=base,
    multipliers=tuple(w // base for w in widths),
    blocks=len(count(lambda j: width(block.format(0, j)))),
    latent=width(latent),
    attention=attention in names,
    encoder_attention=level_attention.format(last) in names,
    decoder_attention=decoder_attention.format(last) in names,
    groups=groups,
  )


def rows(
  format_: int, root: str, levels: int, attention: str, prefix: str = ""
) -> list[Row]:
  """All names of encoder, decoder and the two convolutions between them.

  Args:
    format_: one of the formats.
    root: of our paths, "vae" or "vq".
    levels: of the network.
    attention: `DENSE` or `POINT`.
    prefix: before their names.
  """

  def leaves(theirs: str, ours: str, kernel: str) -> list[Row]:
    name = "kernel" if kernel else "scale"
    to = f"{root}/{ours}"
    return [
      Row(f"{prefix}{theirs}.weight", f"{to}/{name}", kernel or _VECTOR),
      Row(f"{prefix}{theirs}.bias", f"{to}/bias", _VECTOR),
    ]

  out = []
  for modules, layers, kernel in (
    (_CONVS, (), _CONV),
    (_NORMS, (), ""),
    (_RESNETS, _OF_RESNET, _CONV),
    (_ATTENTIONS, _OF_ATTENTION, attention),
  ):
    for ours, theirs in _modules(modules, format_, levels):
      if not layers:
        out += leaves(theirs, ours, kernel)
      for names in layers:
        layer = names[0]
        out += leaves(
          f"{theirs}.{names[_LAYERS_OF[format_]]}",
          f"{ours}/{layer}",
          "" if layer.startswith("norm") else kernel,
        )
  return out


def _modules(
  table: Sequence[tuple[str, ...]], format_: int, levels: int
) -> Iterator[tuple[str, str]]:
  """Our and their names, with the sides and reversed levels filled in."""
  for names in table:
    ours, theirs = names[0], names[_MODULES_OF[format_]]
    for side in ("encoder", "decoder") if "{s}" in ours else ("",):
      pair = ours.replace("{s}", side), theirs.replace("{s}", side)
      if "{r}" not in theirs:
        yield pair
        continue
      for i in range(levels):
        r = str(levels - 1 - i)
        yield pair[0].replace("{i}", str(i)), pair[1].replace("{r}", r)
