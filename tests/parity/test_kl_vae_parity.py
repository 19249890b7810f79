"""Autoencoders against diffusers, which also writes the files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.weights import helpers  # noqa: E402
from tests.weights.make_fixtures_vision import (  # noqa: E402
  compvis_names,
  randomized,
)
from unifluid_jax.core import presets  # noqa: E402
from unifluid_jax.models.kl_vae import KlVae  # noqa: E402
from unifluid_jax.weights import convert, kl_vae, readers  # noqa: E402

DOWN, ATTENTION = "DownEncoderBlock2D", "AttnDownEncoderBlock2D"
# Widths, blocks a level, latent channels, groups, type of the last level.
SHAPES = {
  "f8, as Stable Diffusion": ((32, 64, 128, 128), 2, 4, 32, DOWN),
  "f16, as MAR's KL-16": ((32, 32, 64, 64, 128), 2, 16, 32, ATTENTION),
  "f2": ((8, 16), 1, 3, 4, DOWN),
}


def make(name):
  widths, blocks, latent, groups, last = SHAPES[name]
  levels = len(widths)
  return randomized(
    diffusers.AutoencoderKL(
      block_out_channels=widths,
      down_block_types=(DOWN,) * (levels - 1) + (last,),
      up_block_types=("UpDecoderBlock2D",) * levels,
      layers_per_block=blocks,
      latent_channels=latent,
      norm_num_groups=groups,
    )
  )


def ours(params, meta):
  """Our encode and decode on channels-first arrays."""
  vae = {**meta["vae"], "multipliers": tuple(meta["vae"]["multipliers"])}
  net = KlVae(presets.VaeConfig(**vae))

  def run(method, x):
    apply = jax.jit(functools.partial(net.apply, method=method))
    with jax.default_matmul_precision("highest"):
      x = apply({"params": params}, jnp.asarray(x.permute(0, 2, 3, 1).numpy()))
    return np.asarray(x).transpose(0, 3, 1, 2)

  return run


@pytest.mark.parametrize("size", [(64, 64), (32, 80)])
@pytest.mark.parametrize("name", SHAPES)
def test_moments_and_decoded_images(tmp_path, name, size):
  theirs = make(name)
  theirs.save_pretrained(tmp_path / "hf")
  params, meta = helpers.convert(
    tmp_path / "hf", kl_vae.recipe, tmp_path / "ours"
  )
  run = ours(params["vae"], meta)
  torch.manual_seed(0)
  images = torch.rand(2, 3, *size) * 2 - 1
  with torch.no_grad():
    posterior = theirs.encode(images).latent_dist
    want = theirs.decode(posterior.mean).sample
  moments = torch.cat([posterior.mean, posterior.logvar], 1)
  assert moments.std() > 0.1 and want.std() > 0.1
  assert helpers.absolute(run("encode", images), moments) < 5e-5
  assert helpers.absolute(run("decode", posterior.mean), want) < 5e-5


def test_log_variance_is_clipped_on_both_sides(tmp_path):
  theirs = make("f2")
  with torch.no_grad():
    theirs.quant_conv.bias[3:] = torch.tensor([-100.0, 100.0, 0.0])
  theirs.save_pretrained(tmp_path / "hf")
  params, meta = helpers.convert(
    tmp_path / "hf", kl_vae.recipe, tmp_path / "ours"
  )
  images = torch.zeros(1, 3, 8, 8)
  with torch.no_grad():
    want = theirs.encode(images).latent_dist.logvar
  got = ours(params["vae"], meta)("encode", images)[:, 3:]
  assert want.min() == -30 and want.max() == 20
  assert helpers.absolute(got, want) < 5e-5


@pytest.mark.parametrize("form", ["zip", "legacy", "half"])
def test_compvis_files_give_the_same_arrays(tmp_path, form):
  """torch.save of either kind; bfloat16 stays bfloat16."""
  theirs = make("f8, as Stable Diffusion")
  if form == "half":
    theirs = theirs.bfloat16()
  theirs.save_pretrained(tmp_path)
  torch.save(
    {"model": compvis_names(theirs.state_dict(), 4)},
    tmp_path / "vae.ckpt",
    _use_new_zipfile_serialization=form != "legacy",
  )
  trees = []
  for path in (tmp_path / "vae.ckpt", tmp_path):
    source = readers.open_source(str(path))
    trees.append(helpers.in_memory(source, kl_vae.recipe(source)))
  assert trees[0].keys() == trees[1].keys()
  for path, x in trees[1].items():
    assert x.dtype == trees[0][path].dtype
    np.testing.assert_array_equal(trees[0][path], x, path)


def test_diffusers_reads_what_we_write(tmp_path):
  theirs = make("f2")
  theirs.save_pretrained(tmp_path / "hf")
  convert.to_checkpoint(
    f"kl_vae:{tmp_path / 'hf'}", str(tmp_path / "ours"), lambda _: None
  )
  convert.to_hugging_face(
    f"kl_vae:{tmp_path / 'ours'}", str(tmp_path / "back"), lambda _: None
  )
  again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "back")
  want = theirs.state_dict()
  assert again.state_dict().keys() == want.keys()
  for name, x in again.state_dict().items():
    assert torch.equal(x, want[name]), name
  assert again.config.scaling_factor == theirs.config.scaling_factor
