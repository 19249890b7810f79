"""Converting a file and running our modules on it, as users would."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from unifluid_jax.core import checkpoint
from unifluid_jax.core.presets import DecoderConfig, VitConfig
from unifluid_jax.models import decoder
from unifluid_jax.models.vit import Vit
from unifluid_jax.weights import engine, orbax_files, readers
from unifluid_jax.weights.rows import Source, nested

FIXTURES = Path(__file__).parent / "fixtures"
# What config.json of the fixtures tells: generation to DecoderConfig fields.
OURS = {
  1: {},
  2: {
    "query_scale": 5.0**-0.5, "attn_softcap": 2.0, "final_softcap": 1.5,
    "post_norms": True, "window": 3, "pattern": ("local", "global"),
  },
  3: {
    "query_scale": 5.0**-0.5, "post_norms": True, "qk_norm": True,
    "window": 3, "pattern": ("local", "local", "global"),
    "rope_base_global": 1e6, "rope_scale_global": 8.0,
  },
}  # fmt: skip


def convert(path, recipe_of, directory):
  """File → our checkpoint → float32 parameters, and the recipe's meta."""
  source = readers.open_source(str(path))
  recipe = recipe_of(source)
  plan = engine.make_plan(source, recipe)
  orbax_files.write(str(directory), plan.leaves, recipe.meta, recipe.files)
  return restore(directory, recipe.like), checkpoint.read_meta(
    str(directory), 0
  )


def restore(directory, like, dtype=jnp.float32):
  """Everything below "params"."""
  tree = nested(
    {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in like.items()}
  )
  return {
    part: checkpoint.restore_part(str(directory), 0, f"params/{part}", below)
    for part, below in tree.items()
  }


def in_memory(source, recipe):
  """The converted tree without any file."""
  plan = engine.make_plan(source, recipe)
  out = {}
  for path, leaf in plan.leaves.items():
    out[path] = np.zeros(leaf.shape, leaf.dtype)
    for start, block in leaf.blocks():
      out[path][start : start + len(block)] = block
  return out


def gemma_config(meta, **rest):
  """Our configuration of a converted decoder."""
  values = meta["decoder"] | rest
  values |= {k: tuple(v) for k, v in values.items() if k == "pattern"}
  return DecoderConfig(**values)


def run_gemma(config, params, tokens, positions=None, mask=None):
  """Hidden states and logits."""
  b, t = tokens.shape
  if positions is None:
    positions = np.broadcast_to(np.arange(t), (b, t))
  if mask is None:
    mask = np.broadcast_to(np.tril(np.ones((t, t), bool)), (b, t, t))
  net = decoder.Decoder(config, jnp.float32)
  variables = {"params": params}
  x = net.apply(variables, jnp.asarray(tokens), method="embed")
  hidden, _ = net.apply(variables, x, jnp.asarray(positions), jnp.asarray(mask))
  return hidden, decoder.logits(config, decoder.output_table(params), hidden)


def run_vit(meta, params, images):
  """Patch tokens of images [B, H, W, 3]."""
  net = Vit(VitConfig(**meta["vit"]), jnp.float32)
  return net.apply({"params": params}, jnp.asarray(images))


def run_paligemma(config, meta, params, images, tokens, prefix):
  """Logits of all positions, as our systems embed and mask."""
  seen = run_vit(meta, params["vit"], images)
  projector = params["projector"]
  seen = seen @ projector["kernel"] + projector["bias"]
  net = decoder.Decoder(config, jnp.float32)
  variables = {"params": params["decoder"]}
  text = net.apply(variables, jnp.asarray(tokens), method="embed")
  x = jnp.concatenate([seen, text], 1)
  n, known = x.shape[1], seen.shape[1] + prefix
  mask = np.tril(np.ones((n, n), bool))
  mask[:known, :known] = True
  hidden, _ = net.apply(
    variables,
    x,
    jnp.tile(jnp.arange(n), (2, 1)),
    jnp.tile(jnp.asarray(mask), (2, 1, 1)),
  )
  return decoder.logits(config, params["decoder"]["embedder"]["table"], hidden)


def relative(got, want):
  """Largest difference, relative to the largest number."""
  got, want = np.asarray(got), np.asarray(want)
  assert got.shape == want.shape
  return float(np.abs(got - want).max() / np.abs(want).max())


def absolute(got, want):
  """Largest difference."""
  got, want = np.asarray(got), np.asarray(want)
  assert got.shape == want.shape
  return float(np.abs(got - want).max())


def without(config, **changes):
  """The configuration with something switched off, to see that it binds."""
  return dataclasses.replace(config, **changes)


class Tensors(Source):
  """Arrays in memory as a source."""

  def __init__(self, tensors, path="memory"):
    self.path, self.tensors = path, dict(tensors)

  def names(self) -> list[str]:
    return list(self.tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    return self.tensors[name].shape

  def dtype(self, name: str) -> np.dtype:
    return self.tensors[name].dtype

  def read(self, name: str) -> np.ndarray:
    return self.tensors[name]


class Shapes(Tensors):
  """Names and shapes of bfloat16 tensors without their numbers."""

  def shape(self, name: str) -> tuple[int, ...]:
    return self.tensors[name]

  def dtype(self, name: str) -> np.dtype:
    return np.dtype(jnp.bfloat16)
