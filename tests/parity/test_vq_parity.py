"""VQ autoencoders against PyTorch, from files of the published forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.parity.vq_networks import Network  # noqa: E402
from tests.weights import helpers  # noqa: E402
from tests.weights.test_vq_weights import names_of, theirs  # noqa: E402
from unifluid_jax.core import presets  # noqa: E402
from unifluid_jax.models.vq import VqVae  # noqa: E402
from unifluid_jax.weights import readers, vq  # noqa: E402
from unifluid_jax.weights.rows import nested  # noqa: E402

_WIDTHS = dict(base=32, multipliers=(1, 2, 2), blocks=2, latent=16)
_ATTENDS = dict(encoder_attention=True, decoder_attention=True)
CONFIGS = {
  "chameleon": presets.VqConfig(
    **_WIDTHS, codes=64, code_channels=16, normalised=False
  ),
  "taming": presets.VqConfig(
    **_WIDTHS, **_ATTENDS, codes=64, code_channels=16, normalised=False
  ),
  "llamagen": presets.VqConfig(
    **_WIDTHS, **_ATTENDS, codes=64, code_channels=8, normalised=True
  ),
}


def state_dict(shapes, seed=0):
  """Kernels by their fan-in; norms around 1; everything else small."""
  generator = torch.Generator().manual_seed(seed)
  out = {}
  for name, shape in shapes.items():
    x = torch.randn(shape, generator=generator)
    if len(shape) == 4:
      x = x / (x[0].numel() ** 0.5)
    elif "embedding" not in name:
      x = 0.1 * x + (name.endswith("weight"))
    out[name] = x
  return out


def ours(path):
  """Codes of images and images of codes, channels first."""
  source = readers.open_source(str(path))
  recipe = vq.recipe(source)
  params = jax.tree.map(
    jnp.asarray, nested(helpers.in_memory(source, recipe))["vq"]
  )
  values = recipe.meta["vq"]
  net = VqVae(presets.VqConfig(**values))

  def run(method, x):
    with jax.default_matmul_precision("highest"):
      return net.apply({"params": params}, jnp.asarray(x), method=method)

  return run, net.config


@pytest.mark.parametrize(
  "name, key",
  [("chameleon", "state_dict"), ("taming", "state_dict"),
   ("llamagen", "model"), ("llamagen", "ema")],
)  # fmt: skip
def test_codes_and_images(tmp_path, name, key):
  config = CONFIGS[name]
  state = state_dict(theirs(config, names_of(config)))
  extra = {"loss.logvar": torch.zeros(())}
  if config.normalised:
    extra = {"quantize.codebook_used": torch.zeros(65_536)}
  path = tmp_path / "vq.ckpt"
  torch.save({key: state | extra, "epoch": 3}, path)
  run, found = ours(path)
  assert found == config
  network = Network(state, names_of(config))
  images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
  images = images * 2 - 1
  with torch.no_grad():
    codes = network.codes(images)
    want = network.decode(codes)
  got = run("encode", images.permute(0, 2, 3, 1).numpy())
  np.testing.assert_array_equal(got, codes)
  assert len(np.unique(codes)) > 8
  drawn = run("decode", codes.numpy().astype(np.int32))
  drawn = np.asarray(drawn).transpose(0, 3, 1, 2)
  assert helpers.absolute(drawn, want) < 1e-4 < want.std()


def test_chameleons_encoder_in_transformers(tmp_path):
  """Its names are VQGAN's, without a decoder, which is added here."""
  transformers = pytest.importorskip("transformers")
  config = CONFIGS["chameleon"]
  settings = transformers.ChameleonVQVAEConfig(
    embed_dim=16, num_embeddings=64, latent_channels=16, base_channels=32,
    channel_multiplier=(1, 2, 2), num_res_blocks=2, resolution=64,
  )  # fmt: skip
  model = transformers.ChameleonVQVAE(settings).eval()
  state = state_dict(theirs(config, "taming"))
  lost, extra = model.load_state_dict(state, strict=False)
  assert not lost and all(name.startswith("decoder.") for name in extra)
  torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
  run, _ = ours(tmp_path / "vqgan.ckpt")
  images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
  images = images * 2 - 1
  with torch.no_grad():
    want = model.encode(images, return_dict=True).image_tokens
  got = run("encode", images.permute(0, 2, 3, 1).numpy())
  np.testing.assert_array_equal(got.reshape(-1), want.reshape(-1))
