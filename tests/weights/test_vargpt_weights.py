"""VARGPT's files: LLaVA's tensors, VAR's, its tokenizer's, two projectors'."""

import json
import math

import jax
import numpy as np
import pytest

from tests.systems import vargpt_tiny
from tests.weights import (
  helpers,
  test_llava_weights,
  test_multiscale_vq_weights,
  test_var_weights,
)
from tests.weights.test_llama_weights import random
from unifluid_jax import systems
from unifluid_jax.core import presets
from unifluid_jax.core.parallel import path_str
from unifluid_jax.weights import (
  engine,
  llava,
  multiscale_vq,
  scale_decoder,
  vargpt,
)
from unifluid_jax.weights.rows import WeightsError

D, CLASSES = test_llava_weights.D, 9
VQ = test_multiscale_vq_weights.TINY
SCALES = presets.ScaleDecoderConfig(
  16, 2, 2, 20, VQ.codes, VQ.code_channels, (1, 2, 4), CLASSES
)
W = SCALES.width
PROJECTORS = {
  "image_gen_projector": (W, D), "image_gen_projector_out": (D, W),
}  # fmt: skip


def projectors(sizes):
  """Names and shapes; the norms are in the files, and never applied."""
  out = {}
  for name, (a, b) in sizes.items():
    out |= {f"{name}.mlp.0.weight": (a, a), f"{name}.mlp.0.bias": (a,)}
    out |= {f"{name}.mlp.2.weight": (b, a), f"{name}.mlp.2.bias": (b,)}
    out |= {f"{name}.ln_q.weight": (a,), f"{name}.ln_q.bias": (a,)}
  return out


def parts():
  """LLaVA's, VAR's and the tokenizer's tensors by their own names."""
  vq = test_multiscale_vq_weights
  return (
    test_llava_weights.tensors("released"),
    test_var_weights.random(SCALES) | test_var_weights.buffers(SCALES),
    vq.random(vq.theirs(VQ)) | {vq.STATISTIC: np.ones((10, 7), np.float32)},
  )


def tensors():
  """One file's."""
  base, scales, tokenizer = parts()
  return {
    **base,
    **{f"vargpt_gen.{name}": x for name, x in scales.items()},
    **{f"vae_local.{name}": x for name, x in tokenizer.items()},
    **random(projectors(PROJECTORS)),
  }


def view(at, theirs):
  tree = json.dumps(test_llava_weights.settings())
  (at / "config.json").write_text(tree)
  return vargpt.View(helpers.Tensors(theirs, str(at / "model.safetensors")))


@pytest.fixture(scope="module")
def read(tmp_path_factory):
  """Their tensors, the source, its recipe and what becomes of it."""
  theirs = tensors()
  source = view(tmp_path_factory.mktemp("vargpt"), theirs)
  recipe = vargpt.recipe(source)
  return theirs, source, recipe, helpers.in_memory(source, recipe)


def below(path, tree):
  """Leaves of one part by their paths inside it."""
  at = f"{path}/"
  return {k.removeprefix(at): x for k, x in tree.items() if k.startswith(at)}


def test_parts_are_read_as_if_alone(read):
  theirs, source, _, got = read
  base, scales, tokenizer = parts()
  alone = helpers.Tensors(base, source.path)
  want = helpers.in_memory(alone, llava.recipe(alone))
  alone = multiscale_vq.Separate(helpers.Tensors(tokenizer))
  want |= helpers.in_memory(alone, multiscale_vq.recipe(alone))
  alone = helpers.Tensors(scales)
  var = helpers.in_memory(alone, scale_decoder.recipe(alone))
  # The last two rows: the token's that begins an image, and the null row.
  var["decoder/classes/table"] = scales["class_emb.weight"][CLASSES - 1 :]
  want |= {f"visual_{path}": x for path, x in var.items()}
  for name, part in zip(PROJECTORS, ("in", "out"), strict=True):
    for number, layer in ((0, "in"), (2, "out")):
      at = f"{name}.mlp.{number}"
      to = f"{part}_projector/{layer}"
      want[f"{to}/kernel"] = theirs[f"{at}.weight"].T
      want[f"{to}/bias"] = theirs[f"{at}.bias"]
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], path)


def test_every_tensor_is_read_or_named(read):
  theirs, source, recipe, _ = read
  plan = engine.make_plan(source, recipe)
  dropped = {name: why for name, why in plan.dropped if "vision" not in name}
  table = f"vargpt_gen.class_emb.weight[:{CLASSES - 1}]"
  assert dropped[table] == "rows of tokens that begin no image"
  np.testing.assert_array_equal(
    source.read(table), theirs["vargpt_gen.class_emb.weight"][: CLASSES - 1]
  )
  assert set(dropped) == {
    table, "vae_local.quantize.ema_vocab_hit_SV", "vargpt_gen.lvl_1L",
    "vargpt_gen.attn_bias_for_masking",
    *(f"vargpt_gen.blocks.{i}.attn.zero_k_bias" for i in range(2)),
    *(f"{n}.ln_q.{x}" for n in PROJECTORS for x in ("weight", "bias")),
  }  # fmt: skip


