"""Inputs of the PyTorch networks; with torch, tiny ones against their own."""

import importlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.evals import tiny_torch
from unifluid_jax.core import shards
from unifluid_jax.evals.published import (
  clip_score,
  drawn_images,
  torch_networks,
)


def picture(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
  "size, inner, padded",
  [
    ((256, 256), (800, 800), (800, 800)),
    ((200, 300), (800, 1200), (800, 1216)),
    ((100, 300), (444, 1333), (448, 1344)),  # the longer side is the limit
  ],
)
def test_detector_input(size, inner, padded):
  pixels, got = torch_networks.prepared(np.full((*size, 3), 200, np.uint8))
  assert got == inner and pixels.shape == (3, *padded)
  want = (200 - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]
  for channel, value in zip(pixels, want, strict=True):
    np.testing.assert_allclose(
      channel[: inner[0], : inner[1]], value, rtol=1e-5
    )
    assert not channel[inner[0] :].any() and not channel[:, inner[1] :].any()


def test_clip_input_is_the_centre_of_the_shorter_side():
  image = picture(9, 30)
  got = torch_networks.clip_pixels(image, 6)
  want = Image.fromarray(image).resize((20, 6), Image.Resampling.BICUBIC)
  want = np.asarray(want, np.float64)[:, 7:13] / 255
  mean = [0.48145466, 0.4578275, 0.40821073]
  std = [0.26862954, 0.26130258, 0.27577711]
  want = (want - mean) / std
  assert got.shape == (3, 6, 6) and got.dtype == np.float32
  np.testing.assert_allclose(got, want.transpose(2, 0, 1), atol=1e-5)
  tall = torch_networks.clip_pixels(image.transpose(1, 0, 2), 6)
  np.testing.assert_allclose(tall, got.transpose(0, 2, 1), atol=0.05)


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
  def fail(name):
    raise ImportError(name)

  monkeypatch.setattr(importlib, "import_module", fail)
  for network in (torch_networks.Mask2Former, torch_networks.HfClip):
    with pytest.raises(
      torch_networks.MissingExtra,
      match=r"needs torch: pip install 'unifluid_jax\[geneval\]'",
    ):
      network(str(tmp_path))


def test_a_directory_without_a_model_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no config\.json in .*local"):
    torch_networks.check_directory(str(tmp_path))


def test_cosines_by_hand():
  images, texts = (
    [[3.0, 4.0], [1.0, 0.0], [2.0, 2.0]],
    [[6, 8], [-2, 0], [0, 1]],
  )
  got = clip_score.cosines(images, np.array(texts))
  np.testing.assert_allclose(got, [1, -1, np.sqrt(0.5)])
  assert clip_score.summary(got) == pytest.approx({
    "clipscore_2.5_max_cos_0": 2.5 * (1 + np.sqrt(0.5)) / 3,
    "clip_100_cos": 100 * np.sqrt(0.5) / 3,
  })  # fmt: skip


class FakeClip:
  """Images and texts lie on the axis of the number they hold."""

  name = "fake CLIP"

  def images(self, images):
    return np.eye(100)[[int(x[0, 0, 0]) for x in images]]

  def texts(self, texts):
    return np.eye(100)[[int(t.split()[-1]) for t in texts]]


