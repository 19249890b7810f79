"""SigLIP's vision encoder under its published names.

Sources: transformers modeling_siglip.py; big_vision models/vit.py, looped
(`encoderblock_0`, ...) as SigLIP and stacked (`encoderblock`) as PaliGemma.
"""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import scipy.ndimage

from unifluid_jax.core.presets import VIT, VitConfig
from unifluid_jax.models.vit import Vit
from unifluid_jax.weights.rows import (
  Drop,
  Recipe,
  Row,
  Source,
  WeightsError,
  count_layers,
  shape_of,
  shapes,
)
from unifluid_jax.weights.settings import check_depth, number_beside

_PATCH = "embeddings.patch_embedding.weight"
_POSITION = "pos_embedding"
# Heads of the released widths: their matrices do not show them.
_HEADS = {768: 12, 1024: 16, 1152: 16}
# Image sizes that are no multiple of the patch: (grid, patch) to pixels.
_SIZES = {(27, 14): 384}
_DROPS = (
  Drop("*head.*", "pooling head"),
  Drop("*MAPHead_0/*", "pooling head"),
  Drop("*head/*", "projector; --from=paligemma: reads it"),
  Drop("*position_ids", "computed"),
  Drop("*text_model.*", "text tower"),
  Drop("*txt/*", "text tower"),
  Drop("*logit_scale", "contrastive loss"),
  Drop("*logit_bias", "contrastive loss"),
  Drop("t", "contrastive loss"),
  Drop("b", "contrastive loss"),
  Drop("params/[tb]", "contrastive loss"),
  Drop("*multi_modal_projector.*", "projector; --from=paligemma: reads it"),
  Drop("*language_model.*", "decoder; --from=paligemma: reads it"),
  Drop("*lm_head.weight", "decoder; --from=paligemma: reads it"),
  Drop("*llm/*", "decoder; --from=paligemma: reads it"),
)


def recipe(source: Source, image_size: int | None = None) -> Recipe:
  """How to read a SigLIP.

  Args:
    source: the tensors.
    image_size: pixels a side the encoder will see; None: as it was trained.

  Raises:
    WeightsError: not a SigLIP, or of a size that its tensors do not tell.
  """
  rows, config, names, sizes = encoder(source, image_size)
  preset = published(config)
  return Recipe(
    "siglip",
    f"SigLIP ({preset or 'unpublished size'}: {in_words(config)}), {names} "
    "names",
    rows,
    like(config),
    sizes=sizes,
    drops=_DROPS,
    meta={"preset": preset, "vit": describe(config)},
  )


def encoder(
  source: Source, image_size: int | None = None
) -> tuple[list[Row], VitConfig, str, dict[str, int]]:
  """Rows, shape, what the names are, and sizes of axes before a resize.

  Raises:
    WeightsError: the tensors are not a vision encoder's.
  """
  for name in source.names():
    if name.endswith(_PATCH):
      return _hugging_face(source, name.removesuffix(_PATCH), image_size)
    if name.endswith(_POSITION) and "txt/" not in name:
      return _big_vision(source, name.removesuffix(_POSITION), image_size)
  shown = ", ".join(source.names()[:3]) or "no tensor"
  raise WeightsError(
    f"{source.path} holds no SigLIP: expected a tensor named *{_PATCH} or "
    f"*{_POSITION}, found {shown}: correct the kind in --from"
  )


def hf_recipe(source: Source) -> Recipe:
  """The way back: our tree (paths below params) under Hugging Face names.

  Raises:
    WeightsError: the checkpoint holds no vision encoder.
  """
  at = {n: source.shape(n) for n in source.names() if n.startswith("vit/")}
  if "vit/patch/kernel" not in at:
    raise WeightsError(
      f"{source.path} holds no vision encoder: expected params/vit/patch/"
      "kernel; correct --from"
    )
  return Recipe("siglip", "SigLIP", hf_rows("vision_model."), at)


def published(config: VitConfig) -> str | None:
  """Key of presets.VIT with these shapes, whatever the image size."""
  shape = list(describe(config).values())[:-1]
  same = (k for k, v in VIT.items() if list(describe(v).values())[:-1] == shape)
  return next(same, None)


def describe(config: VitConfig) -> dict[str, int]:
  """The shape as JSON."""
  keys = ("width", "depth", "mlp", "heads", "patch", "image_size")
  return {key: getattr(config, key) for key in keys}


