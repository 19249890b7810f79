"""Three training steps of tiny systems: losses and norms, pinned.

  python -m tests.golden.trace

rewrites trace.json beside this file, after a change that is meant to change
training. `tests/test_golden.py` compares it: all of it and exactly where
jaxlib and CPU are those of the recording; elsewhere the first step, to
rounding.
"""

import dataclasses
import hashlib
import json
import os
import platform
from pathlib import Path

from tests import conftest  # before jax: sets its flags

import jax  # isort: skip
import jaxlib
import numpy as np
import optax
import PIL

from tests.systems import conftest as tiny_systems
from tests.systems import test_liquid, test_vae, test_vq, unitoken_tiny
from unifluid_jax import systems, train
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config, MeshConfig
from unifluid_jax.models.kl_vae import KlVae

assert conftest
FILE = Path(__file__).parent / "trace.json"
SYSTEMS = ("unifluid", "liquid", "unitoken", "vae", "vq")
OPTIMIZERS = ("adamw", "muon")
STEPS = 3
# The recorded rounding is these emitters'; tests/conftest.py has others.
COMPILER = {"xla_cpu_use_fusion_emitters": True}


def machine() -> dict[str, str]:
  """What rounding depends on: jaxlib; the CPU, its instructions and cores.

  And Pillow, which resizes the images that any-resolution views are cut from.
  """
  path = Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  told = ("model name", "cache size", "flags", "Features")
  kinds = sorted({line for line in lines if line.startswith(told)})
  said = f"{platform.machine()} {kinds} {os.cpu_count()}"
  digest = hashlib.sha256(said.encode()).hexdigest()[:16]
  return {
    "jaxlib": jaxlib.__version__, "pillow": PIL.__version__, "cpu": digest
  }  # fmt: skip


def configuration(system: str, optimizer: str) -> Config:
  """All that a step can do: annealed orders, moving average, clipping."""
  if system == "vae":
    weight = 0.5 if optimizer == "adamw" else 0.0  # once: it compiles slowly
    c = test_vae.make(adversarial=weight, adversarial_start=1)
  elif system == "vq":  # an averaged codebook once
    weight = 0.9 if optimizer == "adamw" else 0.0
    c = test_vq.make(average=weight, data_init=True, revive_every=2)
  elif system == "liquid":
    c = test_liquid.tiny(
      model__decoder__depth=1, loss__word_dropout=0.3,
      loss__prompt_dropout=0.2, loss__weighting="apart",
    )  # fmt: skip
  elif system == "unitoken":
    c = unitoken_tiny.tiny(
      model__decoder__depth=1, loss__word_dropout=0.3,
      loss__prompt_dropout=0.2, loss__text_weight=3.0,
    )  # fmt: skip
  else:
    c = tiny_systems.tiny(
      model__decoder__depth=1, loss__word_dropout=0.3,
      loss__random_until=0, loss__raster_from=4,
    )  # fmt: skip
  optim = dataclasses.replace(
    c.optim, name=optimizer, lr=3e-3, adam_lr=2e-3, warmup=2, ema=0.9,
    weight_decay=0.1, clip=1.0, schedule="constant",
  )  # fmt: skip
  return dataclasses.replace(c, optim=optim, mesh=MeshConfig(1, 1, 1))


def trace(system: str, optimizer: str) -> dict[str, list[float]]:
  """Metrics of each step, and norms of what is left after it."""
  c = configuration(system, optimizer)
  model = systems.build(c)
  job = train.make_job(c, model, jax.devices()[:1])
  frozen = _frozen(system, model)
  values: dict[str, list[float]] = {}
  with jax.set_mesh(job.mesh):
    params = _filled(job.shapes.params)
    for name in {"usage", "averages"} & set(params):  # counts of codes
      params[name]["count"] = np.abs(params[name]["count"])
    ema = jax.tree.map(np.copy, params)
    moments = jax.jit(job.optimizer.init)(params)
    state = train.TrainState(np.int32(0), params, moments, ema)
    state = jax.device_put(state, job.shardings)
    batch = parallel.to_global(_batch(system, 0), job.mesh)
    lowered = job.step.lower(state, frozen, batch)
    train_step = lowered.compile(compiler_options=COMPILER)
    for step in range(STEPS):
      batch = parallel.to_global(_batch(system, step), job.mesh)
      state, metrics = train_step(state, frozen, batch)
      found = jax.device_get(metrics)
      found["norm"] = optax.tree.norm(jax.device_get(state.params))
      found["ema_norm"] = optax.tree.norm(jax.device_get(state.ema))
      for name, value in found.items():
        values.setdefault(name, []).append(float(value))
  return values


def _filled(shapes):
  filled = test_vae.filled(shapes)
  return jax.tree.map(np.asarray, filled)


def _frozen(system, model):
  if system == "liquid":
    return test_liquid.CODEC
  if system == "unitoken":
    return _filled(systems.frozen_shapes(model))
  if system != "unifluid":
    return {}
  vae = jax.eval_shape(
    KlVae(model.config.model.vae).init,
    jax.random.key(0),
    np.zeros((1, 32, 32, 3), np.float32),
  )["params"]
  return {
    "codec": {
      "vae": _filled(vae),
      "latent_mean": np.float32(0.1),
      "latent_scale": np.float32(1.3),
    }
  }


def _batch(system, step):
  if system == "unifluid":
    return jax.tree.map(np.asarray, tiny_systems.examples(seed=step, text=True))
  if system == "liquid":
    return jax.tree.map(np.asarray, test_liquid.examples(seed=step))
  if system == "unitoken":
    return jax.tree.map(
      np.asarray, unitoken_tiny.examples(seed=step, text=True)
    )
  rng = np.random.default_rng(step)
  images = rng.uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)
  return {"image": {"image": images}}


if __name__ == "__main__":
  recorded: dict = {"machine": machine()}
  for name in SYSTEMS:
    for kind in OPTIMIZERS:
      recorded[f"{name} {kind}"] = trace(name, kind)
  FILE.write_text(json.dumps(recorded, indent=1) + "\n")
