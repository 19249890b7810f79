"""Shapes and initial values of a scale decoder's parameters.

Source: FoundationVision/VAR models/var.py, `init_weights`, with the arguments
that its README names. VAR truncates its normal distributions at 2, hundreds of
standard deviations away.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from unifluid_jax.core.presets import ScaleDecoderConfig

# Modulations of a layer, in the order of the published weights: gates of both
# branches, scales of their inputs, shifts of these.
PARTS = 6
_GATES = 2

_ADALN, _HEAD = 0.5, 0.02  # factors of the weights' standard deviation

_normal, _zeros = nn.initializers.normal, nn.initializers.zeros


def std(config: ScaleDecoderConfig) -> float:
  """Standard deviation of all weights that no factor changes."""
  return (3 * config.width) ** -0.5


def dense(
  inputs: tuple[int, ...],
  outputs: tuple[int, ...],
  std: float,
  lead: tuple[int, ...] = (),
) -> dict[str, Any]:
  """A kernel of normal values and a bias of 0, for `stack.init_tree`."""
  return {
    "kernel": (_normal(std), (*lead, *inputs, *outputs)),
    "bias": (_zeros, (*lead, *outputs)),
  }


def shared_modulation(config: ScaleDecoderConfig) -> dict[str, Any]:
  """The affine function that makes the modulations of all layers."""
  return dense((config.width,), (PARTS, config.width), std(config))


def layers(config: ScaleDecoderConfig) -> dict[str, Any]:
  """Initializers and shapes of all layers, stacked along the first axis."""
  c, lead, usual = config, (config.depth,), std(config)
  heads = (c.heads, c.width // c.heads)
  # Of what is added to the residual stream.
  added = usual / math.sqrt(2 * c.depth)
  attn = {
    "qkv": (_normal(usual), (*lead, c.width, 3, *heads)),
    "q_bias": (_zeros, (*lead, *heads)),
    "v_bias": (_zeros, (*lead, *heads)),
    "out": {
      "kernel": (_normal(added), (*lead, *heads, c.width)),
      "bias": (_zeros, (*lead, c.width)),
    },
  }
  if c.l2_norm:
    log4 = nn.initializers.constant(math.log(4))
    attn["temperature"] = (log4, (*lead, c.heads))
  return {
    "attn": attn,
    "mlp": {
      "up": dense((c.width,), (c.mlp,), usual, lead),
      "down": dense((c.mlp,), (c.width,), added, lead),
    },
    "modulation": _modulation(c, usual, lead),
  }


def head(config: ScaleDecoderConfig) -> dict[str, Any]:
  """The last norm's modulation, and the products that make logits."""
  c, usual = config, std(config)
  return {
    "modulation": dense((c.width,), (2, c.width), _ADALN * usual),
    **dense((c.width,), (c.codes,), _HEAD * usual),
  }


def _modulation(
  config: ScaleDecoderConfig, usual: float, lead: tuple[int, ...]
) -> dict[str, Any]:
  """Modulations of every layer, or its offsets to the shared ones."""
  c = config
  if c.shared_adaln:
    unit = c.width**-0.5
    shape = (*lead, PARTS, c.width)
    return {"offset": (_gated(unit, c.gate_init, axis=1), shape)}
  shape = (*lead, c.width, PARTS, c.width)
  return {
    "kernel": (_gated(usual, c.gate_init, axis=2), shape),
    "bias": (_zeros, (*lead, PARTS, c.width)),
  }


def _gated(std: float, gate: float, axis: int) -> Any:
  """Normal values; along an axis first the gates, which begin near 0."""

  def init(key: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    factors = np.where(np.arange(PARTS) < _GATES, gate, _ADALN)
    sizes = [PARTS if i == axis else 1 for i in range(len(shape))]
    factors = jnp.asarray(std * factors.reshape(sizes), dtype)
    return factors * jax.random.normal(key, shape, dtype)

  return init
