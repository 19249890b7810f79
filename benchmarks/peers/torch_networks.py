"""The peer's networks: decoder, vision encoder and diffusion head.

Functions of a tree of tensors, named as the parameters in JAX.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

Tree = Mapping[str, Any]  # of tensors, nested as the parameters in JAX


def rms_norm(x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
  """Gemma's: times 1 + scale."""
  return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + scale)


def rotation(positions: torch.Tensor, size: int, base: float) -> tuple:
  """Cosines and sines [B, T, 1, H/2]."""
  half = size // 2
  rates = base ** -(torch.arange(half, dtype=torch.float32) / half)
  angles = positions[..., None, None].float() * rates.to(positions.device)
  return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, angles: tuple) -> torch.Tensor:
  """Pairs (i, i + H/2) of [B, T, N, H]."""
  cos, sin = angles
  a, b = x.chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(
  q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None,
  scale: float, softcap: float = 0.0,
) -> torch.Tensor:  # fmt: skip
  """[B, T, N, H] of keys and values [B, S, K, H]; mask [B, T, S]."""
  groups = q.shape[2] // k.shape[2]
  q, k, v = (x.transpose(1, 2) for x in (q, k, v))
  if groups > 1:
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
  seen = None if mask is None else mask[:, None]
  if not softcap:  # the fused kernel has no caps
    out = F.scaled_dot_product_attention(q, k, v, seen, scale=scale)
    return out.transpose(1, 2)
  scores = softcap * torch.tanh(scale * (q @ k.mT) / softcap)
  if seen is not None:
    scores = scores.masked_fill(~seen, -2.3819763e38)
  return (scores.softmax(-1) @ v).transpose(1, 2)


def decoder(
  config: Any, p: Tree, x: torch.Tensor, positions: torch.Tensor,
  mask: torch.Tensor, cache: list | None = None, index: int = 0,
) -> torch.Tensor:  # fmt: skip
  """All layers and the final norm of [B, T, D].

  Args:
    config: `presets.DecoderConfig`.
    p: its parameters.
    x: inputs.
    positions: [B, T].
    mask: [B, T, S].
    cache: per layer keys and values [B, S, K, H], written in place.
    index: slot of the first new token.
  """
  c, stacked, eps = config, p["layers"], config.norm_epsilon
  angles = rotation(positions, c.head_dim, c.rope_base)
  scale = c.query_scale or c.head_dim**-0.5
  for i in range(c.depth):
    attn = {k: w[i].flatten(1) for k, w in stacked["attn"].items() if k != "o"}
    y = rms_norm(x, stacked["pre_attn"]["scale"][i], eps)
    q, k, v = (
      (y @ attn[name]).unflatten(-1, (-1, c.head_dim)) for name in "qkv"
    )
    q, k = rotate(q, angles), rotate(k, angles)
    if cache is not None:
      keys, values = cache[i]
      keys[:, index : index + k.shape[1]] = k
      values[:, index : index + v.shape[1]] = v
      k, v = keys, values
    y = attend(q, k, v, mask, scale, c.attn_softcap).flatten(2)
    y = y @ stacked["attn"]["o"][i].flatten(0, 1)
    x = x + _after(c, stacked, "post_attn", i, y)
    y = rms_norm(x, stacked["pre_ffw"]["scale"][i], eps)
    gate, up, down = (stacked["mlp"][n][i] for n in ("gate", "up", "down"))
    y = (F.gelu(y @ gate, approximate="tanh") * (y @ up)) @ down
    x = x + _after(c, stacked, "post_ffw", i, y)
  return rms_norm(x, p["final_norm"]["scale"], eps)


def _after(
  config: Any, stacked: Tree, name: str, i: int, y: torch.Tensor
) -> torch.Tensor:
  if not config.post_norms:
    return y
  return rms_norm(y, stacked[name]["scale"][i], config.norm_epsilon)


def dense(x: torch.Tensor, p: Tree) -> torch.Tensor:
  """A product with a bias; kernels may be [D, N, H] or [N, H, D]."""
  bias = p["bias"].flatten()
  return x @ p["kernel"].reshape(x.shape[-1], -1) + bias


def layer_norm(x: torch.Tensor, p: Tree | None, eps: float = 1e-6):
  """With scale and bias, or without."""
  scale, bias = (p["scale"], p["bias"]) if p else (None, None)
  return F.layer_norm(x, x.shape[-1:], scale, bias, eps)


def encoder(config: Any, p: Tree, images: torch.Tensor) -> torch.Tensor:
  """SigLIP's tokens [B, N, D] of images [B, H, W, 3]."""
  c = config
  kernel = p["patch"]["kernel"].permute(3, 2, 0, 1)
  x = F.conv2d(images.permute(0, 3, 1, 2), kernel, stride=c.patch)
  x = x.flatten(2).mT + p["patch"]["bias"] + p["position"]
  for i in range(c.depth):
    layer = _layer(p["layers"], i)
    y = layer_norm(x, layer["norm1"])
    q, k, v = (
      dense(y, layer["attn"][n]).unflatten(-1, (c.heads, -1)) for n in "qkv"
    )
    y = attend(q, k, v, None, q.shape[-1] ** -0.5).flatten(2)
    x = x + dense(y, layer["attn"]["out"])
    y = dense(layer_norm(x, layer["norm2"]), layer["mlp"]["up"])
    # jax.nn.gelu is the approximation by tanh.
    x = x + dense(F.gelu(y, approximate="tanh"), layer["mlp"]["down"])
  return layer_norm(x, p["norm"])


def _layer(tree: Any, i: int) -> Any:
  if isinstance(tree, Mapping):
    return {name: _layer(value, i) for name, value in tree.items()}
  return tree[i]


def modulations(
  config: Any, p: Tree, t: torch.Tensor, z: torch.Tensor
) -> list[torch.Tensor]:
  """Of all blocks and the last layer; t and z broadcast against each other."""
  rates = 10_000.0 ** -(torch.arange(128, dtype=torch.float64) / 128)
  angle = t.float()[..., None] * rates.float().to(t.device)
  told = torch.cat([angle.cos(), angle.sin()], dim=-1)
  told = dense(F.silu(dense(told, p["time"]["in"])), p["time"]["out"])
  y = F.silu(told + dense(z, p["cond"]))
  parts = [p[f"block_{i}"] for i in range(config.depth)] + [p["final"]]
  return [dense(y, part["modulation"]) for part in parts]


def denoise(
  config: Any, p: Tree, x: torch.Tensor, given: list[torch.Tensor]
) -> torch.Tensor:
  """Noise and variance value [..., 2C] of noisy tokens."""
  h = dense(x, p["input"])
  for i in range(config.depth):
    block = p[f"block_{i}"]
    shift, scale, gate = given[i].chunk(3, dim=-1)
    u = layer_norm(h, block["norm"]) * (1 + scale) + shift
    h = h + gate * dense(F.silu(dense(u, block["in"])), block["out"])
  shift, scale = given[-1].chunk(2, dim=-1)
  return dense(layer_norm(h, None) * (1 + scale) + shift, p["final"]["out"])
