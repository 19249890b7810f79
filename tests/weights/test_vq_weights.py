"""VQ autoencoders under VQGAN's and LlamaGen's names.

Names and shapes below are written out from the originals' modules;
tests/parity/test_vq_parity.py runs the files against PyTorch.
"""

import dataclasses
import math

import numpy as np
import pytest

from tests.weights import helpers
from unifluid_jax.core import presets
from unifluid_jax.weights import convert, engine, readers, safetensors_file, vq
from unifluid_jax.weights.rows import WeightsError

# Parameters, less nothing: LlamaGen's statistic is no parameter.
PUBLISHED = {
  "chameleon": 68_718_467,
  "llamagen_vq16": 71_883_403,
  "llamagen_vq8": 70_109_835,
}
_LEVELS = {"taming": ("down.{}.", "up.{}."),
           "llamagen": ("conv_blocks.{}.",) * 2}  # fmt: skip


def conv(name, outputs, inputs, side=3):
  return {f"{name}.weight": (outputs, inputs, side, side),
          f"{name}.bias": (outputs,)}  # fmt: skip


def norm(name, width):
  return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def resnet(name, inputs, outputs):
  out = norm(f"{name}.norm1", inputs) | norm(f"{name}.norm2", outputs)
  out |= conv(f"{name}.conv1", outputs, inputs)
  out |= conv(f"{name}.conv2", outputs, outputs)
  if inputs != outputs:
    out |= conv(f"{name}.nin_shortcut", outputs, inputs, 1)
  return out


def attention(name, width):
  out = norm(f"{name}.norm", width)
  for layer in ("q", "k", "v", "proj_out"):
    out |= conv(f"{name}.{layer}", width, width, 1)
  return out


def mid(side, width, names):
  if names == "taming":
    first, middle, last = (f"{side}.mid.{x}" for x in
                           ("block_1", "attn_1", "block_2"))  # fmt: skip
  else:
    first, middle, last = (f"{side}.mid.{i}" for i in range(3))
  out = resnet(first, width, width) | attention(middle, width)
  return out | resnet(last, width, width)


def theirs(c, names):
  """Names and shapes of PyTorch's state dict."""
  block = "block" if names == "taming" else "res"
  widths = [c.base * m for m in c.multipliers]
  last = len(widths) - 1
  down, up = _LEVELS[names]
  out = conv("encoder.conv_in", c.base, 3)
  inputs = c.base
  for i, width in enumerate(widths):
    at = f"encoder.{down.format(i)}"
    for j in range(c.blocks):
      out |= resnet(f"{at}{block}.{j}", inputs, width)
      inputs = width
      if i == last and c.encoder_attention:
        out |= attention(f"{at}attn.{j}", width)
    if i != last:
      out |= conv(f"{at}downsample.conv", width, width)
  out |= mid("encoder", inputs, names) | norm("encoder.norm_out", inputs)
  out |= conv("encoder.conv_out", c.latent, inputs)
  out |= conv("quant_conv", c.code_channels, c.latent, 1)
  out |= {"quantize.embedding.weight": (c.codes, c.code_channels)}
  out |= conv("post_quant_conv", c.latent, c.code_channels, 1)
  out |= conv("decoder.conv_in", inputs, c.latent)
  out |= mid("decoder", inputs, names)
  for i, width in reversed(list(enumerate(widths))):
    # taming counts from the full resolution, LlamaGen from the lowest.
    at = f"decoder.{up.format(i if names == 'taming' else last - i)}"
    for j in range(c.blocks + 1):
      out |= resnet(f"{at}{block}.{j}", inputs, width)
      inputs = width
      if i == last and c.decoder_attention:
        out |= attention(f"{at}attn.{j}", width)
    if i:
      out |= conv(f"{at}upsample.conv", width, width)
  out |= norm("decoder.norm_out", inputs)
  return out | conv("decoder.conv_out", 3, inputs)


def names_of(config):
  return "llamagen" if config.normalised else "taming"


def tiny(normalised, attends=True):
  return presets.VqConfig(
    32, (1, 2), 1, 6, encoder_attention=attends, decoder_attention=attends,
    codes=7, code_channels=5, normalised=normalised,
  )  # fmt: skip


def random(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}


