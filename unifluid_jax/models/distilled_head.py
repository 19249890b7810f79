"""A distilled head: one evaluation draws what a trained flow head draws.

A flow head follows an ODE from noise to a token. Another head with the same
network learns where that ends from the noise alone (knowledge distillation,
arXiv 2101.02388). The teacher is guided while it shows (arXiv 2210.03142), so
that one condition is enough to draw, without a null one beside it.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from unifluid_jax.core.types import Params
from unifluid_jax.models import flow_head
from unifluid_jax.ops import flow, sampling


@dataclasses.dataclass(frozen=True)
class DistilledHead(flow_head.FlowHead):
  """See `token_head.TokenHead`; draws as a flow head does in one step.

  Attributes:
    net: predicts token - noise, of noise at t = 0.
  """

  taught: ClassVar[bool] = True
  solvers: ClassVar[tuple[str, ...]] = ("euler",)

  def shown(
    self,
    teacher: Params,
    guided: sampling.Guided,
    key: Key[Array, ""],
    draws: int,
    steps: int,
    limit: float = math.inf,
  ) -> Float[Array, "draws B N C"]:
    """Tokens that the teacher draws of the noise that `losses` learns from.

    Args:
      teacher: parameters of a flow head with the same network.
      guided: conditions [B, N, Z] and scale.
      key: the one that `losses` gets.
      draws: of each token.
      steps: Euler's.
      limit: predicted clean tokens are clipped to +-limit.
    """
    b, n, z = guided.conditions[0].shape

    def repeated(condition):
      several = jnp.broadcast_to(condition[:, :, None], (b, n, draws, z))
      return several.reshape(-1, z)

    rows = guided._replace(conditions=[*map(repeated, guided.conditions)])
    tokens = flow_head.solve(
      self.net, teacher, rows, _keys(key, b, n, draws), flow.evaluations(steps),
      1.0, limit=limit,
    )  # fmt: skip
    tokens = jnp.moveaxis(tokens.reshape(b, n, draws, -1), 2, 0)
    return jax.lax.stop_gradient(tokens)

  def losses(
    self,
    params: Params,
    z: Float[Array, "B N Z"],
    x0: Float[Array, "draws B N C"],
    key: Key[Array, ""],
    draws: int,
  ) -> dict[str, Float[Array, "n B N"]]:
    """Squared error of the way from noise to what was `shown` of it."""
    b, n, _ = z.shape
    noise = flow_head.noise(self.net, _keys(key, b, n, draws))
    noise = jnp.moveaxis(noise.reshape(b, n, draws, -1), 2, 0)
    start = jnp.zeros(noise.shape[:-1])
    out = flow_head.velocity(self.net, params, noise, start, z)
    return {"distillation": flow.squared_error(out, x0 - noise)}

  @staticmethod
  def refusal(options: Any) -> str:
    """See `token_head.TokenHead`."""
    if options.steps != 1 or options.last_steps:
      return (
        f"steps={options.steps}, last_steps={options.last_steps}: a distilled "
        "head draws in one evaluation: use steps=1 and last_steps=0"
      )
    if options.cfg != 1:
      return (
        f"cfg={options.cfg}: a distilled head has learned its teacher's "
        "guidance: use cfg=1"
      )
    return ""


def _keys(key: Key[Array, ""], b: int, n: int, draws: int) -> Key[Array, "R"]:
  """One for each draw of each token; rows of one image lie together."""
  return jax.random.split(key, b * n * draws)
