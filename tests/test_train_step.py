"""One step of a toy system: parts of a batch, draws, the average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.jaxprs import operations
from tests.test_train import Toy, go, loader, make, same
from unifluid_jax import systems, train
from unifluid_jax.core import parallel
from unifluid_jax.core.parameter_rows import Row


def test_accumulated_parts_add_up(tmp_path):
  """Without the toy's noise, parts and whole give one gradient."""

  def first_step(accumulate):
    job = make(tmp_path, Toy(noise=0.0), mesh=(2, 4, 1), accumulate=accumulate,
               optim__name="adamw", batch__t2i=32, batch__i2t=32)  # fmt: skip
    state = train.init_state(job.system, job.optimizer, job.config)
    batch = jax.tree.map(
      lambda x: np.concatenate([x, x[::-1]]), next(loader(0))
    )
    with jax.set_mesh(job.mesh):
      return job.step(state, systems.load_frozen(job.system), batch)

  (_, ma), (_, mb) = first_step(1), first_step(4)
  np.testing.assert_allclose(ma["loss"], mb["loss"], rtol=1e-6)
  np.testing.assert_allclose(ma["grad_norm"], mb["grad_norm"], rtol=1e-5)


def test_slices_change_no_number(tmp_path):
  """Nor are parameters or moments split over them."""

  def first_step(**mesh):
    job = make(tmp_path, optim__name="adamw", accumulate=2, **mesh)
    state = train.init_state(job.system, job.optimizer, job.config)
    with jax.set_mesh(job.mesh):
      done = job.step(state, systems.load_frozen(job.system), next(loader(0)))
    return job, done

  _, one = first_step(mesh=(2, 4, 1))
  job, two = first_step(mesh=(1, 4, 1), mesh__slices=2)
  assert job.mesh.shape["slices"] == 2
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  specs = [x.sharding.spec for x in jax.tree.leaves(two[0])]
  axes = {axis for spec in specs for axis in spec}
  assert axes <= {None, "fsdp", "tensor"} and "fsdp" in axes


def test_micro_batches_stay_on_their_devices():
  """Each takes the next rows of every device, none of another's."""
  mesh = jax.make_mesh((2, 2, 2), parallel.AXES)
  with jax.set_mesh(mesh):
    parts = parallel.micro_batches({"x": np.arange(16)}, 2)["x"]
  want = [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
  np.testing.assert_array_equal(parts, want)


def first_steps(tmp_path, **changes):
  """A job of one device, its state, and its step on one batch."""
  job = make(tmp_path, devices=jax.devices()[:1], **changes)
  batch = next(loader(0))

  def step(state):
    with jax.set_mesh(job.mesh):
      copied = jax.tree.map(jnp.copy, state)  # the step donates it
      return job.step(copied, systems.load_frozen(job.system), batch)

  return train.init_state(job.system, job.optimizer, job.config), step


def test_draws_differ_from_step_to_step(tmp_path):
  """Of the same parameters and batch, by the step and by the run's seed."""
  state, step = first_steps(tmp_path)
  losses = [step(state._replace(step=jnp.int32(n)))[1]["loss"] for n in (0, 1)]
  assert losses[0] == step(state)[1]["loss"] != losses[1]


def test_draws_differ_from_part_to_part(tmp_path):
  class Draws(Toy):
    def loss(self, params, frozen, batch, counts, key, step):
      loss, *_ = super().loss(params, frozen, batch, counts, key, step)
      draw = jax.random.uniform(key)
      return loss, {"mean": draw / 2, "square": draw**2 / 2}, {}

  job = make(tmp_path, Draws(), devices=jax.devices()[:1], accumulate=2)
  state = train.init_state(job.system, job.optimizer, job.config)
  with jax.set_mesh(job.mesh):
    _, metrics = job.step(
      state, systems.load_frozen(job.system), next(loader(0))
    )
  assert abs(metrics["square"] - metrics["mean"] ** 2) > 1e-3


def test_average_is_of_the_new_parameters_and_warms_up(tmp_path):
  """min(.9, (1 + t) / (10 + t)) at steps t of 0 and 1000."""
  state, step = first_steps(tmp_path)
  for t, decay in ((0, 0.1), (1000, 0.9)):
    old = state._replace(step=jnp.int32(t))
    new, _ = step(old)
    assert new.step == t + 1
    for e, p, q in zip(
      *map(jax.tree.leaves, (new.ema, new.params, old.params)), strict=True
    ):
      assert np.abs(p - q).max() > 5e-3
      np.testing.assert_allclose(e, decay * q + (1 - decay) * p, atol=1e-6)


class Quantized(Toy):
  """The toy, a discriminator of its outputs and a codebook of their means."""

  parts = Toy.parts | {
    "discriminator": (Row("kernel", (None, None)),),
    "codebook": (Row("rows", (None, None)), Row("uses", (None,))),
  }
  held = ("codebook",)

  def __init__(self):
    super().__init__(noise=0.0)

  def init(self, key):
    rows = jax.random.normal(key, (6, 4))
    return super().init(key) | {
      "discriminator": {"kernel": jnp.ones((4, 1))},
      "codebook": {"rows": rows, "uses": jnp.zeros(6)},
    }

  def loss(self, params, frozen, batch, counts, key, step):
    loss, metrics, _ = super().loss(params, frozen, batch, counts, key, step)
    p, rows = params["projector"], params["codebook"]["rows"]
    batch = batch["toy"]
    out = batch["x"] @ p["kernel"] + p["bias"]
    ids = ((out[:, None] - rows) ** 2).sum(-1).argmin(-1)
    chosen = jax.nn.one_hot(ids, len(rows))
    seen = {"uses": chosen.sum(0), "sums": chosen.T @ out}
    logits = out @ params["discriminator"]["kernel"]
    more = (logits.sum() + ((out - rows[ids]) ** 2).sum()) / counts["values"]
    return loss + more, metrics, seen

  def revise(self, params, seen, key, step):
    """Means of what was nearest; rows without a use start anew."""
    uses = seen["uses"]
    new = jax.random.normal(key, params["codebook"]["rows"].shape) + step
    means = seen["sums"] / jnp.maximum(uses, 1)[:, None]
    rows = jnp.where(uses[:, None] > 0, means, new)
    uses = uses + params["codebook"]["uses"]
    return params | {"codebook": {"rows": rows, "uses": uses}}


OWN = {"discriminator": dict(name="adamw", lr=3e-3, b1=0.5, start=2)}


def quantized(tmp_path, **changes):
  return make(
    tmp_path, Quantized(), devices=jax.devices()[:1], optim__name="adamw",
    optim__weight_decay=0.0, optim__parts=OWN, **changes,
  )  # fmt: skip


def three_steps(tmp_path, accumulate):
  """States of four moments, and metrics of the steps between them."""
  job, batches = quantized(tmp_path, accumulate=accumulate), loader(0)
  with jax.set_mesh(job.mesh):
    state = train.restore_or_init(job, str(tmp_path), {})[0].state
    states, found = [jax.device_get(state)], []
    for _ in range(3):
      frozen = systems.load_frozen(job.system)
      state, metrics = job.step(state, frozen, next(batches))
      states.append(jax.device_get(state))
      found.append(jax.device_get(metrics))
  return states, found


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  return three_steps(tmp_path_factory.mktemp("three"), 1)


def test_what_is_held_is_replaced_and_not_averaged(three):
  states, _ = three
  for i, batch in zip(range(3), loader(0), strict=False):
    old, new = states[i].params, states[i + 1].params
    out = (
      batch["toy"]["x"] @ old["projector"]["kernel"] + old["projector"]["bias"]
    )
    rows = old["codebook"]["rows"]
    ids = np.argmin(((out[:, None] - rows) ** 2).sum(-1), axis=-1)
    for row in set(ids):
      got, want = new["codebook"]["rows"][row], out[ids == row].mean(0)
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert new["codebook"]["uses"].sum() == 16 * (i + 1)
    ema = states[i + 1].ema
    same(ema["codebook"], new["codebook"])
    mean, bias = ema["projector"]["bias"], new["projector"]["bias"]
    assert not np.array_equal(mean, bias)
  assert (6, 4) not in {x.shape for x in jax.tree.leaves(states[0].opt_state)}


def test_what_is_held_has_no_say_in_the_norm(three):
  """The loss has a gradient there, which nobody asks for."""
  states, metrics = three
  system, batch = Quantized(), next(loader(0))

  @jax.jit
  def gradients(params):
    counts, key = system.counts(batch), jax.random.key(0)
    frozen = systems.load_frozen(system)
    grad = jax.grad(lambda p: system.loss(p, frozen, batch, counts, key, 0)[0])
    return dict(grad(params))

  grads = gradients(states[0].params)
  assert np.abs(grads.pop("codebook")["rows"]).max() > 0
  norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(grads)))
  np.testing.assert_allclose(metrics[0]["grad_norm"], norm, rtol=1e-5)


