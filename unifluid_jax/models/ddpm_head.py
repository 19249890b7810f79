"""MAR's diffusion head: learned by its noise, drawn by ancestral sampling.

MAR (arXiv 2406.11838) models/diffloss.py.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from unifluid_jax.core import parallel
from unifluid_jax.core.types import Params
from unifluid_jax.models import diffusion_head
from unifluid_jax.models.diffusion_head import DiffusionHead
from unifluid_jax.ops import diffusion, sampling


def sample_tokens(
  head: DiffusionHead,
  params: Any,
  schedule: diffusion.Schedule,
  z: Float[Array, "B Z"],
  z_null: Float[Array, "B Z"] | None,
  keys: Key[Array, "B"],
  cfg: float | Float[Array, ""],
  temperature: float | Float[Array, ""],
  *,
  limit: float = math.inf,
  hoist_bytes: int = diffusion_head.HOIST_BYTES,
  z_none: Float[Array, "B Z"] | None = None,
  image_cfg: float | Float[Array, ""] = 1.0,
) -> Float[Array, "B C"]:
  """Draws one token for each row.

  Guidance acts on the predicted noise only; the variance is the conditional
  one, and all predictions see the same noisy token (MAR models/diffloss.py).

  Args:
    head: the module.
    params: its parameters, without a collection name.
    schedule: of the sampling steps.
    z: conditions.
    z_null: conditions of the empty prompt (of an edit, with its source); None
      is no guidance, at half the work.
    keys: one per row; a row depends on its own key only.
    cfg: guidance scale; 1 is no guidance.
    temperature: of the noise added at each step.
    limit: of predicted clean tokens, see `diffusion.ancestral_sample`.
    hoist_bytes: static; modulations of as many steps as fit in it are
      computed at once. It changes speed and memory, not the result.
    z_none: conditions of neither prompt nor source, for edits with a scale of
      their own towards the source; needs z_null.
    image_cfg: that scale; without z_none it is unused.
  """
  given = [c for c in (z, z_null, z_none) if c is not None]
  guided = sampling.Guided(given, cfg, image_cfg)
  rows = jnp.concatenate(given)

  def denoise(x, modulations):
    out = diffusion_head.step(head, params, guided.same(x), modulations)
    if len(given) == 1:
      return out
    eps, value = jnp.split(out, 2, axis=-1)
    return jnp.concatenate([guided.combine(eps), value[: len(x)]], axis=-1)

  def run_of_steps(x, part):
    modulations = diffusion_head.hoist(head, params, part.timesteps, rows)
    return diffusion.ancestral_sample(
      part, denoise, x, step_keys, temperature, modulations, limit
    ), None

  start_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  x = jax.vmap(lambda k: jax.random.normal(k, (head.channels,)))(start_keys)
  run = diffusion_head.hoisted_steps(
    head, len(schedule.index), rows.shape[0], hoist_bytes
  )
  parts = jax.tree.map(lambda a: jnp.reshape(a, (-1, run)), schedule)
  return jax.lax.scan(run_of_steps, x, parts, reverse=True)[0]


@dataclasses.dataclass(frozen=True)
class DdpmHead:
  """MAR's diffusion loss and sampler; see `token_head.TokenHead`.

  Attributes:
    net: predicts noise and variance.
  """

  net: DiffusionHead

  outputs: ClassVar[int] = 2
  fewest_draws: ClassVar[int] = 1
  solvers: ClassVar[tuple[str, ...]] = ("euler",)
  taught: ClassVar[bool] = False

  def inputs(self, condition: int) -> tuple[Array, ...]:
    """See `token_head.TokenHead`."""
    token = jnp.zeros((1, self.net.channels))
    return token, jnp.zeros(1, jnp.int32), jnp.zeros((1, condition))

  def losses(
    self,
    params: Params,
    z: Float[Array, "B N Z"],
    x0: Float[Array, "B N C"],
    key: Key[Array, ""],
    draws: int,
  ) -> dict[str, Float[Array, "n B N"]]:
    """Squared error of the noise, and the variational bound."""
    chain = diffusion.cosine_schedule()
    x0 = jnp.broadcast_to(x0, (draws, *x0.shape))
    k_t, k_noise = jax.random.split(key)
    t = diffusion.sample_steps(k_t, draws, x0.shape[1:-1])
    noise = jax.random.normal(k_noise, x0.shape, jnp.float32)
    x_t = diffusion.q_sample(chain, x0, t, noise)
    # Constrained explicitly: GSPMD would choose partial sums over fsdp.
    x_t = parallel.constrain(x_t, "_BTC")
    t = parallel.constrain(t, "_BT")
    out = self.net.apply({"params": params}, x_t, t, z)
    mse, vb = diffusion.loss_terms(chain, out, x0, x_t, t, noise)
    return {"mse": mse, "vb": vb}

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
    """Ancestral sampling, whatever the solver; see `sample_tokens`."""
    del solver
    z, z_null, z_none = (*guided.conditions, None, None)[:3]
    return sample_tokens(
      self.net, params, diffusion.respace(steps), z, z_null, keys,
      guided.scale, temperature,
      limit=limit, z_none=z_none, image_cfg=guided.image_scale,
    )  # fmt: skip

  @staticmethod
  def refusal(options: Any) -> str:
    """See `token_head.TokenHead`."""
    del options
    return ""