def test_drawn_images_are_matched_with_their_own_prompts(tmp_path, monkeypatch):
  images = {}
  for i in range(70):  # more than a batch; every tenth prompt is another's
    pixels = np.full((2, 2, 3), i, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{i:05d}.png")
    images[f"{i:05d}.png"] = [f"number {i if i % 10 else i + 1}", i]
  manifest = tmp_path / drawn_images.MANIFEST
  manifest.write_text(json.dumps({"by": {}, "images": images}))
  said = []
  result = clip_score.score(str(tmp_path), FakeClip(), said.append)
  assert result["scores"] == pytest.approx(
    {"clipscore_2.5_max_cos_0": 2.25, "clip_100_cos": 90.0}
  )
  assert result["images"] == 70 and "clip_100_cos 90.0000" in said[-1]
  # Two processes, one after the other; the second hears of both.
  sent = []

  def gathered(words):
    sent.append(np.array(words))
    return np.stack([*sent, *[np.zeros_like(words)] * (2 - len(sent))])

  with monkeypatch.context() as m:
    m.setattr(clip_score, "_BATCH", 16)
    m.setattr(jax, "process_count", lambda: 2)
    m.setattr(shards, "wait", lambda name: None)
    m.setattr(clip_score.multihost_utils, "process_allgather", gathered)
    for index, own in ((0, 38), (1, 70)):  # 16 + 16 + 6, then all
      m.setattr(jax, "process_index", lambda index=index: index)
      both = clip_score.score(str(tmp_path), FakeClip(), said.append)
      assert both["images"] == own
  assert both == result
  (tmp_path / "00042.png").unlink()
  with pytest.raises(ValueError, match=r"1 of 70 .* not drawn.* 00042\.png"):
    clip_score.score(str(tmp_path), FakeClip(), said.append)


def test_images_of_others_are_matched_with_prompts_in_a_file(tmp_path):
  for i in (1, 2):
    pixels = np.full((2, 2, 3), i, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
  file = tmp_path / "prompts.jsonl"
  lines = [{"image": "2.png", "text": "2"}, {"image": "1.png", "text": "7"}]
  file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
  bare = tmp_path / "bare.jsonl"  # JSON leaves other ends of lines as they are
  bare.write_text('{"image": "2.png", "text": "a\u2028b\x85"}\n', "utf-8")
  assert clip_score._read_prompts(str(bare)) == {"2.png": "a\u2028b\x85"}
  folder, said = str(tmp_path), []
  result = clip_score.score(folder, FakeClip(), said.append, str(file))
  assert result["scores"]["clip_100_cos"] == pytest.approx(50.0)
  lines = [{"image": "0.png", "text": "9"}, *lines[:1]]
  file.write_text("\n".join(map(json.dumps, lines)))
  (tmp_path / "0.png").write_bytes(b"junk")  # each image keeps its own prompt
  result = clip_score.score(folder, FakeClip(), said.append, str(file))
  assert result["scores"]["clip_100_cos"] == pytest.approx(100.0)
  assert (result["images"], result["skipped"]) == (1, 1)
  assert "1 unreadable left out" in said[-1]
  for text, message in [
    ('{"image": "1.png"}', "line 1: expected .* found"),
    ('{"image": "1.png", "text": "1"}\n' * 2, "line 2: 1.png has a prompt"),
    ('{"image": "3.png", "text": "3"}', r"3\.png"),
    ("", "prompts.jsonl lists no images"),
  ]:
    file.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      clip_score.score(folder, FakeClip(), said.append, str(file))


# With the extra only.


def test_clip_equals_transformers(tmp_path):
  torch, _ = tiny_torch.packages()
  model = tiny_torch.clip(tmp_path)
  clip = torch_networks.HfClip(str(tmp_path), "cpu")
  texts = ["a b", "c", "a b c a b c a b c"]
  ids = torch.tensor([[0, 2, 3, 1, 1, 1], [0, 4, 1, 1, 1, 1],
                      [0, 2, 3, 4, 2, 1]])  # fmt: skip
  images = [picture(40, 50, k) for k in range(17)]
  pixels = torch.from_numpy(
    np.stack([torch_networks.clip_pixels(x, 32) for x in images])
  )
  with torch.no_grad():
    want = model(input_ids=ids, pixel_values=pixels)
  got = clip.texts(texts), clip.images(images)
  for ours, theirs in zip(
    got, (want.text_embeds, want.image_embeds), strict=True
  ):
    ours = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_mask2former_returns_logits_at_the_images_size(tmp_path):
  torch, _ = tiny_torch.packages()
  model = tiny_torch.mask2former(tmp_path)
  network = torch_networks.Mask2Former(str(tmp_path), "cpu")
  image = picture(20, 30)
  classes, masks = network.logits(image)
  assert classes.shape == (7, 81) and masks.shape == (7, 20, 30)
  pixels, (h, w) = torch_networks.prepared(image)
  with torch.no_grad():
    out = model(pixel_values=torch.from_numpy(pixels[None]))
  np.testing.assert_allclose(classes, out.class_queries_logits[0], atol=1e-4)
  # A quarter of the padded size; cut to the image before it is shrunk.
  assert out.masks_queries_logits.shape[2:] == (800 // 4, 1216 // 4)
  whole = torch.nn.functional.interpolate(
    out.masks_queries_logits, size=(800, 1216), mode="bilinear"
  )[..., :h, :w]
  want = torch.nn.functional.interpolate(whole, size=(20, 30), mode="bilinear")
  assert want.std() > 0.01
  np.testing.assert_allclose(masks, want[0].numpy(), atol=1e-3)


def test_names_tell_weights_apart(tmp_path):
  torch, _ = tiny_torch.packages()
  names = []
  for seed in (0, 0, 1):
    tiny_torch.clip(tmp_path / "clip", seed)
    names.append(torch_networks.HfClip(str(tmp_path / "clip"), "cpu").name)
  assert names[0] == names[1] != names[2]
  assert names[0].startswith(f"CLIP {tmp_path}/clip (")
  network = torch.nn.Linear(2, 3).to(torch.bfloat16)
  before = torch_networks.digest_of(network)
  with torch.no_grad():
    network.bias[2] += 1
  assert torch_networks.digest_of(network) != before
