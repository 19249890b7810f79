"""Optimizers: AdamW as the paper trains, Muon for small budgets.

Paper: UniFluid §4.1 (AdamW, constant rate after warm-up). What decays follows
MAR: no vectors, no biases, nothing of the diffusion head.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from unifluid_jax.config import OptimConfig
from unifluid_jax.parallel import path_str

_NO_DECAY = re.compile(r"(bias|scale|boi)$|(^|/)head/")

# Matrices Muon orthogonalises: path → (input axes, output axes); the rest
# are batch axes. Embeddings, positions and output layers stay with Adam.
_MATRICES: tuple[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]], ...] = (
  (r"layers/attn/[qkv](/kernel)?$", ((1,), (2, 3))),
  (r"layers/attn/(o|out/kernel)$", ((1, 2), (3,))),
  (r"layers/mlp/(gate|up|down)(/kernel)?$", ((1,), (2,))),
  (r"(projector|image/in)/kernel$", ((0,), (1,))),
  (r"head/(cond|time/in|time/out|block_\d+/.*)/kernel$", ((0,), (1,))),
)


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
  """Linear warm-up, then constant or cosine to zero; factor in [0, 1]."""
  warmup = max(config.warmup, 1)

  def factor(step):
    rise = jnp.minimum((step + 1) / warmup, 1.0)
    if config.schedule == "constant":
      return rise
    progress = (step - warmup) / max(steps - warmup, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return rise * cosine

  return factor


def make_optimizer(
  config: OptimConfig, steps: int
) -> optax.GradientTransformation:
  """Gradient clipping and the configured optimizer.

  Args:
    config: the optimizer's settings.
    steps: of the whole run; the cosine schedule ends there.
  """
  factor = learning_rate(config, steps)
  adam_lr = config.lr if config.name == "adamw" else config.adam_lr
  if config.name == "adamw":
    update = optax.adamw(
      lambda step: adam_lr * factor(step),
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      mu_dtype=config.mu_dtype,
      weight_decay=config.weight_decay,
      mask=decay_mask,
    )
  else:
    update = contrib.muon(
      lambda step: config.lr * factor(step),
      weight_decay=config.weight_decay,
      weight_decay_mask=decay_mask,
      mu_dtype=config.mu_dtype,
      adam_b1=config.b1,
      adam_b2=config.b2,
      adam_learning_rate=lambda step: adam_lr * factor(step),
      muon_weight_dimension_numbers=muon_dimensions,
    )
  if not config.clip:
    return update
  return optax.chain(optax.clip_by_global_norm(config.clip), update)


def decay_mask(params: Any) -> Any:
  """True for every parameter that weight decay touches."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x.ndim > 1 and not _NO_DECAY.search(path_str(path)),
    params,
  )


def muon_dimensions(params: Any) -> Any:
  """Muon's matrix axes of each parameter; None leaves it to Adam."""

  def axes(path, _):
    name = path_str(path)
    for pattern, (inputs, outputs) in _MATRICES:
      if re.search(pattern, name):
        return contrib.MuonDimensionNumbers(inputs, outputs)
    return None

  return jax.tree_util.tree_map_with_path(axes, params)


def update_ema(ema: Any, params: Any, decay: float, step: Any) -> Any:
  """Moving average of parameters, warmed up as min(decay, (1+t)/(10+t))."""
  step = jnp.asarray(step, jnp.float32)
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
