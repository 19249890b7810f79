"""Few-step heads: losses and samplers against plain numpy, and what they learn.

The network's reference, in float64, is that of `test_diffusion_head`.
"""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.test_diffusion_head import keys, normal, reference
from unifluid_jax.core import optim
from unifluid_jax.core.presets import HeadConfig
from unifluid_jax.models import energy_head, flow_head, token_head
from unifluid_jax.models.ddpm_head import sample_tokens
from unifluid_jax.models.diffusion_head import ROWS, DiffusionHead
from unifluid_jax.ops import diffusion, flow
from unifluid_jax.ops.sampling import Guided

C, Z, W, DEPTH = 3, 5, 8, 1
KEY = jax.random.key(7)
KINDS = {
  kind: token_head.build(HeadConfig(W, DEPTH, kind), C, jnp.float32)
  for kind in token_head.KINDS
}
FEW = ("flow", "shortcut", "energy")


@functools.cache
def shapes(kind):
  head = KINDS[kind]
  return jax.eval_shape(lambda: head.net.init(KEY, *head.inputs(Z))["params"])


def random_params(kind, scale=0.3):
  """Nothing zero: every part of the net shows in its output."""
  leaves, tree = jax.tree.flatten(shapes(kind))
  noise = [scale * normal(100 + i, x.shape) for i, x in enumerate(leaves)]
  return jax.tree.unflatten(tree, noise)


def test_parameters_of_each_kind():
  """What it is told has features, and a variance is predicted by one alone."""
  names = {k: set(shapes(k)) for k in KINDS}
  rest = {"input", "cond", "final", "block_0"}
  assert names["ddpm"] == names["flow"] == rest | {"time"}
  assert names["distilled"] == names["flow"]
  assert names["shortcut"] == rest | {"time", "step"}
  assert names["energy"] == rest

  def ends(kind):
    p = shapes(kind)
    return [
      p[name]["kernel"].shape for name in ("input", "cond")
    ] + [p["final"]["out"]["kernel"].shape]  # fmt: skip

  assert ends("ddpm") == [(C, W), (Z, W), (W, 2 * C)]
  for kind in ("flow", "shortcut", "distilled"):
    assert ends(kind) == [(C, W), (Z, W), (W, C)]
  assert ends("energy") == [(Z, W), (energy_head.NOISE, W), (W, C)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_name_every_parameter(kind):
  """Those that have Muon's axes are the inner products'."""
  found = optim.muon_or_adam({"head": ROWS}, {"head": shapes(kind)})["head"]
  kinds = {k: found[k]["kernel"] for k in found if "kernel" in found[k]}
  assert kinds == {"input": "adam", "cond": "muon"}
  for name in {"time", "step"} & set(found):
    assert found[name]["in"]["kernel"] == found[name]["out"]["kernel"] == "muon"


# --------------------------------------------------------------------- losses


def losses(kind, params, z, x0, draws):
  run = jax.jit(lambda p: KINDS[kind].losses(p, z, x0, KEY, draws))
  return {name: np.asarray(term) for name, term in run(params).items()}


def rows_of(params, x, t, z, level=None):
  """`reference` with leading axes, z repeated for each draw."""
  lead = np.broadcast_shapes(x.shape[:-1], z.shape[:-1])
  x, z = (np.broadcast_to(a, (*lead, a.shape[-1])) for a in (x, z))
  flat = [
    None if a is None else np.asarray(a).reshape(-1, *a.shape[len(lead) :])
    for a in (x, t, z, level)
  ]
  return reference(params, *flat).reshape(*lead, -1)


def test_flow_loss_by_hand():
  params, z, x0 = (
    random_params("flow"),
    normal(3, (2, 4, Z)),
    normal(4, (2, 4, C)),
  )
  k_t, k_noise = jax.random.split(KEY)
  t = np.asarray(flow.sample_times(k_t, 3, (2, 4)))
  noise = np.asarray(jax.random.normal(k_noise, (3, 2, 4, C)))
  x_t = (1 - t[..., None]) * noise + t[..., None] * np.asarray(x0)
  out = rows_of(params, x_t, 1000 * t, z)
  want = np.square(out - (np.asarray(x0) - noise)).mean(-1)
  got = losses("flow", params, z, x0, 3)
  assert list(got) == ["velocity"]
  np.testing.assert_allclose(got["velocity"], want, rtol=2e-4)


def test_shortcut_loss_by_hand():
  """Draw 0 of 4 learns two halves, the others the velocity as level 7."""
  params = random_params("shortcut")
  z, x0 = normal(3, (2, 4, Z)), normal(4, (2, 4, C))
  k_noise, k_t, k_step = jax.random.split(KEY, 3)
  noise = np.asarray(jax.random.normal(k_noise, (4, 2, 4, C)))
  begin, level = map(np.asarray, flow.sample_steps(k_step, (1, 2, 4)))
  late = np.asarray(flow.sample_times(k_t, 3, (2, 4)))
  t = np.concatenate([begin, late])[..., None]
  x_t = (1 - t) * noise + t * np.asarray(x0)
  got = losses("shortcut", params, z, x0, 4)
  assert {k: v.shape for k, v in got.items()} == {
    "velocity": (3, 2, 4), "consistency": (1, 2, 4)
  }  # fmt: skip

  out = rows_of(params, x_t[1:], 1000 * late, z, np.full(late.shape, 7))
  want = np.square(out - (np.asarray(x0) - noise[1:])).mean(-1)
  np.testing.assert_allclose(got["velocity"], want, rtol=5e-4)

  half = 0.5 ** (level + 1)
  first = rows_of(params, x_t[:1], 1000 * begin, z, level + 1)
  middle = x_t[:1] + half[..., None] * first
  second = rows_of(params, middle, 1000 * (begin + half), z, level + 1)
  out = rows_of(params, x_t[:1], 1000 * begin, z, level)
  want = np.square(out - (first + second) / 2).mean(-1)
  np.testing.assert_allclose(got["consistency"], want, rtol=5e-3, atol=1e-5)


def test_self_consistency_teaches_the_whole_step_alone():
  """Gradients are those of a fixed target; z has none by way of it either."""
  params = random_params("shortcut")
  z, x0 = normal(3, (1, 2, Z)), normal(4, (1, 2, C))
  head = KINDS["shortcut"]

  def whole(p, z):
    return head.losses(p, z, x0, KEY, 4)["consistency"].sum()

  k_noise, _, k_step = jax.random.split(KEY, 3)
  begin, level = flow.sample_steps(k_step, (1, 1, 2))
  noise = jax.random.normal(k_noise, (4, 1, 2, C))[:1]
  x_t = flow.interpolate(x0[None], begin, noise)
  target = flow.two_halves(
    lambda x, t, level: flow_head.velocity(head.net, params, x, t, z, level),
    x_t, begin, level,
  )  # fmt: skip

  def fixed(p, z):
    out = flow_head.velocity(head.net, p, x_t, begin, z, level)
    return flow.squared_error(out, target).sum()

  got, want = (jax.jit(jax.grad(f, (0, 1)))(params, z) for f in (whole, fixed))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    got, want,
  )  # fmt: skip
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got))