@pytest.mark.parametrize("name", presets.VQ)
def test_published_sizes(name):
  config = presets.VQ[name]
  shapes = theirs(config, names_of(config))
  total = sum(map(math.prod, shapes.values()))
  assert total == PUBLISHED.get(name, total)
  extra = {"loss.perceptual_loss.lin0.weight": (3,)}
  if config.normalised:
    extra = {"quantize.codebook_used": (65_536,)}
  source = helpers.Shapes(shapes | extra)
  recipe = vq.recipe(source)
  assert recipe.meta["preset"] == name and name in recipe.found
  plan = engine.make_plan(source, recipe)
  assert [n for n, _ in plan.dropped] == list(extra)
  ours = sum(math.prod(leaf.shape) for leaf in plan.leaves.values())
  assert ours == total


@pytest.mark.parametrize(
  "normalised, attends",
  [(False, False), (True, True)],
  ids=["Chameleon", "LlamaGen"],
)
def test_there_and_back_bit_by_bit(tmp_path, normalised, attends):
  config = tiny(normalised, attends)
  tensors = random(theirs(config, names_of(config)))
  path = str(tmp_path / "x.safetensors")
  layout = {name: (x.shape, x.dtype) for name, x in tensors.items()}
  safetensors_file.write(path, layout, tensors.items())
  to = str(tmp_path / "ours")
  convert.to_checkpoint(f"vq:{path}", to, lambda _: None)
  assert vq.saved_config(to, presets.VqConfig) == config
  convert.to_hugging_face(f"vq:{to}", str(tmp_path / "back"), lambda _: None)
  back = readers.open_source(str(tmp_path / "back"))
  assert sorted(back.names()) == sorted(tensors)
  for name, want in tensors.items():
    assert back.read(name).tobytes() == want.tobytes(), name


def test_levels_of_the_decoder_count_from_their_own_ends():
  for normalised, name in ((False, "up.0"), (True, "conv_blocks.1")):
    config = tiny(normalised)
    source = helpers.Tensors(random(theirs(config, names_of(config))))
    ours = helpers.in_memory(source, vq.recipe(source))
    block = "res" if normalised else "block"
    kernel = source.read(f"decoder.{name}.{block}.0.conv1.weight")
    got = ours["vq/decoder/up_1/resnet_0/conv1/kernel"]
    np.testing.assert_array_equal(got, kernel.transpose(2, 3, 1, 0))
    query = source.read("encoder.mid." + ("1" if normalised else "attn_1")
                        + ".q.weight")  # fmt: skip
    got = ours["vq/encoder/mid/attention/q/kernel"]
    np.testing.assert_array_equal(got, query[:, :, 0, 0].T)
    table = source.read("quantize.embedding.weight")
    np.testing.assert_array_equal(ours["vq/codebook/table"], table)


def test_chameleons_encoder_alone_is_no_tokenizer():
  config = dataclasses.replace(tiny(False, attends=False))
  shapes = {
    f"model.vqmodel.{name}": shape
    for name, shape in theirs(config, "taming").items()
    if "decoder" not in name
  }
  source = helpers.Shapes(shapes | {"model.embed_tokens.weight": (8, 4)})
  with pytest.raises(WeightsError, match=r"no decoder.*vqgan\.ckpt"):
    vq.recipe(source)


def test_a_decoder_that_is_missing_is_named():
  shapes = theirs(tiny(False, attends=False), "taming")
  shapes = {k: v for k, v in shapes.items() if not k.startswith("decoder")}
  source = helpers.Shapes(shapes)
  with pytest.raises(WeightsError, match=r"expected from decoder\."):
    engine.make_plan(source, vq.recipe(source))


def test_other_files_are_refused(tmp_path):
  source = readers.open_source(str(helpers.FIXTURES / "tiny_vae"))
  with pytest.raises(WeightsError, match=r"no VQ autoencoder: .*mid.block_1"):
    vq.recipe(source)
  to = str(tmp_path / "ours")
  convert.to_checkpoint(
    f"kl_vae:{helpers.FIXTURES / 'tiny_vae'}", to, lambda _: None
  )
  with pytest.raises(WeightsError, match="holds no VQ autoencoder"):
    convert.to_hugging_face(f"vq:{to}", str(tmp_path / "back"), lambda _: None)


def test_networks_that_they_cannot_hold(monkeypatch):
  config = dataclasses.replace(tiny(False), stem=2)
  monkeypatch.setattr(vq, "saved_config", lambda *_: config)
  source = helpers.Shapes({"vq/codebook/table": (7, 5)})
  with pytest.raises(WeightsError, match="stem=2 and groups=32; .*stem=1"):
    vq.hf_recipe(source)
