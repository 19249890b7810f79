"""Optimizers: AdamW as the paper trains, Muon for small budgets.

Paper: UniFluid §4.1 (AdamW, constant rate after warm-up). The rows of each
network (`parameter_rows`) say what decays and what Muon orthogonalises; Muon
leaves the rest to Adam, at `adam_lr`. Fine-tuning follows PaliGemma (arXiv
2407.07726, appendix J; big_vision optax.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from unifluid_jax.core.config import OptimConfig, OptimPartConfig
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
  config: OptimConfig, steps: int, rows: Parts, held: Sequence[str] = ()
) -> optax.GradientTransformation:
  """Gradient clipping and the configured optimizer, or several.

  Args:
    config: the optimizer's settings.
    steps: of the whole run; the cosine schedule ends there.
    rows: of the system's networks.
    held: path prefixes that no optimizer touches.
  """
  update = _clipped(config, steps, rows)
  if config.parts:
    own = [
      optax.masked(
        _own(config, part, steps, rows),
        functools.partial(_lies_in, config.parts, prefix),
      )
      for prefix, part in sorted(config.parts.items())
    ]
    rest = functools.partial(_lies_in, config.parts, None)
    update = optax.chain(optax.masked(update, rest), *own)
  rates = {k: v for k, v in config.rates.items() if v != 1.0}
  if rates:
    update = optax.chain(update, _scale_by_path(rates))
  if not held and 0.0 not in rates.values():
    return update
  # Constants have no moments, and no part in the gradient norm.
  return optax.partition(
    {True: update, False: optax.set_to_zero()},
    functools.partial(is_trained, config, held),
  )


def is_trained(config: OptimConfig, held: Sequence[str], params: Any) -> Any:
  """True for every parameter that is not a constant of the training step."""
  return _by_path(
    lambda name, _: (
      longest_prefix(held, name) is None and rate_of(config.rates, name) > 0
    ),
    params,
  )


def value_and_grad(loss: Callable[..., Any], trains: Any) -> Callable[..., Any]:
  """Gradients of what is trained; no backward pass is spent on the rest.

  Args:
    loss: of parameters and whatever else; returns a scalar and more.
    trains: like the parameters, False for constants.

  Returns:
    A function with the arguments of `loss`, which returns ((scalar, [more]),
    gradients); those of constants are None.
  """

  def run(params, *rest):
    def of_trained(trained):
      value, *more = loss(_filled(trained, params), *rest)
      return value, more

    trained = jax.tree.map(lambda t, p: p if t else None, trains, params)
    return jax.value_and_grad(of_trained, has_aux=True)(trained)

  return run


def with_zeros(grads: Any, params: Any) -> Any:
  """Gradients of all parameters: zeros for those that have None."""
  return _filled(grads, jax.tree.map(jnp.zeros_like, params))


def _filled(tree: Any, other: Any) -> Any:
  """`tree` with the leaves of `other` where it has None."""
  return jax.tree.map(
    lambda x, y: y if x is None else x, tree, other, is_leaf=lambda x: x is None
  )


def _lies_in(prefixes: Mapping[str, Any], prefix: str | None, tree: Any) -> Any:
  """True for every leaf below `prefix`; None: below none of `prefixes`."""
  return _by_path(
    lambda name, _: longest_prefix(prefixes, name) == prefix, tree
  )


def _own(
  config: OptimConfig, part: OptimPartConfig, steps: int, rows: Parts
) -> optax.GradientTransformation:
  """The optimizer of one entry of `config.parts`."""
  changes = dataclasses.asdict(part)
  start = changes.pop("start")
  config = dataclasses.replace(
    config, **{k: v for k, v in changes.items() if v is not None}
  )
  update = _clipped(config, steps - start, rows)
  if not start:
    return update
  return optax.conditionally_mask(update, lambda step: step >= start)


def _clipped(
  config: OptimConfig, steps: int, rows: Parts
) -> optax.GradientTransformation:
  update = _update(config, steps, rows)
  if not config.clip:
    return update
  return optax.chain(optax.clip_by_global_norm(config.clip), update)


def rate_of(rates: Mapping[str, float], path: str) -> float:
  """Factor of a parameter's learning rate: that of the longest prefix."""
  prefix = longest_prefix(rates, path)
  return 1.0 if prefix is None else rates[prefix]


