"""A detector and a CLIP in Hugging Face's format, random and tiny.

Both need the extra `geneval`: tests that call them skip without it.
"""

import json

import pytest

from unifluid_jax.evals.published import geneval_detector

WHY = "PyTorch networks need the extra geneval"
_COW = geneval_detector.NAMES.index("cow")


def packages():
  """torch and transformers, or the test is skipped."""
  return (
    pytest.importorskip(name, reason=WHY) for name in ("torch", "transformers")
  )


def clip(path, seed=0):
  """Writes a CLIP that knows three words; returns its network."""
  torch, transformers = packages()
  torch.manual_seed(seed)
  small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2,
               num_attention_heads=2)  # fmt: skip
  words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "c</w>"]
  path.mkdir(parents=True, exist_ok=True)
  vocab = {w: i for i, w in enumerate(words)}
  (path / "vocab.json").write_text(json.dumps(vocab))
  (path / "merges.txt").write_text("#version: 0.2\n")
  config = transformers.CLIPConfig(
    text_config=small | dict(
      vocab_size=5, max_position_embeddings=6, eos_token_id=1, bos_token_id=0,
      pad_token_id=1),
    vision_config=small | dict(image_size=32, patch_size=8),
    projection_dim=12,
  )  # fmt: skip
  model = transformers.CLIPModel(config).eval()
  model.save_pretrained(path)
  return model


def mask2former(path, cows=False):
  """Writes a Mask2Former of 7 queries, all of them cows if wanted."""
  torch, transformers = packages()
  torch.manual_seed(0)
  config = transformers.Mask2FormerConfig(
    backbone_config=transformers.SwinConfig(
      image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
      window_size=4, out_features=["stage1", "stage2", "stage3", "stage4"]),
    feature_size=32, mask_feature_size=32, hidden_dim=32,
    encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2,
    num_attention_heads=2, dim_feedforward=16, num_queries=7, num_labels=80,
  )  # fmt: skip
  model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
  if cows:
    with torch.no_grad():
      model.class_predictor.bias[_COW] += 10.0
  model.save_pretrained(path)
  return model
