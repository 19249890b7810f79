"""The decoder-only transformer of every system, as one scan over layers.

`DecoderConfig` says which it is: Gemma 1-3, Llama, Qwen2 or Chameleon. Sources:
arXiv 2403.08295, 2408.00118 and 2503.19786 with gemma gm/nn; 2307.09288;
2412.15115; 2405.09818. Dropout and initial values as big_vision
models/ppp/gemma.py.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from unifluid_jax.core import parallel
from unifluid_jax.core.parameter_rows import MATRIX, Row
from unifluid_jax.core.presets import DecoderConfig
from unifluid_jax.models import decoder_params, key_cache, norms, stack
from unifluid_jax.models.key_cache import Cache, LayerCache
from unifluid_jax.ops import attention
from unifluid_jax.ops.weight_product import product

_Q, _KV = (None, "fsdp", "tensor", None), (None, "fsdp", None, None)
_OUT = (None, "tensor", None, "fsdp")
_UP, _DOWN = (None, "fsdp", "tensor"), (None, "tensor", "fsdp")

_States, _Heads = Float[Array, "B T D"], Float[Array, "B T N H"]
_Carry = tuple[_States, LayerCache | None]

# Letters are those of types.py, F the hidden size of the MLP.
ROWS = (
  Row(r"(embedder|lm_head)/table", ("fsdp", "tensor"), decay=MATRIX),  # VD
  Row(r"layers/attn/q", _Q, ((1,), (2, 3)), MATRIX),  # LDNH
  Row(r"layers/attn/[kv]", _KV, ((1,), (2, 3)), MATRIX),  # LDKH
  Row(r"layers/attn/o", _OUT, ((1, 2), (3,)), MATRIX),  # LNHD
  Row(r"layers/mlp/(gate|up)", _UP, ((1,), (2,)), MATRIX),  # LDF
  Row(r"layers/mlp/down", _DOWN, ((1,), (2,)), MATRIX),  # LFD
  Row(r"layers/attn/[qk]_norm/(scale|bias)", (None, None)),  # LH, L(NH)
  Row(r"layers/attn/[qkv]_bias", (None, None)),  # L(NH)
  Row(r"layers/(pre|post)_(attn|ffw)/scale", (None, None)),  # LD
  Row(r"final_norm/scale", (None,)),  # D
)


class Decoder(nn.Module):
  """A decoder without its output layer, which is `logits`.

  Attributes:
    config: shape and style.
    dtype: of the residual stream and the products; parameters are float32.
    remat: what the backward pass recomputes: "none", "dots" (all but what
      takes products or sums over channels) or "full" (everything but each
      layer's input).
    scan: False unrolls the layers in Python; the parameters are the same.
      With a cache they always are: a loop would copy out each layer's weights.
    kernel: of attention without a cache; see `attention.attend`.
  """

  config: DecoderConfig
  dtype: Any
  remat: str = "none"
  scan: bool = True
  kernel: str = "plain"

  def setup(self) -> None:
    """Declares all parameters, whichever method is called first."""
    specs = decoder_params.specs(self.config)
    # In this order, by which the initial values are drawn.
    self.embedder, self.layers, self.final_norm, *_ = (
      self._own(name, spec) for name, spec in specs.items()
    )
    self.style = _style(self.config)

  def _own(self, name: str, spec: Any) -> Any:
    """Declares parameters, or takes layers that `stack.unstacked` has apart."""
    there = self.has_variable("params", name)
    apart = self.get_variable("params", name) if there else None
    if isinstance(apart, tuple):
      return apart
    return self.param(name, stack.init_tree, spec)

  def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Embeds token ids, in Gemma times sqrt(D) rounded to `dtype`.

    An id beyond the vocabulary gives NaN rather than a neighbour's row.
    """
    rows = _rows(self.embedder["table"], tokens).astype(self.dtype)
    return rows * jnp.asarray(self.style.embedding_scale, self.dtype)

  def __call__(
    self,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    mask: Bool[Array, "B T S"],
    cache: Cache | None = None,
    index: int | Int[Array, ""] | None = None,
    dropout_key: PRNGKeyArray | None = None,
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Runs all layers and the final norm.

    Args:
      x: embedded tokens.
      positions: of the tokens, for rotations and the local window.
      mask: True where a query sees a key. Without a cache S is T, with one S
        is its size.
      cache: of earlier tokens; attention runs over all its slots.
      index: slot of the first new token; T slots are overwritten. The caller
        keeps index + T <= S: beyond it the write would move to the left.
      dropout_key: turns on the configured dropout.

    Returns:
      Hidden states in `dtype`; the cache with the new tokens, or None.

    Raises:
      ValueError: only one of cache and index is given, or `mask` has another
        number of keys.
    """
    if (cache is None) != (index is None):
      raise ValueError("cache and index go together: pass both or neither")
    slots = x.shape[1] if cache is None else cache.positions.shape[1]
    if mask.shape[-1] != slots:
      raise ValueError(
        f"mask {mask.shape} covers {mask.shape[-1]} keys, attention runs over "
        f"{slots}: build it for the {'tokens' if cache is None else 'cache'}"
      )
    key_positions = positions
    if cache is not None:
      key_positions = lax.dynamic_update_slice(
        cache.positions, positions.astype(jnp.int32), (0, index)
      )
    mask = stack.once(mask)
    local = _local(self.config, positions, key_positions, mask)
    angles = _angles(self.config, positions)
    call = _Call(mask, local, *angles, index, dropout_key, self.kernel)
    block = functools.partial(_block, self.config, self.style, call)
    x, layers = x.astype(self.dtype), self.layers
    if not isinstance(layers, tuple):
      layers = stack.narrow(layers, self.dtype)
    if cache is None:
      x = stack.fold_layers(
        lambda x, layer: block(x, layer, None)[0], x,
        _stacked(self.config, layers), remat=self.remat, scan=self.scan,
      )  # fmt: skip
      return self.style.norm(x, self.final_norm), None
    written = []
    apart = _apart(self.config, layers)
    for layer, own in zip(apart, cache.layers, strict=True):
      x, own = block(x, layer, own)
      written.append(own)
    hidden = self.style.norm(x, self.final_norm)
    return hidden, Cache(tuple(written), key_positions)


@jax.custom_vjp
def _rows(table: Float[Array, "V D"], ids: Int[Array, "B T"]) -> _States:
  """Rows of the table; a device sums its gradient in float32, whatever it is.

  A word that occurs in every row of a batch would stop counting in bfloat16.
  On a mesh each device looks up what its part of the table holds, for all
  rows of its fsdp group: rows travel, not the table. Sums of the groups are
  added in the table's dtype, as all weights' gradients are.
  """
  found = jnp.take(table, parallel.constrain(ids, "GT"), axis=0)
  return parallel.constrain(parallel.constrain(found, "GTD"), "BTD")


def _rows_back(
  saved: Any,  # table and ids of `_rows`
  gradient: _States,
) -> tuple[Float[Array, "V D"], None]:
  table, ids = saved
  groups = parallel.split_rows(ids.shape[0])
  ids, gradient = (
    parallel.constrain(x.reshape(groups, -1, *x.shape[1:]), letters)
    for x, letters in ((ids, "G.T"), (gradient, "G.TD"))
  )

  def total(ids: Int[Array, "B T"], gradient: _States) -> Float[Array, "V D"]:
    sums = jnp.zeros(table.shape, jnp.float32)
    sums = sums.at[ids].add(gradient.astype(jnp.float32))
    return sums.astype(table.dtype)

  totals = parallel.constrain(jax.vmap(total)(ids, gradient), "GVD")
  # jnp.sum would cast them to float32, and so what travels between devices.
  summed = lax.reduce(totals, jnp.zeros((), table.dtype), lax.add, (0,))
  return parallel.constrain(summed, "VD"), None


_rows.defvjp(lambda table, ids: (_rows(table, ids), (table, ids)), _rows_back)


def output_table(params: Any) -> Float[Array, "V D"]:
  """The output layer's table: its own one, or the embedding's it is tied to."""
  return params.get("lm_head", params["embedder"])["table"]


def cast_tables(params: Any, dtype: Any) -> dict[str, Any]:
  """A decoder's parameters with its tables of the vocabulary in `dtype`."""
  tables = {k: params[k] for k in ("embedder", "lm_head") if k in params}
  return params | jax.tree.map(lambda table: table.astype(dtype), tables)


def logits(
  config: DecoderConfig,
  table: Float[Array, "V D"],
  hidden: Float[Array, "*dims D"],
) -> Float[Array, "*dims V"]:
  """Scores of the vocabulary: products with the output table, capped.

  Args:
    config: for the final softcap.
    table: see `output_table`; may already be in the activation dtype.
    hidden: normed states, as `Decoder` returns them.

  Returns:
    float32; the products accumulate in float32 too.
  """
  scores = attention.wide_product(
    "...D,VD->...V", hidden, table.astype(hidden.dtype)
  )
  return attention.soft_cap(scores, config.final_softcap)


class _Style(NamedTuple):
  """What a configuration chooses between, as functions of parameters."""

  embedding_scale: float
  norm: Callable[[Any, Any], Any]  # of the residual stream and of branches
  head_norm: Callable[[Any, Any], Any]  # of queries and keys, [B, T, N, H]
  activation: Callable[[Any], Any]


def _style(config: DecoderConfig) -> _Style:
  """The functions of a configuration; a norm without parameters is none."""
  rms = {"gemma": norms.gemma_rms_norm, "llama": norms.llama_rms_norm}
  activations = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
  }

  def norm(x: Float[Array, "*dims D"], params: Any) -> Float[Array, "*dims D"]:
    if params is None:
      return x
    return rms[config.norm](x, params["scale"], config.norm_epsilon)

  def norm_per_head(x: _Heads, params: Any) -> _Heads:
    if params is None:
      return x
    per_head = jax.tree.map(lambda p: p.reshape(x.shape[-2:]), params)
    return norms.layer_norm(x, per_head, config.norm_epsilon)

  return _Style(
    config.width**0.5 if config.scale_embedding else 1.0,
    norm,
    {"rms": norm, "layer": norm_per_head}[config.qk_norm_kind],
    activations[config.activation],
  )


class _Call(NamedTuple):
  """What all layers of one call share."""

  mask: Any  # bool[B, T, S]
  local_mask: Any  # bool[B, T, S]
  angles: attention.Rotation
  local_angles: attention.Rotation
  index: Any  # i32[] or None
  dropout_key: Any
  kernel: str


class _Layer(NamedTuple):
  """What differs from layer to layer; stacked, every leaf leads with L."""

  params: Any
  number: Any  # i32[]
  is_local: Any  # bool[]


def _stacked(config: DecoderConfig, params: Any) -> _Layer:
  local = jnp.asarray(_local_layers(config))
  return _Layer(params, jnp.arange(config.depth), local)


def _apart(config: DecoderConfig, params: Any) -> list[_Layer]:
  """One by one, of a stack or of layers that are apart already."""
  if not isinstance(params, tuple):
    params = stack.unstacked(params)
  numbers = np.arange(config.depth)
  return list(map(_Layer, params, numbers, _local_layers(config)))


def _local_layers(config: DecoderConfig) -> Bool[np.ndarray, "L"]:
  kinds = [config.pattern[i % len(config.pattern)] for i in range(config.depth)]
  return np.array([kind == "local" for kind in kinds])


def _angles(
  config: DecoderConfig, positions: Int[Array, "B T"]
) -> tuple[attention.Rotation, attention.Rotation]:
  """Rotations of global and of local layers; one where they are the same."""
  c = config
  local = attention.rotation(positions, c.head_dim, c.rope_base)
  local = stack.once(local)
  if (c.rope_base_global, c.rope_scale_global) == (c.rope_base, 1.0):
    return local, local
  distant = attention.rotation(
    positions, c.head_dim, c.rope_base_global, c.rope_scale_global,
    c.rope_original_length,
  )  # fmt: skip
  return stack.once(distant), local


def _local(
  config: DecoderConfig, positions: Int[Array, "B T"],
  key_positions: Int[Array, "B S"], mask: Bool[Array, "B T S"],
) -> Bool[Array, "B T S"]:  # fmt: skip
  if not config.window:
    return mask
  near = attention.window_mask(positions, key_positions, config.window)
  return stack.once(mask & near)


def _block(
  config: DecoderConfig, style: _Style, call: _Call, x: _States, layer: _Layer,
  cache: LayerCache | None,
) -> _Carry:  # fmt: skip
  p = layer.params
  x = parallel.constrain(x, "BTD")
  with jax.named_scope("attn"):
    y = style.norm(x, p.get("pre_attn"))
    y, cache = _attention(config, style, call, layer, y, cache)
    y = style.norm(y, p.get("post_attn"))
    x = x + _dropout(config, call, layer, 0, y)
  with jax.named_scope("mlp"):
    y = _mlp(style, p["mlp"], style.norm(x, p.get("pre_ffw")))
    # Before the post-norm here, after it above: as PaliGemma was trained.
    y = _dropout(config, call, layer, 1, y)
    x = x + style.norm(y, p.get("post_ffw"))
  return parallel.constrain(x, "BTD"), cache


def _attention(
  config: DecoderConfig, style: _Style, call: _Call, layer: _Layer,
  x: _States, cache: LayerCache | None,
) -> _Carry:  # fmt: skip
  p = layer.params["attn"]
  q, k, v = (
    _heads(x, p[name], p.get(f"{name}_bias"), letters)
    for name, letters in (("q", "DN"), ("k", "DK"), ("v", "DK"))
  )
  q, k = (
    style.head_norm(y, p.get(name))
    for y, name in ((q, "q_norm"), (k, "k_norm"))
  )
  angles = jax.tree.map(
    functools.partial(jnp.where, layer.is_local), call.local_angles, call.angles
  )
  mask = jnp.where(layer.is_local, call.local_mask, call.mask)
  how = dict(
    softcap=config.attn_softcap,
    scale=config.query_scale or config.head_dim**-0.5,
  )
  if cache is None:
    out = attention.attend(q, k, v, mask, angles, kernel=call.kernel, **how)
  else:
    # The cache keeps keys as they are read: rotated.
    q, k = (attention.rotate(y, angles) for y in (q, k))
    cache = key_cache.write(cache, k, v, call.index)
    seen = (y.astype(x.dtype) for y in cache)
    out = attention.attend_cached(q, *seen, mask, **how)
  out = stack.keep(out.reshape(*x.shape[:2], -1))
  out = product(out, p["o"].astype(x.dtype), "ND")
  return out, cache


def _heads(
  x: _States, weight: Float[Array, "D N H"],
  bias: Float[Array, "N*H"] | None, letters: str,
) -> _Heads:  # fmt: skip
  """Projects to heads side by side, then views them apart."""
  out = product(x, weight.astype(x.dtype), letters)
  if bias is not None:
    out = out + bias.astype(x.dtype)
  return out.reshape(*x.shape[:2], *weight.shape[1:])


def _mlp(style: _Style, params: Any, x: _States) -> _States:
  gate, up, down = (params[n].astype(x.dtype) for n in ("gate", "up", "down"))
  # XLA's CPU backend differentiates products of matrices far faster than
  # those with a batch axis; elsewhere the two are the same.
  rows = x.reshape(-1, x.shape[-1])
  hidden = style.activation(rows @ gate) * (rows @ up)
  return (hidden @ down).reshape(x.shape)


def _dropout(
  config: DecoderConfig, call: _Call, layer: _Layer, branch: int, x: _States
) -> _States:
  if call.dropout_key is None or not config.dropout:
    return x
  key = jax.random.fold_in(call.dropout_key, 2 * layer.number + branch)
  keep = jax.random.bernoulli(key, 1 - config.dropout, x.shape)
  return jnp.where(keep, x / (1 - config.dropout), 0).astype(x.dtype)
