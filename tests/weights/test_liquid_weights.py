"""Liquid's released decoder: Gemma 1 whose vocabulary grew by image tokens."""

import math

import numpy as np

from tests.weights import helpers, test_gemma_weights
from unifluid_jax.core.presets import GEMMA
from unifluid_jax.weights import engine, gemma, orbax_files, readers, to_hf


def test_liquids_longer_vocabulary():
  """Liquid 7B: Gemma 1 7B with 8,192 image tokens behind its 256,000 rows."""
  source = helpers.Shapes(
    test_gemma_weights.hf_shapes(GEMMA["gemma1_7b"], 264_192)
  )
  recipe = gemma.recipe(source)
  assert recipe.meta["preset"] == "gemma1_7b"
  assert recipe.meta["decoder"]["vocab"] == 264_192
  plan = engine.make_plan(source, recipe)
  assert plan.leaves["decoder/embedder/table"].shape == (264_192, 3072)
  assert not plan.cut
  total = sum(math.prod(leaf.shape) for leaf in plan.leaves.values())
  assert total == 8_562_846_720


def test_a_longer_vocabulary_there_and_back(tmp_path):
  """With the copy of the table that files of older programs hold."""
  theirs = test_gemma_weights.tensors(1)
  table = "model.embed_tokens.weight"
  more = np.random.default_rng(0).normal(size=(12, theirs[table].shape[1]))
  theirs[table] = np.concatenate([theirs[table], more.astype(np.float32)])
  path = str(helpers.FIXTURES / "gemma1/x")
  source = helpers.Tensors(theirs | {"lm_head.weight": theirs[table]}, path)
  plan = engine.make_plan(source, gemma.recipe(source))
  assert plan.dropped == [("lm_head.weight", "tied")]
  orbax_files.write(str(tmp_path / "ours"), plan.leaves, {}, {})
  ours = to_hf.Params(readers.open_source(str(tmp_path / "ours")))
  np.testing.assert_array_equal(
    ours.read("decoder/embedder/table"), theirs[table]
  )
  to_hf.write(str(tmp_path / "back"), "model", ours, gemma.hf_recipe(ours))
  back = readers.open_source(str(tmp_path / "back"))
  assert sorted(back.names()) == sorted(theirs)
  np.testing.assert_array_equal(back.read(table), theirs[table])
