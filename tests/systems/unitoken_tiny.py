"""A UniToken of a few thousand parameters, and batches of it."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import unitoken_shapes
from tests.systems.conftest import right_aligned, suffixes
from unifluid_jax import systems
from unifluid_jax.core.types import PAD
from unifluid_jax.data.fields import Crops, Example, Picture

# Texts 0 .. 23, then the control tokens, one size and the codes.
SOI, EOI, SEP, TURN, LINE, SIZE, CODE = 24, 25, 26, 27, 28, 29, 30
BOS = 2
CODES = 16
PROMPT, PREFIX, SUFFIX = 6, 5, 4
PINPOINTS = ((8, 16), (16, 8), (16, 16), (24, 8))


def tiny_tree(**changes):
  """An 8 x 8 grid of codes of 32 pixels; views of 8 pixels, 2 x 2 features."""
  c = unitoken_shapes.get_config()
  c.batch = dict(t2i=8, i2t=8, text=0)
  m = c.model
  m.decoder.update(
    vocab=CODE + CODES, width=32, depth=2, mlp=48, heads=2, kv_heads=1,
    head_dim=16, tied=False,
  )  # fmt: skip
  m.vit.update(width=16, depth=1, mlp=32, heads=2, patch=3, image_size=8)
  m.vq.update(base=8, groups=4, stem=8, codes=CODES, code_channels=4, latent=8)
  m.update(
    code_offset=CODE, size_offset=SIZE - 1, text_rows=24, pinpoints=PINPOINTS
  )
  c.text.update(prompt=PROMPT, prefix=PREFIX, suffix=SUFFIX)
  c.text.special = dict(soi=SOI, eoi=EOI, sep=SEP, turn=TURN, line=LINE)
  c.loss.prompt_dropout = 0.0
  c.optim.name = "adamw"
  c.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return c


def tiny(**changes):
  return systems.resolve(tiny_tree(**changes))


def turned(rows):
  """Questions as they are fed: without BOS, the turn's end behind."""
  out = np.full_like(rows, PAD)
  out[:, :-1], out[:, -1] = rows[:, 1:], TURN
  out[out == BOS] = PAD
  return out


def prompts(rng, rows, length):
  """BOS, words, the turn's end; aligned to the right."""
  out = np.full((rows, length), PAD, np.int32)
  words = right_aligned(rng, rows, length - 1, length - 1)
  out[:, :-1], out[:, -1] = words, TURN
  return out


def answers(rng, rows, length):
  out = suffixes(rng, rows, length)
  return np.where(out == 1, TURN, out)


def crops(rng, rows):
  """Fields of images of different shapes."""
  field = Crops("seen", 8, 2, PINPOINTS)
  sizes = [(8, 8), (16, 8), (9, 30), (30, 9), (20, 19), (7, 9)]
  made = []
  for i in range(rows):
    w, h = sizes[i % len(sizes)]
    image = rng.integers(0, 256, (h, w, 3), np.uint8)
    made.append(field.rows(Example({}, {"seen": Picture((image,))}), None))
  return {f"seen.{k}": np.stack([m[k] for m in made]) for k in made[0]}


def examples(rows=8, seed=0, text=False):
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, CODES, (2, rows, 16), np.int32)
  batch = {
    "t2i": {"prompt": prompts(rng, rows, PROMPT), "image": codes[0]},
    "i2t": {
      **crops(rng, rows),
      "codes": codes[1],
      "prefix": turned(right_aligned(rng, rows, PREFIX, PREFIX - 1)),
      "suffix": answers(rng, rows, SUFFIX),
    },
  }
  if text:
    batch["text"] = {
      "prefix": prompts(rng, rows, PREFIX),
      "suffix": answers(rng, rows, SUFFIX),
    }
  return jax.tree.map(jnp.asarray, batch)
