"""VAR's transformers under their own names.

Names and shapes are written out from the originals' modules;
tests/parity/test_var_parity.py runs such files in PyTorch.
"""

import dataclasses
import math

import numpy as np
import pytest

from tests.weights import helpers
from unifluid_jax.core import presets
from unifluid_jax.weights import (
  convert,
  engine,
  readers,
  safetensors_file,
  scale_decoder,
)
from unifluid_jax.weights.rows import WeightsError

PUBLISHED = {
  "d16": 310_283_520,
  "d20": 600_917_136,
  "d24": 1_033_399_360,
  "d30": 2_010_020_356,
  "d36": 2_353_893_904,
}
TINY = presets.ScaleDecoderConfig(24, 2, 3, 40, 11, 5, (1, 2, 4), 6)
SHARED = dataclasses.replace(TINY, shared_adaln=True)


def theirs(c):
  """Names and shapes of PyTorch's parameters."""
  w = c.width
  out = {
    "pos_start": (1, 1, w), "pos_1LC": (1, c.tokens, w),
    "lvl_embed.weight": (len(c.scales), w),
    "class_emb.weight": (c.classes + 1, w),
    "word_embed.weight": (w, c.code_channels), "word_embed.bias": (w,),
    "head_nm.ada_lin.1.weight": (2 * w, w), "head_nm.ada_lin.1.bias": (2 * w,),
    "head.weight": (c.codes, w), "head.bias": (c.codes,),
  }  # fmt: skip
  if c.shared_adaln:
    out |= {"shared_ada_lin.1.weight": (6 * w, w),
            "shared_ada_lin.1.bias": (6 * w,)}  # fmt: skip
  for i in range(c.depth):
    layer = {
      "attn.mat_qkv.weight": (3 * w, w), "attn.q_bias": (w,),
      "attn.v_bias": (w,), "attn.scale_mul_1H11": (1, c.heads, 1, 1),
      "attn.proj.weight": (w, w), "attn.proj.bias": (w,),
      "ffn.fc1.weight": (c.mlp, w), "ffn.fc1.bias": (c.mlp,),
      "ffn.fc2.weight": (w, c.mlp), "ffn.fc2.bias": (w,),
    }  # fmt: skip
    if c.shared_adaln:
      layer["ada_gss"] = (1, 1, 6, w)
    else:
      layer |= {"ada_lin.1.weight": (6 * w, w), "ada_lin.1.bias": (6 * w,)}
    out |= {f"blocks.{i}.{name}": shape for name, shape in layer.items()}
  return out


def buffers(c):
  """What a state dict holds besides."""
  levels = np.repeat(np.arange(len(c.scales)), np.square(c.scales))
  mask = np.where(levels[:, None] >= levels, 0, -np.inf)
  zeros = {f"blocks.{i}.attn.zero_k_bias": np.zeros(c.width, np.float32)
           for i in range(c.depth)}  # fmt: skip
  return {"lvl_1L": levels[None].astype(np.int64),
          "attn_bias_for_masking": mask[None, None].astype(np.float32),
          **zeros}  # fmt: skip


def random(c, seed=0):
  rng = np.random.default_rng(seed)
  return {k: rng.normal(size=v).astype(np.float32)
          for k, v in theirs(c).items()}  # fmt: skip


def write(path, tensors):
  layout = {name: (x.shape, x.dtype) for name, x in tensors.items()}
  safetensors_file.write(str(path), layout, tensors.items())
  return str(path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
  """By shapes alone: the scales are then those of as many slots."""
  c = presets.SCALE_DECODER[name]
  shapes = theirs(c)
  assert sum(map(math.prod, shapes.values())) == PUBLISHED[name]
  source = helpers.Shapes(shapes)
  recipe = scale_decoder.recipe(source)
  assert recipe.meta["preset"] == name and name in recipe.found
  plan = engine.make_plan(source, recipe)
  ours = sum(math.prod(leaf.shape) for leaf in plan.leaves.values())
  assert ours == PUBLISHED[name]


@pytest.mark.parametrize("config", [TINY, SHARED], ids=["own", "shared"])
def test_there_and_back_bit_by_bit(tmp_path, config):
  tensors = random(config)
  path = write(tmp_path / "x.safetensors", tensors | buffers(config))
  to, said = str(tmp_path / "ours"), []
  convert.to_checkpoint(f"var:{path}", to, said.append)
  assert "lvl_1L" in "\n".join(said) and "zeros: keys" in "\n".join(said)
  assert scale_decoder._saved_config(to) == config
  convert.to_hugging_face(f"var:{to}", str(tmp_path / "back"), said.append)
  back = readers.open_source(str(tmp_path / "back"))
  assert set(back.names()) == set(tensors)
  for name, x in tensors.items():
    np.testing.assert_array_equal(back.read(name), x, err_msg=name)


def test_what_is_no_whole_transformer_is_refused(tmp_path):
  tensors = random(TINY)
  path = write(tmp_path / "x.safetensors", tensors)
  with pytest.raises(WeightsError, match="21 slots in 3 scales.*lvl_1L"):
    convert.to_checkpoint(f"var:{path}", str(tmp_path / "a"), print)
  del tensors["blocks.1.ffn.fc2.bias"]
  path = write(tmp_path / "y.safetensors", tensors | buffers(TINY))
  with pytest.raises(WeightsError, match=r"blocks\.1\.ffn\.fc2\.bias: missing"):
    convert.to_checkpoint(f"var:{path}", str(tmp_path / "b"), print)
  path = write(tmp_path / "z.safetensors", {"x": np.zeros(3, np.float32)})
  with pytest.raises(WeightsError, match="no VAR transformer"):
    convert.to_checkpoint(f"var:{path}", str(tmp_path / "c"), print)
