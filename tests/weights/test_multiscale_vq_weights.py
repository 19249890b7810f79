"""The multi-scale VQ autoencoder under VAR's names.

tests/parity/test_multiscale_vq_parity.py runs such a file against PyTorch.
"""

import dataclasses
import math

import numpy as np
import pytest

from tests.weights import helpers
from tests.weights.test_vq_weights import conv, random
from tests.weights.test_vq_weights import theirs as of_vqgan
from unifluid_jax.core import presets
from unifluid_jax.weights import (
  convert,
  engine,
  multiscale_vq,
  readers,
  safetensors_file,
  vq,
)
from unifluid_jax.weights.rows import WeightsError

TINY = presets.MultiscaleVqConfig(
  32, (1, 2), 1, 6, encoder_attention=True, decoder_attention=True,
  codes=7, code_channels=5, scales=presets.MULTISCALE_VQ["var_f16"].scales,
  phi=3,
)  # fmt: skip
STATISTIC = "quantize.ema_vocab_hit_SV"


def theirs(c):
  """Names and shapes of PyTorch's state dict: VQGAN's, but for what follows."""
  out = {}
  for name, shape in of_vqgan(c, "taming").items():
    *stem, part, leaf = name.split(".")
    if part in ("k", "v"):
      continue
    if part == "q":
      name = ".".join([*stem, "qkv", leaf])
      shape = (3 * shape[0], *shape[1:])
    out[name] = shape
  out |= conv("quant_conv", c.code_channels, c.latent)
  out |= conv("post_quant_conv", c.latent, c.code_channels)
  for i in range(c.phi):
    at = f"quantize.quant_resi.qresi_ls.{i}"
    out |= conv(at, c.code_channels, c.code_channels)
  return out


def test_the_published_file():
  config = presets.MULTISCALE_VQ["var_f16"]
  layout = theirs(config)
  assert sum(map(math.prod, layout.values())) == 108_948_355
  assert len(layout) + 1 == 324
  assert layout["encoder.down.4.attn.1.qkv.weight"] == (1920, 640, 1, 1)
  file = helpers.Shapes(layout | {STATISTIC: (10, 4096)})
  source = multiscale_vq.Separate(file)
  recipe = multiscale_vq.recipe(source)
  assert recipe.meta["preset"] == "var_f16" and "var_f16" in recipe.found
  plan = engine.make_plan(source, recipe)
  assert [name for name, _ in plan.dropped] == [STATISTIC]
  ours = sum(math.prod(leaf.shape) for leaf in plan.leaves.values())
  assert ours == 108_948_355


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
  root = tmp_path_factory.mktemp("var")
  tensors = random(theirs(TINY))
  path = str(root / "x.safetensors")
  whole = tensors | {STATISTIC: np.ones((10, 7), np.float32)}
  layout = {name: (x.shape, x.dtype) for name, x in whole.items()}
  safetensors_file.write(path, layout, whole.items())
  convert.to_checkpoint(f"var_vq:{path}", str(root / "ours"), lambda _: None)
  return root, path, tensors


def test_there_and_back_bit_by_bit(converted):
  root, _, tensors = converted
  ours, back = str(root / "ours"), str(root / "back")
  assert vq.saved_config(ours, presets.MultiscaleVqConfig) == TINY
  convert.to_hugging_face(f"var_vq:{ours}", back, lambda _: None)
  source = readers.open_source(back)
  assert sorted(source.names()) == sorted(tensors)
  for name, want in tensors.items():
    assert source.read(name).tobytes() == want.tobytes(), name


def test_queries_keys_and_values_are_thirds_and_convolutions_are_stacked(
  converted,
):
  _, path, tensors = converted
  source = multiscale_vq.Separate(readers.open_source(path))
  ours = helpers.in_memory(source, multiscale_vq.recipe(source))
  whole = tensors["decoder.up.1.attn.1.qkv.weight"][:, :, 0, 0]
  for i, part in enumerate("qkv"):
    got = ours[f"vq/decoder/up_0/attention_1/{part}/kernel"]
    np.testing.assert_array_equal(got, whole[64 * i : 64 * (i + 1)].T)
  for i in range(3):
    at = f"quantize.quant_resi.qresi_ls.{i}"
    got = ours["vq/phi/kernels"][i]
    want = tensors[f"{at}.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(ours["vq/phi/biases"][i],
                                  tensors[f"{at}.bias"])  # fmt: skip


def test_other_kinds_name_each_other(converted, tmp_path):
  root, path, _ = converted
  to = str(tmp_path / "x")
  for call, spec, message in (
    (convert.to_checkpoint, f"vq:{path}", "multi-scale .* name it var_vq"),
    (convert.to_hugging_face, f"vq:{root / 'ours'}", "name it var_vq"),
    (
      convert.to_checkpoint,
      f"var_vq:{helpers.FIXTURES / 'tiny_vae'}",
      r"no multi-scale VQ autoencoder: .*qresi_ls\.0\.weight",
    ),
  ):
    with pytest.raises(WeightsError, match=message):
      call(spec, to, lambda _: None)


def test_a_missing_convolution_is_named(converted):
  tensors = dict(converted[2])
  del tensors["quantize.quant_resi.qresi_ls.1.bias"]
  source = multiscale_vq.Separate(helpers.Tensors(tensors))
  with pytest.raises(WeightsError, match=r"qresi_ls\.1\.bias: missing"):
    engine.make_plan(source, multiscale_vq.recipe(source))


@pytest.mark.parametrize(
  "changes, message",
  [({"stem": 2}, "stem=2, groups=32"), ({"phi": 0}, "phi=0")],
)
def test_networks_that_the_names_cannot_hold(monkeypatch, changes, message):
  config = dataclasses.replace(TINY, **changes)
  monkeypatch.setattr(vq, "saved_config", lambda *_: config)
  source = helpers.Shapes({"vq/phi/kernels": (3, 3, 3, 5, 5)})
  with pytest.raises(WeightsError, match=message):
    multiscale_vq.hf_recipe(source)
