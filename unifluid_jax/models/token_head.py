"""The kinds of heads that draw continuous image tokens.

All have the network of `models/diffusion_head.py`. They differ in what it is
told and predicts, in how that is learned, and in how a token is drawn with it.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

from unifluid_jax.core.presets import HeadConfig
from unifluid_jax.core.types import Params
from unifluid_jax.models.ddpm_head import DdpmHead
from unifluid_jax.models.diffusion_head import DiffusionHead
from unifluid_jax.models.distilled_head import DistilledHead
from unifluid_jax.models.energy_head import EnergyHead
from unifluid_jax.models.flow_head import FlowHead
from unifluid_jax.models.shortcut_head import ShortcutHead
from unifluid_jax.ops import sampling


@runtime_checkable
class TokenHead(Protocol):
  """How a token is learned and drawn from the decoder's state z.

  Attributes:
    net: the network.
    outputs: values that it predicts for each channel.
    fewest_draws: of a token in training.
    solvers: values of `sampling.solver` that it can draw with.
    taught: whether its x0 are the tokens that a trained head shows; see
      `distilled_head.DistilledHead.shown`.
  """

  net: DiffusionHead
  outputs: ClassVar[int]
  fewest_draws: ClassVar[int]
  solvers: ClassVar[tuple[str, ...]]
  taught: ClassVar[bool]

  def inputs(self, condition: int) -> tuple[Array | None, ...]:
    """What the network is initialised with; Z is the width of z."""

  def losses(
    self,
    params: Params,
    z: Float[Array, "B N Z"],
    x0: Float[Array, "B N C"],
    key: Key[Array, ""],
    draws: int,
  ) -> Mapping[str, Float[Array, "n B N"]]:
    """Name → term of each token and draw.

    The objective is the sum of all terms over B N draws.

    Args:
      params: of the network, without a collection name.
      z: decoder outputs.
      x0: tokens.
      key: draws steps and noise.
      draws: of each token.
    """

  def sample(
    self,
    params: Params,
    guided: sampling.Guided,
    keys: Key[Array, "B"],
    steps: int,
    temperature: float | Float[Array, ""],
    *,
    limit: float = math.inf,
    solver: str = "euler",
  ) -> Float[Array, "B C"]:
    """Draws one token for each row.

    Args:
      params: of the network, without a collection name.
      guided: conditions [B, Z] and scales.
      keys: one per row; a row depends on its own key only.
      steps: of the head.
      temperature: of the noise; 1 is what was learned.
      limit: predicted clean tokens are clipped to +-limit.
      solver: of `sampling.solver`.
    """

  @staticmethod
  def refusal(options: Any) -> str:
    """Why it cannot draw with sampling options; "" if it can."""


KINDS: Mapping[str, type[TokenHead]] = {
  "ddpm": DdpmHead,
  "flow": FlowHead,
  "shortcut": ShortcutHead,
  "energy": EnergyHead,
  "distilled": DistilledHead,
}


def build(config: HeadConfig, channels: int, dtype: Any) -> TokenHead:
  """The head that a configuration describes.

  Args:
    config: kind, width and depth.
    channels: C of a token.
    dtype: compute dtype.
  """
  kind = KINDS[config.kind]
  return kind(DiffusionHead(config, channels, dtype, kind.outputs))


def refusal(kind: str, options: Any) -> str:
  """Why a kind of head cannot draw with sampling options; "" if it can.

  Args:
    kind: of the head.
    options: with `steps`, `last_steps` and `solver`.
  """
  if options.solver not in KINDS[kind].solvers:
    return (
      f"solver={options.solver!r} is for heads of kind 'flow', and this one "
      f"is {kind!r}: use solver='euler'"
    )
  return KINDS[kind].refusal(options)