def test_energy_loss_by_hand():
  params = random_params("energy")
  z, x0 = normal(3, (2, 4, Z)), normal(4, (2, 4, C))
  shape = (3, 2, 4, energy_head.NOISE)
  noise = np.asarray(jax.random.uniform(KEY, shape, minval=-0.5, maxval=0.5))
  drawn = rows_of(params, np.asarray(z), None, noise)
  got = losses("energy", params, z, x0, 3)
  apart = np.linalg.norm(drawn - np.asarray(x0), axis=-1)
  np.testing.assert_allclose(got["distance"], apart, rtol=1e-4)
  pairs = np.linalg.norm(drawn[:, None] - drawn[None], axis=-1)
  np.testing.assert_allclose(got["spread"], -pairs.sum(1) / 4, rtol=1e-3)


# ------------------------------------------------------------------- sampling


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8))
def sampled(kind, params, conditions, k, scales, temperature, steps, solver,
            limit):  # fmt: skip
  return KINDS[kind].sample(
    params, Guided(conditions, *scales), k, steps, temperature,
    limit=limit, solver=solver,
  )  # fmt: skip


def draw(kind, params, conditions, k, scales=(1.0, 1.0), temperature=1.0,
         steps=4, solver="euler", limit=np.inf):  # fmt: skip
  steps = 1 if kind == "energy" else steps
  return np.asarray(
    sampled(
      kind, params, conditions, k, scales, temperature, steps, solver, limit
    )
  )


CONDITIONS = [normal(s, (3, Z)) for s in (4, 5, 6)]
GUIDED = [  # scales, and the weights of the three predictions
  (1, (1.0, 1.0), (1, 0, 0)),
  (2, (2.5, 1.0), (2.5, -1.5, 0)),
  (3, (2.5, 1.5), (2.5, 1.5 - 2.5, 1 - 1.5)),
]


