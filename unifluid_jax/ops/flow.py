"""Flow matching as few-step heads use it: loss, ODE solvers, shortcuts.

A token x0 and noise lie on a line x_t = (1 - t) noise + t x0: t = 0 is noise,
t = 1 the token. A network learns the velocity E[x0 - noise | x_t] (rectified
flow, arXiv 2209.03003; flow matching, arXiv 2210.02747), or the mean velocity
of a whole step (shortcut models, arXiv 2410.12557). Everything is float32.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

# Shortcut sizes are 2 ** -level, level 0 .. FINEST. The finest of them, 1/128
# as in the paper, stands for d -> 0.
FINEST = 7
_SHARE = 4  # one draw in four learns self-consistency, as in the paper


class Evaluations(NamedTuple):
  """E evaluations of a velocity, in the order of a solver.

  Slicing every field by the same range gives consecutive ones, which
  `integrate` accepts.
  """

  time: Any  # f32[E] t of each
  size: Any  # f32[E] of the step that it belongs to
  corrects: Any  # bool[E] whether it is Heun's second one of that step


class State(NamedTuple):
  """Where an integration stands."""

  x: Any  # f32[B ... C], the last evaluation's result
  start: Any  # f32[B ... C], where its step began
  slope: Any  # f32[B ... C], its velocity


def sample_times(
  key: Key[Array, ""], draws: int, shape: tuple[int, ...]
) -> Float[Array, "draws *rows"]:
  """Uniform times in [0, 1) for several draws of each row.

  Draw i of n lies in the i-th n-th, as in `diffusion.sample_steps`. Uniform as
  in the two papers above: t = 0, which every sampler evaluates and one step
  evaluates alone, is where the logit-normal of arXiv 2403.03206 has no mass.

  Args:
    key: of all draws.
    draws: n, for each row.
    shape: of the rows.
  """
  u = jax.random.uniform(key, (draws, *shape))
  stratum = jnp.arange(draws).reshape(draws, *(1 for _ in shape))
  return (stratum + u) / draws


def interpolate(
  x0: Float[Array, "*rows C"],
  t: Float[Array, "*rows"],
  noise: Float[Array, "*rows C"],
) -> Float[Array, "*rows C"]:
  """Noisy x_t = (1 - t) noise + t x0."""
  t = t[..., None]
  return (1 - t) * noise + t * x0.astype(jnp.float32)


def squared_error(
  prediction: Float[Array, "*rows C"], target: Float[Array, "*rows C"]
) -> Float[Array, "*rows"]:
  """Mean over channels; the target of flow matching is x0 - noise."""
  return jnp.square(target - prediction).mean(-1)


def evaluations(steps: int, solver: str = "euler") -> Evaluations:
  """The evaluations of `steps` equal steps from noise to token.

  Args:
    steps: S.
    solver: "euler", S evaluations; or "heun", 2 S - 1: two for each step but
      the last, which is Euler's (Karras et al., arXiv 2206.00364), because
      velocities were learned at t < 1 alone.
  """
  starts = np.arange(steps) / steps
  corrects = np.zeros(steps, bool)
  if solver == "heun":
    starts = np.repeat(starts, 2)[1:]
    corrects = np.arange(len(starts)) % 2 == 1
  size = np.full(len(starts), 1 / steps)
  as_float = (v.astype(np.float32) for v in (starts, size))
  return Evaluations(*as_float, corrects)


def begin(noise: Float[Array, "B *rest C"]) -> State:
  """The state at t = 0."""
  return State(noise, noise, jnp.zeros_like(noise))


def integrate(
  part: Evaluations,
  velocity: Callable[[Array, Any], Array],
  state: State,
  inputs: Any = None,
  limit: float = math.inf,
) -> State:
  """Goes on by consecutive evaluations.

  Args:
    part: the evaluations.
    velocity: (x [B ... C], inputs of the evaluation) -> [B ... C].
    state: where they begin.
    inputs: pytree with leading axis E; `velocity` gets the evaluation's slice.
    limit: static; where each velocity leads, x + (1 - t) v, is clipped to
      +-limit, as `diffusion.ancestral_sample` clips predicted clean tokens.
  """

  def evaluate(state: State, scanned: Any) -> tuple[State, None]:
    at, given = scanned
    v = velocity(state.x, given).astype(jnp.float32)
    if limit < math.inf:
      left = 1 - at.time
      end = jnp.clip(state.x + left * v, -limit, limit)
      v = (end - state.x) / left
    start = jnp.where(at.corrects, state.start, state.x)
    slope = jnp.where(at.corrects, (state.slope + v) / 2, v)
    return State(start + at.size * slope, start, v), None

  scanned = jax.tree.map(jnp.asarray, part), inputs
  return jax.lax.scan(evaluate, state, scanned)[0]


# ------------------------------------------------------------------ shortcuts


def consistency_draws(draws: int) -> int:
  """Of a token's draws, how many learn self-consistency; the rest velocities.

  Raises:
    ValueError: one draw cannot learn both.
  """
  if draws < 2:
    raise ValueError(f"draws={draws}: a shortcut head needs at least 2")
  return max(1, draws // _SHARE)


def sample_steps(
  key: Key[Array, ""], shape: tuple[int, ...]
) -> tuple[Float[Array, "*rows"], Int[Array, "*rows"]]:
  """Steps that have two halves: times at which they begin, and levels.

  Levels 0 .. FINEST - 1 are equally likely; t is a multiple of the size.
  """
  k_level, k_time = jax.random.split(key)
  level = jax.random.randint(k_level, shape, 0, FINEST)
  count = 2.0**level
  u = jax.random.uniform(k_time, shape)
  return jnp.floor(u * count) / count, level


def two_halves(
  velocity: Callable[[Array, Array, Array], Array],
  x: Float[Array, "*rows C"],
  t: Float[Array, "*rows"],
  level: Int[Array, "*rows"],
) -> Float[Array, "*rows C"]:
  """The mean velocity of two steps of half the size, without gradient.

  It is what one step of the size must have (arXiv 2410.12557 §3).

  Args:
    velocity: (x, t, level) -> mean velocity of that step.
    x: where the steps begin.
    t: when they begin.
    level: their size is 2 ** -level; below FINEST.
  """
  half = 2.0 ** -(level + 1)
  first = velocity(x, t, level + 1).astype(jnp.float32)
  middle = x + half[..., None] * first
  second = velocity(middle, t + half, level + 1).astype(jnp.float32)
  return jax.lax.stop_gradient((first + second) / 2)
