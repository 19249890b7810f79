r"""Times UniFluid beside a PyTorch peer of the same shapes and mathematics.

  pip install -e . torch==2.13.0
  python -m benchmarks.peers.compare --config=configs/shapes.py \
      --config.model.head.kind=ddpm [--what=generate --config.sampling.steps=50]

Both start from the same random parameters and take the same random batch, on
CPUs, in one process, in turns: a round times so many calls of ours, of the
peer's eager form and of its compiled one. Ratios are of the medians of rounds:
above 1 ours is faster. AdamW takes the place of the configuration's optimizer,
and orders are random, in both. Our images are decoded, the peer has no
autoencoder: a line says what that takes.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

try:
  import torch
except ModuleNotFoundError as error:
  raise SystemExit(
    "error: the peer needs torch: pip install torch==2.13.0"
  ) from error

from benchmarks import random_arrays
from benchmarks.peers import torch_unifluid as peer
from unifluid_jax import systems, train
from unifluid_jax.aot import lower
from unifluid_jax.core import cli
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import UNK
from unifluid_jax.data import tasks
from unifluid_jax.ops import diffusion

_CONFIG = cli.define_config()
_WHAT = flags.DEFINE_enum("what", "train", ["train", "generate"], "")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Of each.", 1)
_CALLS = flags.DEFINE_integer("calls", 10, "Timed calls of a round.", 1)
_IMAGES = flags.DEFINE_integer("images", 96, "A call of generate.", 1)
_COMPILED = flags.DEFINE_bool("compiled", True, "Times torch.compile too.")

Call = Callable[[], Any]


def main(_: list[str]) -> None:
  """Prints milliseconds of each and ratios."""
  if jax.default_backend() != "cpu":
    raise ValueError("this compares on CPUs: set JAX_PLATFORMS=cpu")
  tree = _CONFIG.value.copy_and_resolve_references()
  tree.optim.name, tree.optim.adam_lr = "adamw", tree.optim.lr
  tree.loss.random_until = tree.loss.raster_from = tree.steps
  tree.sampling.order, tree.batch.edit, tree.batch.text = "raster", 0, 0
  config = systems.resolve(tree)
  peer.check(config)
  print(
    f"{jax.devices()[0].device_kind}, {torch.get_num_threads()} threads, jax "
    f"{jax.__version__}, torch {torch.__version__}"
  )
  make = _train if _WHAT.value == "train" else _generate
  calls = make(config)
  times: dict[str, list[float]] = {name: [] for name in calls}
  for call in calls.values():
    call()  # compiles
  for _ in range(_ROUNDS.value):
    for name, call in calls.items():
      begin = time.perf_counter()
      for _ in range(_CALLS.value):
        call()
      took = 1000 * (time.perf_counter() - begin) / _CALLS.value
      times[name].append(took)
  middle = {name: float(np.median(t)) for name, t in times.items()}
  for name, took in middle.items():
    low, high = min(times[name]), max(times[name])
    print(
      f"{name:24} {took:8.2f} ms ({low:.2f} to {high:.2f})  "
      f"x{took / middle['ours']:.2f}"
    )


def _train(config: Config) -> dict[str, Call]:
  """A training step: gradients, clipping, AdamW, moving average."""
  system = systems.build(config)
  job = train.make_job(config, system, jax.devices()[:1])
  with jax.set_mesh(job.mesh):
    state = jax.jit(
      lambda: train.init_state(system, job.optimizer, config),
      out_shardings=job.shardings,
    )()
  vocab = config.model.decoder.vocab
  frozen = random_arrays.like(systems.frozen_shapes(system), vocab)
  batch = random_arrays.like(lower.batch_shapes(config, system), vocab)
  params = jax.tree.map(lambda x: x.requires_grad_(), _tensors(state.params))
  theirs = _tensors(batch), _tensors(frozen["codec"])

  def ours():
    nonlocal state
    with jax.set_mesh(job.mesh):
      state, metrics = job.step(state, frozen, batch)
    jax.block_until_ready((state, metrics))

  calls = {"ours": ours, "PyTorch, eager": _step(config, params, theirs, False)}
  if _COMPILED.value:
    fresh = jax.tree.map(lambda x: x.detach().clone().requires_grad_(), params)
    calls["PyTorch, compiled"] = _step(config, fresh, theirs, True)
  return calls


def _step(config: Config, params: Any, given: Any, compiled: bool) -> Call:
  batch, frozen = given
  c, chain = config.optim, _chain(diffusion.cosine_schedule())
  leaves = jax.tree.leaves(params)
  average = [x.detach().clone() for x in leaves]
  optimizer = torch.optim.AdamW(
    leaves, c.lr, (c.b1, c.b2), weight_decay=c.weight_decay
  )
  loss = torch.compile(peer.loss) if compiled else peer.loss
  generator = torch.Generator().manual_seed(0)

  def step():
    draws = peer.draw(config, batch, generator)
    optimizer.zero_grad()
    loss(config, chain, params, frozen, batch, draws).backward()
    torch.nn.utils.clip_grad_norm_(leaves, c.clip or np.inf)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, leaves, 1 - c.ema)

  return step


def _generate(config: Config) -> dict[str, Call]:
  """Images of random prompts; ours are decoded."""
  system, rows = systems.build(config), _IMAGES.value
  params = jax.jit(system.init)(jax.random.key(0))
  vocab = config.model.decoder.vocab
  frozen = random_arrays.like(systems.frozen_shapes(system), vocab)
  prompt = jnp.full((rows, config.text.prompt), UNK, jnp.int32)
  keys = jax.random.split(jax.random.key(1), rows)
  options = dataclasses.replace(config.sampling, passes=0, last_steps=0)
  draw = jax.jit(
    lambda p, f, k: system.generate(
      p, f, {tasks.T2I: {"prompt": prompt}}, k, options
    )
  )
  decode = jax.jit(system.codec.decode)
  m = config.model
  tokens = jnp.zeros((rows, m.image_tokens, m.token_channels))
  theirs, ids = _tensors(params), _tensors(prompt).long()
  chain = _chain(diffusion.respace(options.steps))

  def noise(i, step):
    del i, step
    return torch.randn(rows, m.token_channels)

  def peers(parts):
    with torch.no_grad():
      peer.generate(config, chain, theirs, ids, noise, parts)

  calls = {
    "ours": lambda: draw(params, frozen, keys).block_until_ready(),
    "ours, decoding alone": lambda: decode(
      frozen["codec"], tokens
    ).block_until_ready(),
    "PyTorch, eager": lambda: peers({}),
  }
  if _COMPILED.value:
    parts = {
      "decoder": torch.compile(peer.decoder, dynamic=True),
      "denoise": torch.compile(peer.denoise),
    }
    calls["PyTorch, compiled"] = lambda: peers(parts)
  return calls


def _tensors(tree: Any) -> Any:
  """On the host; half precision, as moments are kept, becomes float32."""

  def one(x):
    found = torch.tensor(np.asarray(x))
    return found.float() if found.is_floating_point() else found

  return jax.tree.map(one, tree)


def _chain(schedule: diffusion.Schedule) -> dict[str, Any]:
  return {k: torch.tensor(v) for k, v in schedule._asdict().items()}


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  cli.run(main)