def check_prefixes(
  config: OptimConfig, held: Sequence[str], params: Any
) -> None:
  """Refuses settings of parameters that do not exist or that are held.

  Raises:
    ValueError: a prefix that no parameter's path starts with, or one that no
      optimizer touches, although its entry changes something.
  """
  names = [
    path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  changed = [prefix for prefix, rate in config.rates.items() if rate != 1.0]
  for key, prefixes in (("rates", changed), ("parts", config.parts)):
    for prefix in prefixes:
      if not any(longest_prefix([prefix], name) for name in names):
        heads = sorted({name.split("/")[0] for name in names})
        raise ValueError(
          f"config.optim.{key}: no parameter starts with {prefix!r}; "
          f"the parts are {', '.join(heads)}"
        )
      if longest_prefix(held, prefix) is not None:
        raise ValueError(
          f"config.optim.{key}: no optimizer updates {prefix!r}, the system "
          "replaces it by itself: remove the entry"
        )


def _scale_by_path(rates: Mapping[str, float]) -> optax.GradientTransformation:
  """Scales the final update, decay included."""

  def scale(updates, state, params=None):
    del params
    return _by_path(lambda n, u: u * rate_of(rates, n), updates), state

  return optax.GradientTransformation(optax.init_empty_state, scale)


def _by_path(fn: Callable[[str, Any], Any], tree: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, x: fn(path_str(path), x), tree
  )


def _update(
  config: OptimConfig, steps: int, rows: Parts
) -> optax.GradientTransformation:
  """The optimizer alone.

  PaliGemma's decay is absolute: times the schedule, not times the rate.
  """
  factor = learning_rate(config, steps)
  decays = functools.partial(decay_mask, rows, config.decay)
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
    muon_weight_dimension_numbers=functools.partial(muon_dimensions, rows),
  )
  adam = _adamw(
    config, lambda step: config.adam_lr * factor(step), decays, nesterov=True
  )
  return optax.partition(
    {"muon": muon, "adam": adam}, functools.partial(muon_or_adam, rows)
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


def decay_mask(rows: Parts, recipe: str, params: Any) -> Any:
  """True for every parameter that decays under a value of `optim.decay`."""
  return _by_path(lambda name, _: recipe in row_of(rows, name).decay, params)


def muon_dimensions(rows: Parts, params: Any) -> Any:
  """Muon's matrix axes of each parameter; None leaves it to Adam."""

  def axes(name, _):
    muon = row_of(rows, name).muon
    return muon and contrib.MuonDimensionNumbers(*muon)

  return _by_path(axes, params)


def muon_or_adam(rows: Parts, params: Any) -> Any:
  """ "muon" for each matrix it orthogonalises, "adam" for the rest."""
  return jax.tree.map(
    lambda axes: "adam" if axes is None else "muon",
    muon_dimensions(rows, params),
    is_leaf=lambda x: x is None or isinstance(x, contrib.MuonDimensionNumbers),
  )


def update_ema(
  ema: Any, params: Any, decay: float, step: Any, held: Sequence[str] = ()
) -> Any:
  """Moving average of parameters, warmed up as min(decay, (1+t)/(10+t)).

  Parameters below `held` are copied, not averaged.
  """
  step = jnp.asarray(step, jnp.float32)
  decay = jnp.minimum(decay, (1 + step) / (10 + step))

  def average(path, e, p):
    if longest_prefix(held, path_str(path)) is not None:
      return p
    return e + (1 - decay) * (p - e)

  return jax.tree_util.tree_map_with_path(average, ema, params)
