"""Grids and stitched features against transformers' LLaVA-NeXT."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from unifluid_jax.data import any_resolution

# UniToken's, (width, height); views of 384 pixels, features of 14.
PINPOINTS = ((384, 768), (768, 384), (768, 768), (384, 1152), (1152, 384))
SIZES = np.random.default_rng(0).integers(60, 2000, (200, 2)).tolist()
SIZES += [(512, 512), (768, 384), (384, 768), (1200, 400), (640, 480)]


def test_the_best_resolution():
  """They name the height first, and break ties by their order, as we do."""
  swapped = [(h, w) for w, h in PINPOINTS]
  for w, h in SIZES:
    height, width = select_best_resolution((h, w), swapped)
    assert any_resolution.best((w, h), PINPOINTS) == (width, height), (w, h)


def test_the_order_of_features():
  config = SimpleNamespace(
    vision_config=SimpleNamespace(image_size=384, patch_size=14),
    image_grid_pinpoints=[(h, w) for w, h in PINPOINTS],
  )
  model, n, line = SimpleNamespace(config=config), 729, 5 * 729
  for w, h in SIZES[::4] + SIZES[-5:]:
    columns, rows = (x // 384 for x in any_resolution.best((w, h), PINPOINTS))
    features = torch.arange((1 + rows * columns) * n).reshape(-1, n, 1)
    (want,), _ = LlavaNextModel.pack_image_features(
      model, [features], [(h, w)], "full", torch.tensor([line])
    )
    got = any_resolution.sequence((w, h), 384, 27, PINPOINTS)
    np.testing.assert_array_equal(got, want[:, 0].numpy(), err_msg=f"{w, h}")