def test_a_run_starts_from_it(read):
  """Its parts are those of the system, its tokenizer the codec's."""
  _, _, recipe, got = read
  vq = recipe.meta["vq"] | {"scales": SCALES.scales}  # a file names none
  settings = {
    f"model__{node}__{key}": value
    for node, values in (
      ("decoder", recipe.meta["decoder"]), ("vit", recipe.meta["vit"]),
      ("visual_decoder", recipe.meta["scale_decoder"]), ("vq", vq),
    )
    for key, value in values.items()
  }  # fmt: skip
  config = vargpt_tiny.tiny(
    model__encoder="clip", model__image_size=8, **settings
  )
  system = systems.build(config)
  shapes = jax.eval_shape(system.init, jax.random.key(0))
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  want = {path_str(path): leaf.shape for path, leaf in leaves}
  found = {path: x.shape for path, x in got.items() if path[:3] != "vq/"}
  assert found == want
  codec = jax.tree_util.tree_leaves_with_path(system.codec.shapes()["vq"])
  want = {path_str(path): leaf.shape for path, leaf in codec}
  assert {path: x.shape for path, x in below("vq", got).items()} == want


def test_the_released_7b(tmp_path):
  """By names and shapes: VAR-d30 and the classes of 32,002 tokens."""
  scales = presets.SCALE_DECODER["d30"]
  shapes = test_llava_weights.published_shapes()
  var = test_var_weights.theirs(scales)
  var["class_emb.weight"] = (32_004, scales.width)
  vq = test_multiscale_vq_weights
  shapes |= {f"vargpt_gen.{n}": x for n, x in var.items()}
  tokenizer = vq.theirs(presets.MULTISCALE_VQ["var_f16"])
  shapes |= {f"vae_local.{n}": x for n, x in tokenizer.items()}
  sizes = dict(zip(PROJECTORS, ((1920, 4096), (4096, 1920)), strict=True))
  shapes |= projectors(sizes)
  tree = json.dumps(test_llava_weights.PUBLISHED | {"model_type": "vargpt_lla"})
  (tmp_path / "config.json").write_text(tree)
  source = vargpt.View(helpers.Shapes(shapes, str(tmp_path / "x")))
  recipe = vargpt.recipe(source)
  assert "llama2_7b + l14_336" in recipe.found
  assert "VAR d30, its tokenizer var_f16" in recipe.found
  plan = engine.make_plan(source, recipe)
  left = {n for n, _ in plan.dropped if "vision" not in n and "ln_q" not in n}
  assert left == {"vargpt_gen.class_emb.weight[:32002]"}
  table = plan.leaves["visual_decoder/classes/table"]
  assert table.shape == (2, 1920)
  of_scales = [x for p, x in plan.leaves.items() if p.startswith("visual_dec")]
  count = sum(math.prod(x.shape) for x in of_scales)
  assert count == test_var_weights.PUBLISHED["d30"] - 999 * 1920


def test_lost_tensors_are_named(tmp_path):
  theirs = tensors()
  for name in ("vargpt_gen.head_nm.ada_lin.1.bias", "vae_local.quant_conv.bias",
               "image_gen_projector_out.mlp.2.bias"):  # fmt: skip
    del theirs[name]
  source = view(tmp_path, theirs)
  with pytest.raises(WeightsError) as error:
    engine.make_plan(source, vargpt.recipe(source))
  for name in theirs.keys() ^ tensors().keys():
    assert f"missing, expected from {name}" in str(error.value)


@pytest.mark.parametrize(
  "name, message",
  [
    ("vargpt_gen.class_emb.weight", "no VARGPT.*class_emb"),
    ("vae_local.quantize.quant_resi.qresi_ls.0.weight", "no multi-scale VQ"),
    ("multi_modal_projector.linear_1.weight", "holds no LLaVA"),
  ],
)
def test_other_files_are_refused(tmp_path, name, message):
  theirs = tensors()
  del theirs[name]
  with pytest.raises(WeightsError, match=message):
    vargpt.recipe(view(tmp_path, theirs))


def test_a_table_of_one_class_is_refused(tmp_path):
  theirs = tensors()
  theirs["vargpt_gen.class_emb.weight"] = np.zeros((1, W), np.float32)
  with pytest.raises(WeightsError, match="expected 2 rows or more, found 1"):
    vargpt.recipe(view(tmp_path, theirs))