def test_a_part_starts_late_with_an_optimizer_of_its_own(three):
  """Adam's first step is as long as the rate, whatever came before."""
  states, _ = three
  for i, rate in enumerate((0, 0, 3e-3)):
    old, new = states[i].params, states[i + 1].params
    moved = {k: np.abs(new[k]["kernel"] - old[k]["kernel"]) for k in
             ("discriminator", "projector")}  # fmt: skip
    np.testing.assert_allclose(moved["discriminator"], rate, atol=1e-6)
    assert moved["projector"].max() > 5e-3


def test_what_parts_of_a_batch_see_adds_up(three, tmp_path):
  parts, _ = three_steps(tmp_path, 2)
  for a, b in zip(
    jax.tree.leaves(three[0]), jax.tree.leaves(parts), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_codebook_and_a_late_start_resume_bitwise(three, tmp_path):
  go(quantized(tmp_path, steps=1), tmp_path / "a")
  resumed = go(quantized(tmp_path, steps=3), tmp_path / "a")
  same(jax.device_get(resumed), three[0][3])


def test_constants_cost_no_backward_pass(tmp_path):
  """Of x a b: two products, then one for b; a's would take two more."""

  class Deep(Toy):
    def init(self, key):
      return super().init(key) | {
        "decoder": {"embedder": {"table": jnp.eye(8)}}
      }

    def loss(self, params, frozen, batch, counts, key, step):
      toy = batch["toy"]
      x = toy["x"] @ params["decoder"]["embedder"]["table"]
      batch = {"toy": {**toy, "x": x}}
      return super().loss(params, frozen, batch, counts, key, step)

  def products(**rates):
    job = make(tmp_path, Deep(), devices=jax.devices()[:1], optim__name="adamw",
               **rates)  # fmt: skip
    with jax.set_mesh(job.mesh):
      program = jax.make_jaxpr(job.step)(
        job.shapes, {"shift": {"by": 1.0}}, next(loader(0))
      )
    names = [line.primitive.name for line in operations(program.jaxpr)]
    return names.count("dot_general")

  assert products() == 5
  assert products(optim__rates__decoder=0.0) == 3
