"""UniFluid in PyTorch, to be timed against: the same shapes and mathematics.

Written as a PyTorch user would, on the parameters of `systems/unifluid.py` by
their names: functions of a tree of tensors, eager or under torch.compile. Of
the configurations it knows Gemma 1 and 2 with a diffusion head, in float32;
an image tokenizer takes no part. `tests/parity/test_peer_parity.py` shows that
loss, gradients and drawn tokens agree with ours.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

Tree = Mapping[str, Any]  # of tensors, nested as the parameters in JAX
PAD, BOS, UNK = -1, 2, 3


class Draws(NamedTuple):
  """All that is random in a training step."""

  latents: Any  # f32[B, h, w, c] noise of the autoencoder's posterior
  cells: Any  # i64[B, N] the order of each image
  null: Any  # bool[B] prompts that are left out
  unknown: Any  # bool[B, A-1] words of answers that are left out
  t: Any  # i64[n, B, N] steps of the chain
  noise: Any  # f32[n, B, N, C]


def check(config: Any) -> None:
  """Refuses what this peer does not compute.

  Raises:
    ValueError: names the setting.
  """
  d, m = config.model.decoder, config.model
  others = {
    "model.decoder.norm": d.norm != "gemma",
    "model.decoder.qk_norm": d.qk_norm,
    "model.decoder.qkv_bias": d.qkv_bias,
    "model.decoder.dropout": d.dropout,
    "model.decoder.rope_scale_global": d.rope_scale_global != 1,
    "model.decoder.rope_base_global": d.rope_base_global != d.rope_base,
    "model.decoder.activation": d.activation != "gelu_tanh",
    "model.decoder.tied": not d.tied,
    "model.head.kind": m.head.kind != "ddpm",
    "model.dtype": m.dtype != "float32",
    "loss.label_smoothing": config.loss.label_smoothing,
    "loss.text_mean": config.loss.text_mean != "tokens",
  }
  wrong = [name for name, differs in others.items() if differs]
  if wrong:
    raise ValueError(f"the peer computes {wrong[0]} in one way only")


# ------------------------------------------------------------------ Networks


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


# ---------------------------------------------------------------------- Loss


def tokens_of(
  config: Any, frozen: Tree, moments: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
  """Image tokens [B, N, C] in raster order, a draw of the posterior."""
  mean, log_variance = moments.chunk(2, dim=-1)
  z = mean + torch.exp(0.5 * log_variance) * noise
  z = (z - frozen["latent_mean"]) * frozen["latent_scale"]
  m = config.model
  b, c = len(z), z.shape[-1]
  z = z.reshape(b, m.grid, m.patch, m.grid, m.patch, c)
  return z.permute(0, 1, 3, 5, 2, 4).reshape(b, m.image_tokens, -1)


def draw(config: Any, batch: Tree, generator: torch.Generator) -> Draws:
  """What a step of the run draws, all in random order."""
  m, c = config.model, config.loss
  moments, suffix = batch["t2i"]["image"], batch["i2t"]["suffix"]
  b, n = len(moments), m.image_tokens

  def uniform(*shape):
    return torch.rand(*shape, generator=generator)

  stratum = torch.arange(c.draws)[:, None, None]
  t = (stratum + uniform(c.draws, b, n)) * (1000 / c.draws)
  latents = (*moments.shape[:-1], moments.shape[-1] // 2)
  fed = suffix[:, :-1]
  return Draws(
    torch.randn(latents, generator=generator),
    uniform(b, n).argsort(dim=1),
    uniform(b) < c.prompt_dropout,
    (uniform(*fed.shape) < c.word_dropout) & (fed != PAD),
    t.long().clamp(max=999),
    torch.randn(c.draws, b, n, m.token_channels, generator=generator),
  )


def loss(
  config: Any, chain: Tree, params: Tree, frozen: Tree, batch: Tree,
  draws: Draws,
) -> torch.Tensor:  # fmt: skip
  """L_visual + lambda L_text of rows of "t2i" and "i2t".

  Args:
    config: of the run.
    chain: `diffusion.Schedule` of training as a dict of tensors.
    params: trained.
    frozen: mean and scale of latents.
    batch: fields as the system takes them.
    draws: see `Draws`.
  """
  m = config.model
  drawn, x0 = _image_rows(config, params, frozen, batch["t2i"], draws)
  read = _answer_rows(config, params, batch["i2t"], draws)
  length = max(x.shape[1] for x, _, _ in (drawn, read))
  x, block, valid = (
    torch.cat([_padded(a, length) for a in pair])
    for pair in zip(drawn, read, strict=True)
  )
  positions = (valid.long().cumsum(1) - 1).clamp(min=0)
  mask = (block[:, :, None] >= block[:, None]) & valid[:, None]
  hidden = decoder(m.decoder, params["decoder"], x, positions, mask)
  b, n, suffix = len(x0), m.image_tokens, batch["i2t"]["suffix"]
  end = drawn[0].shape[1]
  visual = _visual(
    config, chain, params["head"], hidden[:b, end - n : end], x0, draws
  )
  end = read[0].shape[1]
  text = _text(config, params, hidden[b:, end - suffix.shape[1] : end], suffix)
  return visual + config.loss.text_weight * text


def _embedded(config: Any, params: Tree, ids: torch.Tensor) -> torch.Tensor:
  rows = params["decoder"]["embedder"]["table"][ids.clamp(min=0)]
  return rows * math.sqrt(config.model.decoder.width)


def _image_rows(config, params, frozen, fields, draws):
  prompt, image = fields["prompt"], params["image"]
  empty = torch.full_like(prompt, PAD)
  empty[:, -1] = BOS
  prompt = torch.where(draws.null[:, None], empty, prompt)
  x0 = tokens_of(config, frozen, fields["image"], draws.latents)
  x0 = x0.gather(1, draws.cells[..., None].expand_as(x0))
  fed = dense(x0[:, :-1], image["in"]) + image["position"][draws.cells[:, :-1]]
  boi = image["boi"].expand(len(fed), 1, -1)
  fed = torch.cat([boi, fed], dim=1) + image["next_position"][draws.cells]
  x = torch.cat([_embedded(config, params, prompt), fed], dim=1)
  return _row(x, prompt != PAD, fed.shape[1]), x0


def _answer_rows(config, params, fields, draws):
  features = encoder(config.model.vit, params["vit"], fields["seen"])
  seen = dense(features, params["projector"])
  fed = fields["suffix"][:, :-1]
  fed = torch.where(draws.unknown, UNK, fed)
  words = torch.cat([fields["prefix"], fed], dim=1)
  x = torch.cat([seen, _embedded(config, params, words)], dim=1)
  return _row(x, F.pad(words != PAD, (seen.shape[1], 0), value=True),
              fed.shape[1])  # fmt: skip


def _row(x, valid, causal):
  """Inputs with blocks and validity: a prefix, then `causal` tokens."""
  valid = F.pad(valid, (0, x.shape[1] - valid.shape[1]), value=True)
  block = (torch.arange(x.shape[1]) - (x.shape[1] - causal) + 1).clamp(min=0)
  return x, block.expand(valid.shape), valid


def _padded(a, length):
  return F.pad(a, (*[0, 0] * (a.ndim - 2), 0, length - a.shape[1]))


def _visual(config, chain, p, z, x0, draws):
  t, noise = draws.t, draws.noise
  at = {name: value[t][..., None] for name, value in chain.items()}
  x_t = at["signal"] * x0 + at["noise"] * noise
  given = modulations(config.model.head, p, t, z)
  eps, value = denoise(config.model.head, p, x_t, given).chunk(2, dim=-1)
  mse = (noise - eps).square().mean(-1)
  mean, log_variance = _reverse(at, x_t, eps.detach(), value)
  target = at["c1"] * x0 + at["c2"] * x_t
  ours = at["log_posterior"]
  kl = 0.5 * (
    log_variance - ours - 1 + torch.exp(ours - log_variance)
    + (target - mean).square() * torch.exp(-log_variance)
  )  # fmt: skip
  nll = _nll(x0, mean, log_variance)
  bound = torch.where(t == 0, nll.mean(-1), kl.mean(-1)) / math.log(2)
  return (mse + bound).mean()


def _reverse(at, x, eps, value, limit=math.inf):
  x0 = (at["recip"] * x - at["recip_m1"] * eps).clamp(-limit, limit)
  share = (value + 1) / 2
  log_variance = share * at["log_betas"] + (1 - share) * at["log_posterior"]
  return at["c1"] * x0 + at["c2"] * x, log_variance


def _nll(x, mean, log_variance):
  precision = torch.exp(-0.5 * log_variance)

  def cdf(u):
    u = u + 0.044715 * u**3
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * u))

  upper = cdf((x - mean + 1 / 255) * precision)
  lower = cdf((x - mean - 1 / 255) * precision)
  mass = torch.where(x > 0.999, 1 - lower, upper - lower)
  mass = torch.where(x < -0.999, upper, mass)
  return -torch.log(mass.clamp(min=1e-12))


def _text(config, params, hidden, suffix):
  cap = config.model.decoder.final_softcap
  scores = hidden @ params["decoder"]["embedder"]["table"].T
  if cap:
    scores = cap * torch.tanh(scores / cap)
  return F.cross_entropy(scores.flatten(0, 1), suffix.flatten().long(),
                         ignore_index=PAD)  # fmt: skip


# ------------------------------------------------------------------ Sampling


def generate(
  config: Any, chain: Tree, params: Tree, prompt: torch.Tensor,
  noise: Any, parts: Mapping[str, Any] | None = None,
) -> torch.Tensor:  # fmt: skip
  """Tokens [B, N, C] of prompts [B, P], in raster order, guided.

  Args:
    config: of the run; `sampling` says steps, guidance, temperature, limit.
    chain: respaced `diffusion.Schedule` as a dict of tensors.
    params: trained.
    prompt: padded on the left.
    noise: (token, step or None) → standard normal [B, C]; None is the start.
    parts: "decoder" and "denoise" in place of the functions of this file, as
      torch.compile returns them.
  """
  run = {"decoder": decoder, "denoise": denoise, **(parts or {})}
  m, d, s, image = (
    config.model, config.model.decoder, config.sampling, params["image"]
  )  # fmt: skip
  empty = torch.full_like(prompt, PAD)
  empty[:, -1] = BOS
  rows = torch.cat([prompt, empty]) if s.cfg != 1 else prompt
  b, n, (many, width) = len(prompt), m.image_tokens, rows.shape
  shape = (many, width + n, d.kv_heads, d.head_dim)
  cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(d.depth)]
  seen = F.pad(rows != PAD, (0, n))
  length = seen.sum(1)
  positions = ((rows != PAD).long().cumsum(1) - 1).clamp(min=0)
  run["decoder"](
    d, params["decoder"], _embedded(config, params, rows), positions,
    seen[:, None].expand(-1, width, -1), cache, 0,
  )  # fmt: skip
  x, out = image["boi"].expand(b, -1), []
  for i in range(n):
    x = (x + image["next_position"][i]).repeat(many // b, 1)[:, None]
    seen[:, width + i] = True
    z = run["decoder"](
      d, params["decoder"], x, (length + i)[:, None], seen[:, None], cache,
      width + i,
    )[:, 0]  # fmt: skip
    out.append(_token(config, chain, params["head"], z, b, i, noise, run))
    x = dense(out[-1], image["in"]) + image["position"][i]
  return torch.stack(out, dim=1)


def _token(config, chain, p, z, b, i, noise, run):
  head, s = config.model.head, config.sampling
  # All steps at once, as ours: the loop needs the noisy token alone.
  given = modulations(head, p, chain["timesteps"][:, None], z)
  x = noise(i, None)
  for step in reversed(range(s.steps)):
    both = x.repeat(len(z) // b, 1)
    out = run["denoise"](head, p, both, [g[step] for g in given])
    eps, value = out.chunk(2, dim=-1)
    if len(z) > b:
      eps, value = eps[b:] + s.cfg * (eps[:b] - eps[b:]), value[:b]
    at = {name: constant[step] for name, constant in chain.items()}
    mean, log_variance = _reverse(at, x, eps, value, s.clip or math.inf)
    x = mean
    if step:
      sigma = torch.exp(0.5 * log_variance)
      x = mean + s.temperature * sigma * noise(i, step)
  return x
