"""Optimizers: AdamW as the paper trains, Muon for small budgets.

Paper: UniFluid §4.1 (AdamW, constant rate after warm-up). What decays and what
Muon orthogonalises is said by the rows of each network (`parameter_rows`); Muon
leaves the rest to Adam, at `adam_lr`. Fine-tuning follows PaliGemma (arXiv
2407.07726, appendix J; big_vision optax.py).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from unifluid_jax.core.config import OptimConfig
from unifluid_jax.core.parallel import path_str
from unifluid_jax.core.parameter_rows import Parts, longest_prefix, row_of


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
  config: OptimConfig, steps: int, parts: Parts
) -> optax.GradientTransformation:
  """Gradient clipping and the configured optimizer.

  Args:
    config: the optimizer's settings.
    steps: of the whole run; the cosine schedule ends there.
    parts: rows of the system's networks.
  """
  update = _update(config, steps, parts)
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
  prefix = longest_prefix(rates, path)
  return 1.0 if prefix is None else rates[prefix]


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


def _update(
  config: OptimConfig, steps: int, parts: Parts
) -> optax.GradientTransformation:
  """The optimizer alone.

  PaliGemma's decay is absolute: times the schedule, not times the rate.
  """
  factor = learning_rate(config, steps)
  decays = functools.partial(decay_mask, parts, config.decay)
  if config.decay == "paligemma":
    return optax.chain(
      optax.scale_by_adam(
        config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype
      ),
      optax.scale(config.lr),
      optax.add_decayed_weights(config.weight_decay, decays),
      optax.scale_by_schedule(lambda step: -factor(step)),
    )
  if config.name == "adamw":
    return _adamw(config, lambda step: config.lr * factor(step), decays)
  # optax's own Adam beside its Muon decays all it is given or nothing, and
  # shares Muon's eps: it is left without parameters.
  muon = contrib.muon(
    lambda step: config.lr * factor(step),
    weight_decay=config.weight_decay,
    weight_decay_mask=decays,
    mu_dtype=config.mu_dtype,
    muon_weight_dimension_numbers=functools.partial(muon_dimensions, parts),
  )
  adam = _adamw(
    config, lambda step: config.adam_lr * factor(step), decays, nesterov=True
  )
  return optax.partition(
    {"muon": muon, "adam": adam}, functools.partial(muon_or_adam, parts)
  )


def _adamw(
  config: OptimConfig,
  rate: optax.Schedule,
  decays: Callable[[Any], Any],
  nesterov: bool = False,
) -> optax.GradientTransformation:
  return optax.adamw(
    rate,
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    mu_dtype=config.mu_dtype,
    weight_decay=config.weight_decay,
    mask=decays,
    nesterov=nesterov,
  )


def decay_mask(parts: Parts, recipe: str, params: Any) -> Any:
  """True for every parameter that decays under a value of `optim.decay`."""
  return _by_path(lambda name, _: recipe in row_of(parts, name).decay, params)


def muon_dimensions(parts: Parts, params: Any) -> Any:
  """Muon's matrix axes of each parameter; None leaves it to Adam."""

  def axes(name, _):
    muon = row_of(parts, name).muon
    return muon and contrib.MuonDimensionNumbers(*muon)

  return _by_path(axes, params)


def muon_or_adam(parts: Parts, params: Any) -> Any:
  """ "muon" for each matrix it orthogonalises, "adam" for the rest."""
  return jax.tree.map(
    lambda axes: "adam" if axes is None else "muon",
    muon_dimensions(parts, params),
    is_leaf=lambda x: x is None or isinstance(x, contrib.MuonDimensionNumbers),
  )


def update_ema(ema: Any, params: Any, decay: float, step: Any) -> Any:
  """Moving average of parameters, warmed up as min(decay, (1+t)/(10+t))."""
  step = jnp.asarray(step, jnp.float32)
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