def in_words(config: VitConfig) -> str:
  """The shape for people."""
  return (
    f"{config.depth} layers of {config.width}, {config.heads} heads, "
    f"{config.image_size} pixels in cells of {config.patch}"
  )


def like(config: VitConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of the encoder's parameters."""
  side = config.image_size
  abstract = jax.eval_shape(
    Vit(config, jnp.float32).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
  )
  return shapes(abstract["params"], "vit")


def resize_positions(x: np.ndarray, grid: int) -> np.ndarray:
  """Learned positions of a square grid, for another grid.

  Linear, corner to corner, as big_vision does it (scipy's zoom, order 1);
  transformers interpolates bicubically between centres: other numbers.

  Args:
    x: [n, D]; an n of g * g + 1 begins with a class token, which is left out.
    grid: cells a side wanted.
  """
  n, width = x.shape
  side = math.isqrt(n)
  x = x[n - side * side :]
  if side == grid:
    return x
  # scipy does not know bfloat16.
  wide = x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x
  cells = wide.reshape(side, side, width)
  zoomed = scipy.ndimage.zoom(cells, (grid / side, grid / side, 1), order=1)
  return zoomed.reshape(grid * grid, width).astype(x.dtype)


def hf_rows(prefix: str) -> list[Row]:
  """Names of transformers' SiglipVisionModel.

  Args:
    prefix: up to "embeddings" and "encoder".
  """
  layer, to = f"{prefix}encoder.layers.{{i}}.", "vit/layers/"
  attn, embed = f"{layer}self_attn.", f"{prefix}embeddings."
  rows = [
    Row(f"{prefix}{_PATCH}", "vit/patch/kernel", "w c p q -> p q c w"),
    Row(f"{embed}patch_embedding.bias", "vit/patch/bias", "w"),
    Row(f"{embed}position_embedding.weight", "vit/position", "t w"),
  ]
  for name, ours in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v")):
    kernel, bias = f"{to}attn/{ours}/kernel", f"{to}attn/{ours}/bias"
    rows.append(Row(f"{attn}{name}.weight", kernel, "(n h) w -> w n h"))
    rows.append(Row(f"{attn}{name}.bias", bias, "(n h) -> n h"))
  out, up, down = f"{to}attn/out/", f"{to}mlp/up/", f"{to}mlp/down/"
  rows += [
    Row(f"{attn}out_proj.weight", f"{out}kernel", "w (n h) -> n h w"),
    Row(f"{attn}out_proj.bias", f"{out}bias", "w"),
    Row(f"{layer}mlp.fc1.weight", f"{up}kernel", "f w -> w f"),
    Row(f"{layer}mlp.fc1.bias", f"{up}bias", "f"),
    Row(f"{layer}mlp.fc2.weight", f"{down}kernel", "w f -> f w"),
    Row(f"{layer}mlp.fc2.bias", f"{down}bias", "w"),
  ]
  norms = {f"{layer}layer_norm1": f"{to}norm1",
           f"{layer}layer_norm2": f"{to}norm2",
           f"{prefix}post_layernorm": "vit/norm"}  # fmt: skip
  for name, ours in norms.items():
    rows.append(Row(f"{name}.weight", f"{ours}/scale", "w"))
    rows.append(Row(f"{name}.bias", f"{ours}/bias", "w"))
  return rows


def big_vision_rows(prefix: str, stacked: bool) -> list[Row]:
  """Names of big_vision's ViT.

  Args:
    prefix: up to "embedding" and "Transformer".
    stacked: one `encoderblock` that leads with the layer.
  """
  block = "encoderblock/" if stacked else "encoderblock_{i}/"
  top = f"{prefix}Transformer/"
  attn = "MultiHeadDotProductAttention_0/"
  rows = [
    Row(f"{prefix}embedding/kernel", "vit/patch/kernel", "p q c w"),
    Row(f"{prefix}embedding/bias", "vit/patch/bias", "w"),
    Row(f"{prefix}{_POSITION}", "vit/position", "1 t w -> t w"),
    Row(f"{top}encoder_norm/scale", "vit/norm/scale", "w"),
    Row(f"{top}encoder_norm/bias", "vit/norm/bias", "w"),
  ]
  inner = {
    "LayerNorm_0/scale": ("norm1/scale", "w"),
    "LayerNorm_0/bias": ("norm1/bias", "w"),
    "LayerNorm_1/scale": ("norm2/scale", "w"),
    "LayerNorm_1/bias": ("norm2/bias", "w"),
    "MlpBlock_0/Dense_0/kernel": ("mlp/up/kernel", "w f"),
    "MlpBlock_0/Dense_0/bias": ("mlp/up/bias", "f"),
    "MlpBlock_0/Dense_1/kernel": ("mlp/down/kernel", "f w"),
    "MlpBlock_0/Dense_1/bias": ("mlp/down/bias", "w"),
    f"{attn}out/kernel": ("attn/out/kernel", "n h w"),
    f"{attn}out/bias": ("attn/out/bias", "w"),
  }
  for name in ("query", "key", "value"):
    inner[f"{attn}{name}/kernel"] = (f"attn/{name[0]}/kernel", "w n h")
    inner[f"{attn}{name}/bias"] = (f"attn/{name[0]}/bias", "n h")
  lead = "l " if stacked else ""
  return rows + [
    Row(f"{top}{block}{name}", f"vit/layers/{ours}", lead + axes)
    for name, (ours, axes) in inner.items()
  ]


def _hugging_face(source, prefix, image_size):
  layer = f"{prefix}encoder.layers."
  width, _, patch, _ = shape_of(source, f"{prefix}{_PATCH}", 4)
  position = f"{prefix}embeddings.position_embedding.weight"
  tokens, _ = shape_of(source, position, 2)
  mlp, _ = shape_of(source, f"{layer}0.mlp.fc1.weight", 2)
  depth = count_layers(source, layer, ".")
  check_depth(source.path, depth, "vision_config")
  heads = number_beside(source.path, "num_attention_heads", "vision_config")
  heads = heads or _HEADS.get(width)
  if not heads or width % heads:
    raise WeightsError(
      f"{source.path} has width {width}, and its tensors do not tell the "
      "number of heads: expected config.json beside it with "
      "num_attention_heads; copy it there"
    )
  shape = (width, depth, mlp, heads, patch)
  return _finish(
    source, hf_rows(prefix), shape, tokens, image_size, "Hugging Face"
  )


def _big_vision(source, prefix, image_size):
  stacked = f"{prefix}Transformer/encoderblock/LayerNorm_0/scale"
  is_stacked = stacked in source.names()
  rows = big_vision_rows(prefix, is_stacked)
  patch, _, _, width = shape_of(source, f"{prefix}embedding/kernel", 4)
  _, tokens, _ = shape_of(source, f"{prefix}{_POSITION}", 3)
  block = "encoderblock" if is_stacked else "encoderblock_0"
  top = f"{prefix}Transformer/{block}/"
  query = f"{top}MultiHeadDotProductAttention_0/query/kernel"
  heads = shape_of(source, query, 3 + is_stacked)[-2]
  up = f"{top}MlpBlock_0/Dense_0/kernel"
  mlp = shape_of(source, up, 2 + is_stacked)[-1]
  if is_stacked:
    depth = source.shape(stacked)[0]
  else:
    depth = count_layers(source, f"{prefix}Transformer/encoderblock_", "/")
  shape = (width, depth, mlp, heads, patch)
  names = f"big_vision {'stacked' if is_stacked else 'looped'}"
  return _finish(source, rows, shape, tokens, image_size, names)


def _finish(source, rows, shape, tokens, image_size, names):
  """Adds the resize where the grid of positions is not the wanted one."""
  width, _, _, _, patch = shape
  side = math.isqrt(tokens)
  if tokens not in (side * side, side * side + 1):
    raise WeightsError(
      f"{source.path}: {tokens} positions are no square grid; expected g * g "
      "or, with a class token, g * g + 1: correct the kind in --from"
    )
  image_size = image_size or _SIZES.get((side, patch), side * patch)
  config = VitConfig(*shape, image_size=image_size)
  grid = image_size // patch
  if not grid:
    raise WeightsError(
      f"--image_size={image_size} is smaller than a patch of {patch} pixels"
    )
  if tokens == grid * grid:
    return rows, config, names, {}
  after = functools.partial(resize_positions, grid=grid)
  rows = [
    Row(r.source, r.target, r.axes, after) if r.target == "vit/position" else r
    for r in rows
  ]
  names += f", positions resized from {side} x {side} to {grid} x {grid}"
  return rows, config, names, {"t": tokens, "w": width}
