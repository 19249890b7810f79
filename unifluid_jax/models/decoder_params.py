"""Names, shapes and initial values of the decoder's parameters."""

from typing import Any

from flax import linen as nn

from unifluid_jax.core.presets import DecoderConfig

Specs = dict[str, Any]  # nested, of (initializer, shape); see stack.init_tree

_ZEROS, _ONES = nn.initializers.zeros, nn.initializers.ones


def specs(config: DecoderConfig) -> dict[str, Specs]:
  """Embedding, layers stacked along L, final norm, and an untied output."""
  c = config
  table = {"table": (nn.initializers.normal(c.width**-0.5), (c.vocab, c.width))}
  parts = {
    "embedder": table,
    "layers": _layers(c),
    "final_norm": _rms_norm(c, c.width),
  }
  return parts if c.tied else parts | {"lm_head": table}


def _layers(c: DecoderConfig) -> Specs:
  """All layers. Only what the configuration has exists."""
  layers = {
    "attn": _attention(c),
    "mlp": {
      "gate": _dense(1, c.depth, c.width, c.mlp),
      "up": _dense(1, c.depth, c.width, c.mlp),
      "down": _dense(1, c.depth, c.mlp, c.width),
    },
  }
  for name, exists in (("pre", c.pre_norms), ("post", c.post_norms)):
    for branch in ("attn", "ffw") if exists else ():
      layers[f"{name}_{branch}"] = _rms_norm(c, c.depth, c.width)
  return layers


def _attention(c: DecoderConfig) -> Specs:
  """Projections of queries, keys, values and outputs; biases and q/k norms.

  Vectors of all heads lie side by side, as the projections put them out.
  """
  heads = {"q": c.heads, "k": c.kv_heads, "v": c.kv_heads}
  attention = {
    name: _dense(1, c.depth, c.width, n, c.head_dim)
    for name, n in heads.items()
  }
  attention["o"] = _dense(2, c.depth, c.heads, c.head_dim, c.width)
  if c.qkv_bias:
    for name, n in heads.items():
      attention[f"{name}_bias"] = _ZEROS, (c.depth, n * c.head_dim)
  for name in "qk" if c.qk_norm else "":
    if c.qk_norm_kind == "rms":
      norm = _rms_norm(c, c.depth, c.head_dim)
    else:
      shape = c.depth, heads[name] * c.head_dim
      norm = {"scale": (_ONES, shape), "bias": (_ZEROS, shape)}
    attention[f"{name}_norm"] = norm
  return attention


def _rms_norm(c: DecoderConfig, *shape: int) -> Specs:
  """Neutral: Gemma adds 1 to its scales."""
  return {"scale": (_ZEROS if c.norm == "gemma" else _ONES, shape)}


def _dense(inputs: int, *shape: int) -> tuple[Any, tuple[int, ...]]:
  """The first `inputs` axes after L are summed over: they are the fan-in."""
  axes = range(1, len(shape))
  init = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal",
    in_axis=axes[:inputs], out_axis=axes[inputs:], batch_axis=(0,),
  )  # fmt: skip
  return init, shape
