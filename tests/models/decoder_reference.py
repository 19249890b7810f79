"""A decoder in float64 and plain loops, of every style."""

import jax
import numpy as np


def ref_norm(x, gain, epsilon=1e-6):
  return x / np.sqrt(np.mean(x * x) + epsilon) * gain


def ref_head_norm(c, x, p, n):
  """Of query or key head n."""
  if not c.qk_norm:
    return x
  if c.qk_norm_kind == "rms":
    return ref_norm(x, 1 + p["scale"])
  scale, bias = (p[k].reshape(-1, len(x))[n] for k in ("scale", "bias"))
  return (x - x.mean()) / np.sqrt(x.var() + c.norm_epsilon) * scale + bias


def ref_rotate(x, position, base, scale, original):
  out, half = np.zeros_like(x), len(x) // 2
  for i in range(half):
    frequency = base ** (-2 * i / len(x))
    wavelength = 2 * np.pi / frequency
    if wavelength > original:
      frequency /= scale
    elif wavelength > original / 4:
      kept = (original / wavelength - 1) / 3
      frequency = kept * frequency + (1 - kept) * frequency / scale
    angle = position * frequency
    out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
    out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
  return out


def ref_attention(c, p, x, positions, mask, local):
  """One sequence x[T, D], head by head, query by query."""
  base = c.rope_base if local else c.rope_base_global
  stretch = 1.0 if local else c.rope_scale_global
  scale = c.query_scale or 1 / np.sqrt(c.head_dim)

  def project(name, head):
    y = x @ p[name][:, head]
    if c.qkv_bias:
      y = y + p[f"{name}_bias"].reshape(-1, c.head_dim)[head]
    return y

  def rotated(name, head):
    y = [
      ref_head_norm(c, token, p.get(f"{name}_norm"), head)
      for token in project(name, head)
    ]
    return [
      ref_rotate(token, t, base, stretch, c.rope_original_length)
      for token, t in zip(y, positions, strict=True)
    ]

  out = np.zeros_like(x)
  for n in range(c.heads):
    m = n // (c.heads // c.kv_heads)
    queries, keys = rotated("q", n), rotated("k", m)
    for i, query in enumerate(queries):
      weights = np.zeros(len(keys))
      for j, key in enumerate(keys):
        near = abs(positions[i] - positions[j]) < c.window
        if not mask[i, j] or (local and not near):
          continue
        z = query @ key * scale
        if c.attn_softcap:
          z = c.attn_softcap * np.tanh(z / c.attn_softcap)
        weights[j] = np.exp(z)
      if not weights.any():  # a pad: any finite value will do
        continue
      head = weights / weights.sum() @ project("v", m)
      out[i] += head @ p["o"][n]
  return out


def ref_mlp(c, p, x):
  z = x @ p["gate"]
  if c.activation == "silu":
    gate = z / (1 + np.exp(-z))
  else:
    gate = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
  return (gate * (x @ p["up"])) @ p["down"]


def ref_decoder(c, params, x, positions, mask, drop=None):
  """Hidden states of one sequence; drop[layer, branch] scales each entry."""
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x, mask = np.asarray(x, np.float64), np.asarray(mask)
  positions = np.asarray(positions)
  drop = np.ones((c.depth, 2, *x.shape)) if drop is None else drop

  def norm(y, p):
    gain = p["scale"] + (c.norm == "gemma")
    return np.stack([ref_norm(token, gain, c.norm_epsilon) for token in y])

  for layer in range(c.depth):
    p = jax.tree.map(lambda a, i=layer: a[i], params["layers"])
    local = c.pattern[layer % len(c.pattern)] == "local"
    y = norm(x, p["pre_attn"]) if c.pre_norms else x
    y = ref_attention(c, p["attn"], y, positions, mask, local)
    y = norm(y, p["post_attn"]) if c.post_norms else y
    x = x + y * drop[layer, 0]
    y = norm(x, p["pre_ffw"]) if c.pre_norms else x
    y = ref_mlp(c, p["mlp"], y) * drop[layer, 1]
    x = x + (norm(y, p["post_ffw"]) if c.post_norms else y)
  return norm(x, params["final_norm"])
