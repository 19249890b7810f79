"""Parts that we write, loaded by transformers with their config.json alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.weights import helpers, references  # noqa: E402
from tests.weights.test_gemma_settings import DECODERS  # noqa: E402
from unifluid_jax.core import checkpoint  # noqa: E402
from unifluid_jax.core.presets import VaeConfig, VitConfig  # noqa: E402
from unifluid_jax.models.kl_vae import KlVae  # noqa: E402
from unifluid_jax.weights import (  # noqa: E402
  convert,
  gemma,
  gemma_settings,
  hf_parts,
  siglip,
  to_hf,
)
from unifluid_jax.weights.rows import nested  # noqa: E402


def arrays(shapes):
  """Random parameters, none of them zero or one."""
  rng = np.random.default_rng(0)
  return nested({
    path: jnp.float32(0.3 * rng.normal(size=shape))
    for path, shape in shapes.items()
  })  # fmt: skip


def loaded(model, place):
  """Their model, of whose weights none is missing and none left over."""
  found, info = model.from_pretrained(place, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  return found.eval()


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_gemma(tmp_path, generation):
  config = DECODERS[generation]
  params = arrays(gemma.like(config))
  source = hf_parts.Arrays("nowhere", params)
  recipe = gemma.hf_recipe(source)
  assert not recipe.files  # nobody has written its settings down
  recipe.files["config.json"] = gemma_settings.write(config)
  to_hf.write(str(tmp_path / "x"), "model", source, recipe)
  model = loaded(transformers.AutoModelForCausalLM, tmp_path / "x")
  tokens = references.tokens(2, 10)
  with torch.no_grad():
    want = model(torch.tensor(tokens)).logits
  _, got = helpers.run_gemma(config, params["decoder"], tokens)
  assert helpers.absolute(got, want) < 1e-4


def test_siglip(tmp_path):
  config = VitConfig(width=24, depth=2, mlp=32, heads=3, patch=4, image_size=12)
  params = arrays(siglip.like(config))
  source = hf_parts.Arrays("nowhere", params)
  to_hf.write(str(tmp_path / "x"), "model", source, siglip.hf_recipe(source))
  model = loaded(transformers.SiglipVisionModel, tmp_path / "x")
  shape = (2, 12, 12, 3)
  images = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
  with torch.no_grad():
    want = model(torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state
  meta = {"vit": dataclasses.asdict(config)}
  got = helpers.run_vit(meta, params["vit"], images)
  assert helpers.relative(got, want) < 2e-5


def test_autoencoder(tmp_path):
  """The codec of an exported run, as `export --hf` writes it."""
  diffusers = pytest.importorskip("diffusers")
  from tests.parity.test_kl_vae_parity import make

  make("f2").save_pretrained(tmp_path / "hf")
  convert.to_checkpoint(
    f"kl_vae:{tmp_path / 'hf'}", str(tmp_path / "vae"), lambda _: None
  )
  step = checkpoint.latest_step(str(tmp_path / "vae"))
  meta = checkpoint.read_meta(str(tmp_path / "vae"), step)["weights"]["vae"]
  config = VaeConfig(**meta | {"multipliers": tuple(meta["multipliers"])})
  net = KlVae(config)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  like = {"vae": shapes["params"]}
  codec = checkpoint.restore_part(str(tmp_path / "vae"), step, "params", like)
  parts, others = hf_parts.plan(
    None, {}, codec | {"latent_mean": jnp.float32(0.1)}, "run",
    str(tmp_path / "vae"),
  )  # fmt: skip
  assert list(parts) == ["vae"] and not others
  hf_parts.write(tmp_path / "out", parts["vae"])
  theirs = loaded(diffusers.AutoencoderKL, tmp_path / "out")
  z = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
  with torch.no_grad():
    want = theirs.decode(torch.tensor(z.transpose(0, 3, 1, 2))).sample
  variables = {"params": codec["vae"]}
  got = net.apply(variables, jnp.asarray(z), method="decode")
  assert helpers.absolute(got.transpose(0, 3, 1, 2), want) < 5e-5
