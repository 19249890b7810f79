"""A VARGPT of a few thousand parameters, and batches of it."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import vargpt_shapes
from tests.systems.conftest import right_aligned, suffixes
from unifluid_jax import systems
from unifluid_jax.core import parallel
from unifluid_jax.core.types import PAD
from unifluid_jax.data import fields
from unifluid_jax.data.records import Turn

BOS, EOS, UNK, NEWLINE, BOI, EOI = 2, 1, 3, 4, 24, 25
SCALES, CODES, N, SEEN = (1, 2, 3), 13, 14, 4  # SEEN: features of an image
PROMPT, PREFIX, SUFFIX, TURNS = 7, 5, 4, 50


def tiny_tree(**changes):
  c = vargpt_shapes.get_config("joint")
  c.batch = dict(t2i=8, i2t=8, text=8, dialogue=8)
  for entry in c.data.train.values():
    entry.moments = ""
  m = c.model
  m.decoder.update(
    vocab=26, width=32, depth=2, mlp=48, heads=2, kv_heads=1, head_dim=16
  )
  m.vit.update(width=16, depth=1, mlp=32, heads=2, patch=8, image_size=16)
  m.visual_decoder.update(
    width=24, depth=2, heads=2, mlp=32, scales=SCALES, codes=CODES,
    code_channels=4,
  )  # fmt: skip
  m.vq.update(
    base=8,
    multipliers=(1,),
    groups=4,
    latent=8,
    stem=8,
    codes=CODES,
    code_channels=4,
    scales=SCALES,
  )
  m.image_size, m.scan = 24, True
  c.text.update(prompt=PROMPT, prefix=PREFIX, suffix=SUFFIX, dialogue=TURNS)
  c.text.special = dict(boi=BOI, eoi=EOI, newline=NEWLINE)
  c.loss.update(prompt_dropout=0.0, word_dropout=0.0, image_weight=0.5)
  c.sampling.cfg = 0.0
  c.optim.name = "adamw"
  c.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return c


def tiny(**changes):
  return systems.resolve(tiny_tree(**changes))


# Of random values: so that slots, and not constants, decide about codes.
_FACTORS = (
  ("bias", 0.1), ("temperature", 0.1), ("head/kernel", 3.0),
  ("position", 5.0), ("in/kernel", 2.0), ("out/kernel", 2.0),
)  # fmt: skip


def filled(shapes, seed=0):
  """Random values, none at its initial one."""
  rng = np.random.default_rng(seed)

  def values(path, x):
    name = parallel.path_str(path)
    size = [factor for end, factor in _FACTORS if name.endswith(end)]
    scale = 0.3 * (size[0] if size else 1.0)
    return jnp.float32(scale * rng.normal(size=x.shape))

  return jax.tree_util.tree_map_with_path(values, shapes)


class Words:
  """A tokenizer whose words are numbers; as data/text.Tokenizer."""

  special = dict(bos=BOS, eos=EOS, unk=UNK, newline=NEWLINE, boi=BOI, eoi=EOI)

  def encode(self, text):
    return [int(word) for word in text.split()]

  def fit(self, ids, room):
    return ids[:room]


def turns(i):
  """Dialogues: a text, or whether an image is learned; what is learned."""
  return [
    [("7 8", False), (None, True), ("9", True)],
    [(None, False), ("7", False), ("8 9", True)],
    [(None, False), ("7 8", False), ("9", True), (None, True)],
    [("7", False), ("8", True)],
  ][i % 4]


def dialogue_rows(system, chosen, prompt=False, cut=0, seed=0):
  """The arrays of dialogues; images given are noise, codes random."""
  rng = np.random.default_rng(seed)
  field = system.inputs["dialogue"]["row"]
  field = field.as_prompt() if prompt else field
  made = []
  for i in chosen:
    said = [
      Turn(text or "",
           rng.integers(0, 256, (16, 16, 3), np.uint8) if text is None
           else None, learned)
      for text, learned in turns(i)
    ]  # fmt: skip
    said = tuple(said[: len(said) - cut])
    example = fields.Example({}, {}, Words(), turns=said)
    made.append(fields.arrays({"row": field}, example))
  arrays = {name: np.stack([m[name] for m in made]) for name in made[0]}
  pixels = arrays.pop("row.codes.pixels")
  codes = rng.integers(0, CODES, (*pixels.shape[:2], N))
  return arrays | {"row.codes": np.int32(codes)}


def examples(system, rows=8, seed=0):
  """Rows as the fields make them, lengths all different."""
  rng = np.random.default_rng(seed)
  prompt = np.full((rows, PROMPT), PAD, np.int32)
  words = right_aligned(rng, rows, PROMPT - 2, PROMPT - 2)
  prompt[:, :-2], prompt[:, -2:] = words, (NEWLINE, BOI)
  about = right_aligned(rng, rows, PREFIX, PREFIX)
  about[about == BOS] = NEWLINE
  batch = {
    "t2i": {"prompt": prompt,
            "image": rng.integers(0, CODES, (rows, N), np.int32)},
    "i2t": {"seen": rng.uniform(-1, 1, (rows, 16, 16, 3)).astype(np.float32),
            "prefix": about, "suffix": suffixes(rng, rows, SUFFIX)},
    "text": {"prefix": right_aligned(rng, rows, PREFIX, 3),
             "suffix": suffixes(rng, rows, SUFFIX)},
  }  # fmt: skip
  if "dialogue" in system.inputs:
    batch["dialogue"] = dialogue_rows(system, range(rows), seed=seed)
  return jax.tree.map(jnp.asarray, batch)