@pytest.mark.parametrize("count, scales, weights", GUIDED)
@pytest.mark.parametrize("kind", ["flow", "shortcut"])
def test_guided_velocities_against_reference(kind, count, scales, weights):
  params, k = random_params(kind), keys(3)
  level = None if kind == "flow" else np.full(3, 2)
  noise = np.asarray([jax.random.normal(key, (C,)) for key in k])
  x = 0.9 * noise
  for i in range(4):
    v = sum(
      w * reference(params, x, np.full(3, 250 * i), z, level)
      for w, z in zip(weights, CONDITIONS, strict=True)
    )
    x = x + v / 4
  got = draw(kind, params, CONDITIONS[:count], k, scales, 0.9)
  np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-3)


def test_heun_against_reference():
  params, k, z = random_params("flow"), keys(3), CONDITIONS[0]

  def v(x, step):
    return reference(params, x, np.full(3, 1000 * step / 3), z)

  x = np.asarray([jax.random.normal(key, (C,)) for key in k])
  for i in range(3):
    first = v(x, i)
    second = v(x + first / 3, i + 1) if i < 2 else first
    x = x + (first + second) / 6
  got = draw("flow", params, [z], k, steps=3, solver="heun")
  np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count, scales, weights", GUIDED)
def test_guided_draws_of_an_energy_head(count, scales, weights):
  """All conditions draw from the same noise, and what they draw is mixed."""
  params, k = random_params("energy"), keys(3)
  noise = np.asarray([
    jax.random.uniform(key, (energy_head.NOISE,), minval=-0.5, maxval=0.5)
    for key in k
  ])  # fmt: skip
  want = sum(
    w * reference(params, z, None, 0.7 * noise)
    for w, z in zip(weights, CONDITIONS, strict=True)
  )
  got = draw("energy", params, CONDITIONS[:count], k, scales, 0.7)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", FEW)
def test_without_temperature_a_token_is_a_function_of_its_condition(kind):
  params, z = random_params(kind), CONDITIONS[:1]
  cold, other = (draw(kind, params, z, keys(3, s), temperature=0.0)
                 for s in (0, 1))  # fmt: skip
  np.testing.assert_allclose(cold, other, rtol=1e-6)
  warm = draw(kind, params, z, keys(3))
  assert np.abs(warm - draw(kind, params, z, keys(3, 1))).max() > 0.05
  assert np.abs(warm - cold).max() > 0.02


@pytest.mark.parametrize("kind", FEW)
def test_a_limit_bounds_guided_tokens(kind):
  params, z = random_params(kind), CONDITIONS[:2]

  def drawn(limit):
    return draw(kind, params, z, keys(3), (3.0, 1.0), limit=limit)

  free = drawn(np.inf)
  limit = float(np.abs(free).max()) / 2
  np.testing.assert_allclose(np.abs(drawn(limit)).max(), limit, rtol=1e-6)


@pytest.mark.parametrize("kind", FEW)
def test_rows_ignore_their_neighbours(kind):
  params, k = random_params(kind), keys(3)
  whole = draw(kind, params, CONDITIONS[:2], k, (2.0, 1.0))
  for i in range(3):
    alone = [z[i : i + 1] for z in CONDITIONS[:2]]
    got = draw(kind, params, alone, k[i : i + 1], (2.0, 1.0))
    np.testing.assert_allclose(got[0], whole[i], rtol=1e-3, atol=1e-3)
  alike = [z[:1].repeat(3, 0) for z in CONDITIONS[:2]]
  same = draw(kind, params, alike, k, (2.0, 1.0))
  assert not np.allclose(same[0], same[1])


