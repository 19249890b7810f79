"""VAR's transformer: all codes of a scale at once, scale after scale.

Source: VAR (arXiv 2404.02905; FoundationVision/VAR models/var.py and
basic_var.py). Every slot of an image's N codes has an input made from the
scales before its own, so that slot j predicts code j, without a shift: slot 0
reads the condition, the slots of scale k what the image looks like after
scales 0 to k - 1. A slot sees its own scale and those before it.

W is the width, Z the codebook's channels, V its size, C the number of classes.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unifluid_jax.core import parallel
from unifluid_jax.core.parameter_rows import MATRIX, Row
from unifluid_jax.core.presets import ScaleDecoderConfig
from unifluid_jax.models import scale_decoder_params as initial
from unifluid_jax.models.norms import layer_norm
from unifluid_jax.models.stack import fold_layers, init_tree, keep, narrow, once
from unifluid_jax.ops import attention, scales
from unifluid_jax.ops.weight_product import product

# What does not decay is as VAR trains it: positions, levels, temperatures.
ROWS = (
  Row(r"classes/table", (None, "fsdp"), decay=MATRIX),  # (C+1)W
  Row(r"words/kernel", (None, "fsdp"), decay=MATRIX),  # ZW
  Row(r"position|level", (None, "fsdp")),  # NW, KW
  Row(r"start|(words|head)/bias", (None,)),
  Row(
    r"layers/attn/qkv", (None, "fsdp", None, "tensor", None),
    ((1,), (3, 4)), MATRIX,
  ),  # LW3NH
  Row(
    r"layers/attn/out/kernel", (None, "tensor", None, "fsdp"),
    ((1, 2), (3,)), MATRIX,
  ),  # LNHW
  Row(
    r"layers/mlp/up/kernel", (None, "fsdp", "tensor"), ((1,), (2,)), MATRIX
  ),
  Row(
    r"layers/mlp/down/kernel", (None, "tensor", "fsdp"), ((1,), (2,)), MATRIX
  ),
  Row(
    r"layers/modulation/kernel", (None, "fsdp", None, None),
    ((1,), (3,)), MATRIX,
  ),  # LW6W
  Row(r"(head/)?modulation/kernel", ("fsdp", None, None), ((0,), (2,)), MATRIX),
  Row(r"head/kernel", ("fsdp", "tensor"), decay=MATRIX),  # WV
  Row(r"layers/attn/[qv]_bias", (None, None, None)),  # LNH
  Row(r"layers/attn/temperature", (None, None)),  # LN
  Row(r"layers/(attn/out|mlp/up|mlp/down)/bias", (None, None)),
  Row(r"layers/modulation/(bias|offset)", (None, None, None)),  # L6W
  Row(r"(head/)?modulation/bias", (None, None)),
)  # fmt: skip

_MAX_TEMPERATURE = math.log(100)
_NORM_EPS = 1e-12

_normal = nn.initializers.normal
_zeros = nn.initializers.zeros


class ScaleCache(NamedTuple):
  """Keys and values of every layer, of all N slots."""

  k: Any  # [L, B, N, heads, H]; unit vectors if the decoder normalises them
  v: Any  # [L, B, N, heads, H]


class ScaleDecoder(nn.Module):
  """Embedding, blocks and head; a system calls them one by one.

  Attributes:
    config: shape.
    dtype: of the residual stream and the blocks' products; parameters, the
      embedding and the head are float32.
    remat: what the backward pass recomputes: "none", "dots" or "full".
    scan: False unrolls the layers in Python; the parameters are the same.
    kernel: of attention without a cache; see `attention.attend`.
  """

  config: ScaleDecoderConfig
  dtype: Any = jnp.float32
  remat: str = "none"
  scan: bool = True
  kernel: str = "plain"

  def setup(self) -> None:
    """Declares all parameters, whichever method is called first."""
    c = self.config
    normal = nn.initializers.normal(initial.std(c))
    table = {"table": (normal, (c.classes + 1, c.width))}
    words = initial.dense((c.code_channels,), (c.width,), initial.std(c))
    self.classes = self.param("classes", init_tree, table)
    self.start = self.param("start", normal, (c.width,))
    self.position = self.param("position", normal, (c.tokens, c.width))
    self.level = self.param("level", normal, (len(c.scales), c.width))
    self.words = self.param("words", init_tree, words)
    if c.depth:
      self.layers = self.param("layers", init_tree, initial.layers(c))
    if c.depth and c.shared_adaln:
      shared = initial.shared_modulation(c)
      self.modulation = self.param("modulation", init_tree, shared)
    self.output = self.param("head", init_tree, initial.head(c))

  def class_rows(self) -> Float[Array, "rows W"]:
    """The class table; its last row is the null class."""
    return self.classes["table"]

  def cond(self, labels: Int[Array, "B"]) -> Float[Array, "B W"]:
    """Rows of classes; label C is the null class."""
    return self.class_rows()[labels]

  def embed(
    self,
    inputs: Float[Array, "B n Z"],
    start: Float[Array, "B W"],
    span: range,
  ) -> Float[Array, "B n W"]:
    """Embeds what the slots of some scales read.

    Args:
      inputs: of the scales' slots; the row of slot 0 is not read.
      start: what slot 0 reads in its place.
      span: consecutive scales.

    Raises:
      ValueError: `inputs` has another number of slots.
    """
    sides = self.config.scales
    where = scales.slots(sides, span[0], span[-1])
    if inputs.shape[1] != where.stop - where.start:
      raise ValueError(
        f"scales {span[0]} to {span[-1]} have {where.stop - where.start} "
        f"slots, inputs {inputs.shape}"
      )
    x = inputs.astype(jnp.float32) @ self.words["kernel"] + self.words["bias"]
    if span[0] == 0:
      first = start.astype(jnp.float32) + self.start
      x = jnp.concatenate([first[:, None], x[:, 1:]], axis=1)
    level = self.level[scales.levels(sides)[where]]
    return (x + level + self.position[where]).astype(self.dtype)

  def blocks(
    self,
    x: Float[Array, "B n W"],
    cond: Float[Array, "B W"],
    cache: ScaleCache | None = None,
    k: int | None = None,
    key: PRNGKeyArray | None = None,
  ) -> tuple[Float[Array, "B n W"], ScaleCache | None]:
    """Runs all layers, over the first scales or over scale k.

    Without layers (a depth of 0) states are only brought to their dtype: what
    a slot knows of others is then in `x`.

    Args:
      x: embedded slots: from slot 0 on without a cache, else those of scale k.
      cond: what modulates the layers.
      cache: of the scales before k.
      k: the scale.
      key: turns on drop path (stochastic depth, arXiv 1603.09382).

    Returns:
      Hidden states, not normed; the cache with scale k, or None.

    Raises:
      ValueError: only one of cache and k is given.
    """
    if (cache is None) != (k is None):
      raise ValueError("cache and k go together: pass both or neither")
    c, mask, where = self.config, None, None
    if not c.depth:
      return x.astype(self.dtype), cache
    if k is None:
      level = jnp.asarray(scales.levels(c.scales)[: x.shape[1]])
      level = jnp.broadcast_to(level, x.shape[:2])
      mask = attention.block_causal_mask(level, jnp.ones(x.shape[:2], bool))
      mask = once(mask)
    else:
      where = scales.slots(c.scales, k)
    active = jax.nn.silu(cond.astype(jnp.float32))
    shared = None
    if c.shared_adaln:
      shared = once(_modulations(active, self.modulation, self.dtype))
    call = _Call(mask, active, shared, where, key, self.kernel, self.dtype)
    rates = np.linspace(0, c.drop_path, c.depth, dtype=np.float32)
    layers = _Layer(
      narrow(self.layers, self.dtype), jnp.arange(c.depth), jnp.asarray(rates)
    )
    keys, values = (None, None) if cache is None else cache
    carry = (x.astype(self.dtype), keys, values)
    block = functools.partial(_block, c, call)
    x, keys, values = fold_layers(
      block, carry, layers, remat=self.remat, scan=self.scan
    )
    return x, None if cache is None else ScaleCache(keys, values)

  def head(
    self, x: Float[Array, "B n W"], cond: Float[Array, "B W"]
  ) -> Float[Array, "B n V"]:
    """Logits of the codes, all in float32 as VAR computes them."""
    p = self.output
    active = jax.nn.silu(cond.astype(jnp.float32))
    scale, shift = _split(_modulations(active, p["modulation"], jnp.float32))
    x = _modulated(x.astype(jnp.float32), scale, shift)
    return x @ p["kernel"] + p["bias"]

  def empty_cache(self, rows: int) -> ScaleCache:
    """A cache of no scale yet."""
    c = self.config
    shape = (c.depth, rows, c.tokens, c.heads, c.width // c.heads)
    return ScaleCache(
      jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)
    )

  def __call__(
    self,
    inputs: Float[Array, "B n Z"],
    cond: Float[Array, "B W"],
    key: PRNGKeyArray | None = None,
  ) -> Float[Array, "B n V"]:
    """Logits of the first scales' codes from the inputs of their slots.

    Raises:
      ValueError: the slots are not those of whole scales.
    """
    ends = np.cumsum(np.square(self.config.scales)).tolist()
    if inputs.shape[1] not in ends:
      raise ValueError(f"inputs {inputs.shape}: whole scales end at {ends}")
    span = range(ends.index(inputs.shape[1]) + 1)
    x, _ = self.blocks(self.embed(inputs, cond, span), cond, key=key)
    return self.head(x, cond)


class _Call(NamedTuple):
  """What all layers of one call share."""

  mask: Any  # bool[B, n, n], or None with a cache
  active: Any  # f32[B, W]: silu of the condition
  shared: Any  # f32[B, 6, W], of shared modulations
  where: Any  # slice of the slots that are written to the cache
  key: Any
  kernel: str
  dtype: Any


class _Layer(NamedTuple):
  """What differs from layer to layer; stacked, every leaf leads with L."""

  params: Any
  number: Any  # i32[]
  rate: Any  # f32[] of drop path


_Cached = Float[Array, "L B N heads H"] | None
_Carry = tuple[Float[Array, "B n W"], _Cached, _Cached]


def _block(
  config: ScaleDecoderConfig, call: _Call, carry: _Carry, layer: _Layer
) -> _Carry:
  x, k_cache, v_cache = carry
  p = layer.params
  x = parallel.constrain(x, "BTD")
  if call.shared is None:
    parts = _modulations(call.active, p["modulation"], call.dtype)
  else:
    parts = call.shared + p["modulation"]["offset"].astype(jnp.float32)
  gate1, gate2, scale1, scale2, shift1, shift2 = _split(parts)
  with jax.named_scope("attn"):
    y = _modulated(x, scale1, shift1)
    y, k_cache, v_cache = _attention(config, call, layer, y, k_cache, v_cache)
    x = x + _drop_path(config, call, layer, 0, gate1.astype(x.dtype) * y)
  with jax.named_scope("mlp"):
    y = _dense(_modulated(x, scale2, shift2), p["mlp"]["up"], "DF")
    y = _dense(jax.nn.gelu(y, approximate=True), p["mlp"]["down"], "FD")
    x = x + _drop_path(config, call, layer, 1, gate2.astype(x.dtype) * y)
  return parallel.constrain(x, "BTD"), k_cache, v_cache


def _attention(
  config: ScaleDecoderConfig, call: _Call, layer: _Layer,
  x: Float[Array, "B n W"], k_cache: _Cached, v_cache: _Cached,
) -> _Carry:  # fmt: skip
  p = layer.params["attn"]
  q, k, v = (
    product(x, p["qkv"][:, i].astype(x.dtype), "DN").reshape(
      *x.shape[:2], *p["q_bias"].shape
    )
    for i in range(3)
  )
  # Keys have no bias: it would add the same to all logits of a query.
  q, v = q + p["q_bias"].astype(x.dtype), v + p["v_bias"].astype(x.dtype)
  # Without unit vectors VAR takes a quarter of what is usual.
  scale = 0.25 * q.shape[-1] ** -0.5
  if config.l2_norm:
    scale = 1.0
    temperature = jnp.exp(jnp.minimum(p["temperature"], _MAX_TEMPERATURE))
    q = _unit(q, temperature[:, None])
    k = _unit(k)
  if call.where is not None:
    k, k_cache = _write(k_cache, k, layer.number, call.where)
    v, v_cache = _write(v_cache, v, layer.number, call.where)
  out = attention.attend(
    q,
    k.astype(x.dtype),
    v.astype(x.dtype),
    call.mask,
    softcap=0.0,
    scale=scale,
    kernel=call.kernel if call.where is None else "plain",
  )
  out = keep(out.reshape(*x.shape[:2], -1))
  return _dense(out, p["out"], "ND"), k_cache, v_cache


def _unit(
  x: Float[Array, "B n heads H"], factor: Any = 1.0
) -> Float[Array, "B n heads H"]:
  """Vectors over their norms times a factor, in float32 inside."""
  wide = x.astype(jnp.float32)
  square = jnp.square(wide).sum(-1, keepdims=True)
  # The root of a square of 0 has no gradient: the bound is on the square.
  inverse = lax.rsqrt(jnp.maximum(square, _NORM_EPS**2))
  return (wide * inverse * factor).astype(x.dtype)


def _write(
  cache: Float[Array, "L B N heads H"], new: Float[Array, "B n heads H"],
  number: Int[Array, ""], where: slice,
) -> tuple[Float[Array, "B S heads H"], _Cached]:  # fmt: skip
  """Adds a scale to the stack; also all that its layer holds by now."""
  cache = lax.dynamic_update_slice(
    cache, new[None].astype(cache.dtype), (number, 0, where.start, 0, 0)
  )
  layer = lax.dynamic_index_in_dim(cache, number, keepdims=False)
  return layer[:, : where.stop], cache


def _modulations(
  active: Float[Array, "B W"], params: Any, dtype: Any
) -> Float[Array, "B parts W"]:
  """An affine function of the condition, whose products are in `dtype`."""
  kernel, bias = params["kernel"], params["bias"].astype(jnp.float32)
  found = attention.wide_product(
    "BD,DPE->BPE", active.astype(dtype), kernel.astype(dtype)
  )
  return found + bias


def _split(parts: Float[Array, "B parts W"]) -> list[Float[Array, "B 1 W"]]:
  """Modulations one by one, for all slots alike."""
  return jnp.split(parts, parts.shape[1], axis=1)


def _modulated(
  x: Float[Array, "B n W"],
  scale: Float[Array, "B 1 W"],
  shift: Float[Array, "B 1 W"],
) -> Float[Array, "B n W"]:
  """A LayerNorm whose affine part is the condition's."""
  return layer_norm(x, {"scale": 1 + scale, "bias": shift})


def _drop_path(
  config: ScaleDecoderConfig, call: _Call, layer: _Layer, branch: int,
  x: Float[Array, "B n W"],
) -> Float[Array, "B n W"]:  # fmt: skip
  """Leaves out a branch of some rows; the others make up for it."""
  if call.key is None or not config.drop_path:
    return x
  key = jax.random.fold_in(call.key, 2 * layer.number + branch)
  kept = 1 - layer.rate
  stays = jax.random.bernoulli(key, kept, (len(x), 1, 1))
  return jnp.where(stays, x / kept, 0).astype(x.dtype)


def _dense(
  x: Float[Array, "B n inputs"], params: Any, letters: str
) -> Float[Array, "B n outputs"]:
  out = product(x, params["kernel"].astype(x.dtype), letters)
  return out + params["bias"].astype(x.dtype)
