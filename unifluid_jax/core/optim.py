"""Optimizers: AdamW as the paper trains, Muon for small budgets.

Paper: UniFluid §4.1 (AdamW, constant rate after warm-up). What decays follows
MAR: no vectors, no biases, nothing of the diffusion head; tables do. Muon
leaves tables and the head's outer layers to Adam, at `adam_lr`. Fine-tuning
follows PaliGemma (arXiv 2407.07726, appendix J; big_vision optax.py).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from unifluid_jax.core.config import OptimConfig
from unifluid_jax.core.parallel import path_str

# "head" at the root is the diffusion head; a part's own head does decay.
_NO_DECAY = re.compile(r"(^|/|_)(bias|scale)$|^head/")
_KERNEL = re.compile(r"(^|/)kernel$")  # of encoder and projector, not of Gemma

# Matrices Muon orthogonalises: path → (input axes, output axes); the rest
# are batch axes. Embeddings, positions and output layers stay with Adam.
_MATRICES: tuple[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]], ...] = (
  (r"layers/attn/[qkv](/kernel)?$", ((1,), (2, 3))),
  (r"layers/attn/(o|out/kernel)$", ((1, 2), (3,))),
  (r"layers/mlp/(gate|up|down)(/kernel)?$", ((1,), (2,))),
  (r"vit/patch/kernel$", ((0, 1, 2), (3,))),
  (r"(projector|image/in)/kernel$", ((0,), (1,))),
  (r"^head/(cond|time/in|time/out|block_\d+/.*)/kernel$", ((0,), (1,))),
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
  update = _update(config, steps)
  if config.clip:
    update = optax.chain(optax.clip_by_global_norm(config.clip), update)
  rates = {k: v for k, v in config.rates.items() if v != 1.0}
  if not rates:
    return update
  update = optax.chain(update, _scale_by_path(rates))
  if 0.0 not in rates.values():
    return update
  # Frozen parameters have no moments, and their gradient no say in the norm.
  return optax.partition(
    {True: update, False: optax.set_to_zero()},
    lambda params: _by_path(lambda name, _: rate_of(rates, name) > 0, params),
  )


def rate_of(rates: Mapping[str, float], path: str) -> float:
  """Factor of a parameter's learning rate: that of the longest prefix."""
  parts = path.split("/")
  for n in range(len(parts), 0, -1):
    prefix = "/".join(parts[:n])
    if prefix in rates:
      return rates[prefix]
  return 1.0


def check_rates(rates: Mapping[str, float], params: Any) -> None:
  """Refuses factors of parameters that do not exist.

  Raises:
    ValueError: a prefix that no parameter's path starts with, although it
      changes something.
  """
  names = [
    path_str(path) + "/" for path, _ in
    jax.tree_util.tree_leaves_with_path(params)
  ]  # fmt: skip
  for prefix, rate in rates.items():
    if rate != 1.0 and not any(n.startswith(prefix + "/") for n in names):
      heads = sorted({n.split("/")[0] for n in names})
      raise ValueError(
        f"config.optim.rates: no parameter starts with {prefix!r}; "
        f"the parts are {', '.join(heads)}"
      )


def _scale_by_path(rates: Mapping[str, float]) -> optax.GradientTransformation:
  """Multiplies the finished update, decay included."""

  def scale(updates, state, params=None):
    del params
    return _by_path(lambda n, u: u * rate_of(rates, n), updates), state

  return optax.GradientTransformation(optax.init_empty_state, scale)


def _by_path(fn: Callable[[str, Any], Any], tree: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, x: fn(path_str(path), x), tree
  )


def _update(config: OptimConfig, steps: int) -> optax.GradientTransformation:
  """The optimizer alone.

  PaliGemma's decay is absolute: times the schedule, not times the rate.
  """
  factor = learning_rate(config, steps)
  if config.decay == "paligemma":
    return optax.chain(
      optax.scale_by_adam(
        config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype
      ),
      optax.scale(config.lr),
      optax.add_decayed_weights(config.weight_decay, kernel_mask),
      optax.scale_by_schedule(lambda step: -factor(step)),
    )
  if config.name == "adamw":
    return _adamw(config, lambda step: config.lr * factor(step))
  # optax's own Adam beside its Muon decays all it is given or nothing, and
  # shares Muon's eps: it is left without parameters.
  muon = contrib.muon(
    lambda step: config.lr * factor(step),
    weight_decay=config.weight_decay,
    weight_decay_mask=decay_mask,
    mu_dtype=config.mu_dtype,
    muon_weight_dimension_numbers=muon_dimensions,
  )
  adam = _adamw(config, lambda step: config.adam_lr * factor(step), True)
  return optax.partition({"muon": muon, "adam": adam}, muon_or_adam)


def _adamw(
  config: OptimConfig, rate: optax.Schedule, nesterov: bool = False
) -> optax.GradientTransformation:
  return optax.adamw(
    rate,
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    mu_dtype=config.mu_dtype,
    weight_decay=config.weight_decay,
    mask=decay_mask,
    nesterov=nesterov,
  )


def decay_mask(params: Any) -> Any:
  """True for every parameter that weight decay touches."""
  return _by_path(
    lambda name, x: x.ndim > 1 and not _NO_DECAY.search(name), params
  )


def kernel_mask(params: Any) -> Any:
  """True for what decays when PaliGemma is fine-tuned."""
  return _by_path(lambda name, _: bool(_KERNEL.search(name)), params)


def muon_dimensions(params: Any) -> Any:
  """Muon's matrix axes of each parameter; None leaves it to Adam."""

  def axes(name, _):
    for pattern, (inputs, outputs) in _MATRICES:
      if re.search(pattern, name):
        return contrib.MuonDimensionNumbers(inputs, outputs)
    return None

  return _by_path(axes, params)


def muon_or_adam(params: Any) -> Any:
  """ "muon" for each matrix it orthogonalises, "adam" for the rest."""
  return jax.tree.map(
    lambda axes: "adam" if axes is None else "muon",
    muon_dimensions(params),
    is_leaf=lambda x: x is None or isinstance(x, contrib.MuonDimensionNumbers),
  )


def update_ema(ema: Any, params: Any, decay: float, step: Any) -> Any:
  """Moving average of parameters, warmed up as min(decay, (1+t)/(10+t))."""
  step = jnp.asarray(step, jnp.float32)
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
