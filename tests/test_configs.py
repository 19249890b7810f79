"""Every experiment is imported, resolved and shape-evaluated at full size."""

import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unifluid_jax import config, parallel, systems, train, types
from unifluid_jax.config import MeshConfig

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "base")
ARGS = {"vae": ("", "shapes", "folder"), "debug": ("", "vae", "raster")}
ABLATIONS = ("", "t2i_only", "i2t_only", "raster", "lambda=0.1")


def load(name, arg=""):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg), module.__doc__


CASES = [(n, a) for n in NAMES for a in ARGS.get(n, ABLATIONS)]


@pytest.mark.parametrize("name, arg", CASES)
def test_config_resolves(name, arg):
  tree, doc = load(name, arg)
  resolved = config.resolve(tree)
  assert resolved.name.startswith(name) and doc
  assert "python -m" in doc or "make" in doc or name.startswith("unified_")


def batch_of(c):
  """Shapes of one global batch."""

  def spec(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)

  m, t = c.model, c.text
  side, n = (m.vit.image_size,) * 2 + (3,), c.batch

  def pixels(rows):
    return spec((rows, m.image_size, m.image_size, 3), jnp.float32)

  t2i = i2t = None
  if n.get("t2i"):
    prompt = spec((n["t2i"], t.prompt), jnp.int32)
    t2i = types.TextToImage(prompt, image=pixels(n["t2i"]))
  if n.get("i2t"):
    i2t = types.ImageToText(
      spec((n["i2t"], *side), jnp.float32),
      spec((n["i2t"], t.prefix), jnp.int32),
      spec((n["i2t"], t.suffix), jnp.int32),
    )
  return types.Batch(t2i, i2t)


def frozen_of(c):
  from unifluid_jax.models.kl_vae import KlVae

  size = c.model.image_size
  params = jax.eval_shape(
    lambda: KlVae(c.model.vae).init(
      jax.random.key(0), jnp.zeros((1, size, size, 3))
    )
  )["params"]
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  return {"vae": params, "latent_mean": scalar, "latent_scale": scalar}


@pytest.mark.parametrize(
  "name", ["unified_2b", "unified_2b_gemma1", "unified_700m", "vae", "folder"]
)
def test_full_size_loss_has_a_shape(name):
  c = config.resolve(load(name)[0])
  system = systems.build(c)
  params = jax.eval_shape(system.init, jax.random.key(0))
  frozen = {} if c.system == "vae" else frozen_of(c)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  loss, metrics = jax.eval_shape(
    system.loss, params, frozen, batch_of(c), key, step
  )
  assert loss.shape == () and all(x.shape == () for x in metrics.values())


def count(tree):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  "name, decoder, tolerance",
  [
    ("unified_2b", 2_614_341_888, 0),
    ("unified_2b_gemma1", 2_506_172_416, 0),
    ("unified_700m", 698e6 + 256_000 * 1152, 1e6),
  ],
)
def test_full_size_parameters(name, decoder, tolerance):
  """The decoder as published; SigLIP without its pooling head; MAR-B's head
  on 2304 conditions 37.3M."""
  c = config.resolve(load(name)[0])
  params = jax.eval_shape(systems.build(c).init, jax.random.key(0))
  assert abs(count(params["decoder"]) - decoder) <= tolerance
  assert count(params["vit"]) == 412_442_352
  if name == "unified_2b":
    assert abs(count(params["head"]) - 37.3e6) < 0.05e6


def test_2b_state_is_sharded_everywhere():
  """On data 2 x fsdp 4: what one device holds is a quarter, not a copy."""
  tree, _ = load("unified_2b")
  tree.mesh = dict(data=2, fsdp=4, tensor=1)
  c = config.resolve(tree)
  job = train.make_job(c, systems.build(c))
  whole = sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(job.shapes)
  )
  held = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(job.shapes)
  )
  assert held < whole / 4 * 1.02
  # Layout of the largest arrays, pinned.
  decoder = job.shapes.params["decoder"]
  specs = {
    "table": decoder["embedder"]["table"].sharding.spec,
    "q": decoder["layers"]["attn"]["q"].sharding.spec,
    "down": decoder["layers"]["mlp"]["down"].sharding.spec,
  }
  assert {k: tuple(v) for k, v in specs.items()} == {
    "table": ("fsdp", "tensor"),
    "q": (None, "fsdp", "tensor", None),
    "down": (None, "tensor", "fsdp"),
  }


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 2, 4)])
@pytest.mark.parametrize("name", ["unified_2b", "unified_2b_gemma1", "shapes"])
def test_every_parameter_has_one_rule_on_many_meshes(name, sizes):
  c = config.resolve(load(name)[0])
  params = jax.eval_shape(systems.build(c).init, jax.random.key(0))
  mesh = parallel.make_mesh(MeshConfig(*sizes))
  places = parallel.shardings(params, params, mesh)
  large = [
    np.prod(p.shard_shape(x.shape)) * mesh.shape["fsdp"] <= np.prod(x.shape)
    for x, p in zip(jax.tree.leaves(params), jax.tree.leaves(places),
                    strict=True)
    if np.prod(x.shape) > parallel.SMALL
  ]  # fmt: skip
  assert all(large)


def test_unknown_argument_is_refused():
  with pytest.raises(ValueError, match="unknown config argument 'lamda=1'"):
    load("shapes", "lamda=1")


def test_full_size_autoencoder_is_sharded():
  """Attention layers of a VAE are matrices, its convolutions are not."""
  c = config.resolve(load("vae")[0])
  job = train.make_job(c, systems.build(c))
  specs = {
    parallel.path_str(path): s.spec
    for path, s in jax.tree_util.tree_leaves_with_path(job.shardings.params)
  }
  q = specs["vae/decoder/mid/attention/q/kernel"]
  assert q == jax.P(None, "fsdp")
  assert specs["vae/encoder/conv_in/kernel"] == jax.P(None, None, None, "fsdp")
