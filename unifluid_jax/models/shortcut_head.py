"""A shortcut head: a flow head that is told how large its step is.

Shortcut models (arXiv 2410.12557). One draw of a token in four learns that a
step equals two of half its size, the others the velocity, which is the finest
step; then one, two or four steps draw what 128 would.

Differs: the halves are walked by the parameters that are trained, where the
paper has their moving average: a system's loss is not given one, and an
average that lags pulls against self-consistency (arXiv 2510.21250).

Differs: guidance acts at every size while drawing, as for other heads; the
paper trains one scale into its targets, which fixes it.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from unifluid_jax.core.types import Params
from unifluid_jax.models import flow_head
from unifluid_jax.models.diffusion_head import DiffusionHead
from unifluid_jax.ops import flow, sampling


@dataclasses.dataclass(frozen=True)
class ShortcutHead:
  """See `token_head.TokenHead`.

  Attributes:
    net: predicts the mean velocity of a step.
  """

  net: DiffusionHead

  outputs: ClassVar[int] = 1
  fewest_draws: ClassVar[int] = 2
  solvers: ClassVar[tuple[str, ...]] = ("euler",)
  taught: ClassVar[bool] = False

  def inputs(self, condition: int) -> tuple[Array, ...]:
    """See `token_head.TokenHead`."""
    token, level = jnp.zeros((1, self.net.channels)), jnp.zeros(1, jnp.int32)
    return token, jnp.zeros(1), jnp.zeros((1, condition)), level

  def losses(
    self,
    params: Params,
    z: Float[Array, "B N Z"],
    x0: Float[Array, "B N C"],
    key: Key[Array, ""],
    draws: int,
  ) -> dict[str, Float[Array, "n B N"]]:
    """Squared errors of the velocity and of self-consistency.

    Each has draws of its own, so that both sums over all draws are shares of
    the objective.
    """
    x0 = jnp.broadcast_to(x0, (draws, *x0.shape)).astype(jnp.float32)
    k_noise, k_t, k_step = jax.random.split(key, 3)
    noise = jax.random.normal(k_noise, x0.shape, jnp.float32)
    rows, twice = x0.shape[1:-1], flow.consistency_draws(draws)
    begin, level = flow.sample_steps(k_step, (twice, *rows))
    t = flow.sample_times(k_t, draws - twice, rows)
    finest = jnp.full(t.shape, flow.FINEST)
    t = jnp.concatenate([begin, t])
    x_t = flow.interpolate(x0, t, noise)

    def predict(x, t, level):
      return flow_head.velocity(self.net, params, x, t, z, level)

    target = flow.two_halves(predict, x_t[:twice], begin, level)
    target = jnp.concatenate([target, (x0 - noise)[twice:]])
    out = predict(x_t, t, jnp.concatenate([level, finest]))
    error = flow.squared_error(out, target)
    return {"velocity": error[twice:], "consistency": error[:twice]}

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
    """Equal steps of a size that was learned; see `flow_head.solve`."""
    evaluations = flow.evaluations(steps, solver)
    return flow_head.solve(
      self.net, params, guided, keys, evaluations, temperature,
      limit=limit, level=steps.bit_length() - 1,
    )  # fmt: skip

  @staticmethod
  def refusal(options: Any) -> str:
    """See `token_head.TokenHead`."""
    most = 2**flow.FINEST
    if options.steps.bit_count() != 1 or options.steps > most:
      return (
        f"steps={options.steps}: a shortcut head has learned steps that halve "
        f"one another: use a power of two up to {most}"
      )
    if options.last_steps:
      return (
        f"last_steps={options.last_steps}: a shortcut head draws all tokens in "
        "equally few steps: use last_steps=0"
      )
    return ""
