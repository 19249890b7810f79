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

from benchmarks.peers.torch_networks import (
  Tree,
  decoder,
  denoise,
  dense,
  encoder,
  modulations,
)

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
  only = {
    "model.decoder.norm": (d.norm, "gemma"),
    "model.decoder.qk_norm": (d.qk_norm, False),
    "model.decoder.qkv_bias": (d.qkv_bias, False),
    "model.decoder.dropout": (d.dropout, 0.0),
    "model.decoder.rope_scale_global": (d.rope_scale_global, 1.0),
    "model.decoder.rope_base_global": (d.rope_base_global, d.rope_base),
    "model.decoder.activation": (d.activation, "gelu_tanh"),
    "model.decoder.tied": (d.tied, True),
    "model.head.kind": (m.head.kind, "ddpm"),
    "model.dtype": (m.dtype, "float32"),
    "loss.label_smoothing": (config.loss.label_smoothing, 0.0),
    "loss.text_mean": (config.loss.text_mean, "tokens"),
  }
  for name, (found, computed) in only.items():
    if found != computed:
      raise ValueError(
        f"the peer computes config.{name} in one way only: set it to "
        f"{computed!r}, not {found!r}"
      )


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
