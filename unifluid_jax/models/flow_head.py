"""A rectified-flow head: MAR's network learns the velocity of a token.

Flow matching (arXiv 2210.02747, 2209.03003) with the times of `ops/flow.py`.
Sampling solves an ODE from noise to token.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from unifluid_jax.core import parallel
from unifluid_jax.core.types import Params
from unifluid_jax.models import diffusion_head
from unifluid_jax.models.diffusion_head import DiffusionHead
from unifluid_jax.ops import flow, sampling

# Times 0 .. 1 are told as steps of a chain of 1000, as the sinusoid needs.
_CHAIN = 1000.0


def velocity(
  net: DiffusionHead,
  params: Params,
  x: Float[Array, "*rows C"],
  t: Float[Array, "*rows"],
  z: Float[Array, "*tokens Z"],
  level: Int[Array, "*rows"] | None = None,
) -> Float[Array, "*rows C"]:
  """What the network predicts in training.

  Args:
    net: the module.
    params: its parameters, without a collection name.
    x: noisy tokens.
    t: their times, 0 is noise.
    z: conditions; leading axes broadcast against those of t.
    level: of the steps' size, for shortcuts.
  """
  # Constrained explicitly: GSPMD would choose partial sums over fsdp.
  x = parallel.constrain(x, "_BTC")
  t = parallel.constrain(t, "_BT")
  return net.apply({"params": params}, x, _CHAIN * t, z, level)


def noise(net: DiffusionHead, keys: Key[Array, "B"]) -> Float[Array, "B C"]:
  """Where drawing begins, of each row's own key."""
  return jax.vmap(lambda k: jax.random.normal(k, (net.channels,)))(keys)


def solve(
  net: DiffusionHead,
  params: Params,
  guided: sampling.Guided,
  keys: Key[Array, "B"],
  evaluations: flow.Evaluations,
  temperature: float | Float[Array, ""],
  *,
  limit: float,
  level: int | None = None,
  hoist_bytes: int = diffusion_head.HOIST_BYTES,
) -> Float[Array, "B C"]:
  """Tokens at t = 1 from noise of each row's own key.

  Guidance combines the velocities of all conditions at the same noisy token.

  Differs: ancestral sampling's temperature scales the noise that each step
  adds. An ODE adds none, so it scales the noise at t = 0, all that is random.

  Args:
    net: the module.
    params: its parameters, without a collection name.
    guided: conditions and scales.
    keys: one per row; a row depends on its own key only.
    evaluations: of the solver.
    temperature: of the initial noise.
    limit: static; of predicted clean tokens, see `flow.integrate`.
    level: of the steps' size, for shortcuts.
    hoist_bytes: static; modulations of as many evaluations as fit in it are
      computed at once. It changes speed and memory, not the result.
  """
  rows = jnp.concatenate(guided.conditions)

  def predict(x, modulations):
    out = diffusion_head.step(net, params, guided.same(x), modulations)
    return guided.combine(out)

  def run_of_evaluations(state, part):
    levels = None if level is None else jnp.full(part.time.shape, level)
    modulations = diffusion_head.hoist(
      net, params, _CHAIN * part.time, rows, levels
    )
    return flow.integrate(part, predict, state, modulations, limit), None

  count = len(evaluations.time)
  run = diffusion_head.hoisted_steps(net, count, len(rows), hoist_bytes)
  parts = jax.tree.map(lambda a: jnp.reshape(a, (-1, run)), evaluations)
  start = flow.begin(temperature * noise(net, keys))
  return jax.lax.scan(run_of_evaluations, start, parts)[0].x


@dataclasses.dataclass(frozen=True)
class FlowHead:
  """See `token_head.TokenHead`.

  Attributes:
    net: predicts x0 - noise.
  """

  net: DiffusionHead

  outputs: ClassVar[int] = 1
  fewest_draws: ClassVar[int] = 1
  solvers: ClassVar[tuple[str, ...]] = ("euler", "heun")
  taught: ClassVar[bool] = False

  def inputs(self, condition: int) -> tuple[Array, ...]:
    """See `token_head.TokenHead`."""
    token = jnp.zeros((1, self.net.channels))
    return token, jnp.zeros(1), jnp.zeros((1, condition))

  def losses(
    self,
    params: Params,
    z: Float[Array, "B N Z"],
    x0: Float[Array, "B N C"],
    key: Key[Array, ""],
    draws: int,
  ) -> dict[str, Float[Array, "n B N"]]:
    """Squared error of the velocity."""
    x0 = jnp.broadcast_to(x0, (draws, *x0.shape)).astype(jnp.float32)
    k_t, k_noise = jax.random.split(key)
    t = flow.sample_times(k_t, draws, x0.shape[1:-1])
    noise = jax.random.normal(k_noise, x0.shape, jnp.float32)
    x_t = flow.interpolate(x0, t, noise)
    out = velocity(self.net, params, x_t, t, z)
    return {"velocity": flow.squared_error(out, x0 - noise)}

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
    """Equal steps of a solver; see `solve` and `flow.evaluations`."""
    evaluations = flow.evaluations(steps, solver)
    return solve(
      self.net, params, guided, keys, evaluations, temperature, limit=limit
    )

  @staticmethod
  def refusal(options: Any) -> str:
    """See `token_head.TokenHead`."""
    del options
    return ""