def test_hoisting_changes_nothing():
  """Seven evaluations of 4 Heun steps, at once and one by one."""
  params, table = random_params("flow"), flow.evaluations(4, "heun")
  guided = Guided(CONDITIONS[:1], 1.0)

  @functools.partial(jax.jit, static_argnums=0)
  def run(limit):
    return flow_head.solve(
      KINDS["flow"].net, params, guided, keys(3), table, 1.0,
      limit=np.inf, hoist_bytes=limit,
    )  # fmt: skip

  np.testing.assert_allclose(run(0), run(2**20), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------- learning

MODES = np.asarray([[1.5, -1.0], [-1.5, 1.0]], np.float32)


@functools.cache
def trained(kind):
  """A head that has seen tokens near two points for 300 steps."""
  head = token_head.build(HeadConfig(32, 1, kind), 2, jnp.float32)
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 300))
  z, draws = jnp.ones((64, 1, 4)), 4

  def step(carry, key):
    params, state = carry
    k_mode, k_x, k_loss = jax.random.split(key, 3)
    x0 = jnp.asarray(MODES)[jax.random.randint(k_mode, (64, 1), 0, 2)]
    x0 = x0 + 0.1 * jax.random.normal(k_x, x0.shape)

    def objective(params):
      terms = head.losses(params, z, x0, k_loss, draws)
      return sum(term.sum() for term in terms.values()) / (64 * draws)

    change, state = optimizer.update(jax.grad(objective)(params), state)
    return (optax.apply_updates(params, change), state), None

  @jax.jit
  def run(key):
    params = head.net.init(key, *head.inputs(4))["params"]
    carry = params, optimizer.init(params)
    return jax.lax.scan(step, carry, jax.random.split(key, 300))[0][0]

  return head, run(jax.random.key(0))


def near_modes(kind, steps, solver="euler"):
  """Of 500 draws, the shares near each of the two points."""
  head, params = trained(kind)
  guided = Guided([jnp.ones((500, 4))], 1.0)
  run = jax.jit(
    lambda p, k: head.sample(p, guided, k, steps, 1.0, limit=4.0, solver=solver)
  )
  x = np.asarray(run(params, keys(500, 9)))
  return (np.linalg.norm(x[:, None] - MODES, axis=-1) < 0.5).mean(0)


@pytest.mark.parametrize(
  "kind, steps, solver",
  [("ddpm", 25, "euler"), ("flow", 8, "heun"), ("shortcut", 4, "euler"),
   ("energy", 1, "euler")],
)  # fmt: skip
def test_both_modes_are_learned(kind, steps, solver):
  shares = near_modes(kind, steps, solver)
  assert shares.min() > 0.35 and shares.sum() > 0.85, shares


def test_one_step_of_a_shortcut_is_no_velocity():
  """The velocity at noise leads to the mean of both modes, a shortcut not."""
  assert near_modes("flow", 1).sum() < 0.05
  assert near_modes("shortcut", 1).sum() > 0.5


# -------------------------------------------------------------------- options


def options(**changes):
  return types.SimpleNamespace(
    **{"steps": 1, "last_steps": 0, "solver": "euler"} | changes
  )


@pytest.mark.parametrize(
  "kind, changes, words",
  [
    ("energy", {"steps": 20}, "steps=20: .* use steps=1"),
    ("energy", {"last_steps": 1}, "use last_steps=0"),
    ("shortcut", {"steps": 20}, "steps=20: .* a power of two up to 128"),
    ("shortcut", {"steps": 256}, "a power of two up to 128"),
    ("shortcut", {"steps": 4, "last_steps": 2}, "use last_steps=0"),
    ("shortcut", {"solver": "heun"}, "'shortcut': use solver='euler'"),
    ("ddpm", {"solver": "heun"}, "'ddpm': use solver='euler'"),
    ("energy", {"solver": "heun"}, "'energy': use solver='euler'"),
  ],
)
def test_options_that_a_kind_cannot_draw_with(kind, changes, words):
  assert re.search(words, token_head.refusal(kind, options(**changes)))


@pytest.mark.parametrize(
  "kind, changes",
  [
    ("energy", {}), ("ddpm", {"steps": 100, "last_steps": 5}),
    ("flow", {"steps": 7, "last_steps": 2, "solver": "heun"}),
    *(("shortcut", {"steps": 2**n}) for n in range(8)),
  ],
)  # fmt: skip
def test_options_that_a_kind_can_draw_with(kind, changes):
  assert token_head.refusal(kind, options(**changes)) == ""


def test_mars_head_is_what_it_was():
  """`build` changes neither its network nor its sampler."""
  plain = DiffusionHead(HeadConfig(W, DEPTH), C)
  assert KINDS["ddpm"].net == plain
  params, k = random_params("ddpm"), keys(3)

  @jax.jit
  def run(params, conditions, k, scales, temperature):
    z, z_null, z_none = conditions
    return sample_tokens(
      plain, params, diffusion.respace(4), z, z_null, k, scales[0],
      temperature, z_none=z_none, image_cfg=scales[1], limit=3.0,
    )  # fmt: skip

  want = run(params, CONDITIONS, k, (2.0, 1.5), 0.9)
  got = draw("ddpm", params, CONDITIONS, k, (2.0, 1.5), 0.9, limit=3.0)
  np.testing.assert_array_equal(got, want)
