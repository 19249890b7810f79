"""An energy head: MAR's network draws a token in one evaluation.

EAR (arXiv 2505.07812): the decoder's state is what the blocks work on, noise
modulates them, and the energy score of a few draws trains both. There is no
time, and no step.

Differs: temperature scales the noise, where the original scales the shifts
that it makes: this leaves drawing at temperature 0 a function of the state.

Differs: guidance combines tokens drawn from the same noise, where the original
draws from combined states: states are not trained to be on a line.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from unifluid_jax.core import parallel
from unifluid_jax.core.types import Params
from unifluid_jax.models.diffusion_head import DiffusionHead
from unifluid_jax.ops import energy, sampling

NOISE = 64  # uniform values in [-1/2, 1/2) per token


@dataclasses.dataclass(frozen=True)
class EnergyHead:
  """See `token_head.TokenHead`.

  Attributes:
    net: maps state and noise, where others have noisy token and state.
  """

  net: DiffusionHead

  outputs: ClassVar[int] = 1
  fewest_draws: ClassVar[int] = 2
  solvers: ClassVar[tuple[str, ...]] = ("euler",)
  taught: ClassVar[bool] = False

  def inputs(self, condition: int) -> tuple[Array | None, ...]:
    """See `token_head.TokenHead`."""
    return jnp.zeros((1, condition)), None, jnp.zeros((1, NOISE))

  def losses(
    self,
    params: Params,
    z: Float[Array, "B N Z"],
    x0: Float[Array, "B N C"],
    key: Key[Array, ""],
    draws: int,
  ) -> dict[str, Float[Array, "n B N"]]:
    """Distances from the token, less half of those among the draws."""
    shape = (draws, *z.shape[:-1], NOISE)
    noise = jax.random.uniform(key, shape, jnp.float32, -0.5, 0.5)
    # Constrained explicitly: GSPMD would choose partial sums over fsdp.
    noise = parallel.constrain(noise, "_BTC")
    drawn = self.net.apply({"params": params}, z, None, noise)
    apart, spread = energy.loss_terms(drawn, x0)
    return {"distance": apart, "spread": spread}

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
    """One evaluation; `limit` clips the guided token."""
    del steps, solver

    def draw(key: Key[Array, ""]) -> Float[Array, "E"]:
      return jax.random.uniform(key, (NOISE,), jnp.float32, -0.5, 0.5)

    noise = guided.same(temperature * jax.vmap(draw)(keys))
    rows = jnp.concatenate(guided.conditions)
    tokens = self.net.apply({"params": params}, rows, None, noise)
    return jnp.clip(guided.combine(tokens), -limit, limit)

  @staticmethod
  def refusal(options: Any) -> str:
    """See `token_head.TokenHead`."""
    if options.steps != 1:
      return (
        f"steps={options.steps}: an energy head draws a token in one "
        "evaluation: use steps=1"
      )
    if options.last_steps:
      return (
        f"last_steps={options.last_steps}: an energy head has one evaluation "
        "for every token: use last_steps=0"
      )
    return ""
